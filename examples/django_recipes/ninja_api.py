"""Django Ninja, with signed tokens. For ``settings.py``:

WATTFARE = {"RESOLVE_USER": "ninja_api.user_of_token"}
"""

from django.core import signing
from django.http import HttpRequest
from django.urls import path
from ninja import NinjaAPI, Schema
from ninja.security import HttpBearer
from wattfare_django import WattfareRequest


def user_of_token(request: HttpRequest) -> int | None:
    """The user of the request's token, for Wattfare's paths and for views."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    try:
        return signing.loads(token, max_age=3600) if scheme == "Bearer" else None
    except signing.BadSignature:
        return None


class Token(HttpBearer):
    def authenticate(self, request: HttpRequest, token: str) -> int | None:
        return user_of_token(request)


class Text(Schema):
    text: str


api = NinjaAPI(auth=Token())


@api.post("/summary")
def summary(request: WattfareRequest, body: Text) -> dict[str, str]:
    answer = request.wattfare.model("wattfare/echo").generate(body.text)
    return {"summary": answer.text, "costUsd": str(answer.cost_usd)}


@api.post("/summary-async")
async def summary_async(request: WattfareRequest, body: Text) -> dict[str, str]:
    user = await request.awattfare()
    answer = await user.model("wattfare/echo").generate(body.text)
    return {"summary": answer.text, "costUsd": str(answer.cost_usd)}


urlpatterns = [path("api/", api.urls)]
