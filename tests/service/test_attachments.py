"""Images, files and audio: what the service reads of them, and bounds that are never below a
bill."""

from __future__ import annotations

import base64
import json
import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.media import (
    MP3_FRAME,
    audio_part,
    data_url,
    file_part,
    gif,
    image_part,
    jpeg,
    mp3,
    pdf,
    png,
    wav,
    webp,
)
from support.service import chat_body

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.chat import audio_length, prompt_bound
from wattfare_mw.service.chat import request as chat_request
from wattfare_mw.service.chat.attachments import Attachments
from wattfare_mw.service.chat.families import AROUND, FAMILIES, UNKNOWN, Families, Image
from wattfare_mw.service.models import documents

sides = st.integers(1, 2**17) | st.integers(1, 5000)
details = st.none() | st.sampled_from(["low", "high", "auto", "original", "ultra_high"])


def read(*parts: object, **message: object) -> chat_request.ChatRequest:
    content = {"role": "user", "content": list(parts), **message}
    return chat_request.read(json.dumps(chat_body(messages=[content])).encode())


def attached(*parts: object) -> Attachments:
    found = read(*parts).attachments
    assert found is not None
    return found


def seen(*parts: object) -> tuple[int, int]:
    (image,) = attached(*parts).images
    return image.width, image.height


# -- images: what their first bytes say


@pytest.mark.parametrize("make", [png, jpeg, webp])
@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "text/plain", ""])
def test_image_size_is_read_from_its_header(make, kind: str) -> None:
    assert seen(image_part(data_url(make(640, 480), kind))) == (640, 480)


def test_jpeg_with_a_long_preview_before_its_size() -> None:
    assert seen(image_part(data_url(jpeg(640, 480, before=300_000)))) == (640, 480)


@pytest.mark.parametrize(
    "part",
    [
        image_part("data:image/png;base64," + base64.b64encode(png(64, 48)).decode()),
        image_part("DATA:image/png;charset=x;BASE64," + base64.b64encode(png(64, 48)).decode()),
        image_part(data_url(png(64, 48))[:60] + "\n \t" + data_url(png(64, 48))[60:]),
        image_part(
            "data:image/png;base64," + base64.urlsafe_b64encode(png(64, 48)).decode().rstrip("=")
        ),
        image_part(data_url(png(64, 48)).replace("+", "%2B").replace("=", "%3D")),
        {"type": "image_url", "image_url": data_url(png(64, 48))},
        {"type": "input_image", "image_url": data_url(png(64, 48)), "detail": "high"},
        {
            "type": "image",
            "source": {
                "type": "base64",
                "media_type": "image/png",
                "data": base64.b64encode(png(64, 48)).decode(),
            },
        },
        {"type": "image", "image": data_url(png(64, 48))},
    ],
    ids=str,
)
def test_image_size_is_read_from_each_notation(part: dict) -> None:
    assert seen(part) == (64, 48)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "http://example.com/a.png",
        "data:image/png;base64,",
        "data:image/png;base64,!!!!",
        data_url(png(64, 48)[:20]),
        data_url(png(0, 48)),
        data_url(png(2**31 - 1, 48)),
        data_url(jpeg(64, 0)),
        data_url(b"\xff\xd8" + b"\xff" * 500),
        data_url(gif(1, 1)),
        data_url(b"<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>"),
        "data:image/svg+xml,<svg width='1' height='1'/>",
        data_url(b"II*\0" + b"\1" * 200),
        data_url(b"\0\0\0\x20ftypavif" + b"\0" * 200),
    ],
)
def test_unreadable_image_counts_as_the_largest(url: str) -> None:
    assert seen(image_part(url)) == (0, 0)
    for family in (*FAMILIES, UNKNOWN):
        most = max(rule.most() for rule in family.images)
        (image,) = attached(image_part(url, detail="original")).images
        assert family.image_tokens(image) == most + AROUND


