"""Finds the images, files and audio in the messages of a request, and the facts that bound their
cost.

The service reads the bytes of an attachment, because a media type, a file name or a header may be
wrong. If it cannot read an attachment, it counts the maximum number of tokens for any attachment of
this kind. If there is no such maximum, the call is held or refused.
"""

from __future__ import annotations

import binascii
import io
import re
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import imagesize  # pyright: ignore[reportMissingTypeStubs]
import msgspec

from ...errors import WattfareError, invalid_request
from ...types import Json, fields_of
from . import audio_length, prompt_bound
from .families import Image

_size = cast("Callable[..., tuple[int, int]]", imagesize.get)  # pyright: ignore[reportUnknownMemberType]
#: The dimensions of an image are in its first bytes, except for a JPEG with a long preview.
_START = 2**16
#: Decoders refuse an image with a longer side, in pixels.
_MAX_SIDE = 2**17


class Pages(msgspec.Struct, frozen=True):
    """A PDF that has been read: the number of bytes of text (UTF-8) on each page."""

    text: tuple[int, ...]


class Attachments(msgspec.Struct, frozen=True):
    """The attachments of a request.

    Attributes:
        images: by their dimensions.
        audio: by their length, in seconds.
        documents: the PDF files that have not been read yet, with their places in the request.
        pages: the pages of the PDF files that have been read.
        text: the maximum number of tokens of plain text files and of file names.
        unbounded: the places of attachments whose cost has no bound, and the reasons.
    """

    images: tuple[Image, ...] = ()
    audio: tuple[float, ...] = ()
    documents: tuple[tuple[str, bytes], ...] = ()
    pages: tuple[Pages, ...] = ()
    text: int = 0
    unbounded: tuple[tuple[str, str], ...] = ()


def refusal(name: str, because: str) -> WattfareError:
    """The error for a part whose cost has no bound."""
    return invalid_request(f"The cost of `{name}` cannot be bounded: {because}.")


def are_possible(messages: list[dict[str, Any]]) -> bool:
    """True if these messages may have attachments. This check is fast, because most messages have
    only text."""
    for message in messages:
        if isinstance(message.get("content"), list) or not _KEEPING.isdisjoint(message):
            return True
    return False


def pages_of_annotation(value: Json) -> list[Any] | None:
    """The pages of a file that OpenRouter has read for an earlier answer. OpenRouter uses them
    instead of reading the file again."""
    fields = fields_of(value)
    file = fields.get("file")
    pages = fields_of(file).get("content")
    return cast("list[Any]", pages) if isinstance(pages, list) else None


def take_out(
    messages: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], Attachments | None]:
    """Return the messages without the data of attachments, and the attachments. Without
    attachments, return the same list and None.

    Args:
        messages: messages that :mod:`.allowed_fields` has checked.
    """
    found = _Found()
    plain = messages
    for place, message in enumerate(messages):
        taken = _without_data(found, f"messages[{place}]", message)
        if taken is not message:
            if plain is messages:
                plain = list(messages)
            plain[place] = taken
    return plain, None if plain is messages else found.all()


def _without_data(found: _Found, name: str, message: dict[str, Any]) -> dict[str, Any]:
    """The message without the data of its attachments. Without attachments, the same object."""
    changed: dict[str, Any] = {}
    for field in ("content", "images"):
        parts = message.get(field)
        if isinstance(parts, list):
            taken = _parts(found, f"{name}.{field}", cast("list[Any]", parts))
            if taken is not None:
                changed[field] = taken
    annotations = message.get("annotations")
    if isinstance(annotations, list):
        taken = cast("list[Any]", annotations)
        for index, annotation in enumerate(cast("list[Any]", annotations)):
            pages = pages_of_annotation(annotation)
            where = f"{name}.annotations[{index}].file.content"
            inner = None if pages is None else _parts(found, where, pages)
            if inner is not None:
                taken = list(taken)
                taken[index] = {**annotation, "file": {**annotation["file"], "content": inner}}
                changed["annotations"] = taken
    audio = message.get("audio")
    if isinstance(audio, dict):  # audio of an earlier answer is held, see the table of fields
        changed["audio"] = {**cast("dict[str, Any]", audio), "data": None}
    return {**message, **changed} if changed else message


def _parts(found: _Found, name: str, parts: list[Any]) -> list[Any] | None:
    """The parts without the data of attachments; None if there are none."""
    plain: list[Any] | None = None
    for index, part in enumerate(parts):
        fields = fields_of(part)
        kind = fields.get("type")
        if not isinstance(kind, str) or kind not in _READERS:
            continue
        if plain is None:
            plain = list(parts)
        _READERS[kind](found, f"{name}[{index}]", fields)
        # The model may read the other fields, such as the title of a document.
        plain[index] = {key: value for key, value in fields.items() if key not in _DATA}
    return plain


