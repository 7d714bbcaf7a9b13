"""The page about providers is the one that the rows make."""

from __future__ import annotations

from providers import PROVIDERS, page
from wattfare_mw.service.models.provider_facts import BY_NAME


def test_the_page_is_the_one_that_the_rows_make() -> None:
    assert page.PAGE.read_text() == page.render(), "run `python -m providers` in the folder tests"


def test_every_row_names_its_source() -> None:
    for provider in PROVIDERS:
        assert provider.source.startswith("https://")
        for row in provider.rows:
            assert row.source.startswith("https://"), row.quirk


def test_the_service_knows_the_same_of_each_provider() -> None:
    for provider in PROVIDERS:
        name = "azure" if provider.name == "Azure OpenAI" else provider.name.lower()
        facts = BY_NAME[name.replace(" ", "-")]
        assert facts.names_cost == provider.cost.startswith("yes"), provider.name
