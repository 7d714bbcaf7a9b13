"""The token route alone, for a project without the middleware."""

from django.urls import path
from wattfare_django import session_view

from wattfare_mw import Wattfare

wf = Wattfare()

urlpatterns = [path("wattfare-token", session_view(wf, request_limit=20))]
