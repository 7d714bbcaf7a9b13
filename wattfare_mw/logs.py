"""What may stand in the log: our own words, statuses and kinds of errors, one record on one line.

A log is read by more people than the ledger is, and by programs that take each line for a record.
So no line holds a prompt or the words of an upstream, and nothing that a client or an upstream
sends can begin a line of its own. Each logger of the package comes from :func:`get_logger`, and
each line about an error from :func:`describe`.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TextIO

import msgspec

from .errors import WattfareError

#: The longest text of one error in a traceback, in characters.
MAX_ERROR = 1000
#: How many errors of one chain are described, and how many places of each.
MAX_CHAIN = 8
MAX_PLACES = 6


def get_logger(name: str, *, show_messages: bool = True) -> logging.Logger:
    """The logger with this name. Its records are made safe before any handler sees them.

    Args:
        show_messages: may a record hold tracebacks with the messages of errors? They help the
            developer of an app. In the service they could repeat a prompt: there, the record
            says the kinds of the errors and their places in the code, on the same line.
    """
    logger = logging.getLogger(name)
    if not any(isinstance(one, _Safe) for one in logger.filters):
        logger.addFilter(_Safe(show_messages=show_messages))
    return logger


class _Safe(logging.Filter):
    """Lets every record pass, with its message on one line and its error made safe."""

    def __init__(self, *, show_messages: bool) -> None:
        super().__init__()
        self._show_messages = show_messages

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None and self._show_messages:
            # A formatter takes this text, and makes none of its own.
            record.exc_text = safe_traceback(error)
        elif error is not None:
            message = f"{message} error={kinds_of(error)} at={places_of(error)}"
            record.msg, record.args, record.exc_info = message, None, None
        if not message.isprintable():
            record.msg, record.args = one_line(message), None
        return True


def one_line(text: str) -> str:
    """The text, with whatever is not printable as an escape: line ends, control characters,
    marks that turn the direction of writing, halves of surrogate pairs."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def describe(error: BaseException) -> str:
    """What the log says of an error: its code, its status and our own words, and the kinds of the
    errors behind it. Never another party's words."""
    if not isinstance(error, WattfareError):
        return kinds_of(error)
    said = f"{error.code} {error.status}: {error.log_message}"
    cause = error.__cause__
    return said if cause is None else f"{said} cause={kinds_of(cause)}"


