"""An image, file or audio clip of one client neither stalls the service for others nor fills its
memory."""

from __future__ import annotations

import base64
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from support.media import MP3_FRAME, audio_part, data_url, file_part, image_part, jpeg, pdf, png
from support.service import App, Service
from support.upstream import Upstream
from support.victim import LONGEST_GAP, MB, MOST_MEMORY, Memory, Victim

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

#: Bytes of a large file. A body may have 15 MB.
LARGE = 8 * MB


def deflated_page(size: int) -> bytes:
    """A page whose content is this many bytes of text operators, compressed to a thousandth."""
    content = b"BT /F1 9 Tf " + b"(aaaaaaaaaaaaaaaa) Tj " * (size // 22) + b"ET"
    packed = zlib.compress(content, 9)
    start, _, rest = pdf(["x"]).partition(b"<< /Length ")
    _, end, behind = rest.partition(b"\nendstream")
    assert end
    head = b"<< /Length %d /Filter /FlateDecode >>\nstream\n" % len(packed)
    return start + head + packed + end + behind


def many_pages(count: int) -> bytes:
    """A file with this many pages, all of them the same object."""
    return (
        pdf(["x"])
        .replace(b"/Kids [4 0 R]", b"/Kids [" + b"4 0 R " * count + b"]")
        .replace(b"/Count 1", b"/Count %d" % count)
    )


PARTS: dict[str, Callable[[], Any]] = {
    "a large image": lambda: image_part(data_url(png(9, 9) + b"\0" * LARGE)),
    "a large image without a size": lambda: image_part(data_url(b"\xff\xd8" + b"\xff" * LARGE)),
    "a jpeg of many segments": lambda: image_part(
        data_url(b"\xff\xd8" + b"\xff\xe1\0\2" * (LARGE // 4))
    ),
    "a jpeg with a long preview": lambda: image_part(data_url(jpeg(9, 9, before=LARGE))),
    "base64 of spaces": lambda: image_part("data:image/png;base64," + " \n" * (6 * MB)),
    "base64 with escapes": lambda: image_part("data:image/png;base64," + "%41" * (6 * MB)),
    "a long head of a url": lambda: image_part("data:" + ";a" * (9 * MB) + ",x"),
    "noise as audio": lambda: audio_part(b"\xff\xfb\x90\0\xff" * (LARGE // 5), "mp3"),
    "tiny frames of audio": lambda: audio_part(
        (b"\xff\xe3\x18\xc4" + b"\0" * 44) * (LARGE // 48), "mp3"
    ),
    "long audio": lambda: audio_part(MP3_FRAME * (LARGE // 417), "mp3"),
    "a large text": lambda: file_part(b"a,b\n" * (LARGE // 4), "text/csv"),
    "a large pdf of nothing": lambda: file_part(b"%PDF-1.4\n" + b"\0" * LARGE),
    "a pdf that unpacks to a lot": lambda: file_part(deflated_page(100 * MB)),
    "a pdf of many pages": lambda: file_part(many_pages(200_000)),
    "a pdf without an end": lambda: file_part(pdf(["x" * 1000] * 2000)[:-200]),
}


@pytest.fixture
def app(attacked: Service, upstream: Upstream) -> Iterator[App]:
    with attacked.app() as app:
        app.connect("rich")
        yield app


def body_of(*parts: Any) -> bytes:
    messages = [{"role": "user", "content": list(parts)}]
    return json.dumps({"model": "fake/model", "messages": messages, "max_tokens": 5}).encode()


@pytest.mark.long
def test_attachment_does_not_stall_other_users(
    attacked: Service, app: App, victims: list[Victim]
) -> None:
    headers = {**app.paid_by("rich"), "content-type": "application/json"}
    bodies = {name: body_of(make()) for name, make in PARTS.items()}
    small = image_part(data_url(png(9, 9)))
    bodies["many images"] = body_of(*[small] * 15_000)
    small_file = file_part(b"a", "text/plain", "")
    bodies["many files"] = body_of(*[small_file] * 15_000)
    different = [image_part(data_url(png(500 + side, 2000))) for side in range(1_100)]
    bodies["many different images"] = body_of(*different)
    small = [image_part(data_url(png(500 + side, 2000))) for side in range(350)]
    body = json.loads(body_of(*small)) | {"models": [f"fake/{n}" for n in range(15)]}
    bodies["small, with many images and fallbacks"] = json.dumps(body).encode()
    statuses: dict[str, int] = {}
    gaps: dict[str, float] = {}
    grown: dict[str, int] = {}
    for name, body in bodies.items():
        assert len(body) < 20 * MB, name
        victims[0].forget()
        memory = Memory(attacked.process.pid)
        answer = app.http.post("/chat/completions", content=body, headers=headers)
        statuses[name] = answer.status_code
        gaps[name], grown[name] = victims[0].longest_gap(), memory.grown()
    victims[0].check()
    assert max(gaps.values()) < LONGEST_GAP, gaps
    assert max(grown.values()) < MOST_MEMORY, grown
    refused = {name for name, status in statuses.items() if status == 400}
    assert refused >= {"noise as audio", "a large pdf of nothing", "a pdf of many pages"}
    assert set(statuses.values()) <= {200, 400}, statuses
    assert statuses["a pdf that unpacks to a lot"] == 400, statuses
    assert not [line for line in attacked.log if "Traceback" in line]


def test_pdf_reader_gets_little_memory_and_no_secret(
    attacked: Service, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A separate process reads the PDF."""
    from wattfare_mw.service.models import documents, pdf_child

    seen: dict[str, Any] = {}

    def run(arguments: list[str], **options: Any) -> Any:
        seen.update(options, arguments=arguments)
        raise documents.subprocess.TimeoutExpired(arguments, 1)

    monkeypatch.setenv("WATTFARE_UPSTREAM_KEY", "sk-secret")
    monkeypatch.setattr(documents.subprocess, "run", run)
    with pytest.raises(documents.WattfareError, match="takes too long"):
        documents._read("messages[0]", b"%PDF-")
    assert "-I" in seen["arguments"]
    assert set(seen["env"]) <= set(documents._NEEDED)
    assert seen["timeout"] <= 15
    assert pdf_child.MEMORY <= 2**30


def test_hour_of_audio_in_a_few_bytes_is_refused(app: App) -> None:
    """A low sample rate makes the audio long, whatever its size."""
    head = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0"
    for rate in (1, 999, 1000):
        data = head + rate.to_bytes(4, "little") + b"\0\0\0\0\1\0\x08\0data\0\0\0\0" + b"\0" * 10**6
        part = {
            "type": "input_audio",
            "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"},
        }
        app.connect("rich", monthlyUsd=0.01)
        answer: httpx.Response = app.http.post(
            "/chat/completions",
            content=body_of(part),
            headers={**app.paid_by("rich"), "content-type": "application/json"},
        )
        # No provider accepts so low a rate, so its cost has no bound: the call reserves the whole
        # budget.
        assert answer.status_code == (402 if rate >= 1000 else 200)
        assert ("x-wattfare-reserved" in answer.headers) is (rate < 1000)
