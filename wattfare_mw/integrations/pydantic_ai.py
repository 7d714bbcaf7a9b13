"""pydantic-ai: a provider. A user or a grant pays for its calls."""

from __future__ import annotations

import json
from typing import Any

from ..errors import WattfareError, WattfareNetworkError
from . import not_installed
from .joined import join
from .payer import Payers, paying

try:
    import openai
    from pydantic_ai import ModelProfile
    from pydantic_ai.exceptions import (
        ModelAPIError,
        ModelAuthenticationError,
        ModelConnectionError,
        ModelContextWindowExceededError,
        ModelHTTPError,
        ModelNotFoundError,
        ModelOverloadedError,
        ModelQuotaExceededError,
        ModelRateLimitError,
        ModelRequestRejectedError,
        ModelServerError,
        ModelTimeoutError,
        ModelUnavailableError,
    )
    from pydantic_ai.profiles.openai import OpenAIJsonSchemaTransformer, OpenAIModelProfile
    from pydantic_ai.providers import Provider
    from pydantic_ai.providers.openrouter import OpenRouterProvider
except ImportError as _error:
    raise not_installed(_error, "pydantic-ai", "pydantic_ai", "openai") from None

from .openai import async_client


class WattfareProvider(Provider[openai.AsyncOpenAI]):
    """A provider for ``OpenAIChatModel``. It uses the connections of the user's Wattfare client.

    If a call fails, the run raises a :class:`~wattfare_mw.WattfareError`, which is also a
    ``ModelAPIError``. So a ``FallbackModel`` works.
    """

    def __init__(self, user: Payers | None = None) -> None:
        """
        Args:
            user: the user or the grant that pays. None for the user of the current request.

        Raises:
            TypeError: ``user`` is neither a user nor a grant.
        """
        self._client = async_client(paying(user), {}, _join)

    @property
    def name(self) -> str:
        """The provider's name: ``wattfare``."""
        return "wattfare"

    @property
    def base_url(self) -> str:
        """The service's address."""
        return str(self._client.base_url)

    @property
    def client(self) -> openai.AsyncOpenAI:
        """The client that makes the calls."""
        return self._client

    @staticmethod
    def model_profile(model_name: str) -> ModelProfile | None:
        """The profile of a model. The model's name begins with its vendor, as at OpenRouter."""
        if "/" in model_name:
            return OpenRouterProvider.model_profile(model_name)
        return OpenAIModelProfile(json_schema_transformer=OpenAIJsonSchemaTransformer)


_CATEGORIES: dict[int, Any] = {
    400: ModelRequestRejectedError,
    401: ModelAuthenticationError,
    402: ModelQuotaExceededError,
    403: ModelAuthenticationError,
    404: ModelNotFoundError,
    422: ModelRequestRejectedError,
    429: ModelRateLimitError,
    503: ModelUnavailableError,
    529: ModelOverloadedError,
}


def _join(ours: WattfareError, library: openai.APIError) -> Exception:
    """Combine our error with pydantic-ai's. The result is not an openai error, because pydantic-ai
    would replace an openai error."""
    return join(ours, _error_of_library(ours, library))


def _error_of_library(ours: WattfareError, library: openai.APIError) -> ModelAPIError:
    model = _model_of(library)
    if isinstance(ours, WattfareNetworkError):
        late = isinstance(library, openai.APITimeoutError)
        kind = ModelTimeoutError if late else ModelConnectionError
        return kind(model, ours.message, phase="read" if ours.sent else "connect")
    category = _CATEGORIES.get(ours.status, ModelServerError if ours.status >= 500 else None)
    if ours.upstream_code == "context_length_exceeded":
        category = ModelContextWindowExceededError
    response = getattr(library, "response", None)
    return ModelHTTPError.for_category(
        category,
        status_code=ours.status,
        model_name=model,
        body=library.body,
        headers=None if response is None else dict(response.headers),
        provider_error_code=ours.code,
        retry_after=ours.retry_after,
        in_stream=response is None,
    )


def _model_of(library: openai.APIError) -> str:
    try:
        return str(json.loads(library.request.content)["model"])
    except Exception:  # there is no request, or its body cannot be read
        return ""
