"""Images, files and audio in the messages of a request, and what bounds their cost.

The service reads the bytes, because a media type, a file name or a header may be wrong. An
attachment that it cannot read counts as the most tokens that a model can make of it. If there is no
such bound, the call is held or refused.
"""

from __future__ import annotations

import binascii
import io
import re
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import imagesize  # pyright: ignore[reportMissingTypeStubs]
import msgspec

from ...errors import WattfareError, invalid_request
from . import audio_length, prompt_bound
from .families import Image

_size = cast("Callable[..., tuple[int, int]]", imagesize.get)  # pyright: ignore[reportUnknownMemberType]
#: An image says its size in its first bytes, but for a JPEG with a long preview before it.
_START = 2**16
#: No decoder takes an image with a side above this, in pixels.
_MAX_SIDE = 2**17


class Pages(msgspec.Struct, frozen=True):
    """A PDF: the bytes of text (UTF-8) on each page."""

    text: tuple[int, ...]


class Attachments(msgspec.Struct, frozen=True):
    """The attachments of a request.

    Attributes:
        images: by their dimensions.
        audio: by their length, in seconds.
        documents: the PDF files that have not been read yet, each with its place in the request.
        pages: the pages of those that have been read.
        text: tokens of files that are plain text, and of the names of files, at most.
        unbounded: the places of attachments whose cost has no bound, and why.
    """

    images: tuple[Image, ...] = ()
    audio: tuple[float, ...] = ()
    documents: tuple[tuple[str, bytes], ...] = ()
    pages: tuple[Pages, ...] = ()
    text: int = 0
    unbounded: tuple[tuple[str, str], ...] = ()


def refusal(name: str, because: str) -> WattfareError:
    """The refusal of a part whose cost has no bound."""
    return invalid_request(f"The cost of `{name}` cannot be bounded: {because}.")


def are_possible(messages: list[dict[str, Any]]) -> bool:
    """True if these messages may have attachments. A quick check, because most have text only."""
    for message in messages:
        if "images" in message or isinstance(message.get("content"), list):
            return True
    return False


def take_out(
    messages: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], Attachments | None]:
    """The messages without the data of their attachments, and the attachments; the same list and
    None if there are none.

    Args:
        messages: already checked by :mod:`.allowed_fields`.
    """
    found: _Found | None = None
    plain = messages
    for place, message in enumerate(messages):
        for field in ("content", "images"):
            parts = message.get(field)
            if not isinstance(parts, list):
                continue
            for index, part in enumerate(cast("list[Any]", parts)):
                if not isinstance(part, dict):
                    continue
                fields = cast("dict[str, Any]", part)
                kind = fields.get("type")
                if not isinstance(kind, str) or kind not in _READERS:
                    continue
                if found is None:
                    found = _Found()
                if plain is messages:
                    plain = list(messages)
                if plain[place] is message:
                    plain[place] = dict(message)
                if plain[place][field] is parts:
                    plain[place][field] = list(cast("list[Any]", parts))
                name = f"messages[{place}].{field}[{index}]"
                _READERS[kind](found, name, fields)
                plain[place][field][index] = {"type": kind}
    return plain, None if found is None else found.all()


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
        """Anthropic's shape of an image or a document, and the AI SDK's of an image."""
        source = part.get("source")
        fields = cast("dict[str, Any]", source) if isinstance(source, dict) else {}
        value = fields.get("data") or fields.get("url") or part.get("image")
        if part.get("type") == "image":
            self._picture(name, value, None, fields.get("media_type"))
        elif fields.get("type") == "text" and isinstance(value, str):
            self._text(value.encode("utf-8", "surrogatepass"))
        else:
            self._file(name, value)

    def file(self, name: str, part: dict[str, Any]) -> None:
        """OpenAI's file, and the flat one of its Responses API."""
        inner = part.get("file")
        fields = cast("dict[str, Any]", inner) if isinstance(inner, dict) else part
        named = fields.get("filename")
        if isinstance(named, str):
            self._text(named.encode("utf-8", "surrogatepass"))
        self._file(name, fields.get("file_data") or fields.get("file_url"))

    def input_audio(self, name: str, part: dict[str, Any]) -> None:
        inner = part.get("input_audio")
        fields = cast("dict[str, Any]", inner) if isinstance(inner, dict) else part
        data = _bytes(_content(name, fields.get("data")))
        seconds = None if data is None else audio_length.seconds(data)
        if seconds is None:
            because = "only the length of WAV and MP3 can be measured; send one of these"
            self.unbounded.append((name, because))
        else:
            self.audio.append(seconds)

    def _text(self, data: bytes) -> None:
        self.text += prompt_bound.longest_form(data)

    def _picture(self, name: str, value: object, detail: object, kind: object) -> None:
        """The value in the place of an image. Some gateways accept a PDF or a video there."""
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
    if _SCHEME.match(value) and not _WEB.match(value):
        # Such as gs:// or file://, which name the operator's own storage.
        raise refusal(name, "it names a place that only the operator may read")
    return value


_READERS = {
    "image_url": _Found.image_url,
    "input_image": _Found.image_url,
    "image": _Found.source,
    "document": _Found.source,
    "file": _Found.file,
    "input_file": _Found.file,
    "input_audio": _Found.input_audio,
}
_PDF = b"%PDF-"
_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]{1,30}://", re.IGNORECASE)
_WEB = re.compile(r"\s*https?://", re.IGNORECASE)


_MEDIA_TYPE = re.compile(r"data:([^,;]{1,100})[,;]", re.IGNORECASE)
_IMAGE_NAMES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".heic", ".heif", ".avif", ".bmp")
#: File names of kinds that cost more than an image. A URL may also not show its kind.
_OTHER_NAMES = (
    *(".pdf", ".mp4", ".mov", ".mpeg", ".mpg", ".webm", ".avi", ".mkv", ".flv", ".wmv", ".3gp"),
    *(".wav", ".mp3", ".m4a", ".ogg", ".opus", ".flac", ".aac", ".aiff", ".txt", ".csv"),
)
#: Gemini reads the URL of a video as the video itself.
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


#: Control characters that no text has.
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


#: AVIF and HEIF. Videos begin in the same way, but with other brands.
_IMAGE_BRANDS = frozenset({b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1"})


def _is_image(data: bytes) -> bool:
    return (
        data.startswith(_SIGNATURES)
        or data[8:12] == b"WEBP"
        or (data[4:8] == b"ftyp" and data[8:12] in _IMAGE_BRANDS)
    )


def _dimensions(value: object) -> tuple[int, int]:
    """The width and the height of an image; zeros if they cannot be read, or not be trusted.

    A GIF is not trusted: its frames may be larger than its head says. Other kinds are either not
    taken by providers, or converted by them first.
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
    """The content of a data URL or of base64: at least this many bytes from the start. None for
    another kind of URL or text. White space and the URL-safe alphabet are accepted, as most
    decoders do."""
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