@given(st.binary(max_size=400), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]))
def test_any_bytes_have_some_image_size(data: bytes, start: bytes) -> None:
    assume(b"%PDF-" not in data)
    width, height = seen(image_part(data_url(start + data)))
    assert (width > 0) == (height > 0)


@given(st.text(max_size=300))
def test_any_text_is_an_image_url_or_is_refused(text: str) -> None:
    for url in (text, "data:image/png;base64," + text, "data:," + text, "https://x/" + text):
        try:
            assert attached(image_part(url)) != Attachments()
        except WattfareError as refused:
            assert re.search("cannot be bounded|no content", refused.message)  # noqa: PT017


@pytest.mark.parametrize(
    "part",
    [
        image_part(data_url(b"\0\0\0\x18ftypmp42" + b"\0" * 99, "video/mp4")),
        image_part("https://example.com/a.PDF?x=1"),
        image_part("https://example.com/a.mp4#t=1"),
        image_part("https://example.com/a", format="video/mp4"),
        image_part("https://www.youtube.com/watch?v=1"),
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.mov"}},
    ],
    ids=str,
)
def test_image_part_without_an_image_has_no_bound(part: dict) -> None:
    found = attached(part)
    assert [name for name, _ in found.unbounded] == ["messages[0].content[0]"]
    assert found.images == ()


@pytest.mark.parametrize(
    "part",
    [
        image_part("gs://bucket/film"),
        image_part("gs://bucket/a.png"),
        image_part("file:///etc/passwd"),
        {"type": "file", "file": {"file_data": "s3://bucket/a.pdf"}},
        {"type": "input_file", "file_url": "gs://bucket/a.pdf"},
        {"type": "document", "source": {"type": "url", "url": "FILE:///etc/passwd"}},
        # Lenient readers treat these as URLs or paths.
        image_part("file:/etc/a.png"),
        image_part(" fi\tle:///etc/a.png"),
        image_part("\x01file:///etc/a.png"),
        image_part("/etc/a.png"),
        {"type": "video_url", "video_url": {"url": "gs://bucket/a.mp4"}},
        {"type": "video_url", "video_url": {"url": "/srv/a.mp4"}},
        {"type": "video", "video": ["https://example.com/1.png", "file:///srv/2.png"]},
        {"type": "audio_url", "audio_url": {"url": "s3://bucket/a.wav"}},
        {"type": "document_url", "document_url": "gs://bucket/a.pdf"},
    ],
    ids=str,
)
def test_location_that_only_the_operator_may_read_is_refused(part: dict) -> None:
    with pytest.raises(WattfareError, match="only the operator may read"):
        attached(part)


@pytest.mark.parametrize("kind", ["application/pdf", "image/png"])
async def test_pdf_in_an_image_part_counts_by_its_pages(kind: str) -> None:
    found = await documents.read(attached(image_part(data_url(pdf(["a", "b"]), kind))))
    assert [len(each.text) for each in found.pages] == [2]
    assert found.images == ()


def test_image_data_does_not_count_as_prompt_text() -> None:
    small, large = (read(image_part(data_url(png(9, 9) + b"\0" * more))) for more in (0, 10**6))
    counted = [prompt_bound.bound({"messages": each.text}) for each in (small, large)]
    assert counted[0] == counted[1] < 500
    assert "base64" in json.dumps(large.messages)  # the upstream gets the whole image


