"""Views for visitors who are not signed in."""

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, JsonResponse
from django.urls import path
from wattfare_django import WattfareRequest

from wattfare_mw import WattfareNotConnectedError


@login_required
def haiku(request: WattfareRequest) -> JsonResponse:
    """Django sends a visitor to LOGIN_URL."""
    try:
        answer = request.wattfare.model("wattfare/echo").generate("Write a haiku.")
    except WattfareNotConnectedError:
        return JsonResponse({"do": "connect a budget"}, status=402)
    return JsonResponse({"haiku": answer.text})


def member_number(request: HttpRequest) -> int | None:
    """The user who pays."""
    return request.session.get("member_number")  # a str, an int, a UUID, or None


urlpatterns = [path("haiku", haiku)]
