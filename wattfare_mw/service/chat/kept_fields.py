"""Undocumented fields that libraries add to a message and send back.

A library sends back a model's message with added fields, such as ``parsed``,
``provider_specific_fields``, ``thinking_blocks``, an id or a date. A complete list of them is not
possible. Such a field costs no more than its own text, which is in the prompt's bound, unless it
refers to an image, a file or a sound. So an unknown field of a message may be any JSON without such
a reference. These count as references, at any depth:

- a name such as ``image_url``, unless its value is a number or empty;
- a ``type`` or a media type that names one;
- a data URL;
- any URL in a message that a model has not created, except in an app's own notes (``metadata``).

``cache_control`` must follow the rule of the table, because the price of a cache depends on its
time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, cast

from ...errors import WattfareError, invalid_request
from .found import Found, both

#: The fields in which libraries keep the arguments of a call. APIs do not read anything else in
#: them.
FREE_FORM = frozenset({"arguments", "args", "parsed", "parsed_arguments"})

_MEDIA = re.compile(
    r"image|audio|video|attachment|screenshot|picture|photo|inlinedata|filedata|fileid|fileur[il]"
    r"|^input?file$|^files?$|^documents?$|^media$|^blobs?$|^sounds?$|^pdfs?$"
)
#: The names of a provider's tools, as fields next to the fields of a function.
_PROVIDER_TOOL = re.compile(
    r"search|retrieval|grounding|codeexec|interpreter|computer|browser|urlcontext|maps|mcp|connector"
    r"|container|fetch|callers|plugin"
)
_MEDIA_TYPE = re.compile(r"\s*(?:image|audio|video)/|\s*application/(?:pdf|octet-stream)", re.I)
_MEDIA_TYPE_NAMES = frozenset({"mediatype", "mimetype", "contenttype"})
_DATA_URL = re.compile(r"\s*data:[\w.+-]+/[\w.+-]+[;,]", re.IGNORECASE)
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]{1,20}://", re.IGNORECASE)
#: The fields in which apps and libraries keep their own notes. APIs do not read media there.
_NOTES = frozenset({"metadata", "artifact", "additionalkwargs", "responsemetadata"})
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]")
#: Values that request nothing. An empty object could mean a feature with its defaults.
_NOTHING: tuple[Any, ...] = ("", [])

CheckCache = Callable[[str, Any], Found | None]
"""The table's rule for ``cache_control``."""


def check(name: str, value: Any, check_cache: CheckCache, *, by_model: bool) -> Found | None:
    """Check an unknown field, and refuse it if it may refer to media.

    Args:
        name: the path of the field.
        by_model: True if a model has created the message.

    Returns: the parts whose cost has no bound.

    Raises:
        WattfareError: ``invalid_request``, with the name of the refused part.
    """
    return _Walk(check_cache, by_model=by_model).field(name, name.rpartition(".")[2], value)


def check_annotation(name: str, value: Any, check_cache: CheckCache) -> Found | None:
    """Check an annotation. It may have the name and the text of a file from an earlier answer,
    because that file is not read again."""
    return _Walk(check_cache, by_model=True).annotation(name, value)


def is_of_provider(field: str) -> bool:
    """True if this field could be a tool that the provider runs, or could have media."""
    plain = _plain_name(field)
    return _PROVIDER_TOOL.search(plain) is not None or _MEDIA.search(plain) is not None


class _Walk:
    """Checks one value."""

    def __init__(self, check_cache: CheckCache, *, by_model: bool) -> None:
        self._check_cache = check_cache
        self._by_model = by_model

    def field(self, name: str, key: str, value: Any) -> Found | None:
        """Check one field: its name, and its value."""
        plain = _plain_name(key)
        if plain == "cachecontrol":
            return None if value is None else self._check_cache(name, value)
        if plain == "annotations" and isinstance(value, list):
            walk = _Walk(self._check_cache, by_model=True)  # only a model creates citations
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
        if self._by_model and key in FREE_FORM:
            return None
        if not self._by_model and plain in _NOTES:
            return _Walk(self._check_cache, by_model=True).value(name, value)
        return self.value(name, value)

    def value(self, name: str, value: Any) -> Found | None:
        """Check a value, without its name."""
        if isinstance(value, str):
            if _DATA_URL.match(value) is not None:
                raise _media(name)
            if not self._by_model and _URL.match(value) is not None:
                raise invalid_request(
                    f"The field `{name}` is unknown and has a URL, so its cost has no bound."
                )
        elif isinstance(value, list):
            items = enumerate(cast("list[Any]", value))
            return _all(self.value(f"{name}[{n}]", item) for n, item in items)
        elif isinstance(value, dict):
            fields = cast("dict[str, Any]", value).items()
            return _all(self.field(f"{name}.{key[:64]}", key, item) for key, item in fields)
        return None

    def annotation(self, name: str, value: Any) -> Found | None:
        """Check a citation, or a file of an earlier answer."""
        if not isinstance(value, dict):
            return self.value(name, value)
        found: list[Found | None] = []
        for key, inner in cast("dict[str, Any]", value).items():
            where = f"{name}.{key[:64]}"
            if key == "type" and isinstance(inner, str) and inner.startswith("file"):
                continue
            if key == "file_id" and isinstance(inner, str):
                continue
            if key == "url_citation" and isinstance(inner, dict):
                # A search adds the URL of an icon or a picture, which is not read again.
                cited = cast("dict[str, Any]", inner)
                texts = {name for name, text in cited.items() if _is_web_address(text)}
                named = {name: item for name, item in cited.items() if name not in texts}
                found.append(self.value(where, named))
                continue
            if key.startswith("file") and isinstance(inner, dict):
                fields = cast("dict[str, Any]", inner)
                named = {key: item for key, item in fields.items() if key != "file_id"}
                found.append(self.value(where, named))
            else:
                found.append(self.field(where, key, inner))
        return _all(found)


def _is_web_address(value: Any) -> bool:
    return isinstance(value, str) and value[:8].lower().startswith(("http://", "https://"))


def _all(results: Iterable[Found | None]) -> Found | None:
    return reduce(both, results, None)


def _plain_name(name: str) -> str:
    return _NOT_IN_NAMES.sub("", name.lower())


def _media(name: str) -> WattfareError:
    return invalid_request(
        f"`{name}` may refer to an image, a file or a sound, so its cost has no bound. Send media "
        "as a part of `content`."
    )
