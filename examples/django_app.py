"""A Django project in one file, whose users pay for its AI calls.

python examples/django_app.py migrate
python examples/django_app.py runserver
"""

# Django has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
import json
import os
import secrets
import sys

from django.contrib.auth import get_user_model, login
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from wattfare_django import WattfareRequest

# -- settings.py

DEBUG = True
SECRET_KEY = secrets.token_urlsafe()
ROOT_URLCONF = "django_app"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "django_app.sqlite3"}}

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "wattfare_django",  # the checks of `manage.py check`
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "wattfare_django.WattfareMiddleware",  # after the middleware that sets request.user
]
WATTFARE = {"REQUEST_LIMIT": 20}  # the monthly cap to ask for, in USD

# -- views.py


def summary(request: WattfareRequest) -> JsonResponse:
    text = json.loads(request.body)["text"]
    answer = request.wattfare.model("wattfare/echo").generate(text, max_tokens=200)
    return JsonResponse({"summary": answer.text, "costUsd": str(answer.cost_usd)})


async def budget(request: WattfareRequest) -> JsonResponse:
    user = await request.awattfare()
    status = await user.status()
    return JsonResponse({"remainingUsd": str(status.remaining_usd)})


def sign_in(request: HttpRequest, name: str) -> HttpResponse:
    user, _ = get_user_model().objects.get_or_create(username=name)
    # In a real app, check a password first.
    login(request, user)
    return HttpResponse(status=204)


urlpatterns = [path("summary", summary), path("budget", budget), path("sign-in/<name>", sign_in)]

if __name__ == "__main__":
    os.environ["DJANGO_SETTINGS_MODULE"] = "django_app"
    execute_from_command_line(sys.argv)
