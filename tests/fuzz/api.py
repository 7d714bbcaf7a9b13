"""The HTTP API of a real ``wattfare serve``, by its own OpenAPI document."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.examples import UNTIMED
from support.service import App, Service, bearer, run_service

#: How many inputs one operation gets in a row.
ROUND = 25
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


def fuzz(inputs: int, seconds: float | None, seed: int, patience: float) -> int:
    """Sends this many requests, or fewer if the time runs out. Returns their number.

    Args:
        patience: how long an answer may take, in seconds.
    """
    # Other rate limits are per address, user or app. These requests come from many.
    options = ("--metrics", "--calls-per-minute-per-app", "1000000")
    with (
        tempfile.TemporaryDirectory() as folder,
        run_service(Path(folder), *options, "--log-level", "error") as service,
    ):
        requests = _Requests(service, patience)
        done = requests.run(inputs, seconds, seed)
        statuses = sorted(requests.statuses.items())
        print(f"{'':<14}", *(f"{status}: {count:,}" for status, count in statuses))
        failures = [line for line in service.log if "Traceback" in line]
        assert not failures, "".join(service.log)
        return done


class _Requests:
    def __init__(self, service: Service, patience: float) -> None:
        self._schema: Any = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
        self._service = service
        self._patience = patience
        self._done = 0
        self.statuses: Counter[int] = Counter()

    def run(self, inputs: int, seconds: float | None, seed: int) -> int:
        until = time.monotonic() + seconds if seconds else None
        operations = [found.ok() for found in self._schema.get_all_operations()]
        for number in itertools.count():
            for operation in operations:
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                    if self._done >= inputs or (until and time.monotonic() > until):
                        return self._done
                    try:
                        strategy = operation.as_strategy(generation_mode=mode)
                        self._round(strategy, seed + number)
                    except hypothesis.errors.Unsatisfiable:
                        pass  # no input of this operation can be invalid
        raise AssertionError

    def _round(self, strategy: Any, seed: int) -> None:
        """Some requests of one operation, for a new app."""
        app = App(self._service, self._service.create_app())
        app.connect("u1", monthlyUsd=1000)
        credentials = {
            "secretKey": app.keys.secret_key,
            "publishableKey": app.keys.publishable_key,
            "sessionToken": app.token("u1"),
        }
        app.close()

        @hypothesis.seed(seed)
        @hypothesis.settings(UNTIMED, max_examples=ROUND, database=None)
        @hypothesis.given(strategy)
        def send(case: Any) -> None:
            self._done += 1
            schemes = [*case.operation.definition.raw["security"], {"secretKey": []}]
            names = [name for scheme in schemes for name in scheme]
            if self._done % 10 == 0:
                names = list(credentials)[self._done // 10 % 3 :]
            headers = {
                **bearer(credentials[names[0]]),
                # Each from another address: failures have a rate limit for each address.
                "x-forwarded-for": str(IPv4Address(0x0A000000 + self._done)),
            }
            if isinstance(case.body, dict) and "messages" in case.body and self._done % 2:
                case.body = _plain(case.body)
                case.headers.pop("x-wattfare-grant", None)
                headers["x-wattfare-user"] = "u1"
            answer = case.call(headers=headers, timeout=self._patience)
            self.statuses[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        send()


def _plain(body: dict[str, Any]) -> dict[str, Any]:
    """This inference request, for the built-in model, with allowed fields only."""
    kept = {name: body[name] for name in ("stream", "max_tokens", "n") if name in body}
    messages = body["messages"]
    if isinstance(messages, list):
        messages = [
            {name: message[name] for name in ("role", "content") if name in message}
            if isinstance(message, dict)
            else message
            for message in messages
        ]
        messages.append({"role": "user", "content": "one two three"})
    return {**kept, "model": "wattfare/echo", "messages": messages}
