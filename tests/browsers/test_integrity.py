"""`wattfare.js` from the service on a page of another site, which states the hash of the file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from hashlib import sha384

import flask
import pytest
from playwright.sync_api import Page, expect
from support.http_client import fetch
from support.servers import werkzeug_server

from browsers.people import Person
from browsers.site import Site

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>An app</title>
<link rel="icon" href="data:,"><main><h1>An app</h1><output>-</output></main>
<script>const say = (what) => {{ document.querySelector("output").textContent = what; }};</script>
<script type="module" crossorigin="anonymous" src="{src}" integrity="sha384-{digest}"
  onload="say('loaded')" onerror="say('refused')"></script>
</html>"""


@pytest.fixture
def open_page(person: Person, site: Site) -> Iterator[Callable[[bytes], Page]]:
    """Opens a page of another site with the service's module. The stated hash is of a file with
    these bytes at its end."""
    app = flask.Flask("another site")
    answer = fetch(f"{site.service}/wattfare.js", follow_redirects=True)

    @app.get("/<digest>")
    def show(digest: str) -> str:
        return PAGE.format(src=answer.url, digest=b64encode(bytes.fromhex(digest)).decode())

    with werkzeug_server(app) as address:
        yield lambda change: person.open(
            f"http://localhost:{address[1]}/{sha384(answer.content + change).hexdigest()}"
        )


def test_file_with_the_stated_hash_runs(open_page: Callable[[bytes], Page]) -> None:
    expect(open_page(b"").get_by_role("status")).to_have_text("loaded")


def test_other_file_does_not_run(person: Person, open_page: Callable[[bytes], Page]) -> None:
    person.expect_problem("integrity")
    expect(open_page(b" ").get_by_role("status")).to_have_text("refused")
