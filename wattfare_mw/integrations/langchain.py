"""LangChain and LangGraph: a chat model. A user or a grant pays for its calls."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NoReturn, Self

from ..errors import WattfareError, WattfareNetworkError
from ..types import fields_of
from . import not_installed
from .joined import join
from .payer import paying

try:
    import openai
    from langchain_core.exceptions import (
        ContextOverflowError,
        ModelAPIError,
        ModelAuthenticationError,
        ModelConnectionError,
        ModelError,
        ModelInvalidRequestError,
        ModelNotFoundError,
        ModelPermissionDeniedError,
        ModelRateLimitError,
        ModelTimeoutError,
    )
    from langchain_core.globals import get_llm_cache
    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_openai.chat_models.base import BaseChatOpenAI
    from pydantic import Field, model_validator
except ImportError as _error:
    raise not_installed(
        _error, "langchain", "langchain_core", "langchain_openai", "openai", "pydantic"
    ) from None

from .openai import AsyncWattfareOpenAI, WattfareOpenAI, async_client, sync_client

#: The options that an app cannot set, because they depend on the payer and the service.
_SET = (
    *("openai_api_key", "openai_api_base", "openai_organization", "openai_proxy"),
    *("client", "async_client", "root_client", "root_async_client"),
    *("http_client", "http_async_client"),
)


class ChatWattfare(BaseChatOpenAI):
    """A chat model. A user or a grant pays for its calls.

    An answer's ``response_metadata`` has ``cost_usd``: the billed cost, in USD. In a stream, the
    last chunk has it. A failed call raises a :class:`~wattfare_mw.WattfareError`, which is also
    LangChain's ``ModelError``. So ``with_retry`` and ``with_fallbacks`` work.

    Args:
        user: the user or the grant that pays. None for the user of the current request.
        model: the model's id at the service, such as ``"anthropic/claude-sonnet-4"``.
        timeout, max_retries, default_headers, default_query: the same as for ``user.openai()``.

    The other parameters are those of ``ChatOpenAI``. If a model is saved and loaded, it loses its
    user. Then the user of the current request pays, unless you set ``user``.

    Raises:
        TypeError: ``user`` is neither a user nor a grant.
        ValueError: an option cannot be set, because it depends on the user and the service.
    """

    user: Any = Field(default=None, exclude=True)
    model_name: str = Field(alias="model")
    stream_usage: bool | None = True
    #: None, because the read timeout of the openai client already limits each pause.
    stream_chunk_timeout: float | None = None
    use_responses_api: bool | None = False

    @model_validator(mode="after")
    def validate_environment(self) -> Self:
        """Create the clients. This replaces a method that reads OpenAI's environment variables."""
        for name in _SET:
            value = getattr(self, name)
            # `configurable_fields` copies a model by passing all its fields, so our own clients are
            # allowed here.
            if name in self.model_fields_set and value is not None and not _is_ours(value):
                raise ValueError(
                    f"{name} cannot be set, because it depends on the user and the service."
                )
        if self.n is not None and (self.n < 1 or (self.n > 1 and self.streaming)):
            raise ValueError("n must be at least 1, or exactly 1 if streaming=True.")
        self.openai_proxy = None
        self.use_responses_api = False
        self._make_clients()
        return self

    def _make_clients(self) -> None:
        paid_by = paying(self.user)
        given = {
            "timeout": self.request_timeout,
            "max_retries": self.max_retries,
            "default_headers": self.default_headers,
            "default_query": self.default_query,
        }
        options = {name: value for name, value in given.items() if value is not None}
        self.root_client = sync_client(paid_by, options, _join)
        self.root_async_client = async_client(paid_by, options, _join)
        self.client = self.root_client.chat.completions
        self.async_client = self.root_async_client.chat.completions

    def __setattr__(self, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        super().__setattr__(name, value)
        if name == "user" and value is not before:
            try:
                self._make_clients()
            except BaseException:
                super().__setattr__(name, before)
                raise

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the model and change some fields. If ``user`` is changed, the new user pays."""
        copied = super().model_copy(update=update, deep=deep)
        if update and "user" in update:
            copied._make_clients()
        return copied

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The field that LangChain treats as a secret, and the environment variable with its value.
        The field is always empty, because the model does not store the key."""
        return {"openai_api_key": "WATTFARE_SECRET_KEY"}

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """LangChain's path of this class, for loading a saved model."""
        return ["wattfare_mw", "integrations", "langchain"]

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True: models can be saved, but without their user."""
        return True

    @property
    def _llm_type(self) -> str:
        return "wattfare-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "wattfare"
        return params

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # A cache must not give one user the answers that another user paid for.
        payer = paying(self.user).pays()
        who = hashlib.sha256(f"{payer.header}: {payer.value}".encode()).hexdigest()
        return f"{super()._get_llm_string(stop=stop, **kwargs)}---{who}"

    async def _agenerate_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        if self.cache is not False and (self.cache or get_llm_cache()):
            # The cache key contains the payer, and sync code creates the key. So resolve the payer
            # here first.
            await paying(self.user).pays_async()
        return await super()._agenerate_with_cache(*args, **kwargs)

    def _convert_cached_generations(self, cache_val: list[Any]) -> list[ChatGeneration]:
        generations = super()._convert_cached_generations(cache_val)
        for generation in generations:
            # A cached answer is not billed, so its cost is 0. The original belongs to the cache, so
            # change a copy.
            message = generation.message
            if "cost_usd" in message.response_metadata:
                metadata = {**message.response_metadata, "cost_usd": 0.0}
                generation.message = message.model_copy(update={"response_metadata": metadata})
        return generations

    def _create_chat_result(
        self, response: Any, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)  # pyright: ignore[reportUnknownMemberType]
        cost = _cost((result.llm_output or {}).get("token_usage"))
        if cost is not None and result.generations:
            result.generations[0].message.response_metadata["cost_usd"] = cost
        return result

    def _convert_chunk_to_generation_chunk(
        self,
        chunk: dict[str, Any],
        default_chunk_class: type,
        base_generation_info: dict[str, Any] | None,
    ) -> ChatGenerationChunk | None:
        generated = super()._convert_chunk_to_generation_chunk(  # pyright: ignore[reportUnknownMemberType]
            chunk, default_chunk_class, base_generation_info
        )
        cost = _cost(chunk.get("usage"))
        if generated is not None and cost is not None:
            generated.message.response_metadata["cost_usd"] = cost
        return generated

    def _get_generation_chunk_from_completion(self, completion: Any) -> ChatGenerationChunk:
        generated = super()._get_generation_chunk_from_completion(completion)
        cost = _cost((generated.generation_info or {}).get("token_usage"))
        if cost is not None:
            generated.message.response_metadata["cost_usd"] = cost
        return generated

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "A ChatWattfare cannot be pickled, because its user has the app's secret key. Pass the"
            " user's id to the worker, and create the model there."
        )


def _is_ours(value: Any) -> bool:
    kinds = (WattfareOpenAI, AsyncWattfareOpenAI)
    return isinstance(value, kinds) or isinstance(getattr(value, "_client", None), kinds)


def _cost(usage: Any) -> float | None:
    cost = fields_of(usage).get("cost")
    return cost if isinstance(cost, float | int) else None


_KINDS: dict[int, type[ModelError]] = {
    400: ModelInvalidRequestError,
    401: ModelAuthenticationError,
    403: ModelPermissionDeniedError,
    404: ModelNotFoundError,
    422: ModelInvalidRequestError,
    429: ModelRateLimitError,
}


def _join(ours: WattfareError, library: openai.APIError) -> Exception:
    """Combine our error with LangChain's. The result is not an openai error, because
    langchain-openai would replace an openai error."""
    if isinstance(ours, WattfareNetworkError):
        late = isinstance(library, openai.APITimeoutError)
        kind = ModelTimeoutError if late else ModelConnectionError
    elif ours.upstream_code == "context_length_exceeded":
        kind = ContextOverflowError
    else:
        kind = _KINDS.get(ours.status, ModelAPIError if ours.status >= 500 else ModelError)
    return join(ours, kind(ours.message))
