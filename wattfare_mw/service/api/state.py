"""The shared state of a running service."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec
from starlette.requests import Request
from starlette.types import Scope

from ...body_memory import BodyMemory
from ...transport.idle import IdleTimer
from ..chat.allowed_fields import Policy
from ..inference.runner import CallRunner
from ..ledger.store import Store
from ..metrics import Metrics
from ..models.provider import Provider
from ..payers.funding import PayerFunding
from ..records import CallReport, Terms
from ..tokens import Signer
from .call_limits import CallLimits
from .health import Health
from .rate_limits import RateLimits

OnCall = Callable[[CallReport, "ServiceState"], None]


class ServiceState(msgspec.Struct, frozen=True):
    """The parts of a running service."""

    store: Store
    signer: Signer
    provider: Provider
    rate_limits: RateLimits
    call_limits: CallLimits
    runner: CallRunner
    terms: Terms
    metrics: Metrics
    bodies: BodyMemory
    heartbeats: IdleTimer
    health: Health
    aliases: Mapping[str, str]
    fields: Policy
    #: The origin of the service's pages, such as ``https://wattfare.example.com``.
    public_url: str
    funding: PayerFunding
    #: Returns the time in Unix seconds.
    clock: Callable[[], float] = time.time
    #: Called after each inference call, on the event loop.
    on_call: OnCall | None = None

    def __repr__(self) -> str:
        return "ServiceState()"


def state_of(request: Request) -> ServiceState:
    """The state of the service that received this request."""
    return state_in(request.scope)


def state_in(scope: Scope) -> ServiceState:
    """The state of the service that received the request with this scope."""
    return scope["app"].service
