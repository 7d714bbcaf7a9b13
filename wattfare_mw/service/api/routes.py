"""The routes of the protocol: each reads who asks and for what, decides by the rules, answers."""

from __future__ import annotations

import time

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ... import money
from ...errors import WattfareError, invalid_request
from ...money import Usd
from ...receiving import UntilDisconnect
from ...types import API_PREFIX as PREFIX
from ...types import (
    LOWERED_HEADER,
    ConnectionStatus,
    GrantResult,
    SessionRequest,
    check_user_id,
    encode,
)
from .. import keys
from ..chat import request as chat
from ..inference.runner import Calls, taken_back
from ..keys import App
from ..ledger import rules
from ..ledger.rules import Grant, Terms
from ..ledger.store import Store
from ..metrics import CONTENT_TYPE
from ..models.provider import Job, Provider
from ..records import Order
from ..tokens import Session, Signer
from . import credentials as identity
from .framing import (
    MAX_CALL_BYTES,
    ASGIOut,
    Fields,
    fields_of,
    fresh_id,
    json_response,
    read_body,
    read_json,
)
from .rates import Throttle

#: Those that a browser calls from an app's page.
CORS_PATHS = frozenset({f"{PREFIX}/connections", f"{PREFIX}/grants"})

_LOWERED = LOWERED_HEADER.encode()
#: The most requests that one grant may hold.
MAX_GRANT_REQUESTS = 1000
#: How long a grant is good for, in seconds.
GRANT_SECONDS = 24 * 3600


class _NewSession(SessionRequest, frozen=True):
    app_user_id: str = ""


class _Approval(msgspec.Struct, rename="camel", frozen=True):
    monthly_usd: Usd | UnsetType | None = UNSET


class _NewGrant(msgspec.Struct, rename="camel", frozen=True):
    requests: int
    max_usd: Usd | None = None


class Service(msgspec.Struct, frozen=True):
    """What the routes stand on."""

    store: Store
    signer: Signer
    provider: Provider
    throttle: Throttle
    calls: Calls
    terms: Terms

    def __repr__(self) -> str:
        return "Service()"


async def create_session(request: Request) -> Response:
    """``POST /sessions``: a token for one user's browser."""
    service = _service(request)
    app = await identity.app_by_secret_key(fields_of(request.scope), service.store)
    asked = await read_json(request, _NewSession)
    user_id = check_user_id(asked.app_user_id)
    await service.throttle.session(app.id, user_id)
    limit = asked.request_limit.monthly_usd if asked.request_limit else None
    session = Session(app.id, user_id, money.cap_nanos(limit))
    return json_response(encode(service.signer.mint(session)))


async def status(request: Request) -> Response:
    """``GET /status``: a user's connection, as the app's backend sees it."""
    service = _service(request)
    app = await identity.app_by_secret_key(fields_of(request.scope), service.store)
    return await _status(service, app.id, identity.user_in_query(request.scope["query_string"]))


async def models(request: Request) -> Response:
    """``GET /models``: what can be called."""
    service = _service(request)
    await identity.app_by_secret_key(fields_of(request.scope), service.store)
    return json_response(await service.provider.models())


async def read_connection(request: Request) -> Response:
    """``GET /connections``: a user's own connection."""
    service = _service(request)
    session, _ = await _session(request, service)
    return await _status(service, session.app_id, session.user_id)


async def approve_connection(request: Request) -> Response:
    """``POST /connections``: connect a budget, or change its cap."""
    service = _service(request)
    session, app = await _session(request, service)
    if app.mode != "test":
        raise invalid_request(
            "A live app's connection is approved on the service's own consent page, "
            "not by the app's token.",
            403,
        )
    approval = await _read_approval(request)
    asked = approval.monthly_usd
    cap = rules.cap_to_approve(
        UNSET if asked is UNSET else money.cap_nanos(asked), session.limit, service.terms
    )
    await service.store.connect(session.app_id, session.user_id, cap)
    return await _status(service, session.app_id, session.user_id)


async def revoke_connection(request: Request) -> Response:
    """``DELETE /connections``: take it back; calls in flight are cut off."""
    service = _service(request)
    session, _ = await _session(request, service)
    await service.store.revoke(session.app_id, session.user_id)
    # What is reserved after this is refused; what was before it is in flight, and ends here.
    service.calls.cut_off(
        taken_back(),
        lambda order: (order.app_id, order.user_id) == (session.app_id, session.user_id),
    )
    return Response(status_code=204)


