"""All decisions of the middleware, without I/O. The flows in this module yield commands, and
:mod:`.asgi` and :mod:`.wsgi` carry them out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from .. import calls, sse, unserved
from ..app_functions import AppFunction
from ..body_memory import MAX_PAYER_BYTES, BodyClaim, BodyMemory
from ..calls_at_once import CallsAtOnce
from ..completions import not_the_protocol, usage_in
from ..error_responses import LetThrough, refuse_other_methods, respond_to_failure
from ..errors import WattfareError, invalid_request
from ..flow import Flow, InThread
from ..logs import get_logger
from ..model_entry import find_model, with_base
from ..offload import LARGE_BODY
from ..origins import FindAppCors, Origins
from ..receiving import check_length
from ..sessions import AccountLabelOption, RequestLimitOption, TokenRoute
from ..types import GRANT_HEADER, encode, readable_label
from ..users import CallFunction, ResolveUser, identify, user_id_of
from ..web import Request, Response, json_response
from . import client_files, forwarding, request_body
from .options import OnUsage
from .relay import Record, Relay

_COMPLETIONS = "/chat/completions"
#: The memory for large bodies of calls with a grant, in bytes. Anyone can send such a call, so
#: these bodies do not use the memory for users' bodies. One address may use ``MAX_PAYER_BYTES``.
MAX_GRANT_BYTES = 2 * MAX_PAYER_BYTES
#: How long the list of models is cached, in seconds. All users of the app get the same list.
#: Without this cache, one user could use up the app's rate limit.
LISTING_SECONDS = 10.0
#: Media types in their usual spelling, which need no parsing.
_OFTEN = frozenset({"application/json", sse.CONTENT_TYPE})

#: The largest value of the option ``heartbeat``, in seconds.
MAX_HEARTBEAT = 3600

logger = get_logger("wattfare_mw")

Route = Callable[[Request, Record], Flow[Any]]


class ReadBody(msgspec.Struct, frozen=True, gc=False):
    """A command: read the request's body, up to this limit. The result is the body as bytes.

    The driver raises :func:`~wattfare_mw.receiving.too_large` if the body is larger, and
    :func:`cut_short` if it is shorter than announced.
    """

    limit: int
    claim: BodyClaim | None


class Gate:
    """Answers the paths of the middleware.

    Raises:
        TypeError, ValueError: an option is invalid. The message names it and says why.
    """

    def __init__(
        self,
        caller: calls.Caller,
        *,
        resolve_user: ResolveUser,
        token_path: str | None,
        inference_path: str | None,
        status_path: str | None,
        client_path: str | None,
        request_limit: RequestLimitOption,
        account_label: AccountLabelOption,
        models: Iterable[str] | None,
        allow_grants: bool,
        allowed_origins: Iterable[str],
        max_body_bytes: int,
        max_calls_per_user: int | None,
        on_usage: OnUsage | None,
        heartbeat: float | None,
        let_through: LetThrough = (),
        app_cors: FindAppCors | None = None,
    ) -> None:
        if not callable(resolve_user):
            raise TypeError(
                "resolve_user must be a function that returns a request's user id, or None"
            )
        if on_usage is not None and not callable(on_usage):
            raise TypeError("on_usage must be a function, or None")
        if type(max_body_bytes) is not int or max_body_bytes < 1:
            raise ValueError("max_body_bytes must be a number of bytes above 0")
        if heartbeat is not None and not (
            type(heartbeat) in (int, float) and 0 < heartbeat <= MAX_HEARTBEAT
        ):
            raise ValueError(
                f"heartbeat must be above 0 and at most {MAX_HEARTBEAT:,} seconds, or None"
            )
        if max_calls_per_user is not None and (
            type(max_calls_per_user) is not int or max_calls_per_user < 1
        ):
            raise ValueError("max_calls_per_user must be a whole number above 0, or None")
        if not callable(request_limit):
            # Check the limit now, so that an invalid one is reported when the app starts.
            try:
                calls.session_request(request_limit)
            except WattfareError as error:
                raise invalid_request(f"request_limit is invalid. {error.message}") from None
        self.caller = caller
        self._resolve_user = AppFunction(resolve_user)
        self._models = request_body.Models(models)
        self._allow_grants = allow_grants
        self._origins = Origins(allowed_origins, app_cors)
        if account_label is not None and not callable(account_label):
            readable_label(account_label)  # report an invalid label when the app starts
        self._token_route = TokenRoute(
            caller, resolve_user, request_limit, account_label, self._origins
        )
        self._max_body_bytes = max_body_bytes
        self._bodies = BodyMemory()
        self._grant_bodies = BodyMemory(MAX_GRANT_BYTES)
        self._read_small = ReadBody(max_body_bytes, None)
        self._listing = (0.0, b"")
        self._calls_at_once: CallsAtOnce | None = None
        if max_calls_per_user is not None:
            self._calls_at_once = CallsAtOnce(
                max_calls_per_user,
                f"A user or a grant may have at most {max_calls_per_user:,} running calls. Wait"
                " until one ends.",
            )
        self._on_usage = None if on_usage is None else AppFunction(on_usage)
        #: After how many seconds without an event a stream gets a comment; None for no comments.
        self.heartbeat = heartbeat
        self._let_through = let_through
        #: The enabled paths, by the names of their options.
        self.named_paths = {
            "token_path": token_path,
            "inference_path": inference_path,
            "status_path": status_path,
        }
        for name, path in {**self.named_paths, "client_path": client_path}.items():
            if not isinstance(path, str | None):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"{name} must be a path as a string, or None")
        models_path = None if inference_path is None else _models_path(inference_path)
        self.named_paths["models_path"] = models_path
        #: The methods and the flow of each of our paths.
        self.routes: dict[str, tuple[tuple[str, ...], Route]] = {}
        for path, methods, route in (
            (token_path, ("POST",), self._token),
            (inference_path, ("POST",), self._inference),
            (status_path, ("GET", "HEAD", "DELETE"), self._status),
            (models_path, ("GET", "HEAD"), self._list_models),
            *(
                (path, ("GET", "HEAD"), _serve_file(file))
                for path, file in client_files.at(client_path).items()
            ),
        ):
            if path is None:
                continue
            if not path.startswith("/") or path in self.routes:
                raise ValueError(
                    f"{path!r} is invalid: each path must start with '/', and two"
                    " paths must not be equal"
                )
            self.routes[path] = (methods, route)
        #: The path of an OpenAI client's base URL. None if ``inference_path`` does not end with
        #: ``/chat/completions``.
        self.base: str | None = None
        if inference_path is not None and inference_path.endswith(_COMPLETIONS):
            self.base = inference_path.removesuffix(_COMPLETIONS)

    def below(self, path: str) -> tuple[tuple[str, ...], Route] | None:
        """The methods and the flow for a path below the base URL of an OpenAI client. The driver
        uses them if the app has no route for the path. The flow answers with one model, or with a
        404 that says what to use instead."""
        if self.base is None or not path.startswith(f"{self.base}/"):
            return None
        tail = path[len(self.base) + 1 :]
        if tail.startswith("models/") and tail != "models/":
            return ("GET", "HEAD"), self._one_model
        refusal = unserved.refusal(self.base, tail)
        if refusal is None:
            return None

        def refuse(_request: Request, _record: Record) -> Flow[Response]:
            yield from ()  # makes this function a flow
            raise refusal

        return unserved.METHODS, refuse

    def answer(self, request: Request, record: Record) -> Flow[Response | Relay]:
        """Answer a request to one of our paths. Raises only exceptions in ``let_through``.

        Args:
            record: this method fills it. If its :attr:`~.relay.Record.begun` is True at the end of
                the answer, the driver must run :meth:`finished`. If the record has a ``slot``, the
                driver must release it after the last byte of the answer is sent, or if sending
                fails.
        """
        found = self.routes.get(request.path) or self.below(request.path)
        assert found is not None
        methods, route = found
        request_id = record.request_id = forwarding.request_id(request)
        if request.method in methods:
            flow = route(request, record)
        else:
            flow = self._other_method(request, methods)
        try:
            reply = yield from flow
        except Exception as failure:
            reply = respond_to_failure(failure, request_id, self._let_through)
            if reply is None:
                raise
        headers = reply.headers
        if self._origins.any:
            headers.update(self._origins.headers(request))
        headers["x-request-id"] = request_id
        if type(reply) is Response:
            if reply.status not in (204, 304):
                headers["content-length"] = str(len(reply.body))
            if request.method == "HEAD":
                return Response(reply.status, headers, b"")
        return reply

    def identify(self, request: Request) -> Flow[str]:
        """Find the user who makes a request to any path of the app. Returns the user's id.

        Raises:
            WattfareAuthError: no user is signed in.
        """
        return identify(request, self._resolve_user)

    @property
    def _usage_is_wanted(self) -> bool:
        return self._on_usage is not None or logger.isEnabledFor(logging.INFO)

    def finished(self, record: Record) -> Flow[None]:
        """Log the end of an inference call, and call ``on_usage``. Never raises."""
        if logger.isEnabledFor(logging.INFO):
            reported = record.reported
            logger.info(
                # The client chooses the model's name, so it is escaped.
                "inference request_id=%s user=%r model=%r status=%s outcome=%s tokens=%s"
                " cost_usd=%s",
                record.request_id,
                record.user,
                record.model,
                record.status,
                record.outcome,
                reported.usage and reported.usage.total_tokens,
                reported.cost_usd,
            )
        if self._on_usage is None or record.outcome == "refused":
            return
        reported = record.reported
        try:
            yield CallFunction(
                self._on_usage, (record.user, record.model, reported.usage, reported.cost_usd)
            )
        except Exception:
            logger.exception("on_usage failed. request_id=%s", record.request_id)

    def _other_method(self, request: Request, methods: tuple[str, ...]) -> Flow[Response]:
        yield from ()  # makes this function a flow
        if request.method != "OPTIONS" or "access-control-request-method" not in request.headers:
            refuse_other_methods(request, *methods)
        if not self._origins.allow(request):
            raise invalid_request(
                "This origin may not call this path. To allow it, add it to the"
                " app's allowed_origins.",
                403,
            )
        asked = request.headers.get("access-control-request-headers", "")
        return Response(
            204,
            {
                "access-control-allow-methods": ", ".join(methods),
                # Allow any header: the origin is trusted, and the middleware forwards only the
                # headers of a fixed list to the service.
                "access-control-allow-headers": asked if forwarding.is_plain(asked) else "",
                "access-control-max-age": "600",
            },
            b"",
        )

    def _token(self, request: Request, _record: Record) -> Flow[Response]:
        return self._token_route.answer(request)

    def _status(self, request: Request, _record: Record) -> Flow[Response]:
        if request.method == "DELETE":
            self._origins.refuse_others(request)
            user_id = yield from self.identify(request)
            yield from self.caller.disconnect(user_id)
            return Response(204, {"cache-control": "no-store"}, b"")
        self._origins.refuse_readers(request)
        user_id = yield from self.identify(request)
        status = yield from self.caller.fetch(calls.status(user_id))
        return json_response(200, encode(status))

    def _list_models(self, request: Request, _record: Record) -> Flow[Response]:
        return json_response(200, (yield from self._models_for(request)))

    def _one_model(self, request: Request, _record: Record) -> Flow[Response]:
        listing = yield from self._models_for(request)
        name = request.path[len(f"{self.base}/models/") :]
        names = with_base(name) if self._models.allow(name) else ()
        if len(listing) <= LARGE_BODY:
            entry = find_model(listing, names)
        else:
            entry = yield InThread(find_model, (listing, names))
        if entry is None:
            raise invalid_request(f"There is no model {name[:256]!r} in this app.", 404)
        return json_response(200, entry)

    def _models_for(self, request: Request) -> Flow[bytes]:
        self._origins.refuse_readers(request)
        if not self._allow_grants:  # with grants, an app may work without users
            yield from self.identify(request)
        until, listing = self._listing
        if time.monotonic() >= until:
            received = yield from self.caller.fetch(calls.models())
            try:
                if len(received) <= LARGE_BODY:
                    listing = self._models.filter(received)
                else:
                    listing = yield InThread(self._models.filter, (received,))
            except (msgspec.MsgspecError, RecursionError) as error:
                raise not_the_protocol(200, "a list of models", error) from None
            self._listing = (time.monotonic() + LISTING_SECONDS, listing)
        return listing

    def _inference(self, request: Request, record: Record) -> Flow[Response | Relay]:
        headers = request.headers.common
        self._origins.refuse_others(request)
        if _media_type(headers.get("content-type")) != "application/json":
            # A page of another site can send a form or plain text without a CORS preflight.
            raise invalid_request("The body must be application/json.", 415)
        grant = headers.get(GRANT_HEADER)
        if grant is not None:
            # Only the grant pays, even if a user is signed in.
            payer = self._grant_payer(grant)
            # A client can invent any number of grants, but not addresses, so count by address.
            memory, sender = self._grant_bodies, request.client
        else:
            record.user = user_id_of((yield CallFunction(self._resolve_user, (request,))))
            payer = calls.payer_of(record.user)
            memory, sender = self._bodies, record.user
        if self._calls_at_once is not None:  # refuse the call before its body is read
            record.slot = self._calls_at_once.hold(payer)
        claim = None
        if not check_length(headers.get("content-length"), self._max_body_bytes):
            claim = memory.claim(sender)
        try:
            body = yield ReadBody(self._max_body_bytes, claim) if claim else self._read_small
            if len(body) <= LARGE_BODY:
                upload = request_body.read(body, self._models, self._on_usage is not None)
            else:
                reading = (body, self._models, self._on_usage is not None)
                upload = yield InThread(request_body.read, reading, sender or "")
            record.model = upload.model
            call = calls.relayed_completion(
                payer, upload.body, forwarding.headers_up(headers, record.request_id)
            )
            record.begun = True
            try:
                return (yield from self._complete(call, record, hide_usage=upload.hide_usage))
            except WattfareError as error:
                record.failed(error)
                raise
        finally:
            if claim is not None:
                claim.release()

    def _complete(
        self, call: calls.Call[Any], record: Record, *, hide_usage: bool
    ) -> Flow[Response | Relay]:
        answer = yield from self.caller.open(call)
        record.status = answer.status
        theirs = answer.headers.common
        headers = forwarding.headers_down(theirs)
        kind = _media_type(theirs.get("content-type"))
        encoded = theirs.get("content-encoding", "identity") != "identity"
        if kind == sse.CONTENT_TYPE and not encoded:
            return Relay(
                answer,
                headers,
                record,
                read_usage=self._usage_is_wanted,
                hide_usage=hide_usage,
                comments=self.heartbeat is not None,
            )
        content = yield calls.Read(answer)
        if kind != "application/json":
            raise not_the_protocol(answer.status, "JSON or an event stream")
        if not encoded:  # the usage in a compressed answer cannot be read
            try:
                record.set_usage(usage_in(content))
            except msgspec.MsgspecError as error:
                raise not_the_protocol(answer.status, "JSON", error) from None
        record.outcome = "complete"
        return Response(answer.status, headers, content)

    def _grant_payer(self, grant: str) -> calls.Payer:
        if not self._allow_grants:
            raise invalid_request("This app does not accept grants.", 403)
        return calls.grant_payer(grant)


def _serve_file(file: client_files.ClientFile) -> Route:
    def serve(request: Request, _record: Record) -> Flow[Response]:
        yield from ()  # makes this function a flow
        return file.response(request.headers.get("if-none-match"))

    return serve


def cut_short() -> WattfareError:
    """The error for an incomplete body, after which the client has left."""
    return invalid_request("The body is incomplete.")


def is_json(content_type: str) -> bool:
    """True if this media type is JSON. It shows where an app's 404 comes from: an API of the app
    answers in JSON, a framework in text or HTML."""
    kind = _media_type(content_type)
    return kind == "application/json" or kind.endswith("+json")


def _media_type(content_type: str | None) -> str:
    if content_type in _OFTEN:
        return content_type
    return (content_type or "").partition(";")[0].strip().lower()


def _models_path(inference_path: str) -> str:
    """The path of the list of models. An OpenAI client expects it next to ``inference_path``."""
    if inference_path.endswith(_COMPLETIONS):
        return inference_path.removesuffix(_COMPLETIONS) + "/models"
    return inference_path.rpartition("/")[0] + "/models"
