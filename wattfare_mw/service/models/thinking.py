"""How many tokens a model may think beyond the limit of its answer. No I/O.

Almost all providers count thinking in the limit. At DashScope, ``max_tokens`` does not limit
thinking. ``max_completion_tokens`` does, but only newer models have it. Sources, all in the
documentation of Alibaba Cloud Model Studio: "OpenAI compatible - Chat" (``max_tokens``,
``max_completion_tokens``, ``enable_thinking``, ``thinking_budget``), "Deep thinking", "MiniMax",
and "maximum chain-of-thought" on the pages of models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Models whose ``max_completion_tokens`` includes thinking. Models of other sellers, whose names
#: have a slash, are not among them.
_LIMITED = re.compile(
    r"qwen(?:3\.(?:[7-9]|\d\d)|[4-9])[\d.]*-max|qwen(?:3\.(?:[5-9]|\d\d)|[4-9])[\d.]*-plus"
    r"|kimi-k(?:2\.[5-9]|[3-9])|glm-[5-9]|minimax-m(?:2\.[5-9]|[3-9])|deepseek-v[4-9]"
)
#: They may exceed it by this many tokens.
_INEXACT = 10
#: Models that do not think unless a call asks for it.
_IF_ASKED = re.compile(
    r"qwen-|qwen[12]|qwen3-(?:max|vl-(?:plus|flash))|deepseek-v[23]|llama|baichuan"
    r"|.*-(?:instruct|coder)"
)
#: Models that think in any case.
_ALWAYS = re.compile(r"qwq|qvq|deepseek-r|minimax|.*-thinking")
#: Models that ignore ``thinking_budget``.
_WITHOUT_BUDGET = re.compile("minimax")
#: The most tokens of thinking. The first row that fits counts.
_MOST = (
    (re.compile(r"qwen(?:3\.(?:[7-9]|\d\d)|[4-9])"), 262_144),
    (re.compile(r"qwen3\.6|minimax"), 131_072),
    (re.compile(""), 81_920),
)


def is_limited(model: str) -> bool:
    """True if ``max_completion_tokens`` limits how much this model of DashScope thinks."""
    return _LIMITED.match(model.lower()) is not None


def beyond_limit(model: str, body: Mapping[str, Any]) -> int:
    """The most tokens that this model of DashScope may generate beyond its limit.

    Args:
        body: a request that :mod:`..chat.request` has read.
    """
    if is_limited(model):
        return _INEXACT
    name = model.lower().rpartition("/")[2]
    asked = body.get("enable_thinking")
    off = asked is False or (asked is None and _IF_ASKED.match(name) is not None)
    if off and _ALWAYS.match(name) is None:
        return 0
    most = next(tokens for pattern, tokens in _MOST if pattern.match(name))
    budget = None if _WITHOUT_BUDGET.match(name) else body.get("thinking_budget")
    return min(budget, most) if type(budget) is int and budget > 0 else most
