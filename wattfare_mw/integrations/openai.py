"""The openai package: the clients that ``user.openai()`` and ``user.async_openai()`` return.

These clients are subclasses of the openai package's clients. They differ in five ways: Each request
gets its payer from the handle. All users of a Wattfare client share its connections. A failed call
is repeated only if it cannot have been billed. Each error is also a
:class:`~wattfare_mw.WattfareError`. The request in an error has no credentials.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self

from ..calls import Payer
from ..errors import (
    SetupError,
    WattfareError,
    WattfareNetworkError,
    WattfareRateLimitError,
    error_from_answer,
    forget_frames,
)
from ..retries import retry_delay
from ..sse import error_in
from ..transport import running_loop
from ..transport.base import LibraryError
from ..transport.environment import ssl_context
from ..types import API_PREFIX, GRANT_HEADER, USER_HEADER
from . import not_installed
from .joined import join

try:
    import openai
except ImportError as _error:
    raise not_installed(_error, "openai", "openai") from None

if not hasattr(openai.OpenAI, "_send_request"):
    raise ImportError(
        f"openai {openai.__version__} is too old. Type: pip install 'wattfare-mw[openai]'",
        name="openai",
    )

#: The options that an app may set. The others depend on the user and the service.
OPTIONS = frozenset({"timeout", "max_retries", "default_headers", "default_query", "http_client"})
#: The headers that identify the app and the payer.
_CREDENTIALS = ("authorization", USER_HEADER, GRANT_HEADER)
#: The names of httpx's and httpx2's errors after which the service cannot have received anything.
#: openai uses one of the two libraries, depending on its version.
_NEVER_MADE = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
)
#: A placeholder for values that are set in each request.
_LATER = "known-later"

Join = Callable[[WattfareError, openai.APIError], Exception]
"""A function that combines our own error and the openai package's error."""


class PaidBy(Protocol):
    """The payer of a handle, and its Wattfare client."""

    @property
    def client(self) -> Any: ...
    def pays(self) -> Payer: ...
    async def pays_async(self) -> Payer: ...


def sync_client(paid_by: PaidBy, options: dict[str, Any], join: Join = join) -> WattfareOpenAI:
    """Create a client. ``paid_by`` pays for its calls.

    Raises:
        TypeError: an option is not supported.
    """
    return WattfareOpenAI(**_made_with(paid_by, options), _paid_by=paid_by, _join=join)


def async_client(
    paid_by: PaidBy, options: dict[str, Any], join: Join = join
) -> AsyncWattfareOpenAI:
    """:func:`sync_client`, for asyncio."""
    return AsyncWattfareOpenAI(**_made_with(paid_by, options), _paid_by=paid_by, _join=join)


def http_client() -> Any:
    """An HTTP client of the openai package's default kind, without cookies."""
    return _without_cookies(openai.DefaultHttpxClient)


def async_http_client() -> Any:
    """:func:`http_client`, for one event loop."""
    return _without_cookies(openai.DefaultAsyncHttpxClient)


def _without_cookies(kind: Any) -> Any:
    certificates = ssl_context()  # read once: it takes as long as all the rest
    http_client, reason = None, ""
    try:
        http_client = kind(verify=certificates)
    except Exception as error:
        forget_frames(error)  # the frames have the password of a proxy
        reason = type(error).__name__
    if http_client is None:
        raise SetupError(
            f"The openai package cannot be used with this environment ({reason}). Give each proxy"
            " as http://host:port in HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, or unset them."
        )
    http_client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
    return http_client


#: A placeholder. A new openai client requires an HTTP client, but the shared one may not exist yet,
#: because it needs an event loop or a current request.
_unused = cache(http_client)
_unused_async = cache(async_http_client)


def _checked(options: dict[str, Any]) -> None:
    for name in options:
        if name not in OPTIONS:
            raise TypeError(
                f"{name} cannot be set, because it depends on the user and the service. The"
                f" options are {', '.join(sorted(OPTIONS))}."
            )


def _made_with(paid_by: PaidBy, options: dict[str, Any]) -> dict[str, Any]:
    _checked(options)
    try:
        caller = paid_by.client.openai.caller
    except WattfareError:  # `current_user` outside of a request
        return {"api_key": _LATER, "base_url": f"http://{_LATER}{API_PREFIX}", **options}
    return {
        "api_key": caller.secret_key,
        "base_url": caller.base_url + API_PREFIX,
        "timeout": openai.Timeout(caller.timeout.inference, connect=caller.timeout.connect),
        "max_retries": caller.max_retries,
        **options,
    }


