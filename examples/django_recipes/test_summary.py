"""Tests of a Django project: `python manage.py test`."""

from django.conf import settings
from django.contrib.auth.models import User
from django.test import TestCase, override_settings

from wattfare_mw.testing import WattfareService


class SummaryTest(TestCase):
    def setUp(self) -> None:
        self.wattfare = self.enterContext(WattfareService())
        service = {"SECRET_KEY": self.wattfare.secret_key, "BASE_URL": self.wattfare.url}
        self.enterContext(override_settings(WATTFARE=settings.WATTFARE | service))
        self.ann = User.objects.create_user("ann")

    def test_user_pays_for_a_summary(self) -> None:
        self.wattfare.user(self.ann.pk).connect(5)
        self.client.force_login(self.ann)
        answer = self.client.post("/summary", {"text": "hi"}, "application/json")
        assert answer.json() == {"summary": "hi", "costUsd": "0.000003"}

    def test_anonymous_visitor_is_refused(self) -> None:
        assert self.client.post("/summary", {"text": "hi"}, "application/json").status_code == 401
