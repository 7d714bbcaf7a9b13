"""A Django project with the middleware."""

import django
from django.conf import settings
from django.http import HttpResponse
from django.test import Client
from django.urls import path
from fake_service import fake_service


def hello(request):
    return HttpResponse(request.wattfare.model("wattfare/echo").generate("Say hello.").text)


urlpatterns = [path("hello", hello)]

with fake_service():
    settings.configure(
        ALLOWED_HOSTS=["testserver"],
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=["wattfare_django"],
        MIDDLEWARE=["wattfare_django.WattfareMiddleware"],
        WATTFARE={"RESOLVE_USER": lambda request: request.GET.get("user")},
    )
    django.setup()
    client = Client()
    assert client.get("/hello?user=ann").content == b"Hello."
    assert client.get("/hello").status_code == 401
    assert client.get("/api/wattfare/status").status_code == 401
