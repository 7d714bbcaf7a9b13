"""Renders templates as responses, with the headers of all pages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ... import money
from . import cookies, forms
from .static_files import static
from .visits import visit_of

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
#: Everything comes from this origin. Inline scripts and styles are blocked.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; "
    "form-action {form_action}; frame-ancestors 'none'; base-uri 'none'"
)
#: The headers of each response to a page request.
HEADERS = {
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}


def date(seconds: float) -> str:
    """A time (Unix seconds) as a day in UTC: ``1 Dec 2026``."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}"


def moment(seconds: float) -> Markup:
    """A time (Unix seconds) to the minute, as a ``<time>``: ``1 Dec 2026, 13:05 UTC``."""
    at = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{}">{}, {} UTC</time>').format(
        at.strftime("%Y-%m-%dT%H:%M:%SZ"), date(seconds), at.strftime("%H:%M")
    )


def dollars(nanos: int) -> str:
    """Nano-dollars for a person to read: ``$0.04``, rounded up."""
    return money.dollars(nanos, up=True)


def dollars_down(nanos: int) -> str:
    """Nano-dollars for a person to read: ``$0.04``, rounded down."""
    return money.dollars(nanos, up=False)


def cost(nanos: int) -> str:
    """The cost of a call, for a person to read. A correction may be negative."""
    return dollars(nanos) if nanos >= 0 else f"−{dollars(-nanos)}"  # noqa: RUF001


environment = Environment(
    loader=PackageLoader("wattfare_mw.service.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_globals: Any = environment.globals  # jinja2 declares only the types of its own globals
_globals["static"] = static
environment.filters.update(
    date=date,
    moment=moment,
    dollars=dollars,
    dollars_down=dollars_down,
    count="{:,}".format,
    cost=cost,
)


def page(
    request: Request,
    template: str,
    context: dict[str, Any] | None = None,
    *,
    status: int = 200,
    leads_to: Sequence[str] = (),
    in_popup: bool = False,
) -> Response:
    """Render a page as a response.

    A template gets ``csrf_field()`` for its forms with ``method="post"``, ``sign_in`` (None if no
    payer is signed in), and the values in ``context``.

    Args:
        template: the name of a file in ``templates/``.
        leads_to: other origins to which the forms of the page may redirect.
        in_popup: True if the page opens in an app's popup, which returns to the app afterwards.
    """
    visit = visit_of(request)

    def csrf_field() -> Markup:
        field = Markup('<input type="hidden" name="{}" value="{}">')
        return field.format(forms.FIELD, forms.token(visit.cookie_for_forms()))

    text = environment.get_template(template).render(
        {"csrf_field": csrf_field, "sign_in": visit.sign_in, **(context or {})}
    )
    form_action = " ".join(["'self'", *leads_to])
    headers = {**HEADERS, "content-security-policy": _POLICY.format(form_action=form_action)}
    if not in_popup:
        headers["cross-origin-opener-policy"] = "same-origin"
    response = Response(text, status, headers, "text/html")
    if visit.new_cookie is not None:
        cookies.set_cookie(request, response, cookies.VISIT, visit.new_cookie)
    return response


def see_other(url: str) -> Response:
    """A redirect after a form: the browser gets this URL next."""
    return RedirectResponse(url, 303, {"referrer-policy": "no-referrer"})
