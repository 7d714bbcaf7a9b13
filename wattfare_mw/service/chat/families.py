"""The number of tokens for an image, for a page of a PDF and for a second of audio.

Models that count in the same way are a family, which has one row. The comment of a row names its
source. For a model without a row, the most expensive rows count. The table ``[media]`` in the
``--config`` file has the operator's own rows, which come first.

Each rule gives an upper bound. Rotating an image by 90 degrees does not change its bound, because a
file can say that its image is rotated.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import islice

import msgspec

from ...errors import invalid_request

#: Extra tokens for an image or a file: its start, its end and its name.
AROUND = 32
#: Tokens of the text of one page. Anthropic says "typically 1,500-3,000 tokens per page": Claude
#: docs, "PDF support". A page that is only scanned has no text in the file, but a provider may
#: read the text from its image.
PAGE_TEXT = 3000
#: Tokens for each second of audio, at most: Gemini's, the highest known.
AUDIO_SECOND = 32
#: Some models count audio in whole windows of this many seconds: Whisper's encoder, and models
#: built on it.
AUDIO_WINDOW = 30
#: The maximum number of different images of a request that are counted by their size.
MAX_EXACT_IMAGES = 1_000


class Image(msgspec.Struct, frozen=True):
    """An image of a request.

    Attributes:
        width, height: in pixels; 0 if they are not known.
        detail: the requested detail: ``low``, ``high``, ``auto``, ….
    """

    width: int = 0
    height: int = 0
    detail: str | None = None

    @property
    def is_known(self) -> bool:
        """True if its dimensions are known."""
        return self.width > 0 and self.height > 0


class Fixed(msgspec.Struct, frozen=True):
    """A fixed number of tokens for any image. ``finest`` applies if the request asks for a detail
    that is not in ``usual``."""

    tokens: int
    finest: int = 0

    def of(self, image: Image) -> int:
        """The tokens of this image."""
        return self.tokens if image.detail in _USUAL else max(self.tokens, self.finest)

    def most(self) -> int:
        """The maximum for any image."""
        return max(self.tokens, self.finest)


_USUAL = (None, "auto", "low", "medium", "high")


class Tiles(msgspec.Struct, frozen=True):
    """OpenAI's tiles. An image is scaled down to fit into a square of 2048 pixels, and then until
    its shorter side has 768 pixels. It is counted in tiles of 512 pixels, plus ``base`` tokens.
    With the detail ``low``, only the ``base`` tokens count."""

    base: int
    tile: int

    def of(self, image: Image) -> int:
        """The tokens of this image."""
        if image.detail == "low":
            return self.base
        if not image.is_known:
            return self.most()
        long, short = Fraction(max(image.width, image.height)), min(image.width, image.height)
        scale = min(Fraction(1), 2048 / long, Fraction(768, short))
        return self.base + self.tile * _steps(long * scale, 512) * _steps(short * scale, 512)

    def most(self) -> int:
        """The maximum for any image, at 2048 by 768 pixels."""
        return self.base + self.tile * 8


class Patches(msgspec.Struct, frozen=True, kw_only=True):
    """Square patches. Each patch is one token, times a factor.

    Attributes:
        size: the length of a patch's side, in pixels.
        most_patches: a larger image is scaled down to this many patches.
        high, low: the same for an image with this detail. None means ``most_patches``.
        factor: the number of tokens per patch.
        least: a smaller image is scaled up to this many patches.
        row: the number of tokens at the end of each row of patches.
    """

    size: int
    most_patches: int
    high: int | None = None
    low: int | None = None
    factor: Fraction = Fraction(1)
    least: int = 0
    row: int = 0

    def of(self, image: Image) -> int:
        """The tokens of this image."""
        most = {"high": self.high, "low": self.low}.get(image.detail or "") or self.most_patches
        if not image.is_known:
            return self._tokens(most)
        columns, rows = _steps(image.width, self.size), _steps(image.height, self.size)
        breaks = self.row * max(columns, rows)
        return min(
            self._tokens(min(max(columns * rows, self.least), most)) + breaks, self._tokens(most)
        )

    def _tokens(self, patches: int) -> int:
        return _steps(patches * self.factor, 1)

    def most(self) -> int:
        """The maximum for any image."""
        return self._tokens(max(self.most_patches, self.high or 0, self.low or 0))


class Crops(msgspec.Struct, frozen=True):
    """Gemini's crops. An image of up to 384 pixels is one crop. A larger image is scaled down to
    3072 pixels, and cut into squares. The side of a square is the image's shorter side divided by
    1.5, but from 256 to 768 pixels."""

    tokens: int

    def of(self, image: Image) -> int:
        """The tokens of this image."""
        if not image.is_known:
            return self.most()
        long, short = max(image.width, image.height), min(image.width, image.height)
        if long <= 384:
            return self.tokens
        scale = min(Fraction(1), Fraction(3072, long))
        side = min(max(int(short * scale / Fraction(3, 2)), 256), 768)
        return self.tokens * _steps(long * scale, side) * _steps(short * scale, side)

    def most(self) -> int:
        """The maximum for any image, at 3072 by 384 pixels."""
        return self.tokens * 24


Rule = Fixed | Tiles | Patches | Crops


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table.

    Attributes:
        models: patterns of models' names, in lower case and without the provider's prefix.
        images: the rules for images. The rule with the highest result counts.
        page: the number of tokens for the image of a PDF page. None for the maximum of any image.
        audio_second: the number of tokens for a second of audio.
        audio_window: the length of a window, in seconds. Audio counts in whole windows.
    """

    models: tuple[str, ...]
    images: tuple[Rule, ...]
    page: int | None = None
    audio_second: int = AUDIO_SECOND
    audio_window: int = AUDIO_WINDOW

    def image_tokens(self, image: Image) -> int:
        """The maximum tokens of one image."""
        return max(rule.of(image) for rule in self.images) + AROUND

    def images_tokens(self, images: Sequence[Image]) -> int:
        """The maximum tokens of these images. After :data:`MAX_EXACT_IMAGES` different images, each
        further one counts as the maximum of any image, because computing it takes 0.2 ms."""
        counted = Counter(images)
        exact = list(islice(counted.items(), MAX_EXACT_IMAGES))
        tokens = sum(self.image_tokens(image) * times for image, times in exact)
        others = len(images) - sum(times for _, times in exact)
        return tokens + others * (max(rule.most() for rule in self.images) + AROUND)

    def page_tokens(self, text_bytes: int) -> int:
        """The maximum tokens of a page with this much text, in bytes of UTF-8."""
        seen = max(rule.most() for rule in self.images) if self.page is None else self.page
        return seen + max(text_bytes, PAGE_TEXT)

    def audio_tokens(self, seconds: float) -> int:
        """The maximum tokens of audio of this length."""
        windows = _steps(Fraction(seconds), self.audio_window)
        return windows * self.audio_window * self.audio_second + AROUND