class _Found:
    def __init__(self) -> None:
        self.images: list[Image] = []
        self.audio: list[float] = []
        self.documents: list[tuple[str, bytes]] = []
        self.text = 0
        self.unbounded: list[tuple[str, str]] = []

    def all(self) -> Attachments:
        return Attachments(
            images=tuple(self.images),
            audio=tuple(self.audio),
            documents=tuple(self.documents),
            text=self.text,
            unbounded=tuple(self.unbounded),
        )

    def image_url(self, name: str, part: dict[str, Any]) -> None:
        value = part.get("image_url")
        fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {"url": value}
        detail = fields.get("detail") or part.get("detail")
        self._picture(name, fields.get("url"), detail, fields.get("format"))

    def source(self, name: str, part: dict[str, Any]) -> None:
        """An image or a document in Anthropic's format, or an image in the AI SDK's format."""
        source = part.get("source")
        fields = fields_of(source)
        value = fields.get("data") or fields.get("url") or part.get("image")
        if part.get("type") == "image":
            self._picture(name, value, None, fields.get("media_type"))
        elif fields.get("type") == "text" and isinstance(value, str):
            self._text(value.encode("utf-8", "surrogatepass"))
        elif fields.get("type") == "content" and fields.get("content"):
            self._text(msgspec.json.encode(fields["content"]))
        else:
            self._file(name, value)

    def file(self, name: str, part: dict[str, Any]) -> None:
        """A file in the format of OpenAI's chat API or of its Responses API."""
        inner = part.get("file")
        fields = cast("dict[str, Any]", inner) if isinstance(inner, dict) else part
        named = fields.get("filename")
        if fields is not part and isinstance(named, str):
            self._text(named.encode("utf-8", "surrogatepass"))
        self._file(name, fields.get("file_data") or fields.get("file_url"))

    def input_audio(self, name: str, part: dict[str, Any]) -> None:
        inner = part.get("input_audio") or part.get("audio_url")
        fields = cast("dict[str, Any]", inner) if isinstance(inner, dict) else {"data": inner}
        data = _bytes(_content(name, fields.get("data") or fields.get("url")))
        seconds = None if data is None else audio_length.seconds(data)
        if seconds is None:
            because = "only the length of WAV and MP3 can be measured; send one of these"
            self.unbounded.append((name, because))
        else:
            self.audio.append(seconds)

    def document_url(self, name: str, part: dict[str, Any]) -> None:
        """A document in Mistral's format."""
        value = part.get("document_url")
        url = cast("dict[str, Any]", value).get("url") if isinstance(value, dict) else value
        self._file(name, url)

    def video(self, name: str, part: dict[str, Any]) -> None:
        """A video or its frames. The call is held, see the table of fields."""
        for value in _strings({**part, "type": None}):
            if _PATH.match(value) or ":" in value:
                _check_place(name, value)

    def _text(self, data: bytes) -> None:
        self.text += prompt_bound.longest_form(data)

    def _picture(self, name: str, value: object, detail: object, kind: object) -> None:
        """The value of an image field. Some gateways also accept a PDF or a video there."""
        if _may_be_other(_content(name, value), kind):
            self._file(name, value)
        else:
            self._image(value, detail)

    def _image(self, value: object, detail: object) -> None:
        width, height = _dimensions(value)
        self.images.append(Image(width, height, detail if isinstance(detail, str) else None))

    def _file(self, name: str, value: object) -> None:
        value = _content(name, value)
        data = _bytes(value)
        if data is None:
            because = "the request does not contain its content; send the file as a data URL"
            self.unbounded.append((name, because))
        elif _PDF in data[:1024]:
            self.documents.append((name, data))
        elif _is_text(data):  # before an image, because some images begin with letters
            self._text(data)
        elif _is_image(data):
            self._image(value, None)
        elif (seconds := audio_length.seconds(data)) is not None:
            self.audio.append(seconds)
        else:
            because = "it is neither a PDF, an image, WAV, MP3 nor plain text"
            self.unbounded.append((name, because))