class _Shared:
    """The base of both clients."""

    if TYPE_CHECKING:
        _base_url: Any
        organization: str | None
        project: str | None
        admin_api_key: str | None
        webhook_secret: str | None
        _custom_headers: Any

    #: Returns the HTTP client for a new openai client.
    _placeholder: Callable[[], Any]
    _own_http_client: Any = None

    def __init__(self, *, _paid_by: PaidBy, _join: Join, **options: Any) -> None:
        self._paid_by, self._join = _paid_by, _join
        own = options.pop("http_client", None)
        parent: Any = super()
        parent.__init__(**options, http_client=own or self._placeholder())
        self._own_http_client = own
        self._forget_environment(options)

    def _forget_environment(self, options: dict[str, Any]) -> None:
        """Ignore OpenAI's environment variables."""
        self.organization = self.project = None
        self.admin_api_key = self.webhook_secret = None
        self._custom_headers = options.get("default_headers") or {}

    @property
    def _connections(self) -> Any:
        return self._paid_by.client.openai

    @property
    def auth_headers(self) -> dict[str, str]:
        """Empty. A request gets the secret key only when it is sent, because a WebSocket would log
        these headers."""
        return {"Authorization": f"Bearer {_LATER}"}

    @property
    def _bearer_auth(self) -> dict[str, str]:
        return self.auth_headers

    @property
    def base_url(self) -> Any:
        """The service's address."""
        try:
            url = self._connections.caller.base_url + API_PREFIX + "/"
        except WattfareError:
            return self._base_url
        known = self._base_url
        return known if str(known) == url else type(known)(url)

    def copy(self, **options: Any) -> Any:
        """See ``openai.OpenAI.copy``. The copy has the same user and the same connections."""
        own = options.pop("http_client", None)
        extra = options.pop("_extra_kwargs", {})
        _checked(options)
        if own is None or own is self._shared_http_client():
            own = self._own_http_client
        parent: Any = super()
        copied: Any = parent.copy(
            **options,
            http_client=own or self._placeholder(),
            _extra_kwargs={**extra, "_paid_by": self._paid_by, "_join": self._join},
        )
        copied._own_http_client = own
        return copied

    with_options = copy

    @property
    def _client(self) -> Any:
        return self._own_http_client or self._shared_http_client()

    @_client.setter
    def _client(self, value: Any) -> None:
        self._own_http_client = value

    def _shared_http_client(self) -> Any:
        raise NotImplementedError

    def is_closed(self) -> bool:
        """Always False: ``close()`` does nothing."""
        return False

    def _is_from(self, payer: Payer, request: Any) -> None:
        """Add the credentials of the app and the payer to a request."""
        for name in _CREDENTIALS:
            request.headers.pop(name, None)
        request.headers["authorization"] = f"Bearer {self._connections.caller.secret_key}"
        request.headers[payer.header] = payer.value

    def _should_retry(self, response: Any) -> bool:
        failure = error_from_answer(response.status_code, b"", response.headers)
        repeatable = response.request.method == "GET"
        # A call that was refused with a 429 has not begun, so it is not billed.
        repeatable = repeatable or isinstance(failure, WattfareRateLimitError)
        return retry_delay(failure, 0, repeatable=repeatable) is not None

    def _make_status_error(self, err_msg: str, *, body: object, response: Any) -> Any:
        raw = b"" if body is None else response.content
        if (key := self._connections.caller.secret_key).encode() in raw:
            # The response may repeat the refused key.
            raw, err_msg = raw.replace(key.encode(), "…".encode()), err_msg.replace(key, "…")
            body = _json(raw)
        error: Any = super()._make_status_error(err_msg, body=body, response=response)  # type: ignore[misc]
        ours = error_from_answer(response.status_code, raw, response.headers)
        return self._join(ours, error)  # pyright: ignore[reportUnknownArgumentType]

    def _make_sse_decoder(self) -> Any:
        return _Events(super()._make_sse_decoder(), self._join)  # type: ignore[misc]

    def _followed(self, result: Any) -> Any:
        """Give the response to the reader of its events."""
        events = getattr(result, "_decoder", None)
        if isinstance(events, _Events):
            events.response = result.response
        return result

    def _unreached(self, error: openai.APIConnectionError) -> Exception:
        cause = error.__cause__
        sent = _names(cause).isdisjoint(_NEVER_MADE)
        what = "The connection to Wattfare broke." if sent else "Wattfare could not be reached."
        ours = self._connections.caller.named(WattfareNetworkError(what, sent=sent))
        joined = self._join(ours, error)
        joined.__cause__ = _cleaned(cause)
        return joined

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: Any) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"A {type(self).__name__} cannot be pickled, because it has the app's secret key. Pass"
            " the user's id to the worker, and create the client there."
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, '_paid_by', None)!r})"


