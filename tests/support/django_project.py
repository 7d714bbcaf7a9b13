"""A small Django project: its settings, its URLs and its views."""

from __future__ import annotations

import asyncio
import json
from contextvars import copy_context
from typing import Any
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from wattfare_django import WattfareRequest

from wattfare_mw import WattfareError, current_async_user, current_user

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "wattfare_django.WattfareMiddleware",
]


INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "wattfare_django",
]


def configure(database: str, conn_max_age: int | None = 0, **more: Any) -> None:
    """Configures Django, once in a process.

    Args:
        database: the URL of a PostgreSQL database, or the path of a SQLite file.
        conn_max_age: seconds for which a connection is kept; None keeps it for good.
        more: other settings.
    """
    if settings.configured:
        return
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": {**_database(database), "CONN_MAX_AGE": conn_max_age}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        # Tables are created without migrations, which are slow.
        MIGRATION_MODULES=dict.fromkeys(("auth", "authtoken", "contenttypes", "sessions")),
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        SECRET_KEY="not secret",
        USE_TZ=True,
        **{
            "INSTALLED_APPS": INSTALLED_APPS,
            "MIDDLEWARE": MIDDLEWARE,
            "ROOT_URLCONF": "support.django_project",
            **more,
        },
    )
    django.setup()


def _database(where: str) -> dict[str, Any]:
    if "://" not in where:
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": where}
    parts = urlsplit(where)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": parts.hostname,
        "PORT": parts.port,
        "USER": parts.username,
        "NAME": parts.path.lstrip("/"),
    }


def make_tables() -> None:
    """Creates the tables of all apps."""
    from django.core.management import call_command

    call_command("migrate", run_syncdb=True, verbosity=0)


class Browser:
    """Django's sync or async test client behind one interface. It keeps cookies.

    Args:
        kind: ``sync`` for the WSGI handler, or ``async`` for the ASGI handler.
        options: for the test client.
    """

    def __init__(self, kind: str, **options: Any) -> None:
        from django.test import AsyncClient, Client

        self.kind = kind
        self.client: Any = AsyncClient(**options) if kind == "async" else Client(**options)

    def ask(
        self,
        method: str,
        path: str,
        body: str | bytes = b"",
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> Reply:
        """Sends a request and reads the whole answer."""
        headers = dict(headers or {})
        kind = headers.pop("content-type", "application/json")
        if self.kind == "async":
            return asyncio.run(self._ask(method, path, body, kind, headers, more))
        answer = self.client.generic(method, path, body, kind, headers=headers, **more)
        return Reply(answer, answer.getvalue())

    async def _ask(self, method: str, path: str, body: Any, kind: str, headers: Any, more: Any):
        answer = await self.client.generic(method, path, body, kind, headers=headers, **more)
        if answer.streaming:
            return Reply(answer, b"".join([part async for part in answer]))
        return Reply(answer, answer.content)

    def get(self, path: str, headers: dict[str, str] | None = None) -> Reply:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: str | bytes = b"", headers: Any = None) -> Reply:
        return self.ask("POST", path, body, headers)


class Reply:
    """A whole answer."""

    def __init__(self, answer: Any, body: bytes) -> None:
        self.status = answer.status_code
        self.headers = answer.headers
        self.cookies = answer.cookies
        self.body = body
        self.streaming = answer.streaming

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """The status and the error's code."""
        return self.status, self.json["error"]["code"]


def sign_in(request: HttpRequest, name: str) -> HttpResponse:
    """Signs in this user, who need not exist."""
    from django.contrib.auth import get_user_model, login

    user, _ = get_user_model().objects.get_or_create(username=name)
    login(request, user)
    return HttpResponse(str(user.pk))


def count_users(_request: HttpRequest) -> HttpResponse:
    """A view that needs the database."""
    from django.contrib.auth import get_user_model

    return HttpResponse(str(get_user_model().objects.count()))


async def count_users_async(_request: HttpRequest) -> HttpResponse:
    from django.contrib.auth import get_user_model

    return HttpResponse(str(await get_user_model().objects.acount()))


def spend(request: WattfareRequest) -> JsonResponse:
    done = request.wattfare.model("wattfare/echo").generate("one two three")
    return JsonResponse({"user": request.wattfare.id, "text": done.text})


async def aspend(request: WattfareRequest) -> JsonResponse:
    user = await request.awattfare()
    done = await user.model("wattfare/echo").generate("one two three")
    return JsonResponse({"user": user.id, "text": done.text})


def stream(request: WattfareRequest) -> StreamingHttpResponse:
    stream = request.wattfare.model("wattfare/echo").stream("one two three")

    def text() -> Any:
        with stream:
            yield from stream.text_stream

    return StreamingHttpResponse(text(), content_type="text/plain")


async def astream(request: WattfareRequest) -> StreamingHttpResponse:
    user = await request.awattfare()
    stream = user.model("wattfare/echo").stream("one two three")

    async def text() -> Any:
        async with stream:
            async for piece in stream.text_stream:
                yield piece

    return StreamingHttpResponse(text(), content_type="text/plain")


def confused(request: WattfareRequest) -> HttpResponse:
    return HttpResponse(request.wattfare.id)


async def aconfused(request: WattfareRequest) -> HttpResponse:
    return HttpResponse(request.wattfare.id)


def broken(_request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError


def embeddings(_request: HttpRequest) -> HttpResponse:
    return HttpResponse("ours", status=404)


def current(_request: HttpRequest) -> HttpResponse:
    return HttpResponse(current_user.id)


async def current_async(_request: HttpRequest) -> HttpResponse:
    return HttpResponse((await current_async_user.resolve()).id)


async def current_confused(_request: HttpRequest) -> HttpResponse:
    return HttpResponse(current_user.id)


def current_stream(_request: HttpRequest) -> StreamingHttpResponse:
    def text() -> Any:
        yield current_user.id
        yield " again "
        yield current_user.id

    return StreamingHttpResponse(text(), content_type="text/plain")


async def current_stream_async(_request: HttpRequest) -> StreamingHttpResponse:
    async def text() -> Any:
        yield (await current_async_user.resolve()).id
        yield " again "
        yield (await current_async_user.resolve()).id

    return StreamingHttpResponse(text(), content_type="text/plain")


#: What code that outlives its request found as the current user.
LATER: list[Any] = []


def later(_request: HttpRequest) -> HttpResponse:
    """Starts work that continues after the response."""
    context = copy_context()

    def work() -> None:
        try:
            LATER.append(context.run(lambda: current_user.id))
        except WattfareError as error:
            LATER.append(error)

    LATER.append(work)
    return HttpResponse(current_user.id)


urlpatterns = [
    path("current", current),
    path("current-async", current_async),
    path("current-confused", current_confused),
    path("current-stream", current_stream),
    path("current-stream-async", current_stream_async),
    path("later", later),
    path("broken", broken),
    path("api/wattfare/embeddings", embeddings),
    path("sign-in/<name>", sign_in),
    path("count", count_users),
    path("count-async", count_users_async),
    path("spend", spend),
    path("aspend", aspend),
    path("stream", stream),
    path("astream", astream),
    path("me", confused),
    path("ame", aconfused),
]