def _content(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise invalid_request(f"`{name}` has no content.")
    _check_place(name, value)
    return value


def _check_place(name: str, value: str) -> None:
    """Refuse an address such as gs:// or file:, which names the operator's own storage."""
    start = value[:64].translate(_IGNORED_IN_URLS)
    if _PUBLIC.match(start):
        return
    # Some servers read other text as the path of a file.
    if _SCHEME.match(start) or _PATH.match(start) or _bytes(value, 48) is None:
        raise refusal(name, "it names a place that only the operator may read")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        inner = cast("dict[str, Any] | list[Any]", value)
        for each in inner.values() if isinstance(inner, dict) else inner:
            yield from _strings(each)


_READERS = {
    "image_url": _Found.image_url,
    "input_image": _Found.image_url,
    "image": _Found.source,
    "document": _Found.source,
    "file": _Found.file,
    "input_file": _Found.file,
    "input_audio": _Found.input_audio,
    "audio_url": _Found.input_audio,
    "document_url": _Found.document_url,
    **dict.fromkeys(("video_url", "input_video", "video"), _Found.video),
}
#: The fields of a part that have its data.
_DATA = frozenset(
    {
        *("image_url", "image", "source", "file", "file_data", "file_url", "input_audio"),
        *("audio_url", "document_url", "video_url", "input_video", "video"),
    }
)
#: The fields of a message, besides ``content``, that may have attachments.
_KEEPING = frozenset({"images", "annotations", "audio"})
_PDF = b"%PDF-"
#: White space and control characters, which readers of URLs ignore.
_IGNORED_IN_URLS = dict.fromkeys(range(33))
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{1,30}:", re.IGNORECASE)
_PATH = re.compile(r"~?/(?:[^/]{1,100}/)*[^/]{1,100}\.|\.{1,2}/")
_PUBLIC = re.compile(r"https?://|data:", re.IGNORECASE)


_MEDIA_TYPE = re.compile(r"data:([^,;]{1,100})[,;]", re.IGNORECASE)
_IMAGE_NAMES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".heic", ".heif", ".avif", ".bmp")
#: Endings of file names whose kind costs more than an image.
_OTHER_NAMES = (
    *(".pdf", ".mp4", ".mov", ".mpeg", ".mpg", ".webm", ".avi", ".mkv", ".flv", ".wmv", ".3gp"),
    *(".wav", ".mp3", ".m4a", ".ogg", ".opus", ".flac", ".aac", ".aiff", ".txt", ".csv"),
)
#: URLs that Gemini reads as videos.
_FILMS = re.compile(r"https?://(?:[^/]{1,100}\.)?(?:youtube\.com|youtu\.be)/")


def _may_be_other(value: str, kind: object) -> bool:
    """True if this URL may be something other than an image."""
    declared = _MEDIA_TYPE.match(value)
    if declared is not None:
        kind = declared.group(1)
    other = isinstance(kind, str) and "/" in kind and not kind.lower().startswith("image/")
    if value[:5].lower() == "data:" or "://" not in value[:32]:
        data = _bytes(value, _START)
        if data is None:
            return other
        return _PDF in data[:1024] or (other and not _is_image(data))
    path = value.partition("?")[0].partition("#")[0].lower()
    if not path.startswith(("http://", "https://")):
        return not path.endswith(_IMAGE_NAMES)
    return other or path.endswith(_OTHER_NAMES) or _FILMS.match(path) is not None


#: Control characters that do not occur in text.
_NOT_TEXT = bytes({*range(32), 127} - {*b"\t\n\f\r\x1b"})


def _is_text(data: bytes) -> bool:
    if len(data.translate(None, _NOT_TEXT)) < len(data):
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")


#: The brands of AVIF and HEIF images. Videos begin in the same way, but with other brands.
_IMAGE_BRANDS = frozenset({b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1"})


def _is_image(data: bytes) -> bool:
    return (
        data.startswith(_SIGNATURES)
        or data[8:12] == b"WEBP"
        or (data[4:8] == b"ftyp" and data[8:12] in _IMAGE_BRANDS)
    )


def _dimensions(value: object) -> tuple[int, int]:
    """The width and the height of an image. Both are 0 if they cannot be read or trusted.

    A GIF is not trusted, because its frames may be larger than its header says. Providers refuse or
    convert the other kinds.
    """
    for most in (_START, None):
        data = _bytes(value, most)
        if data is None or not (
            data.startswith(_SIGNATURES[:2]) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
        ):
            return 0, 0
        try:
            width, height = _size(io.BytesIO(data), exif_rotation=False)
        except Exception:  # a hostile file can cause any error
            width = height = -1
        if type(width) is int and type(height) is int and min(width, height) > 0:
            return (width, height) if max(width, height) <= _MAX_SIDE else (0, 0)
        if most is None or len(data) < most - 3:
            break  # the file is complete
    return 0, 0


_HEAD = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_URL_SAFE = str.maketrans("-_", "+/")


def _bytes(value: object, most: int | None = None) -> bytes | None:
    """The content of a data URL or of base64 text: at least ``most`` bytes from the start. None for
    other URLs and text. Like most decoders, this accepts white space and the URL-safe alphabet."""
    if not isinstance(value, str):
        return None
    head = _HEAD.match(value)
    if head is not None:
        start = head.end()
        text = value[start:] if most is None else value[start : start + 2 * most]
        if not head.group().lower().rstrip(", ").endswith("base64"):
            return unquote_to_bytes(text)
        if "%" in text:
            text = unquote_to_bytes(text).decode("latin-1")
    elif "://" in value[:32]:
        return None
    else:
        text = value if most is None else value[: 2 * most]
    if not text.isascii():
        return None
    text = _SPACE.sub("", text).translate(_URL_SAFE).rstrip("=")
    if most is not None:
        text = text[: most // 3 * 4]
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        return None
