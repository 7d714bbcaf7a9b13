"""Django REST framework, with tokens. For ``settings.py``:

WATTFARE = {"RESOLVE_USER": "rest.user_of_token"}
"""

from django.http import HttpRequest
from django.urls import path
from rest_framework.authentication import TokenAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView


def user_of_token(request: HttpRequest) -> int | None:
    """The user of the request's token, for Wattfare's paths and for views."""
    try:
        found = TokenAuthentication().authenticate(request)
    except AuthenticationFailed:
        return None
    return found[0].pk if found else None


class Summary(APIView):
    authentication_classes = [TokenAuthentication]  # noqa: RUF012
    permission_classes = [IsAuthenticated]  # noqa: RUF012

    def post(self, request: Request) -> Response:
        answer = request.wattfare.model("wattfare/echo").generate(request.data["text"])
        return Response({"summary": answer.text, "costUsd": str(answer.cost_usd)})


urlpatterns = [path("summary", Summary.as_view())]
