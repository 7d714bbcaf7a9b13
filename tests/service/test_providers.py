"""Which provider is behind a URL, and what the table says about it."""

from __future__ import annotations

import pytest

from wattfare_mw import WattfareError
from wattfare_mw.service import Settings
from wattfare_mw.service.models.provider_facts import BY_NAME, OTHER, PROVIDERS, find_provider
from wattfare_mw.service.models.upstream import Upstream


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://OpenRouter.AI./api/v1", "openrouter"),
        ("https://api.openai.com/v1", "openai"),
        ("https://eu.api.openai.com:443/v1", "openai"),
        ("https://us.openai.azure.com/openai/v1", "azure"),
        ("https://x.services.ai.azure.com/openai/v1", "azure"),
        ("https://api.anthropic.com/v1", "anthropic"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "google"),
        ("https://us-central1-aiplatform.googleapis.com/v1/x/endpoints/openapi", "google"),
        ("https://api.x.ai/v1", "xai"),
        ("https://us-east-1.api.x.ai/v1", "xai"),
        ("https://api.groq.com/openai/v1", "groq"),
        ("https://api.mistral.ai/v1", "mistral"),
        ("https://api.moonshot.ai/v1", "moonshot"),
        ("https://api.moonshot.cn/v1", "moonshot"),
        ("https://api.deepseek.com", "deepseek"),
        ("https://api.perplexity.ai", "perplexity"),
        ("https://api.together.xyz/v1", "together"),
        ("https://api.fireworks.ai/inference/v1", "fireworks"),
        ("https://api.cerebras.ai/v1", "cerebras"),
        ("https://ark.cn-beijing.volces.com/api/v3", "volcengine"),
        ("https://ark.ap-southeast.bytepluses.com/api/v3", "volcengine"),
        ("https://ws-1.cn-beijing.maas.aliyuncs.com/compatible-mode/v1", "dashscope"),
        ("http://127.0.0.1:11434/v1", "ollama"),
        ("http://localhost:11434/v1", "ollama"),
        ("http://[::1]:11434/v1", "ollama"),
        ("http://host.docker.internal:11434/v1", "ollama"),
        ("http://gpu:8000/v1", "vllm"),
        ("http://192.168.1.7:1234/v1", "lm-studio"),
        ("http://litellm:4000", "litellm"),
        ("http://127.0.0.1:9999/v1", "other"),
        ("https://example.com:8000/v1", "other"),
        ("https://1.1.1.1:8000/v1", "other"),
        ("https://api.openai.com.example.com/v1", "other"),
        ("https://myopenrouter.ai/v1", "other"),
        ("https://example.com/api.openai.com", "other"),
    ],
)
def test_provider_is_found_by_url(url: str, name: str) -> None:
    assert find_provider(url).name == name


def test_published_prices_are_those_of_the_provider() -> None:
    """Otherwise, they would come before the operator's default price."""
    from genai_prices.data_snapshot import get_snapshot

    for provider in PROVIDERS:
        found = set[bool]()
        for host in provider.hosts:
            try:
                url = f"https://{'x' if host[0] == '.' else ''}{host}/v1"
                found.add(bool(get_snapshot().find_provider(None, None, url)))
            except LookupError:
                found.add(False)
        assert not found or provider.published_prices == (True in found), provider.name


async def test_default_price_comes_before_the_price_of_another_provider() -> None:
    for name, first in (("dashscope", True), ("vllm", True), ("openai", False)):
        upstream = Upstream("http://upstream.invalid", provider=name)
        assert upstream._catalog._default_first is first
        await upstream.close()


def test_every_provider_can_be_found_by_name() -> None:
    assert len(BY_NAME) == len(PROVIDERS)
    for provider in PROVIDERS:
        assert find_provider("https://example.com/v1", provider.name) is provider
        for host in provider.hosts:
            assert find_provider(f"https://{'x' if host[0] == '.' else ''}{host}/v1") is provider
        for port in provider.ports:
            assert find_provider(f"http://127.0.0.1:{port}/v1") is provider
        assert provider.hosts or provider.ports or provider is OTHER


def test_features_that_only_some_providers_have() -> None:
    def those(field: str) -> set[str]:
        return {provider.name for provider in PROVIDERS if getattr(provider, field)}

    assert those("generation_record") == {"openrouter"}
    assert those("reports_cost") == {"openrouter", "xai", "perplexity", "deepinfra"}
    assert {p.name for p in PROVIDERS} - those("cached_in_prompt") == {"anthropic"}
    assert {"groq", "google", "mistral", "perplexity"}.isdisjoint(those("stops_on_hang_up"))
    assert {"openai", "azure", "anthropic", "other", "ollama"} <= those("stops_on_hang_up")


def test_unknown_provider_name_is_refused() -> None:
    with pytest.raises(WattfareError, match="openrouter") as raised:
        Settings(provider="nobody")
    assert raised.value.code == "invalid_request"


async def test_upstream_knows_its_provider() -> None:
    for url, name, limit in [
        ("https://api.openai.com/v1", None, "max_completion_tokens"),
        ("https://proxy.example.com/v1", "azure", "max_completion_tokens"),
        ("https://api.openai.com/v1", "vllm", "max_tokens"),
        ("https://example.com/v1", None, "max_tokens"),
    ]:
        upstream = Upstream(url, provider=name)
        assert upstream.provider.limit_name == limit
        await upstream.close()
