"""Tests of an app, with Django's TestCase. Run them: pytest examples/testing"""

from __future__ import annotations

import django
from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.test import SimpleTestCase
from django.urls import path

from wattfare_mw import Wattfare, WattfareError
from wattfare_mw.testing import WattfareService


def summary(request: HttpRequest, user: str) -> JsonResponse:
    try:
        with Wattfare() as wf:
            answer = wf.user(user).model("openai/gpt-5").generate("How is Ann today?")
    except WattfareError as error:
        return JsonResponse(error.to_wire(), status=error.http_status)
    return JsonResponse({"summary": answer.text})


urlpatterns = [path("summary/<user>", summary)]

if not settings.configured:
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
    django.setup()


class SummaryTest(SimpleTestCase):
    def setUp(self) -> None:
        self.wattfare = self.enterContext(WattfareService())

    def test_summary_is_billed(self) -> None:
        self.wattfare.user("ann").connect(5)

        response = self.client.get("/summary/ann")

        self.assertEqual(response.json(), {"summary": "How is Ann today?"})

    def test_refused_key_is_402(self) -> None:
        self.wattfare.user("ann").connect(5).fund_fails()

        response = self.client.get("/summary/ann")

        self.assertContains(response, "funding_invalid", status_code=402)
