"""What a request is and what to answer: every decision of the middleware, and no I/O. The flows
here say step by step what they need; :mod:`.asgi` and :mod:`.wsgi` fetch and send."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from .. import calls, sse
from ..completions import metering, not_the_protocol
from ..errors import WattfareError
from ..flow import Flow
from ..receiving import check_length
from ..sessions import (
    Ask,
    LetThrough,
    ResolveUser,
    answered,
    check_origins,
    cors_headers,
    identify,
    logger,
    mint,
    refuse_other_methods,
    refuse_other_sites,
)
from ..types import GRANT_HEADER, encode
from ..web import Request, Response, json_response
from . import policy
from .relay import Record, Relay

_COMPLETIONS = "/chat/completions"
_NO_STORE = {"cache-control": "no-store", "x-accel-buffering": "no"}

Route = Callable[[Request, str], Flow[Any]]


class ReadBody(msgspec.Struct, frozen=True):
    """Read the request's body, but no more than this of it; gives the bytes.

    The driver raises what :func:`~wattfare_mw.receiving.too_large` gives where there is more, and
    what :func:`cut_short` gives where there is less than was announced.
    """

    limit: int


class Begun(msgspec.Struct, frozen=True):
    """From here on the user's money may be spent: however this ends, the driver runs
    :meth:`Gate.finished` on this record."""

    record: Record


class Gate:
    """The paths that are ours, and what happens on them.

    Raises:
        TypeError, ValueError: an option is of no use; the message says which, and why.
    """

    def __init__(
        self,
        service: calls.Service,
        *,
        resolve_user: ResolveUser,
        token_path: str | None,
        inference_path: str | None,
        status_path: str | None,
        request_limit: Any,
        models: Iterable[str] | None,
        allow_grants: bool,
        allowed_origins: Iterable[str],
        max_body_bytes: int,
        on_usage: Callable[..., Any] | None,
        let_through: LetThrough = (),
    ) -> None:
        if not callable(resolve_user):
            raise TypeError("resolve_user is a function that gives a request's user id, or None")
        if on_usage is not None and not callable(on_usage):
            raise TypeError("on_usage is a function, or None")
        if type(max_body_bytes) is not int or max_body_bytes < 1:
            raise ValueError("max_body_bytes is a number of bytes")
        if not callable(request_limit):
            calls.session_request(request_limit)  # nonsense is told when the app starts
        self.service = service
        self._resolve_user = resolve_user
        self._request_limit = request_limit
        self._models = policy.Models(models)
        self._allow_grants = allow_grants
        self._origins = check_origins(allowed_origins)
        self._max_body_bytes = max_body_bytes
        self._on_usage = on_usage
        self._let_through = let_through
        models_path = None if inference_path is None else _beside(inference_path)
        #: For each path that is ours: the methods it answers to, and what it does.
        self.routes: dict[str, tuple[tuple[str, ...], Route]] = {}
        for path, methods, route in (
            (token_path, ("POST",), self._token),
            (inference_path, ("POST",), self._inference),
            (status_path, ("GET", "HEAD"), self._status),
            (models_path, ("GET", "HEAD"), self._list_models),
        ):
            if path is None:
                continue
            if not path.startswith("/") or path in self.routes:
                raise ValueError(f"{path!r}: a path starts with '/', and each of ours is another")
            self.routes[path] = (methods, route)

    def answer(self, request: Request) -> Flow[Response | Relay]:
        """Answer a request to one of our paths. Never raises but what it is told to let through."""
        methods, route = self.routes[request.path]
        request_id = policy.request_id(request)
        reply = yield from answered(
            self._dispatch(request, request_id, methods, route), request_id, self._let_through
        )
        reply.headers.update(cors_headers(request, self._origins))
        reply.headers["x-request-id"] = request_id
        if isinstance(reply, Response):
            if reply.status != 204:
                reply.headers["content-length"] = str(len(reply.body))
            if request.method == "HEAD":
                return Response(reply.status, reply.headers, b"")
        return reply

    def identify(self, request: Request) -> Flow[str]:
        """The id of the user who makes a request, to whichever path of the app's.

        Raises:
            WattfareAuthError: nobody is signed in.
        """
        return identify(request, self._resolve_user)

    def finished(self, record: Record) -> Flow[None]:
        """An inference call is over, however it ended: tell the log and the app. Never raises."""
        logger.info(
            # The browser has chosen the model's name: it must not begin a line of its own.
            "inference request_id=%s user=%r model=%r status=%s outcome=%s tokens=%s cost_usd=%s",
            record.request_id,
            record.user,
            record.model,
            record.status,
            record.outcome,
            record.usage and record.usage.total_tokens,
            record.cost_usd,
        )
        if self._on_usage is None or record.outcome == "refused":
            return
        try:
            yield Ask(self._on_usage, (record.user, record.model, record.usage, record.cost_usd))
        except Exception:
            logger.exception("on_usage failed. request_id=%s", record.request_id)

    def _dispatch(
        self, request: Request, request_id: str, methods: tuple[str, ...], route: Route
    ) -> Flow[Any]:
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            return self._preflight(request, methods)
        refuse_other_methods(request, *methods)
        return (yield from route(request, request_id))

    def _preflight(self, request: Request, methods: tuple[str, ...]) -> Response:
        if request.headers.get("origin") not in self._origins:
            raise WattfareError(
                "This origin is not one of the app's allowed_origins.",
                code="invalid_request",
                status=403,
            )
        asked = request.headers.get("access-control-request-headers", "")
        return Response(
            204,
            {
                "access-control-allow-methods": ", ".join(methods),
                # Any header: the origin is trusted, and what goes up is an allow-list anyway.
                "access-control-allow-headers": asked if policy.is_plain(asked) else "",
                "access-control-max-age": "600",
            },
            b"",
        )

    def _token(self, request: Request, _request_id: str) -> Flow[Response]:
        return mint(self.service, request, self._resolve_user, self._request_limit, self._origins)

    def _status(self, request: Request, _request_id: str) -> Flow[Response]:
        user_id = yield from self.identify(request)
        status = yield from self.service.fetch(calls.status(user_id))
        return json_response(200, encode(status))

    def _list_models(self, request: Request, _request_id: str) -> Flow[Response]:
        if not self._allow_grants:  # with grants, an app may have no users at all
            yield from self.identify(request)
        listing = yield from self.service.fetch(calls.models())
        try:
            return json_response(200, self._models.filter(listing))
        except msgspec.MsgspecError as error:
            raise not_the_protocol(200, "a list of models", error) from None

    def _inference(self, request: Request, request_id: str) -> Flow[Response | Relay]:
        refuse_other_sites(request, self._origins)
        _refuse_other_types(request)
        grant = request.headers.get(GRANT_HEADER)
        if grant is not None:
            # The grant pays, and only it: never the user who happens to be signed in.
            user_id, payer = None, self._grant_payer(grant)
        else:
            user_id = yield from self.identify(request)
            payer = calls.user_payer(user_id)
        body = yield from self._body(request)
        asked = policy.read_body(body)
        self._models.check(body, asked)
        record = Record(request_id, user_id, asked.model)
        # The app wants to be told what each stream cost, even where its browser does not.
        hide_usage = bool(self._on_usage and asked.stream and not asked.includes_usage)
        call = calls.relayed_completion(
            payer,
            policy.with_usage(body, asked) if hide_usage else body,
            policy.headers_up(request, request_id),
        )
        yield Begun(record)
        try:
            return (yield from self._complete(call, record, hide_usage=hide_usage))
        except WattfareError as error:
            record.failed(error)
            raise

    def _complete(
        self, call: calls.Call[Any], record: Record, *, hide_usage: bool
    ) -> Flow[Response | Relay]:
        answer = yield from self.service.open(call)
        record.status = answer.status
        headers = {**policy.headers_down(answer.headers), **_NO_STORE}
        kind = _media_type(answer.headers.get("content-type"))
        encoded = answer.headers.get("content-encoding", "identity") != "identity"
        if kind == sse.CONTENT_TYPE and not encoded:
            return Relay(answer, headers, record, hide_usage=hide_usage)
        content = yield calls.Read(answer)
        if kind != "application/json":
            raise not_the_protocol(answer.status, "JSON or an event stream")
        if not encoded:  # what is compressed though it was asked not to be passes unread
            try:
                record.tell(metering(content))
            except msgspec.MsgspecError as error:
                raise not_the_protocol(answer.status, "JSON", error) from None
        record.outcome = "complete"
        return Response(answer.status, headers, content)

    def _grant_payer(self, grant: str) -> calls.Payer:
        if not self._allow_grants:
            raise WattfareError("This app takes no grants.", code="invalid_request", status=403)
        return calls.grant_payer(grant)

    def _body(self, request: Request) -> Flow[bytes]:
        check_length(request.headers.get("content-length"), self._max_body_bytes)
        return (yield ReadBody(self._max_body_bytes))


def cut_short() -> WattfareError:
    """The error for a body that ended before its end: its client went away."""
    return WattfareError("The body ended too early.", code="invalid_request", status=400)


def _refuse_other_types(request: Request) -> None:
    # A form or plain text is what another site's page can send without asking first.
    if _media_type(request.headers.get("content-type")) != "application/json":
        raise WattfareError(
            "The body must be application/json.", code="invalid_request", status=415
        )


def _media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def _beside(inference_path: str) -> str:
    """Where an OpenAI client that calls this path looks for the list of models."""
    if inference_path.endswith(_COMPLETIONS):
        return inference_path.removesuffix(_COMPLETIONS) + "/models"
    return inference_path.rpartition("/")[0] + "/models"
