"""What libraries keep in a message, and send back: fields that no API documents.

A message that a model has made comes back with what its library has added: ``parsed``,
``provider_specific_fields``, ``thinking_blocks``, an id, a date. No list of them is complete. None
costs more than its own text, which is part of the prompt's bound. Only what stands for something
else costs more: an image, a file, a sound, or the place where one is. So a field that is not known
may hold any JSON in a message, but nothing that looks like one of those, at any depth:

- under a name that says so, such as ``image_url``, unless it is a number or nothing at all;
- of a ``type`` or a media type that says so;
- as a data URL;
- in a message that no model has made, as any URL.

A cache is priced by its time, so ``cache_control`` has to be what the table lets through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, cast

from ...errors import WattfareError, invalid_request
from .found import Found, both

#: The arguments of a call, in the names that libraries give them. No API reads anything else in
#: them.
FREE_FORM = frozenset({"arguments", "args", "parsed", "parsed_arguments"})

_MEDIA = re.compile(
    r"image|audio|video|attachment|screenshot|picture|photo|inlinedata|filedata|fileid|fileur[il]"
    r"|^input?file$|^files?$|^documents?$|^media$|^blobs?$|^sounds?$|^pdfs?$"
)
#: The tools that a provider runs, as names of fields beside a function's own.
_PROVIDER_TOOL = re.compile(
    r"search|retrieval|grounding|codeexec|interpreter|computer|browser|urlcontext|maps|mcp|connector"
    r"|container|fetch|callers|plugin"
)
_MEDIA_TYPE = re.compile(r"\s*(?:image|audio|video)/|\s*application/(?:pdf|octet-stream)", re.I)
_MEDIA_TYPE_NAMES = frozenset({"mediatype", "mimetype", "contenttype"})
_DATA_URL = re.compile(r"\s*data:[\w.+-]+/[\w.+-]+[;,]", re.IGNORECASE)
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]{1,20}://", re.IGNORECASE)
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]")
#: What asks for nothing. An empty object can be something with all its defaults.
_NOTHING: tuple[Any, ...] = ("", [])

CheckCache = Callable[[str, Any], Found | None]
"""The table's rule for ``cache_control``."""


def check(name: str, value: Any, check_cache: CheckCache, *, made: bool) -> Found | None:
    """Let a field that is not known through, or refuse it.

    Args:
        name: where it stands.
        made: has a model made the message that it is in?

    Returns: what in it has no bound.

    Raises:
        WattfareError: ``invalid_request``, with the name of what is refused.
    """
    return _Walk(check_cache, made=made).field(name, name.rpartition(".")[2], value)


def check_annotation(name: str, value: Any, check_cache: CheckCache) -> Found | None:
    """Let an annotation through. It may name a file, whose text it may hold: a file that was read
    for an earlier answer need not be read again."""
    return _Walk(check_cache, made=True).annotation(name, value)


def is_of_provider(field: str) -> bool:
    """Could this be a tool that the provider runs, or hold media?"""
    plain = _plain_name(field)
    return _PROVIDER_TOOL.search(plain) is not None or _MEDIA.search(plain) is not None


class _Walk:
    """Looks into one value."""

    def __init__(self, check_cache: CheckCache, *, made: bool) -> None:
        self._check_cache = check_cache
        self._made = made

    def field(self, name: str, key: str, value: Any) -> Found | None:
        """One field: its name, and what it holds."""
        plain = _plain_name(key)
        if plain == "cachecontrol":
            return None if value is None else self._check_cache(name, value)
        if plain == "annotations" and isinstance(value, list):
            walk = _Walk(self._check_cache, made=True)  # a citation is of a model
            items = enumerate(cast("list[Any]", value))
            return _all(walk.annotation(f"{name}[{n}]", item) for n, item in items)
        holds = isinstance(value, (str, list, dict)) and value not in _NOTHING
        if holds and _MEDIA.search(plain) is not None:
            raise _media(name)
        if isinstance(value, str):
            if plain == "type" and _MEDIA.search(_plain_name(value)) is not None:
                raise _media(name)
            if plain in _MEDIA_TYPE_NAMES and _MEDIA_TYPE.match(value) is not None:
                raise _media(name)
        if self._made and key in FREE_FORM:
            return None
        return self.value(name, value)

    def value(self, name: str, value: Any) -> Found | None:
        """A value, under whatever name."""
        if isinstance(value, str):
            if _DATA_URL.match(value) is not None:
                raise _media(name)
            if not self._made and _URL.match(value) is not None:
                raise invalid_request(
                    f"`{name}` points elsewhere, and is no field that this service knows, so that "
                    "its cost cannot be bounded."
                )
        elif isinstance(value, list):
            items = enumerate(cast("list[Any]", value))
            return _all(self.value(f"{name}[{n}]", item) for n, item in items)
        elif isinstance(value, dict):
            fields = cast("dict[str, Any]", value).items()
            return _all(self.field(f"{name}.{key[:64]}", key, item) for key, item in fields)
        return None

    def annotation(self, name: str, value: Any) -> Found | None:
        """A citation, or a file that was read for an earlier answer."""
        if not isinstance(value, dict):
            return self.value(name, value)
        found: list[Found | None] = []
        for key, inner in cast("dict[str, Any]", value).items():
            where = f"{name}.{key[:64]}"
            if key == "type" and isinstance(inner, str) and inner.startswith("file"):
                continue
            if key == "file_id" and isinstance(inner, str):
                continue
            if key.startswith("file") and isinstance(inner, dict):
                fields = cast("dict[str, Any]", inner)
                named = {key: item for key, item in fields.items() if key != "file_id"}
                found.append(self.value(where, named))
            else:
                found.append(self.field(where, key, inner))
        return _all(found)


def _all(results: Iterable[Found | None]) -> Found | None:
    return reduce(both, results, None)


def _plain_name(name: str) -> str:
    return _NOT_IN_NAMES.sub("", name.lower())


def _media(name: str) -> WattfareError:
    return invalid_request(
        f"`{name}` may stand for an image, a file or a sound, so that its cost cannot be bounded. "
        "Send such a thing as a part of `content`."
    )
