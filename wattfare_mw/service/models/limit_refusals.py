"""Reads an upstream's refusal of a field that the service has added to a call. The upstream may
want another name for the limit or a lower limit, or it may not know ``stream_options``. No I/O.

Each provider and gateway has its own wording, and many quote the error of another one. So the whole
error is read as text. A wrong guess causes one more refused call, but does not change a bill.
"""

from __future__ import annotations

import re

import msgspec

from ..chat.request import FLOOR_TOKENS
from .provider_facts import LimitName

#: The statuses of a refusal. Some gateways send their own status when their upstream refuses.
STATUSES = frozenset({400, 404, 405, 409, 413, 422, 500, 501, 502})
#: The maximum number of bytes of an error to read.
MAX_READ = 4000

_OTHER: dict[str, LimitName] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}
_NAME = re.compile(
    r"(?<![A-Za-z0-9_])(?<!reasoning\.)(?<!thinking\.)"
    r"(max_completion_tokens|max_tokens)(?![A-Za-z0-9_])"
)
#: Words about an unknown or unwanted field.
_UNSUPPORTED = re.compile(
    r"un-?supported|not support|(?:does|do|did)(?: not|n't) support|un-?recogni[sz]ed"
    r"|not recogni[sz]ed|unknown|un-?expected|not permitted|not allowed|forbidden|extra_forbidden"
    r"|extra (?:inputs|fields)|additional property|additional properties"
    r"|no (?:such )?(?:field|parameter|argument)"
    r"|not (?:a )?(?:valid|known|defined|accepted|available)|deprecated|instead"
    r"|invalid (?:parameter|argument|field)|not implemented|cannot be used|remove|only allowed",
    re.IGNORECASE,
)
#: The field that asks for the usage of a stream. Mistral has refused it
#: (openai/openai-agents-python#442), and so does Databricks (continuedev/continue#12936).
_USAGE_FIELD = re.compile(r"stream_options|include_usage")
#: Words about a number.
_ABOUT_SIZE = re.compile(
    r"too (?:large|high|big|many|long)|at most|less than|lower than|smaller than|below|maximum"
    r"|range|exceed|greater than|more than|limit(?:ed)? (?:of|to|is)|between|must be|<=|>|≤"
    r"|取值范围",
    re.IGNORECASE,
)
#: Words for the limit.
_ABOUT_LIMIT = re.compile(
    r"max_?(?:completion_|output_|new_|gen_)?_?(?:tokens|len)|maxOutputTokens|maxTokens"
    r"|(?:maximum|output|completion|generated|new) tokens|token limit",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.\-/])(\d{1,3}(?:,\d{3})+|\d{1,9})(?![\w\-/]|[.,]\d)")
#: The status of an error, which is not a limit.
_STATUS = re.compile(
    r"\b(?:error|code|status|http)[\w ]{0,12}[\"']?\s?[:=]?\s?[\"']?[45]\d\d\b", re.I
)
_CONTEXT = re.compile(
    r"(?:context (?:length|window|size)(?: limit)?(?: (?:is|of)(?: only)?)?|must be <=)[^\d]{0,20}"
    r"([\d,]{2,11})",
    re.IGNORECASE,
)
_REQUESTED = re.compile(
    r"(?:requested|resulted in|total(?: of)?)(?: about)?[ :]+([\d,]{1,11})", re.I
)
_PROMPT = re.compile(
    r"([\d,]{1,11}) (?:of text input|tokens? (?:in|from) (?:the|your) (?:messages?|prompt|input)"
    r"|in (?:the|your) (?:messages?|prompt|input)|(?:input|prompt) tokens|`inputs` tokens"
    r"|tokens of (?:text )?input)",
    re.IGNORECASE,
)
#: Anthropic: "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000".
_SUM = re.compile(r"([\d,]{1,11}) \+ [\d,]{1,11} > ([\d,]{1,11})")
_EXCLUSIVE = re.compile(r"^\s*\(?exclusive|^\)\s*\(?exclusive", re.IGNORECASE)
_BELOW = re.compile(r"(?:less|lower|smaller) than\s*[`'\"]?$|below\s*[`'\"]?$", re.IGNORECASE)


class LimitRefusal(msgspec.Struct, frozen=True):
    """How to change the call after a refusal.

    Attributes:
        name: the name to use instead; None if the name was not the reason.
        most: the highest accepted limit, in tokens; None if the number was not the reason.
        for_this_prompt: True if ``most`` is the rest of the context window after this prompt.
        without_usage: True if the upstream does not know the field that asks for the usage.
    """

    name: LimitName | None = None
    most: int | None = None
    for_this_prompt: bool = False
    without_usage: bool = False


OTHER_REASON = LimitRefusal()


def read(
    status: int, body: bytes, *, names: tuple[str, ...], limit: int, model: str
) -> LimitRefusal:
    """Find out how to change the call after this refusal. :data:`OTHER_REASON` if it has another
    reason.

    Args:
        names: the fields with which the limit was sent.
        limit: the limit that was sent, in tokens.
        model: the model's name, because it may contain numbers that are not limits.
    """
    if status not in STATUSES:
        return OTHER_REASON
    text = body[:MAX_READ].decode("utf-8", "replace").replace("\\", "")
    if _USAGE_FIELD.search(text) is not None and _UNSUPPORTED.search(text) is not None:
        return LimitRefusal(without_usage=True)
    text = re.sub(rf"(?<!\w){re.escape(model)}(?!\w)", " ", text)
    name = _other_name(text, names)
    context = _left_of_context(text, limit)
    if context is not None:
        return LimitRefusal(name, context, for_this_prompt=True)
    return LimitRefusal(name, _maximum(_STATUS.sub(" ", text), limit))


def _other_name(text: str, names: tuple[str, ...]) -> LimitName | None:
    said = [found for found in _NAME.findall(text) if found in names]
    if not said or _UNSUPPORTED.search(text) is None:
        return None
    return _OTHER.get(said[0])


def _maximum(text: str, limit: int) -> int | None:
    """The maximum in the text. It is the highest number below the limit that was sent."""
    if _ABOUT_LIMIT.search(text) is None or _ABOUT_SIZE.search(text) is None:
        return None
    found = list(_NUMBER.finditer(text))
    numbers = {_whole(each[1]) for each in found}
    excluded = {_whole(each[1]) for each in found if _is_exclusive(text, each)}
    most = [number - (number in excluded) for number in numbers]
    return max((number for number in most if FLOOR_TOKENS <= number < limit), default=None)


def _is_exclusive(text: str, number: re.Match[str]) -> bool:
    """True if the text says that the limit must be below this number: "less than 4096"."""
    before = text[max(number.start() - 20, 0) : number.start()]
    after = text[number.end() : number.end() + 20]
    return _BELOW.search(before) is not None or _EXCLUSIVE.match(after) is not None


def _left_of_context(text: str, limit: int) -> int | None:
    """The rest of the context window after the prompt, if the text is about that."""
    added = _SUM.search(text)
    if added is not None:
        left = _whole(added[2]) - _whole(added[1])
        return left if FLOOR_TOKENS <= left < limit else None
    window = _CONTEXT.search(text)
    if window is None:
        return None
    size = _whole(window[1])
    requested, prompt = _REQUESTED.search(text), _PROMPT.search(text)
    if requested is not None and _whole(requested[1]) > limit:
        left = size - (_whole(requested[1]) - limit)
    elif prompt is not None:
        left = size - _whole(prompt[1])
    else:
        return None
    return left if FLOOR_TOKENS <= left < limit else None


def _whole(digits: str) -> int:
    return int(digits.replace(",", "") or 0)
