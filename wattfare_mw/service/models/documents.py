"""Reads the PDF files of a request. Each is read in a separate process with limited memory and
time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from ...errors import WattfareError
from ...threads import Threads
from ..chat import attachments
from ..chat.attachments import Attachments, Pages
from . import pdf_child

#: How long a file may take, in seconds. It includes the start of the process.
SECONDS = 15.0
#: The maximum number of files to read at a time. Others wait.
AT_ONCE = 2

_threads = Threads(AT_ONCE)
_CHILD = str(Path(pdf_child.__file__))
#: The only environment variables that the process inherits, because our environment has secrets.
_NEEDED = ("SYSTEMROOT", "LD_LIBRARY_PATH")
_MAX_OUTPUT = 64 * 2**10
_decode = msgspec.json.Decoder(list[int] | int).decode


async def read(found: Attachments) -> Attachments:
    """Read the documents among these attachments. Returns the attachments with the pages of each
    document.

    Raises:
        WattfareError: ``invalid_request``; one of them cannot be read, or has too many pages.
    """
    pages = [await _threads.run(_read, name, data) for name, data in found.documents]
    return msgspec.structs.replace(found, documents=(), pages=(*found.pages, *pages))


def _read(name: str, data: bytes) -> Pages:
    try:
        done = subprocess.run(  # noqa: S603 - our own program, without any argument of a client
            [sys.executable, "-I", _CHILD],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
            env={name: os.environ[name] for name in _NEEDED if name in os.environ},
        )
        read: list[int] | int = _decode(done.stdout[:_MAX_OUTPUT]) if not done.returncode else 0
    except (subprocess.TimeoutExpired, msgspec.MsgspecError):
        read = 0
    if isinstance(read, int) and read > 0:
        raise attachments.refusal(
            name, f"it has {read:,} pages; providers accept at most {pdf_child.MAX_PAGES:,}"
        )
    if not read or isinstance(read, int):
        raise _unreadable(name)
    return Pages(tuple(read))


def _unreadable(name: str) -> WattfareError:
    return attachments.refusal(
        name,
        "this PDF cannot be read: it is damaged, needs a password or takes too long. Send its "
        "text, or images of its pages",
    )