@pytest.mark.parametrize(
    "part",
    [
        {"type": "document", "source": {"type": "text", "data": "x"}, "title": "word " * 99},
        {"type": "document", "source": {"type": "text", "data": "x"}, "context": "word " * 99},
        {**image_part(data_url(png(9, 9))), "alt": "word " * 99},
        {"type": "document_url", "document_url": "https://a.example/a", "name": "word " * 99},
    ],
    ids=lambda part: list(part)[-1],
)
def test_text_beside_the_data_of_a_part_is_counted(part: dict[str, object]) -> None:
    without = {name: value for name, value in part.items() if name != list(part)[-1]}
    more, less = (prompt_bound.bound({"messages": read(each).text}) for each in (part, without))
    assert more - less > len("word " * 99)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"type": "file", "file": {"file_data": "data:text/plain,x"}}, "filename"),
        ({"type": "input_file", "file_data": "data:text/plain,x"}, "filename"),
        ({"type": "document_url", "document_url": "https://a.example/a"}, "document_name"),
    ],
    ids=lambda each: each["type"] if isinstance(each, dict) else each,
)
def test_name_of_a_file_is_counted_once(part: dict[str, object], name: str) -> None:
    def tokens(text: str) -> int:
        inner = part.get("file")
        nested = isinstance(inner, dict)
        named = {**part, "file": {**inner, name: text}} if nested else {**part, name: text}
        request = read(named)
        assert request.attachments is not None
        return prompt_bound.bound({"messages": request.text}) + request.attachments.text

    assert tokens("n" * 100) - tokens("n") == 99


def test_images_made_by_a_model_are_counted_when_sent_back() -> None:
    made = {"role": "assistant", "content": "x", "images": [image_part(data_url(png(64, 48)))]}
    body = chat_body(messages=[made, {"role": "user", "content": "again"}])
    request = chat_request.read(json.dumps(body).encode())
    assert request.attachments == Attachments(images=(Image(64, 48),))


def test_images_of_an_already_parsed_file_are_counted() -> None:
    pages = [{"type": "text", "text": "page"}, image_part(data_url(png(64, 48) + b"\0" * 10**5))]
    file = {"type": "file", "file": {"hash": "h", "name": "a.pdf", "content": pages}}
    made = {"role": "assistant", "content": "x", "annotations": [file]}
    request = chat_request.read(json.dumps(chat_body(messages=[made])).encode())
    assert request.attachments == Attachments(images=(Image(64, 48),))
    assert "page" in json.dumps(request.text)
    assert prompt_bound.bound({"messages": request.text}) < 1000
    assert request.messages == [made]


# -- images: their tokens


def openai_tiles(base: int, tile: int, width: int, height: int) -> int:
    """The formula of OpenAI's documentation, in floats."""
    scale = min(1, 2048 / max(width, height))
    width, height = int(width * scale) or 1, int(height * scale) or 1
    scale = min(1, 768 / min(width, height))
    width, height = int(width * scale), int(height * scale)
    return base + tile * math.ceil(width / 512) * math.ceil(height / 512)


def openai_patches(factor: float, width: int, height: int, cap: int = 1536) -> int:
    def of(width: float, height: float) -> int:
        return math.ceil(width / 32) * math.ceil(height / 32)

    if of(width, height) > cap:
        shrink = math.sqrt(cap * 32**2 / (width * height))
        across, down = width * shrink / 32, height * shrink / 32
        shrink *= min(
            max(math.floor(across), 1) / across if across > 1 else 1,
            max(math.floor(down), 1) / down if down > 1 else 1,
        )
        return math.ceil(min(of(int(width * shrink), int(height * shrink)), cap) * factor)
    return math.ceil(of(width, height) * factor)


