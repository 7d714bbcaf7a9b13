"""The provider table: what each provider sends, what the service does with it, and the bill.

Add a new quirk as a :class:`~providers.rows.Row` in the file of its provider. Add a new provider as
a file, and its name below. ``python -m providers``, in the folder ``tests``, writes the page.
"""

from __future__ import annotations

from providers import (
    anthropic,
    azure,
    cohere,
    dashscope,
    databricks,
    deepinfra,
    deepseek,
    gateways,
    google,
    groq,
    litellm,
    lmstudio,
    minimax,
    mistral,
    moonshot,
    ollama,
    openai,
    openrouter,
    perplexity,
    together,
    vllm,
    xai,
    zhipu,
)

PROVIDERS = tuple(
    module.PROVIDER
    for module in (
        openrouter,
        openai,
        azure,
        anthropic,
        google,
        xai,
        groq,
        mistral,
        moonshot,
        deepseek,
        perplexity,
        together,
        ollama,
        vllm,
        lmstudio,
        litellm,
        minimax,
        dashscope,
        zhipu,
        cohere,
        deepinfra,
        databricks,
        gateways,
    )
)
