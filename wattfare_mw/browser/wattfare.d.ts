/** Amounts are in USD. */
export interface ConnectionStatus {
  connected: boolean;
  /** The caps in force; `null` if no budget is connected. `monthlyUsd: null` means no cap. */
  limits: { monthlyUsd: number | null } | null;
  /** The amount billed in this UTC month. */
  usage: { monthlyUsd: number };
  /** The rest of the cap; `null` if there is no cap; 0 if no budget is connected. */
  remainingUsd: number | null;
}

export interface GrantResult {
  grantToken: string;
  /** Unix seconds. */
  expiresAt: number;
  requests: number;
}

export interface Session {
  token: string;
  /** Unix seconds. */
  expiresAt?: number;
}

export interface WattfareOptions {
  publishableKey: string;
  /**
   * The path of the app's token route, which answers a POST with `{token}`; or a function that
   * returns a token or `{token}`; or a token.
   */
  session: string | (() => Session | string | Promise<Session | string>);
  /** The service's address. Default: `https://wattfare.com`. */
  baseURL?: string;
  /** The URL of your own approval page. The approval's id is appended. Default: the service's. */
  consentURL?: string;
  /**
   * The page of this origin to which a popup returns. It loads this module. Default: the page
   * `wattfare-return` next to the module, or this page if the module is on another origin.
   */
  returnURL?: string | URL;
}

export type WattfareState = "connect" | "connected" | "low" | "used_up" | "reconnect";

export type WattfareErrorCode =
  | "not_connected"
  | "budget_exceeded"
  | "funding_invalid"
  | "grant_invalid"
  | "rate_limited"
  | "auth"
  | "network"
  | "invalid_request"
  | "upstream"
  | "unknown"
  | "popup_blocked";

export class WattfareError extends Error {
  constructor(code: WattfareErrorCode, message: string, fields?: object);
  readonly code: WattfareErrorCode;
  /** The HTTP status; 0 if there was no answer. */
  readonly status: number;
  /** The service's page on which a person changes their budgets. */
  readonly manageUrl?: string;
}

export interface ApprovalOptions {
  /** `"popup"` (the default) needs a click. `"redirect"` leaves this page and comes back to it. */
  mode?: "popup" | "redirect";
}

export interface Wattfare {
  /**
   * Asks the person for a budget, and resolves to the status afterwards. If the person denies, or
   * closes the window, there is no error: the status has `connected: false`, or the previous budget.
   *
   * @throws {WattfareError} `popup_blocked`, and the errors of the service.
   */
  connect(options?: ApprovalOptions): Promise<ConnectionStatus>;
  status(): Promise<ConnectionStatus>;
  /** Ends the connection and its calls in flight. */
  disconnect(): Promise<void>;
  /** Asks for a one-time grant; `null` if the person denies or closes the window. */
  requestGrant(
    grant: { requests: number; maxUsd?: number },
    options?: ApprovalOptions,
  ): Promise<GrantResult | null>;
  /** Calls the browser's `fetch`. When the answer has ended, the elements refresh. */
  fetch(input: RequestInfo | URL, init?: RequestInit): Promise<Response>;
  /** The result of a redirect that ended on this page; `null` if there was none. */
  readonly returned: Promise<ConnectionStatus | GrantResult | null>;
  /** The status that the elements show; `undefined` until it is known. */
  readonly state: WattfareState | undefined;
  /** The service's page for budgets, from the last error. */
  readonly manageUrl: string | undefined;
  /** Calls `watcher` with each new status or error. Returns a function that stops this. */
  watch(
    watcher: (status: ConnectionStatus | undefined, error?: WattfareError) => void,
  ): () => void;
}

export function createWattfare(options: WattfareOptions): Wattfare;

/** The state that the elements show for a status. */
export function stateOf(status: ConnectionStatus): WattfareState;

/** The texts of the elements. Change them before the elements are shown. */
export const labels: Record<
  | WattfareState | "none" | "spent" | "left" | "unlimited" | "change" | "stop", string
>;

/** `<wattfare-button>` and `<wattfare-budget>`. */
export interface WattfareElement extends HTMLElement {
  /** The client. Default: from the element's attributes, or the last client of this page. */
  wattfare: Wattfare | undefined;
}

declare global {
  interface HTMLElementTagNameMap {
    "wattfare-button": WattfareElement;
    "wattfare-budget": WattfareElement;
  }
  interface WindowEventMap {
    "wattfare:refresh": Event;
  }
  interface GlobalEventHandlersEventMap {
    "wattfare:status": CustomEvent<ConnectionStatus>;
    "wattfare:error": CustomEvent<WattfareError>;
  }
}