def _steps(length: int | Fraction, size: int) -> int:
    return int(-(-length // size))


def _factor(text: str) -> Fraction:
    return Fraction(text)


# OpenAI's, from "Images and vision", "Calculating costs" (developers.openai.com/api/docs/guides).
# Prices of models that the page no longer lists are from earlier versions of it.
_PATCHES_1536 = 1536

FAMILIES: Sequence[Family] = (
    Family(
        models=("gpt-4o-mini*",),
        images=(Tiles(2833, 5667),),
        audio_second=10,
        audio_window=1,
    ),
    Family(
        models=("gpt-4.1-mini*", "gpt-5-mini*", "gpt-5.[0-9]-mini*", "gpt-5.[0-9]*-mini*"),
        images=(Patches(size=32, most_patches=_PATCHES_1536, factor=_factor("1.62")),),
    ),
    Family(
        models=("gpt-4.1-nano*", "gpt-5-nano*", "gpt-5.[0-9]-nano*"),
        images=(Patches(size=32, most_patches=_PATCHES_1536, factor=_factor("2.46")),),
    ),
    Family(
        models=("o4-mini*",),
        images=(Patches(size=32, most_patches=_PATCHES_1536, factor=_factor("1.72")),),
    ),
    Family(
        models=("gpt-5", "gpt-5-20*", "gpt-5-chat*", "gpt-5-codex*", "gpt-5.1*"),
        images=(Tiles(70, 140),),
    ),
    # "high" is up to 2,500 patches, "original" up to 10,000: the same page, "Model sizing
    # behavior". 1.2 tokens for a patch: measured, huggingface.co/datasets/JOHNISKING/
    # image-token-cost. `auto` is `original`: measured there.
    Family(
        models=("gpt-5.*", "gpt-5-*"),
        images=(
            Patches(size=32, most_patches=10_000, high=2500, factor=_factor("1.2")),
            Tiles(70, 140),
        ),
        page=3000,
    ),
    # A large image is not scaled down: 1.2 tokens for 1024 pixels were measured, up to 54
    # megapixels. Above about 60, images are refused:
    # docs.apiyi.com/en/faq/vision-image-too-large.
    Family(
        models=("gpt-6*-mini*", "gpt-6*-nano*"),
        images=(Patches(size=32, most_patches=60_000, high=2500, factor=_factor("2.46")),),
        page=6150,
    ),
    Family(
        models=("gpt-6*",),
        images=(Patches(size=32, most_patches=60_000, high=2500, factor=_factor("1.2")),),
        page=3000,
    ),
    Family(models=("o1*", "o3*"), images=(Tiles(75, 150),)),
    Family(models=("computer-use-preview*",), images=(Tiles(65, 129),)),
    # Audio is a token for 100 ms: "Audio and speech", pricing of gpt-4o-audio-preview. The page
    # counts gpt-4.1 by patches, and its bills are by tiles: community.openai.com/t/1230130.
    Family(
        models=("gpt-4.1*",),
        images=(Tiles(85, 170), Patches(size=32, most_patches=_PATCHES_1536)),
    ),
    Family(
        models=("gpt-4*", "chatgpt-4o*", "gpt-audio*"),
        images=(Tiles(85, 170),),
        audio_second=10,
        audio_window=1,
    ),
    # Claude: a token for 28 by 28 pixels, at most 1,568, or in earlier words width x height / 750,
    # at most about 1,600: platform.claude.com/docs/en/build-with-claude/vision.
    Family(
        models=(
            "*claude-[123]*",
            "*claude-instant*",
            "*claude-*-3-*",
            "*claude-sonnet-4*",
            "*claude-haiku-4*",
            "*claude-opus-4",
            "*claude-opus-4-20*",
            "*claude-opus-4[.-][0-6]*",
            "*claude-4*",
        ),
        images=(
            Patches(size=28, most_patches=1600),
            Patches(size=27, most_patches=1600),  # 27 x 27 is less than 750
        ),
    ),
    # From Opus 4.7 on, at most 4,784: the same page, "High-resolution image support".
    Family(
        models=("*claude*",),
        images=(Patches(size=28, most_patches=4784), Patches(size=27, most_patches=4784)),
    ),
    # Gemini 3: 280, 560 or 1,120 tokens by the resolution, 2,240 for the finest; a page of a PDF
    # is 560, or 1,120: ai.google.dev/gemini-api/docs/media-resolution.
    Family(
        models=("gemini-[3-9]*",),
        images=(Fixed(1120, finest=2240),),
        page=1120,
        audio_window=1,
    ),
    # 258 tokens for each crop, and for a page: ai.google.dev/gemini-api/docs/image-understanding,
    # document-processing, and audio ("32 tokens" for each second).
    Family(models=("gemini-[12]*",), images=(Crops(258),), page=258, audio_window=1),
    # 256 tokens, and with "pan and scan" 256 more for each of up to four crops: the model card.
    Family(models=("gemma-3*", "gemma3*"), images=(Fixed(1280),)),
    # Tiles of 448 pixels with 256 tokens each, and one more, "less than 1,792": docs.x.ai, image
    # understanding.
    Family(
        models=("grok-2*", "grok-3*", "grok-4*", "grok-vision*"),
        images=(Fixed(1792),),
    ),
    # Patches of 16 pixels up to 1024 by 1024, or of 28 up to 1540 by 1540, and a mark behind each
    # row: mistral-common, tokens/tokenizers/image.py. Voxtral: windows of 30 seconds.
    Family(
        models=("pixtral*", "mistral*", "ministral*", "magistral*", "voxtral*"),
        images=(Patches(size=16, most_patches=64 * 65, row=1),),
    ),
    # Up to four tiles of 1,601 tokens (Llama 3.2), or 17 of 144 and their marks (Llama 4): model
    # cards; Together bills "1,601 to 6,404 tokens" for an image.
    Family(models=("*llama-3.2*", "*llama-4*", "llama3.2*", "llama4*"), images=(Fixed(6404),)),
    # A token for 28 by 28 pixels, 4 to 16,384 of them, and many servers set a minimum of 256:
    # model card of Qwen2-VL. Audio: 25 tokens for a second: model card of Qwen2-Audio.
    Family(
        models=("qwen*", "qvq*"),
        images=(Patches(size=28, most_patches=16_384, least=256),),
    ),
    # A token for 28 by 28 pixels. An image is scaled down to 16,384 patches of 14 pixels (K3:
    # 65,536), and then each side is rounded up: preprocessor_config.json and media_utils.py of the
    # models. A narrow image can have 4,506 tokens (K3: 16,866).
    Family(
        models=("kimi-k2.5*", "kimi-k2.6*"),
        images=(Patches(size=28, most_patches=4600),),
    ),
    Family(
        models=("kimi-k2.[7-9]*", "kimi-k3*"),
        images=(Patches(size=28, most_patches=17_000),),
    ),
    # A token for 28 by 28 pixels, up to 6,144 (GLM-4.5V: 7,500) of them: preprocessor_config.json.
    # A narrow image is scaled up, to 200 tokens at most: image_processing_glm4v.py of transformers.
    Family(
        models=("glm-4.[1-6]v*",),
        images=(Patches(size=28, most_patches=7500, least=256),),
    ),
    # At most 384 tokens: api-docs.deepseek.com/guides/vision. The rest is for the padding of a
    # host.
    Family(models=("deepseek-v4-flash-vision*",), images=(Fixed(512),)),
)

#: The family of a model without a row: the rules of all rows.
UNKNOWN = Family(
    models=("*",),
    images=tuple(dict.fromkeys(rule for family in FAMILIES for rule in family.images)),
    page=max(
        max(rule.most() for rule in family.images) if family.page is None else family.page
        for family in FAMILIES
    ),
)


#: The keys of a row of ``[media]``, and the maximum of their values.
OWN_KEYS = ("image", "page", "audio_second")
MAX_OWN = 1_000_000


class Families:
    """The table, with the operator's rows before it.

    Args:
        own: the operator's rows. Each is for a model or a pattern (``my-llava*``), and has the
            tokens of an ``image``, of a ``page`` of a PDF or of an ``audio_second``. For a value
            that a row does not have, the table counts.

    Raises:
        WattfareError: ``invalid_request``; a row is invalid.
    """

    def __init__(self, own: Mapping[str, Mapping[str, int]] | None = None) -> None:
        rows = dict(own or {})
        self._own = [
            (re.compile(fnmatch.translate(name.lower())), _checked(name, rows[name]))
            for name in sorted(rows, key=lambda name: (name == "*", -len(name)))
        ]
        self._of = lru_cache(maxsize=1000)(self._find)

    def of(self, model: str) -> Family:
        """The family of this model."""
        return self._of(model)

    def _find(self, model: str) -> Family:
        found = _find(bare(model))
        for pattern, row in self._own:
            if pattern.fullmatch(model.lower()) or pattern.fullmatch(bare(model)):
                image, page = row.get("image"), row.get("page")
                return msgspec.structs.replace(
                    found,
                    images=found.images if image is None else (Fixed(image),),
                    page=found.page if page is None else page,
                    audio_second=row.get("audio_second", found.audio_second),
                )
        return found


def _checked(name: str, row: Mapping[str, int]) -> Mapping[str, int]:
    for key, value in row.items():
        if key not in OWN_KEYS or type(value) is not int or not 0 <= value <= MAX_OWN:
            raise invalid_request(
                f"The row {name!r:.200} of [media] may have {', '.join(OWN_KEYS)}: whole numbers "
                f"of tokens up to {MAX_OWN:,}."
            )
    return row


def bare(model: str) -> str:
    """A model's name in lower case, without its provider and its variant. For a fine-tuned model of
    OpenAI, it is the name of the base model."""
    return model.lower().rpartition("/")[2].removeprefix("ft:").partition(":")[0]


_PATTERNS = [
    (re.compile("|".join(map(fnmatch.translate, family.models))), family) for family in FAMILIES
]


def _find(name: str) -> Family:
    return next((family for pattern, family in _PATTERNS if pattern.fullmatch(name)), UNKNOWN)
