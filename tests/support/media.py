"""Minimal images, sounds and PDF files, and the formulas of their providers."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence


def png(width: int, height: int, *, extra: bytes = b"") -> bytes:
    """A PNG whose header states this size. It has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, 0))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IEND", b"")


def jpeg(width: int, height: int, *, before: int = 0) -> bytes:
    """A JPEG whose header states this size, after this many bytes of other segments."""
    segments = b""
    while before > 0:
        size = min(before, 60_000)
        segments += b"\xff\xe1" + struct.pack(">H", size + 2) + b"\0" * size
        before -= size
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"\1\x11\0\2\x11\1\3\x11\1"
    return b"\xff\xd8" + segments + b"\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame


def webp(width: int, height: int) -> bytes:
    """A lossy WebP whose header states this size."""
    frame = b"\x9d\x01\x2a" + struct.pack("<HH", width, height)
    data = b"\x30\x01\x00" + frame + b"\0" * 20
    body = b"WEBPVP8 " + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(width: int, height: int) -> bytes:
    """A GIF whose header states this size."""
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0;"


def wav(seconds: float, rate: int = 16_000, *, says: int | None = None) -> bytes:
    """Silence with one channel of 16 bits. ``says``: the number of bytes that its header states."""
    data = b"\0\0" * int(seconds * rate)
    stated = len(data) if says is None else says
    form = struct.pack("<HHIIHH", 1, 1, rate, rate * 2, 2, 16)
    head = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", stated)
    return b"RIFF" + struct.pack("<I", len(head) + stated) + head + data


#: A frame of MPEG 1, layer 3, with 128 kbit/s at 44.1 kHz: 417 bytes for 1,152 samples.
MP3_FRAME = b"\xff\xfb\x90\x00" + b"\0" * 413
MP3_FRAME_SECONDS = 1152 / 44_100


def mp3(seconds: float, *, tag: int = 0) -> bytes:
    """Silence, after a tag of this many bytes."""
    size = bytes(tag >> shift & 0x7F for shift in (21, 14, 7, 0))
    head = b"ID3\4\0\0" + size + b"\0" * tag if tag else b""
    return head + MP3_FRAME * round(seconds / MP3_FRAME_SECONDS)


def pdf(pages: Sequence[str]) -> bytes:
    """A PDF with a page for each of these texts."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        lines = "".join(f"({line}) Tj T* " for line in text.split("\n"))
        stream = f"BT /F1 9 Tf 12 TL 20 800 Td {lines}ET"
        objects += [
            (
                "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] "
                f"/Contents {5 + 2 * number} 0 R /Resources << /Font << /F1 3 0 R >> >> >>"
            ),
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    written = b"%PDF-1.4\n"
    places: list[int] = []
    for number, each in enumerate(objects, 1):
        places.append(len(written))
        written += f"{number} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
        f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(written)}\n%%EOF\n"
    )
    return written + trailer.encode()


def data_url(data: bytes, kind: str = "image/png") -> str:
    """These bytes as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(url: str, **fields: str) -> dict[str, object]:
    """A part with an image, in OpenAI's format."""
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def audio_part(data: bytes, kind: str = "wav") -> dict[str, object]:
    """A part with audio, in OpenAI's format."""
    text = base64.b64encode(data).decode()
    return {"type": "input_audio", "input_audio": {"data": text, "format": kind}}


def file_part(data: bytes, kind: str = "application/pdf", name: str = "a.pdf") -> dict[str, object]:
    """A part with a file, in OpenAI's format."""
    return {"type": "file", "file": {"filename": name, "file_data": data_url(data, kind)}}
