"""``POST /chat/completions``: a call of a model, billed to a user or a grant."""

from __future__ import annotations

from functools import partial

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ... import money
from ...headers import Headers
from ...offload import LARGE_BODY
from ...receiving import UntilDisconnect, read_body
from ...turns import in_turn, turn_of
from ...types import LOWERED_HEADER, RESERVED_HEADER
from ..chat import request as chat_request
from ..chat.allowed_fields import Policy
from ..ids import new_id
from ..models.provider import Job
from ..records import CallReport, IdempotencyKey, InferenceCall
from . import credentials, parameters
from .bodies import MAX_CALL_BYTES, check_body, headers_of
from .output import ASGIOutput
from .state import state_in

_LOWERED = LOWERED_HEADER.encode()
_RESERVED = RESERVED_HEADER.encode()


class ChatCompletions:
    """The route. It is an ASGI app, because it must detect that the client disconnects."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read one request, and run its call."""
        state = state_in(scope)
        headers = headers_of(scope)
        app = await credentials.app_by_secret_key(headers, state.store)
        user_id, grant_hash = parameters.payer_in_headers(headers)
        request_id = scope["wattfare.request_id"]
        report = CallReport(app.id, user_id, grant_hash, request_id)
        scope["wattfare.call"] = report
        state.rate_limits.call(app.id, user_id, grant_hash)
        never_shorten = parameters.refuses_low_budget(headers)
        wait = parameters.wait_seconds(headers)
        payer = (app.id, user_id, grant_hash)
        call: InferenceCall | None = None

        def goes_on() -> bool:
            return call is not None and state.runner.detach(call.id)

        claim = state.bodies.claim(payer)
        # Count the call before its body is read.
        state.call_limits.add(app.id, payer)
        try:
            if not check_body(headers, MAX_CALL_BYTES):
                # Before reading a large body, check that the payer can pay for a call.
                await state.store.check_account(app.id, user_id, grant_hash, state.terms)
            async with UntilDisconnect(receive, goes_on) as client:
                body = await read_body(receive, MAX_CALL_BYTES, ClientDisconnect, claim, client)
                if len(body) <= LARGE_BODY:
                    request, key = _read(headers, body, never_shorten, state.fields)
                else:
                    request, key = await in_turn(
                        payer, _read, headers, body, never_shorten, state.fields
                    )
                if state.aliases:
                    request = request.renamed(state.aliases)
                client.watch()
                if request.large:
                    async with turn_of(payer):
                        job = await state.provider.prepare(request, request_id)
                else:
                    job = await state.provider.prepare(request, request_id)
                call = InferenceCall(
                    id=new_id(),
                    app_id=app.id,
                    user_id=user_id,
                    grant_hash=grant_hash,
                    model=request.model,
                    bounds=job.bounds,
                    request_id=request_id,
                    stream=request.stream,
                    key=key,
                )
                report.model, report.stream = request.model, request.stream
                del body, request  # free the memory, as the job also does later
                output = ASGIOutput(send, partial(_headers, job), state.heartbeats)
                try:
                    await state.runner.run(
                        call,
                        job,
                        output,
                        started=claim.release,
                        settled=report.settled,
                        wait=wait,
                    )
                finally:
                    output.close()
        finally:
            claim.release()
            state.call_limits.remove(app.id, payer)


def _read(
    headers: Headers, body: bytes, never_shorten: bool, policy: Policy
) -> tuple[chat_request.ChatRequest, IdempotencyKey | None]:
    request = chat_request.read(body, never_shorten=never_shorten, policy=policy)
    return request, parameters.idempotency_key(headers, body)


def _headers(job: Job) -> tuple[tuple[bytes, bytes], ...]:
    lowered = () if job.lowered is None else ((_LOWERED, b"%d" % job.lowered),)
    if not job.bounds.unbounded or job.meter.granted is None:
        return lowered
    return (*lowered, (_RESERVED, f"{money.usd(job.meter.granted):f}".encode()))