class WattfareOpenAI(_Shared, openai.OpenAI):  # pyright: ignore[reportIncompatibleMethodOverride,reportIncompatibleVariableOverride]
    """An ``openai.OpenAI``. A user or a grant pays for its calls."""

    _placeholder = staticmethod(_unused)

    def _shared_http_client(self) -> Any:
        return self._connections.shared.get()

    def close(self) -> None:
        """Do nothing. The connections belong to the Wattfare client, which closes them."""

    def _refresh_api_key(self) -> str:
        return _LATER  # a request gets the key when it is sent

    def request(self, *args: Any, **options: Any) -> Any:
        try:
            return self._followed(super().request(*args, **options))
        except openai.APIConnectionError as error:
            failure = error
        raise self._unreached(failure)

    def _prepare_options(self, options: Any) -> Any:
        options.follow_redirects = False
        return super()._prepare_options(options)

    def _prepare_request(self, request: Any) -> None:
        super()._prepare_request(request)
        self._is_from(self._paid_by.pays(), request)

    def _send_request(self, request: Any, *, stream: bool, **options: Any) -> Any:
        try:
            return super()._send_request(request, stream=stream, **options)
        except BaseException as error:
            if (failure := _not_repeated(error, request)) is None:
                raise
            raise failure from error
        finally:
            _strip(request)


class AsyncWattfareOpenAI(_Shared, openai.AsyncOpenAI):  # pyright: ignore[reportIncompatibleMethodOverride,reportIncompatibleVariableOverride]
    """An ``openai.AsyncOpenAI``. A user or a grant pays for its calls."""

    _placeholder = staticmethod(_unused_async)

    def _shared_http_client(self) -> Any:
        return self._connections.shared_async.get()

    async def close(self) -> None:
        """Do nothing. The connections belong to the Wattfare client, which closes them."""

    async def _refresh_api_key(self) -> str:
        return _LATER  # a request gets the key when it is sent

    async def request(self, *args: Any, **options: Any) -> Any:
        running_loop()
        try:
            return self._followed(await super().request(*args, **options))
        except openai.APIConnectionError as error:
            failure = error
        raise self._unreached(failure)

    async def _prepare_options(self, options: Any) -> Any:
        options.follow_redirects = False
        return await super()._prepare_options(options)

    async def _prepare_request(self, request: Any) -> None:
        await super()._prepare_request(request)
        self._is_from(await self._paid_by.pays_async(), request)

    async def _send_request(self, request: Any, *, stream: bool, **options: Any) -> Any:
        try:
            return await super()._send_request(request, stream=stream, **options)
        except BaseException as error:
            if (failure := _not_repeated(error, request)) is None:
                raise
            raise failure from error
        finally:
            _strip(request)


class _Events:
    """Reads the events of a stream. If an event has an error, it is raised.

    Attributes:
        response: the response of the stream, if it is known.
    """

    def __init__(self, decoder: Any, join: Join) -> None:
        self.response: Any = None
        self._decoder = decoder
        self._join = join
        self._done = False

    def iter_bytes(self, parts: Iterator[bytes]) -> Iterator[Any]:
        try:
            for event in self._decoder.iter_bytes(parts):
                self._check(event.data)
                yield event
        except Exception as error:
            if (broken := self._broken(error)) is None:
                raise
            raise broken from _cleaned(error)
        self._end()

    async def aiter_bytes(self, parts: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        try:
            async for event in self._decoder.aiter_bytes(parts):
                self._check(event.data)
                yield event
        except Exception as error:
            if (broken := self._broken(error)) is None:
                raise
            raise broken from _cleaned(error)
        self._end()

    def _check(self, data: str) -> None:
        if data.startswith("[DONE]"):
            self._done = True
        elif '"error"' in data and (error := error_in(data.encode())) is not None:
            raise self._raised(error, _json(data.encode()).get("error"))

    def _end(self) -> None:
        # The stream has no end, so a proxy may have cut it.
        if not self._done:
            raise self._raised(_cut("it ended early"), None)

    def _broken(self, error: Exception) -> Exception | None:
        forget_frames(error)  # they contain the headers
        return self._raised(_cut(str(_cleaned(error))), None) if _is_httpx(error) else None

    def _raised(self, ours: WattfareError, body: Any) -> Exception:
        request: Any = None
        if self.response is not None:
            request = self.response.request
            ours.request_id = ours.request_id or self.response.headers.get("x-request-id")
        return self._join(ours, openai.APIError(ours.message, request, body=body))


def _cut(why: str) -> WattfareError:
    why = why.rstrip(".")
    return WattfareError(f"The stream broke off: {why}.", code="upstream", status=502)


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode("utf-8", "replace")


def _strip(request: Any) -> None:
    """Remove the credentials from a sent request, because errors reference the request."""
    for name in _CREDENTIALS:
        request.headers.pop(name, None)


def _not_repeated(error: BaseException, request: Any) -> openai.OpenAIError | None:
    """If the request may have arrived, return an error that openai does not retry."""
    forget_frames(error)  # they contain the headers
    names = _names(error)
    if not _is_httpx(error) or not names.isdisjoint(_NEVER_MADE) or request.method == "GET":
        return None
    if "TimeoutException" in names:
        return openai.APITimeoutError(request=request)
    return openai.APIConnectionError(request=request)


def _cleaned(error: BaseException | None) -> LibraryError | None:
    """The text of an HTTP library's error, without data from the server."""
    if error is None:
        return None
    said = LibraryError(f"{type(error).__name__}: {error}")
    said.kinds = type(error).__name__
    return said


def _names(error: BaseException | None) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _is_httpx(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2")
