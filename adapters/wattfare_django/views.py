"""The token route as a view."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from wattfare_mw.framework import AsyncWattfare, ResolveUser, Wattfare, adapt_function

from .cors import find_cors
from .messages import our_request, plain_response
from .users import (
    DJANGO_ANSWERS,
    asigned_in_user,
    django_request,
    in_djangos_thread,
    signed_in_user,
)


def session_view(
    client: Wattfare | AsyncWattfare,
    resolve_user: ResolveUser | None = None,
    request_limit: Any = None,
    *,
    account_label: Any = None,
    allowed_origins: Collection[str] = (),
) -> Callable[[Any], Any]:
    """Create a view for ``urls.py``: a token route. See
    :meth:`wattfare_mw.Wattfare.session_handler`.

    Args:
        client: a :class:`~wattfare_mw.Wattfare` for a synchronous view, or an
            :class:`~wattfare_mw.AsyncWattfare` for an asynchronous one.
        resolve_user: a function that returns the id of the user who makes a request. None for the
            primary key of ``request.user``.
        request_limit: the monthly cap to ask for, in USD, or a function of the request that returns
            it.
        account_label: the name of the user's account, or a function of the request that returns it.
        allowed_origins: origins of other sites whose pages may call the view.
    """
    is_async = isinstance(client, AsyncWattfare)
    if resolve_user is None:
        resolve_user = asigned_in_user if is_async else signed_in_user

    def adapted(function: Any) -> Any:
        return adapt_function(in_djangos_thread(function) if is_async else function, django_request)

    handler: Any = client.session_handler(
        adapted(resolve_user),
        adapted(request_limit),
        account_label=adapted(account_label),
        allowed_origins=allowed_origins,
        let_through=DJANGO_ANSWERS,
        app_cors=find_cors(),
    )

    def wattfare_session(request: Any) -> Any:
        return plain_response(handler(our_request(request)))

    async def awattfare_session(request: Any) -> Any:
        return plain_response(await handler(our_request(request)))

    view: Any = awattfare_session if is_async else wattfare_session
    # The view has its own check against other sites, and its clients have no CSRF token.
    view.csrf_exempt = True
    # If no user is signed in, the view answers 401 itself, without a redirect.
    view.login_required = False
    return view
