"""People who use the service's pages without a browser: each has an authenticator in software."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import httpx
from sqlalchemy import Connection as Sql
from sqlalchemy import text

from support.authenticator import Authenticator
from support.pages import Browser, Form, Page, new_address
from support.service import App, Service, bearer
from support.sqlite import sqlite_transaction
from wattfare_mw.service.ledger.databases import open_store

#: The page of the app that a browser returns to, and its origin.
ORIGIN = "https://app.example.com"
RETURN_URL = f"{ORIGIN}/return?from=here"


class Person:
    """A person with a browser, and with passkeys in their own authenticator."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.browser = Browser(service)
        self.authenticator = Authenticator(self.browser.origin)

    def sign_in(self, next_: str = "/budget", kind: str | None = None) -> httpx.Response:
        """Does what the page's script does: creates a passkey, or signs in with one.

        Args:
            kind: ``create`` or ``sign-in``; None chooses.
        """
        kind = kind or ("sign-in" if self.authenticator.credentials else "create")
        form = self.form(next_)
        asked = self.challenge(form, kind)
        make = self.authenticator.create if kind == "create" else self.authenticator.sign_in
        credential = make(asked["options"])
        return self.browser.send(form, challenge=asked["id"], credential=credential)

    def form(self, next_: str = "/budget") -> Form:
        """The form that the script sends."""
        page = self.browser.get(next_ if next_.startswith("/approve/") else "/sign-in?again=1")
        forms = [form for form in page.forms if form.action == "/sign-in/passkey"]
        assert forms, page.text
        forms[0].fields["next"] = next_
        return forms[0]

    def challenge(self, form: Form, kind: str) -> dict[str, Any]:
        """A challenge, and the options for the authenticator."""
        answer = self.browser.post(
            "/sign-in/challenge", {"csrf": form.fields["csrf"], "kind": kind}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def allow(self, url: str, **fields: str) -> httpx.Response:
        """Opens an approval, signs in if necessary, and presses Allow, as a browser with
        JavaScript."""
        return self.browser.send(self.open(url).form("Allow"), ready="1", **fields)

    def open(self, url: str) -> Page:
        """The page of an approval, signed in."""
        path = urlsplit(url).path
        page = self.browser.get(path)
        if any(form.action == "/sign-in/passkey" for form in page.forms):
            page = self.browser.follow(self.sign_in(path))
        return page

    def decide(self, url: str, **fields: str) -> httpx.Response:
        """Sends the form of an approval from another page, whatever the approval's own page
        shows."""
        form = self.form()
        fields = {"decision": "allow", "cap": "1", "ready": "1", **fields}
        path = urlsplit(url).path
        return self.browser.post(path, {"csrf": form.fields["csrf"], **fields})

    def approve(self, url: str, **fields: str) -> dict[str, str]:
        """Allows the approval. Returns the query of the return URL, which the app gets."""
        return returned(self.allow(url, **fields))

    def deny(self, url: str) -> dict[str, str]:
        """Presses Deny without signing in."""
        page = self.browser.get(urlsplit(url).path)
        return returned(self.browser.send(page.form("Deny")))

    def close(self) -> None:
        self.browser.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def returned(answer: httpx.Response) -> dict[str, str]:
    """The query with which a browser returns to the app."""
    assert answer.status_code == 303, answer.text
    location = answer.headers["location"]
    assert location.startswith(RETURN_URL), location
    query = parse_qs(urlsplit(location).query, strict_parsing=True)
    return {name: value for name, (value,) in query.items() if name != "from"}


def live_app(service: Service, name: str = "live app", origin: str = ORIGIN) -> App:
    """A live app with a registered origin."""
    app = App(service, service.create_app("live", name))
    app.http.headers["x-forwarded-for"] = new_address()
    change(
        service,
        "INSERT INTO app_origins VALUES (:app, :origin)",
        app=app.keys.app_id,
        origin=origin,
    )
    return app


def ask(app: App, user: str = "u1", *, token: str | None = None, **limit: Any) -> dict[str, Any]:
    """Opens an approval of a connection, as the app's page does."""
    answer = post(app, "/approvals", token or app.token(user, **limit), {"returnUrl": RETURN_URL})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ask_for_grant(app: App, requests: int = 2, **fields: Any) -> dict[str, Any]:
    """Opens an approval of a grant, as the app's page does."""
    body = {"returnUrl": RETURN_URL, "requests": requests, **fields}
    answer = post(app, "/approvals", app.keys.publishable_key, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def redeem(
    app: App, asked: dict[str, Any], code: str, *, token: str | None = None, **changes: Any
) -> httpx.Response:
    """Redeems an approval, as the app's page does."""
    body = {"code": code, "secret": asked["secret"], **changes}
    return post(app, f"/approvals/{asked['id']}/redeem", token or app.token(), body)


def post(
    app: App, path: str, credential: str, body: object, origin: str | None = ORIGIN
) -> httpx.Response:
    """Sends a request from a page of this origin."""
    headers = bearer(credential)
    if origin is not None:
        headers["origin"] = origin
    return app.http.post(path, json=body, headers=headers)


def connect(app: App, person: Person, user: str = "u1", **fields: str) -> dict[str, Any]:
    """Goes all the way from the app's button to a connected budget."""
    asked = ask(app, user)
    code = person.approve(asked["url"], **fields)["code"]
    answer = redeem(app, asked, code, token=app.token(user))
    assert answer.status_code == 200, answer.text
    return answer.json()


def change(service: Service, statement: str, **values: Any) -> int:
    """Changes the database of the running service, to simulate time or an operator."""

    def execute(sql: Sql) -> int:
        return sql.execute(text(statement), values).rowcount

    async def carry_out() -> int:
        store = await open_store(service.database)
        try:
            return await store.transact(execute)
        finally:
            await store.close()

    if service.database.startswith("sqlite:"):
        return sqlite_transaction(service.database, execute)

    with ThreadPoolExecutor(1) as thread:  # a test may have its own event loop
        return thread.submit(asyncio.run, carry_out()).result()
