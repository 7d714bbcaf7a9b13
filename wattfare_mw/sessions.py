"""Private: the rule of the token route. It finds the user and the cap, creates a session token, and
returns the response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from . import calls
from .app_functions import AppFunction
from .calls import LimitLike
from .error_responses import LetThrough, refuse_other_methods, respond_to_failure
from .errors import WattfareError
from .flow import Flow
from .origins import Origins
from .types import SessionRequest, encode, readable_label
from .users import AppError, CallFunction, ResolveUser, identify
from .web import Request, Response, json_response

Limit = LimitLike | SessionRequest
RequestLimitOption = Limit | Callable[[Any], Limit | Awaitable[Limit]]
"""The option ``request_limit``: the monthly cap to ask for, in USD, or a function of the request
that returns it. The function may be async."""

AccountLabelOption = str | None | Callable[[Any], str | Awaitable[str | None] | None]
"""The option ``account_label``: the name of the user's account at the app, or a function of the
request that returns it. The function may be async."""


class TokenRoute:
    """The token route of one app.

    Args:
        caller: makes the calls to the service.
        resolve_user: returns the id of the user who makes a request, or None.
        request_limit: the monthly cap to ask for, in USD, or a function of the request that returns
            it.
        account_label: the name of the user's account at the app, or a function of the request that
            returns it.
        origins: the other sites whose pages may call the route.
    """

    def __init__(
        self,
        caller: calls.Caller,
        resolve_user: ResolveUser,
        request_limit: RequestLimitOption,
        account_label: AccountLabelOption,
        origins: Origins,
    ) -> None:
        self._caller = caller.in_request()
        self._resolve_user = AppFunction(resolve_user)
        self._ask_limit = AppFunction(request_limit) if callable(request_limit) else None
        self._limit = None if callable(request_limit) else request_limit
        self._ask_label = AppFunction(account_label) if callable(account_label) else None
        self._label = None if callable(account_label) else account_label
        self._origins = origins

    def answer(self, request: Request) -> Flow[Response]:
        """Answer a request for a session token."""
        refuse_other_methods(request, "POST")
        self._origins.refuse_others(request)
        user_id = yield from identify(request, self._resolve_user)
        limit = self._limit
        if self._ask_limit is not None:
            limit = yield CallFunction(self._ask_limit, (request,))
        try:
            asked = calls.session_request(limit)
        except WattfareError as error:
            raise AppError(f"request_limit did not return a valid cap. {error.message}") from None
        label = self._label
        if self._ask_label is not None:
            label = yield CallFunction(self._ask_label, (request,))
        if label is not None:
            try:
                label = readable_label(label)
            except WattfareError as error:
                raise AppError(
                    f"account_label did not return a valid label. {error.message}"
                ) from None
        session = yield from self._caller.create_session(user_id, asked, label)
        return json_response(200, encode(session))

    def respond(self, request: Request, let_through: LetThrough) -> Flow[Response]:
        """:meth:`answer`, with a response for each error. Raises only the exceptions in
        ``let_through``."""
        try:
            return (yield from self.answer(request))
        except Exception as failure:
            response = respond_to_failure(failure, let_through=let_through)
            if response is None:
                raise
            return response
