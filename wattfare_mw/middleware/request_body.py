"""Reads the fields of an inference body that the middleware needs, and checks the models."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, cast

import msgspec

from ..errors import invalid_request
from ..json_limits import check_structure
from ..types import MAX_MODEL_CHARACTERS, decode, encode

ModelName = Annotated[str, msgspec.Meta(max_length=MAX_MODEL_CHARACTERS)]


Json = dict[str, Any]

#: The types of tools that the app runs, and not the provider.
_OWN_TOOLS = ("function", "custom")
_NOTHING = msgspec.Raw(b"null")
#: The prefix of OpenRouter's saved settings, which can name any model. It occurs after a model's
#: name or instead of it.
_PRESET = "@preset/"
#: Fields in which "model" can be a word of the app or its users, such as a property of a schema.
_OWN_WORDS = frozenset(
    {
        *("messages", "functions", "documents", "metadata", "trace", "chat_template_kwargs"),
        *("response_format", "output_format", "output_config", "format", "json_schema"),
        *("structured_outputs", "structural_tag", "guided_json"),
    }
)
#: The bytes of a field's value that may contain the name "model".
_MODEL = re.compile(rb"model|\\u", re.IGNORECASE)


class Asked(msgspec.Struct):
    """The fields of an inference body that are read."""

    model: ModelName | None = None
    models: list[ModelName] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    usage: msgspec.Raw = _NOTHING

    @property
    def includes_usage(self) -> bool:
        """True if the request asks for the usage of its stream, in the way of OpenAI's or
        OpenRouter's clients."""
        if (self.stream_options or {}).get("include_usage"):
            return True
        try:
            return bool(decode(_Usage, self.usage).include)
        except msgspec.MsgspecError:
            return False  # it is null, or the service refuses it


class _Usage(msgspec.Struct):
    include: bool | None = None


class Upload(msgspec.Struct, frozen=True, gc=False):
    """An inference body for the service.

    Attributes:
        model: the requested model.
        hide_usage: True if the middleware has added the request for the stream's usage.
    """

    body: bytes
    model: str | None
    hide_usage: bool


def read(body: bytes, models: Models, want_usage: bool = False) -> Upload:
    """Read and check an inference body. The time grows linearly with its size.

    Args:
        models: the models that the app allows.
        want_usage: True to ask the service for the usage of each stream.

    Raises:
        WattfareError: ``invalid_request``; the body is not a chat completion request, or it
            names a model that is not allowed.
    """
    check_structure(body)
    asked = read_body(body)
    models.check(body, asked)
    hide_usage = bool(want_usage and asked.stream and not asked.includes_usage)
    if hide_usage:
        body = _with_usage(body, asked)
    return Upload(body, asked.model, hide_usage)


def read_body(body: bytes) -> Asked:
    """Parse an inference body.

    Raises:
        WattfareError: ``invalid_request``; it is not a JSON object of this shape.
    """
    try:
        return decode(Asked, body)
    except msgspec.MsgspecError as error:
        raise invalid_request(f"The body is not a chat completion request: {error}") from None


def _with_usage(body: bytes, asked: Asked) -> bytes:
    """Add a request for the usage of the stream."""
    fields: dict[str, Any] = decode(dict[str, msgspec.Raw], body)
    fields["stream_options"] = {**(asked.stream_options or {}), "include_usage": True}
    return encode(fields)


