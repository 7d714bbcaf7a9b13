"""A bare pass-through for WSGI, over httpx."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from . import clients


def over_httpx() -> Any:
    client = clients.httpx_client()

    def pass_through(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        """Forward each POST to the same path of the upstream."""
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        url = clients.API + environ["PATH_INFO"]
        request = client.build_request("POST", url, content=body, headers=clients.HEADERS)
        answer = client.send(request, stream=True)
        try:
            passed = [(n, answer.headers[n]) for n in clients.PASSED if n in answer.headers]
            line = f"{answer.status_code} {HTTPStatus(answer.status_code).phrase}"
            start_response(line, passed)
            yield from answer.iter_raw()
        finally:
            answer.close()

    return pass_through