def kinds_of(error: BaseException) -> str:
    """The kinds of an error and of those behind it, with the codes that they carry."""
    return " < ".join(map(_kind, _chain(error)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in seen and len(seen) < MAX_CHAIN:
        seen.append(inner)
        yield inner
        inner = inner.__cause__ or _original(inner) or _implied(inner)


def _implied(error: BaseException) -> BaseException | None:
    return None if error.__suppress_context__ else error.__context__


def _original(error: BaseException) -> BaseException | None:
    original = getattr(error, "orig", None)  # SQLAlchemy's
    return original if isinstance(original, BaseException) else None


def _kind(error: BaseException) -> str:
    kinds: Any = getattr(error, "kinds", None)  # an HTTP library's, whose frames are dropped
    if isinstance(kinds, str) and kinds:
        return kinds
    name = type(error).__qualname__
    if isinstance(error, WattfareError):
        return f"{name}({error.code} {error.status})"
    # PostgreSQL's code, SQLite's, or the system's. Each is one word of a closed list.
    for attribute in ("sqlstate", "sqlite_errorname"):
        code: Any = getattr(error, attribute, None)
        if isinstance(code, str):
            return f"{name}({one_line(code[:40])})"
    if isinstance(error, socket.gaierror):
        return f"{name}({one_line(str(error.strerror))})"
    if isinstance(error, OSError) and isinstance(error.errno, int):
        symbol = errno.errorcode.get(error.errno, str(error.errno))
        return f"{name}({symbol}: {os.strerror(error.errno)})"
    return name


def safe_traceback(error: BaseException) -> str:
    """A traceback in which no message has a line of its own."""
    parts: list[str] = []
    for inner in reversed(list(_chain(error))):
        if inner.__traceback__ is not None:
            parts.append("Traceback (most recent call last):")
            parts.append("".join(traceback.format_tb(inner.__traceback__)).rstrip())
        parts.append(_last_line(inner))
    return "\n".join(parts)


def _last_line(error: BaseException) -> str:
    if isinstance(error, WattfareError):
        return one_line(f"{_kind(error)}: {error.log_message}")
    try:
        said = str(error)
    except Exception:
        said = ""
    return one_line(f"{type(error).__qualname__}: {said[:MAX_ERROR]}".rstrip(": "))


def places_of(error: BaseException) -> str:
    """Where in the code an error and those behind it were raised, on one line."""
    return " < ".join(
        ", ".join(
            _place(frame) for frame in traceback.extract_tb(inner.__traceback__)[-MAX_PLACES:]
        )
        or "?"
        for inner in _chain(error)
    )


def _place(frame: traceback.FrameSummary) -> str:
    return f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno} {frame.name}"


LogFormat = Literal["text", "json"]
Field = str | int | Decimal | None


class LogEvent:
    """A log message with fields. A log of text shows them as ``name=value``, and a log of JSON as
    members of its object.

    Args:
        text: our own words, on one line.
        fields: their values may come from a client. Those that are None are left out.
        said: fields that the text says already. Only a log of JSON has them.
    """

    __slots__ = ("_line", "fields", "said", "text")

    def __init__(
        self, text: str, fields: Mapping[str, Field], said: Mapping[str, Field] | None = None
    ) -> None:
        self.text = text
        self.fields = fields
        self.said: Mapping[str, Field] = said or {}
        self._line: str | None = None

    def __str__(self) -> str:
        if self._line is None:  # a filter and a formatter both ask
            parts = [self.text]
            for name, value in self.fields.items():
                if isinstance(value, str):
                    parts.append(f"{name}={_quoted(value)}")
                elif isinstance(value, int):
                    parts.append(f"{name}={value}")
                elif value is not None:
                    parts.append(f"{name}={value:f}")
            self._line = " ".join(parts)
        return self._line


@lru_cache(maxsize=1024)  # the same apps, users and models come again and again
def _quoted(value: str) -> str:
    """A value that cannot look like another field: in quotes, unless it is a plain word."""
    if value.isascii() and value.isprintable() and _MARKS.isdisjoint(value) and value:
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{one_line(escaped)}"'


_MARKS = frozenset(' "=\\')


class ProcessFormatter(logging.Formatter):
    """For a process whose whole log is ours to keep clean, whichever package writes to it.

    Another package may log what a peer has sent: a header, a cookie, the repr of an error. Of its
    records, the log shows the text before the values are put in, and the kind of the error.
    """

    #: Packages whose values are known: ours, made safe already, and the server's own.
    KNOWN = ("wattfare_mw", "uvicorn")

    def format(self, record: logging.LogRecord) -> str:
        """One record, on one line if it comes from another package."""
        if record.name.partition(".")[0] in self.KNOWN and not record.exc_info:
            message = record.getMessage()
            if message.isprintable() and not record.exc_text and not record.stack_info:
                return super().format(record)
        else:
            message = str(record.msg)
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if message.startswith("Traceback "):  # the text of one, of which the kind is left
            message = message.strip().rpartition("\n")[2].partition(":")[0]
        message = one_line(message.partition("\n")[0])
        if error is not None:
            message = f"{message} error={kinds_of(error)} at={places_of(error)}"
        plain = logging.makeLogRecord(
            {**record.__dict__, "msg": message, "args": None, "exc_info": None, "exc_text": None}
        )
        plain.stack_info = None
        return super().format(plain)


class JSONFormatter(ProcessFormatter):
    """The same log with one JSON object on each line: ``time`` (UTC), ``level``, ``logger``,
    ``message``, and the fields of a :class:`LogEvent`."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """One record as JSON."""
        event = record.msg
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(event, LogEvent):
            line["message"] = event.text
            line.update(event.said)
            line.update((name, value) for name, value in event.fields.items() if value is not None)
        return _to_json(line).decode()


# An amount is a subclass of Decimal, which msgspec asks about.
_to_json = msgspec.json.Encoder(decimal_format="number", enc_hook=Decimal).encode
_FORMATTERS: dict[LogFormat, Callable[[], logging.Formatter]] = {
    "text": lambda: ProcessFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"),
    "json": JSONFormatter,
}


def log_to(stream: TextIO, level: str, log_format: LogFormat = "text") -> None:
    """Write the log of this process to a stream, unless the process has set up its log already.

    Args:
        log_format: ``json`` writes each record as a JSON object.
        level: the lowest level of our own records and the server's. Of other packages, only
            warnings and errors are shown.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_FORMATTERS[log_format]())
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    for name in ProcessFormatter.KNOWN:
        logging.getLogger(name).setLevel(level)
