"""Private: safe logging. Each record is one line. It has only our own text, statuses and kinds of
errors.

Many people can read a log, and programs treat each line as a record. So a line never contains a
prompt or a text from the upstream, and a client or an upstream cannot add a line. All loggers of
the package come from :func:`get_logger`, and all lines about an error use :func:`describe`.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TextIO

import msgspec

from .errors import WattfareError

#: The maximum length of an error's text in a traceback, in characters.
MAX_ERROR = 1000
#: The maximum number of logged errors in a chain, and of code positions for each error.
MAX_CHAIN = 8
MAX_PLACES = 6


def get_logger(name: str, *, show_messages: bool = True) -> logging.Logger:
    """Return the logger with this name. Its records are made safe before they reach a handler.

    Args:
        show_messages: True to log tracebacks with error messages, which help the developer of an
            app. False to log only the kinds of the errors and their positions in the code, on the
            same line. The service uses False, because a message could repeat a prompt.
    """
    logger = logging.getLogger(name)
    if not any(isinstance(one, _Safe) for one in logger.filters):
        logger.addFilter(_Safe(show_messages=show_messages))
    return logger


class _Safe(logging.Filter):
    """Puts the message of each record on one line, and makes its error safe."""

    def __init__(self, *, show_messages: bool) -> None:
        super().__init__()
        self._show_messages = show_messages

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, LogEvent):
            return True  # its text is one line
        message = record.getMessage()
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None and self._show_messages:
            # A formatter uses this text instead of formatting the error.
            record.exc_text = safe_traceback(error)
        elif error is not None:
            message = f"{message} error={kinds_of(error)} at={places_of(error)}"
            record.msg, record.args, record.exc_info = message, None, None
        if not message.isprintable():
            record.msg, record.args = one_line(message), None
        return True


def one_line(text: str) -> str:
    """Escape all unprintable characters: line ends, control characters, marks of writing direction
    and lone surrogates."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def describe(error: BaseException) -> str:
    """Describe an error for the log: its code, its status, our own text, and the kinds of its
    causes. The description never contains a text of the service or the upstream."""
    if not isinstance(error, WattfareError):
        return kinds_of(error)
    said = f"{error.code} {error.status}: {error.log_message}"
    cause = error.__cause__
    return said if cause is None else f"{said} cause={kinds_of(cause)}"


def kinds_of(error: BaseException) -> str:
    """The kinds of an error and its causes, with their codes."""
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
    # An error of an HTTP library, whose frames were removed.
    kinds: Any = getattr(error, "kinds", None)
    if isinstance(kinds, str) and kinds:
        return kinds
    name = type(error).__qualname__
    if isinstance(error, WattfareError):
        return f"{name}({error.code} {error.status})"
    # The error code of PostgreSQL, SQLite or the system is safe: it is one word from a fixed list.
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
    """A traceback in which each message stays on its line."""
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
    """The positions in the code that raised an error and its causes, on one line."""
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
    """A log message with fields, on one line. A text log shows the fields as ``name=value``. A JSON
    log has them as members of the object.

    Args:
        text: our own text.
        fields: values by name, which may come from a client. A field with the value None is left
            out.
        in_text: fields that the text already contains. Only a JSON log shows them separately.
    """

    __slots__ = ("fields", "in_text", "text")

    def __init__(
        self, text: str, fields: Mapping[str, Field], in_text: Mapping[str, Field] | None = None
    ) -> None:
        self.text = one_line(text)
        self.fields = fields
        self.in_text: Mapping[str, Field] = in_text or {}

    def __str__(self) -> str:
        parts = [self.text]
        for name, value in self.fields.items():
            if isinstance(value, str):
                parts.append(f"{name}={_quoted(value)}")
            elif isinstance(value, int):
                parts.append(f"{name}={value}")
            elif value is not None:
                parts.append(f"{name}={value:f}")
        return " ".join(parts)


@lru_cache(maxsize=1024)  # the same apps, users and models recur
def _quoted(value: str) -> str:
    """The value of a field. It is in quotes unless it is a plain word, so it cannot look like
    another field."""
    if value.isascii() and value.isprintable() and _MARKS.isdisjoint(value) and value:
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{one_line(escaped)}"'


_MARKS = frozenset(' "=\\')


def log_event(logger: logging.Logger, event: LogEvent) -> None:
    """Log an event at the level INFO. Its record has no position in the code, because
    ``logger.info`` would have to search the stack for it. The name of the file is that of logging
    itself for an unknown position."""
    if logger.isEnabledFor(logging.INFO):
        logger.handle(
            logging.LogRecord(logger.name, logging.INFO, "(unknown file)", 0, event, (), None)
        )


class ProcessFormatter(logging.Formatter):
    """Formats all records of a process as text, and makes those of other packages safe.

    Another package may log data from a client or a server, such as a header, a cookie or the repr
    of an error. So for its records, the log shows the text without values, and the kind of the
    error.
    """

    #: Packages whose values are safe: our own and the server's.
    KNOWN = ("wattfare_mw", "uvicorn")

    def format(self, record: logging.LogRecord) -> str:
        """Format a record. A record of another package becomes one line."""
        if isinstance(record.msg, LogEvent):
            return self.formatMessage(record)  # it is safe, and has no error
        if record.name.partition(".")[0] in self.KNOWN and not record.exc_info:
            message = record.getMessage()
            if message.isprintable() and not record.exc_text and not record.stack_info:
                return super().format(record)
        else:
            message = str(record.msg)
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if message.startswith("Traceback "):  # keep only the kind of the error
            message = message.strip().rpartition("\n")[2].partition(":")[0]
        message = one_line(message.partition("\n")[0])
        if error is not None:
            message = f"{message} error={kinds_of(error)} at={places_of(error)}"
        plain = logging.makeLogRecord(
            {**record.__dict__, "msg": message, "args": None, "exc_info": None, "exc_text": None}
        )
        plain.stack_info = None
        return super().format(plain)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Format a record as text."""
        # The same text as "%(asctime)s %(levelname)s %(name)s %(message)s", but faster.
        at = f"{_local_time(int(record.created))},{int(record.msecs):03d}"
        return f"{at} {record.levelname} {record.name} {record.getMessage()}"


@lru_cache(maxsize=1)  # a busy service logs many records in a second
def _local_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


class JSONFormatter(ProcessFormatter):
    """:class:`ProcessFormatter`, with a JSON object per line: ``time`` (UTC), ``level``,
    ``logger``, ``message``, and the fields of a :class:`LogEvent`."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Format a record as JSON."""
        event = record.msg
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(event, LogEvent):
            line["message"] = event.text
            line.update(event.in_text)
            line.update((name, value) for name, value in event.fields.items() if value is not None)
        return _to_json(line).decode()


# msgspec cannot encode an amount, which is a subclass of Decimal, without a hook.
_to_json = msgspec.json.Encoder(decimal_format="number", enc_hook=Decimal).encode
_FORMATTERS: dict[LogFormat, Callable[[], logging.Formatter]] = {
    "text": ProcessFormatter,
    "json": JSONFormatter,
}


def log_to(stream: TextIO, level: str, log_format: LogFormat = "text") -> None:
    """Write the log of this process to a stream, unless its log is already set up.

    Args:
        log_format: ``json`` writes each record as a JSON object.
        level: the minimum level of the service's and the server's records. Other packages log only
            warnings and errors.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_FORMATTERS[log_format]())
    root.addHandler(handler)
    # The log shows neither the thread nor the process, and looking them up takes half of the time
    # of a record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    for name in ProcessFormatter.KNOWN:
        logging.getLogger(name).setLevel(level)
