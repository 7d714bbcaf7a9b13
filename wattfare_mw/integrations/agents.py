"""openai-agents: a model provider. A user or a grant pays for its calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from . import not_installed
from .payer import Payers, paying

try:
    from agents import ModelSettings, OpenAIChatCompletionsModel, UserError
    from agents.models.interface import Model, ModelProvider
except ImportError as _error:
    raise not_installed(_error, "agents", "agents", "openai") from None

from .openai import async_client


class WattfareModelProvider(ModelProvider):
    """A provider for ``RunConfig(model_provider=…)``. It uses the connections of the user's
    Wattfare client.

    If a call fails, the run raises a :class:`~wattfare_mw.WattfareError`, which is also an error of
    the openai package.

    The provider does not change tracing. If the environment has an OpenAI key, openai-agents sends
    traces with prompts to OpenAI. To turn this off, use ``RunConfig(tracing_disabled=True)``.
    """

    def __init__(self, user: Payers | None = None) -> None:
        """
        Args:
            user: the user or the grant that pays. None for the user of the current request.

        Raises:
            TypeError: ``user`` is neither a user nor a grant.
        """
        self._client = async_client(paying(user), {})

    def get_model(self, model_name: str | None) -> Model:
        """The model with this name, such as ``anthropic/claude-sonnet-4``.

        Raises:
            UserError: the name is missing.
        """
        if not model_name:
            raise UserError("Name a model, such as Agent(…, model='anthropic/claude-sonnet-4').")
        return _Model(model_name, self._client)


class _Model(OpenAIChatCompletionsModel):
    """Asks for the usage of streams, and keeps the cost in it."""

    async def get_response(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002
        model_settings: ModelSettings,
        *args: Any,
        **options: Any,
    ) -> Any:
        settings = _with_usage(model_settings)
        return await super().get_response(system_instructions, input, settings, *args, **options)

    async def stream_response(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002
        model_settings: ModelSettings,
        *args: Any,
        **options: Any,
    ) -> AsyncIterator[Any]:
        settings = _with_usage(model_settings)
        events = super().stream_response(system_instructions, input, settings, *args, **options)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()  # type: ignore[attr-defined]


def _with_usage(settings: ModelSettings) -> ModelSettings:
    changed = {
        name: True
        for name in ("include_usage", "preserve_raw_usage")
        if getattr(settings, name) is None
    }
    return replace(settings, **changed)