def claude(width: int, height: int, long: int, most: int) -> int:
    scale = min(1, long / max(width, height))
    width, height = int(width * scale) or 1, int(height * scale) or 1
    patches = math.ceil(width / 28) * math.ceil(height / 28)
    return min(max(patches, width * height // 750), most)


def gemini_2(width: int, height: int) -> int:
    if max(width, height) <= 384:
        return 258
    scale = min(1, 3072 / max(width, height))
    width, height = int(width * scale) or 1, int(height * scale) or 1
    side = min(max(int(min(width, height) / 1.5), 256), 768)
    return 258 * math.ceil(width / side) * math.ceil(height / side)


def pixtral(width: int, height: int) -> int:
    ratio = max(width / 1024, height / 1024)
    if ratio > 1:
        width, height = round(width / ratio), round(height / ratio)
    across, down = (width - 1) // 16 + 1, (height - 1) // 16 + 1
    return (across + 1) * down


def qwen(width: int, height: int) -> int:
    across, down = max(round(width / 28), 1) * 28, max(round(height / 28), 1) * 28
    if across * down > 16384 * 784:
        beta = math.sqrt(width * height / (16384 * 784))
        across = max(28, math.floor(width / beta / 28) * 28)
        down = max(28, math.floor(height / beta / 28) * 28)
    return min(across * down // 784, 16384) + 2


def kimi(width: int, height: int, patches: int) -> int:
    """``navit_resize_image`` in media_utils.py."""
    scale = min(
        1,
        math.sqrt(patches / (max(1, width // 14) * max(1, height // 14))),
        512 * 14 / width,
        512 * 14 / height,
    )
    width, height = (min(max(1, int(side * scale)), 512 * 14) for side in (width, height))
    return math.ceil(width / 28) * math.ceil(height / 28)


def glm(width: int, height: int, most: int) -> int:
    """``smart_resize`` in image_processing_glm4v.py. It refuses a narrower image."""
    if min(width, height) < 28:
        scale = max(28 / width, 28 / height)
        width, height = int(width * scale), int(height * scale)
    if max(width, height) / min(width, height) > 200:
        return 0
    across, down = round(width / 28), round(height / 28)
    if across * down > most:
        beta = math.sqrt(width * height / (most * 784))
        across, down = (max(1, math.floor(side / beta / 28)) for side in (width, height))
    elif across * down * 784 < 112 * 112 / 2:
        beta = math.sqrt(112 * 112 / (2 * width * height))
        across, down = (math.ceil(side * beta / 28) for side in (width, height))
    return across * down


BILLS = {
    "gpt-4o": lambda w, h: openai_tiles(85, 170, w, h),
    "openai/gpt-4o-2024-11-20": lambda w, h: openai_tiles(85, 170, w, h),
    "gpt-4o-mini": lambda w, h: openai_tiles(2833, 5667, w, h),
    "gpt-5": lambda w, h: openai_tiles(70, 140, w, h),
    "o3": lambda w, h: openai_tiles(75, 150, w, h),
    "gpt-4.1": lambda w, h: openai_tiles(85, 170, w, h),
    "gpt-4.1-mini": lambda w, h: openai_patches(1.62, w, h),
    "gpt-4.1-nano": lambda w, h: openai_patches(2.46, w, h),
    "openai/gpt-5-mini": lambda w, h: openai_patches(1.62, w, h),
    "o4-mini-high": lambda w, h: openai_patches(1.72, w, h),
    "gpt-5.5": lambda w, h: openai_patches(1.2, w, h, 10_000),
    "anthropic/claude-sonnet-4.5": lambda w, h: claude(w, h, 1568, 1600),
    "us.anthropic.claude-3-5-sonnet-20241022-v2:0": lambda w, h: claude(w, h, 1568, 1600),
    "claude-opus-4-8": lambda w, h: claude(w, h, 2576, 4784),
    "anthropic/claude-sonnet-5": lambda w, h: claude(w, h, 2576, 4784),
    "google/gemini-2.5-flash": gemini_2,
    "gemini-3-pro-preview": lambda w, h: 1120,
    "mistralai/pixtral-12b": pixtral,
    "qwen/qwen2.5-vl-72b-instruct": qwen,
    "moonshotai/kimi-k2.5": lambda w, h: kimi(w, h, 16_384),
    "moonshotai/Kimi-K2.6": lambda w, h: kimi(w, h, 16_384),
    "kimi-k2.7-code": lambda w, h: kimi(w, h, 16_384),
    "moonshotai/kimi-k3": lambda w, h: kimi(w, h, 65_536),
    "z-ai/glm-4.5v": lambda w, h: glm(w, h, 7500),
    "z-ai/glm-4.6v-flash": lambda w, h: glm(w, h, 6144),
}


@given(sides, sides, st.sampled_from(sorted(BILLS)))
def test_no_image_costs_more_than_its_bound(width: int, height: int, model: str) -> None:
    family = Families().of(model)
    bound = family.image_tokens(Image(width, height))
    assert family is not UNKNOWN
    assert BILLS[model](width, height) <= bound <= family.image_tokens(Image())
    # An unknown model does not get a cheap family.
    assert bound <= UNKNOWN.image_tokens(Image(width, height))


@given(sides, sides, details, st.sampled_from([*FAMILIES, UNKNOWN]))
def test_bound_of_an_image_covers_its_tokens(
    width: int, height: int, detail: str | None, family
) -> None:
    tokens = family.image_tokens(Image(width, height, detail))
    assert tokens == family.image_tokens(Image(height, width, detail))
    assert AROUND < tokens <= max(rule.most() for rule in family.images) + AROUND
    assert tokens <= UNKNOWN.image_tokens(Image(width, height, detail))


@pytest.mark.parametrize(
    ("model", "image", "tokens"),
    [
        # The examples of OpenAI's documentation.
        ("gpt-4o", Image(1024, 1024, "high"), 765),
        ("gpt-4o", Image(2048, 4096, "high"), 1105),
        ("gpt-4o", Image(4096, 8192, "low"), 85),
        ("gpt-4o", Image(), 1445),
        ("gpt-4.1-mini", Image(1024, 1024), 1659),
        # Measured: huggingface.co/datasets/JOHNISKING/image-token-cost.
        ("gpt-5.5", Image(1024, 1024), 1229),
        ("gpt-6-astra", Image(4032, 3024), 14_364),
        ("gemini-3-pro", Image(4032, 3024), 1120),
        ("gemini-2.5-pro", Image(960, 540), 6 * 258),
        ("grok-4", Image(), 1792),
        ("moonshotai/Kimi-K2.6", Image(1920, 1080), 69 * 39),
        ("deepseek-v4-flash-vision-exp", Image(), 512),
    ],
)
def test_image_tokens_match_documented_counts(model: str, image: Image, tokens: int) -> None:
    assert Families().of(model).image_tokens(image) == tokens + AROUND


def test_rows_of_the_operator_come_first() -> None:
    families = Families({"My-Llava*": {"image": 576}, "*": {"audio_second": 7}})
    llava = families.of("local/my-llava:13b")
    assert llava.image_tokens(Image(9, 9)) == 576 + AROUND
    assert llava.page == UNKNOWN.page
    assert families.of("gpt-4o").audio_second == 7
    assert families.of("gpt-4o").images == Families().of("gpt-4o").images


@pytest.mark.parametrize("row", [{"image": -1}, {"image": True}, {"tiles": 3}, {"page": 10**9}])
def test_invalid_row_of_the_operator_is_refused(row: dict) -> None:
    with pytest.raises(WattfareError, match=r"'m' of \[media\]"):
        Families({"m": row})


# -- audio


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (wav(2), 2),
        (wav(2, says=0), 2),
        (wav(2, says=2**31), 2),
        (wav(1, rate=48_000), 1),
        (mp3(2), 2),
        (mp3(2, tag=5000), 2),
        (mp3(2) + b"TAG" + b"\0" * 125, 2),
    ],
)
def test_length_of_audio_is_read_from_its_data(data: bytes, seconds: float) -> None:
    (found,) = attached(audio_part(data)).audio
    assert seconds - 0.03 <= found <= seconds + 0.2
    assert attached(file_part(data, "audio/wav")).audio == (found,)


@given(st.binary(max_size=300), st.sampled_from([b"", b"RIFF\0\0\0\0WAVEfmt ", MP3_FRAME]))
def test_any_bytes_are_audio_or_are_refused(data: bytes, start: bytes) -> None:
    found = audio_length.seconds(start + data)
    assert found is None or 0 <= found < 10**6


def test_noise_is_rejected_as_audio_fast() -> None:
    assert audio_length.seconds(b"\xff\xfb\x90\x00\xff" * 2_000_000) is None


@pytest.mark.parametrize(
    ("model", "tokens"), [("gpt-4o-audio-preview", 20), ("gemini-2.5-pro", 64), ("x", 960)]
)
def test_tokens_of_two_seconds_of_audio(model: str, tokens: int) -> None:
    assert Families().of(model).audio_tokens(2) == tokens + AROUND


# -- files


async def test_pdf_is_read_page_by_page() -> None:
    text = "\n".join(["All happy families are alike."] * 60)
    found = await documents.read(attached(file_part(pdf(["one", text, text * 3]))))
    assert found.documents == ()
    ((one, two, three),) = (each.text for each in found.pages)
    assert one == 3
    assert len(text) <= two < three
    claude = Families().of("claude-sonnet-4-5")
    # "Each page typically uses 1,500-3,000 tokens", and an image of it.
    assert claude.page_tokens(one) == 3000 + 1600
    assert three >= 3 * len(text) > 3000
    assert claude.page_tokens(three) == three + 1600


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-",
        b"%PDF-1.4 and no more",
        pdf([]),
        pdf(["x"])[:200],
        # The object contains itself.
        pdf(["x"]).replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]"),
        pdf(["x"]).replace(b"trailer << ", b"trailer << /Encrypt 3 0 R "),
    ],
)
async def test_unreadable_pdf_is_refused(data: bytes) -> None:
    with pytest.raises(WattfareError, match=r"messages\[0\].content\[0\]") as refused:
        await documents.read(attached(file_part(data)))
    assert refused.value.code == "invalid_request"
    assert "Send its text" in refused.value.message


def test_file_type_is_read_from_its_bytes() -> None:
    assert attached(file_part(png(64, 48))).images == (Image(64, 48),)
    assert attached(file_part(b"a,b\n1,2\n", name="")).text == 8
    assert attached(file_part(b"BMW," * 9, name="")).text == 36  # not a bitmap
    flat = {"type": "input_file", "filename": "", "file_data": data_url("é".encode(), "text/csv")}
    assert attached(flat).text == 3  # its longest form
    source = {"type": "text", "media_type": "text/plain", "data": "four"}
    assert attached({"type": "document", "source": source}).text == 4
    source = {"type": "content", "content": [{"type": "text", "text": "x" * 900}]}
    document = {"type": "document", "source": source, "citations": {"enabled": True}}
    assert 900 < attached(document).text < 999
    mistral = {"type": "document_url", "document_url": data_url(b"four", "text/plain")}
    assert attached(mistral).text == 4
    url = data_url(wav(3), "audio/wav")
    assert attached({"type": "audio_url", "audio_url": {"url": url}}).audio == (3,)
    assert attached({"type": "input_audio", "input_audio": url.partition(",")[2]}).audio == (3,)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "audio_url", "audio_url": {"url": "https://example.com/a.wav"}},
        {"type": "document_url", "document_url": "https://example.com/a.pdf"},
        {"type": "video", "video": ["https://example.com/1.png"], "fps": 2},
        {"type": "video_url", "video_url": {"url": data_url(b"\0" * 10**5, "video/mp4")}},
        image_part("https://example.com/a.png") | {"max_pixels": 10**6},
        image_part("https://example.com/a.png") | {"uuid": "larger"},
    ],
    ids=lambda part: part["type"],
)
def test_unbounded_part_is_reserved_and_not_counted_as_text(part: dict) -> None:
    request = read(part)
    assert all(name.startswith("messages[0].content[0]") for name in request.held)
    assert request.held
    assert prompt_bound.bound({"messages": request.text}) < 1000


# -- all kinds together


def test_counts_of_a_prompt_include_its_attachments() -> None:
    found = attached(
        image_part(data_url(png(512, 512)), detail="low"),
        image_part("https://example.com/a.png"),
        audio_part(wav(3)),
    )
    family = Families().of("gpt-4o")
    counts = prompt_bound.counts(100, found, family)
    assert counts.images == 2
    assert counts.image == 85 + 1445 + 2 * AROUND
    assert counts.audio == 30 + AROUND
    assert counts.prompt == 100 + counts.image + counts.audio


def test_request_without_attachments_is_unchanged() -> None:
    request = read({"type": "text", "text": "x"})
    assert request.attachments is None
    assert request.text is request.messages
