"""The page about providers matches the rows."""

from __future__ import annotations

from providers import PROVIDERS, page
from wattfare_mw.service.models.provider_facts import BY_NAME


def test_page_matches_the_rows() -> None:
    assert page.PAGE.read_text() == page.render(), "run `python -m providers` in the folder tests"


def test_every_row_names_its_source() -> None:
    for provider in PROVIDERS:
        assert provider.source.startswith("https://")
        for row in provider.rows:
            assert row.source.startswith("https://"), row.quirk


def test_service_and_page_agree_on_each_provider() -> None:
    for provider in PROVIDERS:
        name = "azure" if provider.name == "Azure OpenAI" else provider.name.lower()
        facts = BY_NAME[name.replace(" ", "-")]
        assert facts.reports_cost == provider.cost.startswith("yes"), provider.name
