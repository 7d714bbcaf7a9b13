"""Private: the errors for unsupported paths of OpenAI's API. They say what to use instead."""

from __future__ import annotations

from .errors import WattfareError, invalid_request

_CHAT = (
    "Use POST {base}/chat/completions. In the AI SDK that is openai.chat(…), in openai-agents "
    "OpenAIChatCompletionsModel, in pydantic-ai OpenAIChatModel, in LangChain "
    "ChatOpenAI(use_responses_api=False)."
)
_MESSAGES = "Use POST {base}/chat/completions with `messages`."
_NOT_SERVED = "Only chat completions are supported: POST {base}/chat/completions."
#: What to use instead, by the first part of the path.
_ADVICE: dict[str, str] = {
    "responses": _CHAT,
    "completions": _MESSAGES,
    "messages": _MESSAGES,
    "complete": _MESSAGES,
    "engines": _MESSAGES,
    **dict.fromkeys(
        (
            *("embeddings", "images", "audio", "moderations", "files", "uploads", "batches"),
            *("fine_tuning", "fine-tunes", "assistants", "threads", "vector_stores", "realtime"),
            *("conversations", "containers", "evals", "videos", "rerank", "skills", "edits"),
            *("chatkit", "interactions", "fim", "ocr"),
        ),
        _NOT_SERVED,
    ),
    # A path of OpenRouter's API.
    "generation": "The cost of a call is in its answer: `usage.cost`.",
    **dict.fromkeys(("credits", "key"), "The status path returns the user's budget."),
}
#: The methods that OpenAI's API has for these paths.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_COMPLETIONS = "chat/completions"


def refusal(base: str, tail: str) -> WattfareError | None:
    """The 404 error for an unsupported path of OpenAI's API. None for any other path.

    Args:
        base: the path of an OpenAI client's base URL, such as ``/api/v1``.
        tail: the rest of the path, such as ``responses/resp_1``.
    """
    advice = _advice(base, tail)
    if advice is None:
        return None
    return invalid_request(f"`/{tail[:64]}` is not supported. {advice}", 404)


def _advice(base: str, tail: str) -> str | None:
    first, _, rest = tail.partition("/")
    if tail == f"{_COMPLETIONS}/":
        return f"Use POST {base}/{_COMPLETIONS}, without the slash at the end."
    if tail.startswith(f"{_COMPLETIONS}/"):
        return "Chat completions are not stored here, so they cannot be listed or read."
    if first == "v1" and rest:
        # The client has added `v1`, or its base URL has `v1` twice.
        if rest == _COMPLETIONS or rest.partition("/")[0] == "models":
            return f"Use {base}/{rest[:64]}: the base URL of an OpenAI client is {base}."
        return _advice(base, rest)
    found = _ADVICE.get(first)
    return None if found is None else found.format(base=base)


def is_of_openai(tail: str) -> bool:
    """True if OpenAI's API has this path."""
    first = tail.partition("/")[0]
    return first in _ADVICE or first == "models" or tail.startswith(_COMPLETIONS)
