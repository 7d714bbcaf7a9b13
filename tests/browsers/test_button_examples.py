"""The examples with the button: plain HTML, htmx and React, under a strict policy."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from support.node import node_and_npm, npm_install
from support.patience import PATIENCE
from support.servers import werkzeug_server

from browsers.flow import approve
from browsers.people import Person, assert_accessible
from browsers.site import Site
from wattfare_mw.service import create_keys

EXAMPLES = Path(__file__).parents[2] / "examples" / "button"
PACKAGES = ("htmx.org@2", "react@19", "react-dom@19", "esbuild@0.25")


@pytest.fixture(scope="module")
def app(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the examples' app, for a test app of the service."""
    folder = tmp_path_factory.mktemp("button")
    npm_install(folder, *PACKAGES)
    vendor = folder / "vendor"
    vendor.mkdir()
    shutil.copy(folder / "node_modules/htmx.org/dist/htmx.min.js", vendor / "htmx.js")
    shutil.copy(EXAMPLES / "react.jsx", folder)
    node, _ = node_and_npm()
    subprocess.run(
        [
            *(*node, "node_modules/esbuild/bin/esbuild", "react.jsx", "--bundle", "--format=esm"),
            *("--jsx=automatic", "--external:/wattfare.js", "--outfile=vendor/react.js"),
            '--define:process.env.NODE_ENV="production"',
        ],
        cwd=folder,
        timeout=PATIENCE,
        check=True,
        capture_output=True,
    )
    keys = create_keys(site.running.database, "Examples", "test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WATTFARE_SECRET_KEY", keys.secret_key)
        patch.setenv("WATTFARE_PUBLISHABLE_KEY", keys.publishable_key)
        patch.setenv("WATTFARE_BASE_URL", site.service)
        patch.setenv("VENDOR", str(vendor))
        spec = importlib.util.spec_from_file_location("button_app", EXAMPLES / "app.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with werkzeug_server(module.app) as address:
            yield f"http://localhost:{address[1]}"


@pytest.mark.parametrize("name", ["plain", "htmx", "react"])
def test_connect_and_ask(person: Person, app: str, name: str) -> None:
    page = person.open(f"{app}/{name}")
    budget = page.locator("wattfare-budget")
    expect(budget).to_contain_text("No AI budget is connected.")
    popup = person.popup(page, page.get_by_role("button", name="Connect AI budget").click)
    with popup.expect_event("close"):
        approve(person, popup)
    expect(budget).to_contain_text("$0.00 spent this month, $0.01 left")
    page.get_by_label("Question").fill("one two three")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer")).to_have_text("one two three")
    expect(budget).to_contain_text("$0.000009 spent this month, $0.009991 left")
    assert_accessible(page)


def test_react_example_says_how_to_build_it() -> None:
    text = (EXAMPLES / "react.jsx").read_text()
    assert "--external:/wattfare.js" in text