async def create_grant(request: Request) -> Response:
    """``POST /grants``: a one-time grant, for a test app without asking anyone."""
    service = _service(request)
    app = await identity.app_by_publishable_key(fields_of(request.scope), service.store)
    if app.mode != "test":
        _own_origin_only(request)
        raise invalid_request(
            "A live app's grants are approved on the service's own consent page.", 403
        )
    asked = await read_json(request, _NewGrant)
    if not 1 <= asked.requests <= MAX_GRANT_REQUESTS:
        raise invalid_request(f"`requests` is a whole number from 1 to {MAX_GRANT_REQUESTS:,}.")
    cap = money.cap_nanos(asked.max_usd)
    await service.throttle.grant(app.id)
    token = keys.new_grant_token()
    now = int(time.time())
    expires_at = now + GRANT_SECONDS
    grant = Grant(asked.requests, service.terms.grant_default if cap is None else cap, expires_at)
    await service.store.add_grant(app.id, keys.digest(token), grant, service.terms, now)
    return json_response(encode(GrantResult(token, expires_at, asked.requests)))


class ChatCompletions:
    """``POST /chat/completions``: a call, billed to a user or a grant."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI, to hear when the client goes away."""
        service: Service = scope["app"].state.service
        fields = fields_of(scope)
        app = await identity.app_by_secret_key(fields, service.store)
        user_id, grant_hash = _payer(fields)
        uncut = identity.refuses_low_budget(fields)
        body = await read_body(fields, receive, MAX_CALL_BYTES)
        call = chat.read(body, uncut=uncut)
        key = identity.idempotency_key(fields, body)
        request_id = scope["wattfare.request_id"]

        async with UntilDisconnect(receive) as client:
            client.watch()
            job = await service.provider.prepare(call, request_id)
            order = Order(
                id=fresh_id(),
                app_id=app.id,
                user_id=user_id,
                grant_hash=grant_hash,
                model=call.model,
                bounds=job.bounds,
                request_id=request_id,
                stream=call.stream,
                key=key,
            )
            await service.calls.run(order, job, ASGIOut(send, lambda: _told_by(job)))


def _told_by(job: Job) -> tuple[tuple[bytes, bytes], ...]:
    return () if job.lowered is None else ((_LOWERED, b"%d" % job.lowered),)


async def health(request: Request) -> Response:
    """``GET /healthz``: is the service up, with its database?"""
    await _service(request).store.app_by_id("")
    return json_response(b'{"status":"ok"}')


async def metrics(request: Request) -> Response:
    """``GET /metrics``: for Prometheus, where the operator has asked for it."""
    counters = _service(request).provider.counters
    return Response(counters.text(), media_type=CONTENT_TYPE)


#: The path that is called all the time; the rest is for now and then.
COMPLETIONS = f"{PREFIX}/chat/completions"


def routes(*, with_metrics: bool = False) -> list[Route]:
    """Every path that there is."""
    connections = f"{PREFIX}/connections"
    return [
        Route(f"{PREFIX}/sessions", create_session, methods=["POST"]),
        Route(f"{PREFIX}/status", status, methods=["GET"]),
        Route(f"{PREFIX}/models", models, methods=["GET"]),
        Route(COMPLETIONS, ChatCompletions(), methods=["POST"]),
        Route(connections, _connections, methods=["GET", "POST", "DELETE"]),
        Route(f"{PREFIX}/grants", create_grant, methods=["POST"]),
        Route("/healthz", health, methods=["GET"]),
        *([Route("/metrics", metrics, methods=["GET"])] if with_metrics else []),
    ]


async def _connections(request: Request) -> Response:
    # One route, so that a wrong method is told of all that are right.
    handlers = {"POST": approve_connection, "DELETE": revoke_connection}
    return await handlers.get(request.method, read_connection)(request)


def _service(request: Request) -> Service:
    return request.app.state.service


def _payer(fields: Fields) -> tuple[str | None, str | None]:
    user_id = identity.user_in_header(fields)
    grant = identity.grant_in_header(fields)
    if (user_id is None) == (grant is None):
        raise invalid_request("Say who pays, by one of X-Wattfare-User and X-Wattfare-Grant.")
    return user_id, None if grant is None else keys.digest(grant)


async def _session(request: Request, service: Service) -> tuple[Session, App]:
    session, app = await identity.session_of(
        fields_of(request.scope), service.signer, service.store
    )
    if app.mode != "test":
        _own_origin_only(request)
    return session, app


def _own_origin_only(request: Request) -> None:
    request.scope["wattfare.any_origin"] = False


async def _read_approval(request: Request) -> _Approval:
    fields = fields_of(request.scope)
    if fields.first(b"content-length") in (None, "0") and b"transfer-encoding" not in fields:
        return _Approval()  # nothing was asked, so nothing need be said
    return await read_json(request, _Approval)


async def _status(service: Service, app_id: str, user_id: str) -> Response:
    connection, totals = await service.store.account(app_id, user_id)
    answer: ConnectionStatus = rules.status(connection, totals, service.terms)
    return json_response(encode(answer))


def shutting_down() -> WattfareError:
    """What the client of a call is told that the service cannot finish."""
    return WattfareError(
        "The service is shutting down: try again.", code="upstream", status=503, retry_after=1
    )