class Models:
    """The models that an app allows, as ids and globs such as ``openai/*``. None allows all models.

    Raises:
        TypeError: the models are not a collection of strings.
    """

    def __init__(self, allowed: Iterable[str] | None) -> None:
        self._pattern: re.Pattern[str] | None = None
        if allowed is None:
            return
        patterns = [allowed] if isinstance(allowed, str) else list(allowed)
        if isinstance(allowed, str) or not all(isinstance(one, str) for one in patterns):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError("models must be a list of model ids and globs, such as ['openai/*']")
        self._presets = any(_PRESET in pattern for pattern in patterns)
        # An empty collection allows nothing.
        self._pattern = re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)")

    def allow(self, model: str) -> bool:
        """True if this model is allowed."""
        if self._pattern is None:
            return True
        if _PRESET in model and not self._presets:
            return False  # `openai/*` must not allow a preset, which can name another model
        return self._pattern.fullmatch(model) is not None

    def check(self, body: bytes, asked: Asked) -> None:
        """Refuse a body if any of its fields may name a model that is not allowed.

        Raises:
            WattfareError: ``invalid_request``, 403, if a model is not allowed; 400, if two JSON
                parsers may read the body differently.
        """
        if self._pattern is None:
            return
        if _may_have_other_spellings(body) and _has_other_spellings(body):
            raise invalid_request(
                "The field `model` or `models` is repeated or misspelled. Send each of them only"
                " once."
            )
        if asked.model is None and not asked.models:
            raise invalid_request("The field `model` is missing.")
        fields = decode(dict[str, msgspec.Raw], body)
        if _value(fields.get("preset", _NOTHING)):
            raise invalid_request(
                "This app does not allow presets, because they can name any model.", 403
            )
        for model in _models_of(fields):
            self._check_name(model)

    def _check_name(self, model: str) -> None:
        if not self.allow(model):
            raise invalid_request(f"This app does not allow the model {model[:200]!r}.", 403)

    def filter(self, listing: bytes) -> bytes:
        """Remove the models that are not allowed from a list of models.

        Raises:
            msgspec.MsgspecError: it is not a list of models.
        """
        fields = decode(dict[str, msgspec.Raw], listing)
        models = decode(list[msgspec.Raw], fields.get("data") or b"null")
        kept = [raw for raw in models if self.allow(decode(_Listed, raw).id)]
        return encode({**fields, "data": kept})


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise invalid_request(f"The body is not a chat completion request: {error}") from None


def _models_of(fields: dict[str, msgspec.Raw]) -> Iterator[str]:
    """The names of models in all fields: `model`, plugins, the provider's own tools and so on."""
    for name, raw in fields.items():
        if name in _OWN_WORDS or not (_MODEL.search(raw) or "model" in name.casefold()):
            continue
        value = _value(raw)
        if name == "tools" and isinstance(value, list):
            # A function that the app runs may have any schema, so its schema is not searched.
            value = [tool for tool in cast("list[Any]", value) if not _is_own_tool(tool)]
        yield from _models_in({name: value})


def _is_own_tool(tool: Any) -> bool:
    return isinstance(tool, dict) and cast("Json", tool).get("type") in _OWN_TOOLS


def _models_in(value: Any) -> Iterator[str]:
    """The names of models at any depth. Each text under a key that contains "model" counts as
    one."""
    if isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _models_in(item)
    elif isinstance(value, dict):
        for name, inner in cast("Json", value).items():
            yield from _texts(inner) if "model" in name.casefold() else _models_in(inner)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in cast("Json", value).values():
            yield from _texts(item)


class _Listed(msgspec.Struct):
    id: str


# JSON parsers differ. If a name occurs twice, they use different values. Some, such as Go's, treat
# "Model", or a name with a long s, as the same name. So another parser might use a value that was
# not checked here. A full check is expensive, so a cheap check comes first: if each name occurs at
# most once, in its own spelling and without escapes, all parsers agree.
_GUARDED = ("model", "models")
_NAMED = re.compile('"model(?:s|\u017f)?"'.encode(), re.IGNORECASE)
_AS_NAMED = {b'"model"', b'"models"'}
_ESCAPED = re.compile(rb"\\u(?:00(?:[46][dDfF45cC]|[57]3)|017[fF])")


def _may_have_other_spellings(body: bytes) -> bool:
    found = _NAMED.findall(body)
    return len(found) > len(_AS_NAMED.intersection(found)) or (
        b"\\u" in body and _ESCAPED.search(body) is not None
    )


def _has_other_spellings(body: bytes) -> bool:
    try:
        names = [name for name in _names(body) if name.casefold() in _GUARDED]
    except ValueError:
        return True  # parsers differ for a name that is not UTF-8
    return len(names) > len(set(_GUARDED).intersection(names))


# A string (even an unterminated one), a bracket or a comma. The quantifiers are possessive, so
# there is no backtracking.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[][{},]', re.DOTALL)
#: The length of the longest spelling of a guarded name, with each letter as an escape.
_LONGEST_NAME = len('"models"') * 6


def _names(body: bytes) -> Iterator[str]:
    """The decoded names in the outermost object of a valid JSON body. Names that are too long to be
    a guarded name are left out. The body itself is not decoded, because this could take four times
    its size in memory."""
    depth = 0
    before_name = False
    for match in _TOKEN.finditer(body):
        start, end = match.span()
        token = body[start : start + 1]
        if token == b'"':
            if before_name and depth == 1 and end - start <= _LONGEST_NAME:
                yield json.loads(body[start:end])
            before_name = False
        elif token == b",":
            before_name = depth == 1
        elif token in b"{[":
            depth += 1
            before_name = token == b"{"
        else:
            depth -= 1
