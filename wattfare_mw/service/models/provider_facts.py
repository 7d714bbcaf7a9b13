"""Facts about the providers behind ``--upstream``: one row for each, found by the base URL.

The facts are from public documentation and bug reports, which the comment of each row names:

- *the OpenRouter list*: "Stream Cancellation" in OpenRouter's documentation of streaming
  (openrouter.ai/docs/api-reference/streaming). For each provider, it says whether the model and the
  bill stop when the connection is closed.
- If nothing is documented, ``stops_on_hang_up`` is False, because the provider may continue to
  charge after the connection is closed.
"""

from __future__ import annotations

import ipaddress
from decimal import Decimal
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from ...errors import invalid_request

LimitName = Literal["max_tokens", "max_completion_tokens"]


class ProviderFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One provider of an OpenAI-compatible API.

    Attributes:
        name: its name for ``--provider``.
        hosts: the hosts of its base URLs; one that begins with a dot means all subdomains.
        ports: the port of a server on a local machine.
        stops_on_hang_up: True if it stops generating and charging when a stream is closed.
        reports_cost: True if the usage in its answers has the cost of the call.
        generation_record: True if it reports the true cost of a call on request, after the call.
        cached_in_prompt: True if the prompt tokens include those that were read from the cache.
        limit_name: the field that limits how much each of its models generates.
        one_limit_name: True if it ignores or refuses the other name.
        thinks_beyond_limit: True if ``max_tokens`` does not limit thinking, see :mod:`.thinking`.
        variants: True if a model's name may end in a variant, see :mod:`.variants`.
        key_path: the path, after the base URL, that returns the limit of a key. None if there is
            none.
        has_oauth: True if a person can create a key for a service by OAuth.
        page_usd: the most that it charges for a page of a PDF that it reads itself, in USD.
        published_prices: False if the table of published prices does not have this provider. Its
            prices would be those of others.
    """

    name: str
    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    stops_on_hang_up: bool
    reports_cost: bool = False
    generation_record: bool = False
    cached_in_prompt: bool = True
    limit_name: LimitName = "max_tokens"
    one_limit_name: bool = False
    thinks_beyond_limit: bool = False
    variants: bool = False
    key_path: str | None = None
    has_oauth: bool = False
    page_usd: Decimal = Decimal(0)
    published_prices: bool = True

    @property
    def sells(self) -> bool:
        """True if it sells models at published prices. A local server does not."""
        return bool(self.hosts)


#: Any other provider. Most servers stop on a hang-up, like vLLM. It may be a gateway to OpenRouter,
#: so a model's name may end in a variant.
OTHER = ProviderFacts(name="other", stops_on_hang_up=True, variants=True)

PROVIDERS = (
    # It closes its own connection, too. Whether the model stops depends on the provider that runs
    # it: the OpenRouter list. `GET /generation` returns the amount charged:
    # openrouter.ai/docs/api-reference. `usage.cost` is in each answer, and `cached_tokens` are part
    # of the prompt: "Usage Accounting" there. It reads PDFs for models that cannot read them. This
    # costs $2 per 1,000 pages, and 10% more in one region: "PDF Inputs" there. `GET /key` returns
    # the limit of a key: "Get current API key". A person can create a key by OAuth: "OAuth PKCE"
    # there.
    ProviderFacts(
        name="openrouter",
        hosts=("openrouter.ai", ".openrouter.ai"),
        stops_on_hang_up=True,
        reports_cost=True,
        generation_record=True,
        variants=True,
        key_path="/key",
        has_oauth=True,
        page_usd=Decimal("0.0022"),
    ),
    # The OpenRouter list: stops. Its reasoning models refuse `max_tokens`: API reference of
    # chat/completions. `cached_tokens` are part of the prompt: guide on prompt caching.
    ProviderFacts(
        name="openai",
        hosts=("api.openai.com", ".api.openai.com"),
        stops_on_hang_up=True,
        limit_name="max_completion_tokens",
    ),
    # Like OpenAI. "'max_tokens' is not supported with this model": lobehub/lobehub#5909 and others.
    ProviderFacts(
        name="azure",
        hosts=(".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com"),
        stops_on_hang_up=True,
        limit_name="max_completion_tokens",
    ),
    # The OpenRouter list: stops. Both names of the limit work: "OpenAI SDK compatibility" in its
    # documentation. Its own `input_tokens` do not include tokens that were read from the cache or
    # written to it: "Prompt caching", "Tracking cache performance".
    ProviderFacts(
        name="anthropic",
        hosts=("api.anthropic.com",),
        stops_on_hang_up=True,
        cached_in_prompt=False,
    ),
    # The OpenRouter list: does not stop (Google, Google AI Studio). `promptTokenCount` includes the
    # cached content: reference of UsageMetadata.
    ProviderFacts(
        name="google",
        hosts=(".googleapis.com",),
        stops_on_hang_up=False,
    ),
    # The OpenRouter list: stops. `usage.cost_in_usd_ticks` is in each answer:
    # docs.x.ai/developers/cost-tracking. `cached_tokens` are part of the prompt: "Prompt Caching",
    # "Usage & Pricing". `max_tokens` is deprecated: API reference.
    ProviderFacts(
        name="xai",
        hosts=("api.x.ai", ".api.x.ai"),
        stops_on_hang_up=True,
        reports_cost=True,
        limit_name="max_completion_tokens",
    ),
    # The OpenRouter list: does not stop. `max_tokens` is deprecated: groq/groq-python#175. Cached
    # tokens are part of the prompt: vercel/ai#17118.
    ProviderFacts(
        name="groq",
        hosts=("api.groq.com",),
        stops_on_hang_up=False,
        limit_name="max_completion_tokens",
    ),
    # The OpenRouter list: does not stop. It supports only `max_tokens`: API reference of chat.
    # Cached tokens are part of the prompt: docs.mistral.ai, "Prompt caching".
    ProviderFacts(
        name="mistral",
        hosts=("api.mistral.ai", ".mistral.ai"),
        stops_on_hang_up=False,
        one_limit_name=True,
    ),
    # The effect of a hang-up is not documented. `usage.cached_tokens` are part of the prompt:
    # platform.moonshot.ai, chat API.
    ProviderFacts(
        name="moonshot",
        hosts=("api.moonshot.ai", "api.moonshot.cn"),
        stops_on_hang_up=False,
    ),
    # The OpenRouter list: stops. The prompt is `prompt_cache_hit_tokens` and
    # `prompt_cache_miss_tokens` together: api-docs.deepseek.com, create-chat-completion.
    ProviderFacts(
        name="deepseek",
        hosts=("api.deepseek.com",),
        stops_on_hang_up=True,
    ),
    # The OpenRouter list: does not stop. `usage.cost` is an object with a `total_cost`:
    # docs.perplexity.ai, chat completions.
    ProviderFacts(
        name="perplexity",
        hosts=("api.perplexity.ai",),
        stops_on_hang_up=False,
        reports_cost=True,
    ),
    # The OpenRouter list: stops.
    ProviderFacts(
        name="together",
        hosts=("api.together.xyz", "api.together.ai"),
        stops_on_hang_up=True,
    ),
    # The OpenRouter list: stops.
    ProviderFacts(
        name="fireworks",
        hosts=("api.fireworks.ai",),
        stops_on_hang_up=True,
    ),
    # The effect of a hang-up is not documented. `max_completion_tokens` is the documented name:
    # inference-docs.cerebras.ai, chat completions.
    ProviderFacts(
        name="cerebras",
        hosts=("api.cerebras.ai",),
        stops_on_hang_up=False,
        limit_name="max_completion_tokens",
    ),
    # The OpenRouter list: does not stop.
    ProviderFacts(
        name="minimax",
        hosts=("api.minimax.io", "api.minimaxi.com", "api.minimax.chat"),
        stops_on_hang_up=False,
    ),
    # The OpenRouter list: does not stop (Alibaba). `cached_tokens` are part of the prompt: "Context
    # cache" in its documentation. The hosts of workspaces: "Select a region" there.
    ProviderFacts(
        name="dashscope",
        hosts=(
            *("dashscope.aliyuncs.com", ".dashscope.aliyuncs.com"),
            *("dashscope-intl.aliyuncs.com", "dashscope-us.aliyuncs.com", ".maas.aliyuncs.com"),
        ),
        stops_on_hang_up=False,
        thinks_beyond_limit=True,
        published_prices=False,
    ),
    # The effect of a hang-up is not documented. `max_tokens` does not limit thinking. A call may
    # have only one of the names: volcengine.com/docs/82379/1494384.
    ProviderFacts(
        name="volcengine",
        hosts=(".volces.com", ".bytepluses.com"),
        stops_on_hang_up=False,
        limit_name="max_completion_tokens",
        one_limit_name=True,
        published_prices=False,
    ),
    # The effect of a hang-up is not documented.
    ProviderFacts(
        name="zhipu",
        hosts=("api.z.ai", "open.bigmodel.cn"),
        stops_on_hang_up=False,
    ),
    # The OpenRouter list: stops.
    ProviderFacts(name="cohere", hosts=("api.cohere.ai", "api.cohere.com"), stops_on_hang_up=True),
    # The OpenRouter list: stops. `usage.estimated_cost` is in each answer.
    ProviderFacts(
        name="deepinfra",
        hosts=("api.deepinfra.com",),
        stops_on_hang_up=True,
        reports_cost=True,
        published_prices=False,
    ),
    # The effect of a hang-up is not documented. The hosts of workspaces: "Workspace URL" in its
    # documentation.
    ProviderFacts(
        name="databricks",
        hosts=(".cloud.databricks.com", ".gcp.databricks.com", ".azuredatabricks.net"),
        stops_on_hang_up=False,
        published_prices=False,
    ),
    # "When the connection is closed Ollama should stop generating": ollama/ollama#1695 and #9813.
    # It supports only `max_tokens`: docs/openai.md of ollama/ollama.
    ProviderFacts(name="ollama", ports=(11434,), stops_on_hang_up=True, one_limit_name=True),
    # "requests are properly aborted on disconnect": vllm-project/vllm#32442.
    ProviderFacts(name="vllm", ports=(8000,), stops_on_hang_up=True),
    # Its log says "Client disconnected. Stopping generation": lmstudio-ai/lmstudio-bug-tracker.
    ProviderFacts(name="lm-studio", ports=(1234,), stops_on_hang_up=True),
    # It reads the stream of its upstream to the end: BerriAI/litellm#17364. The usage has a cost
    # only with a special setting. `cached_tokens` are part of the prompt, for any provider:
    # docs.litellm.ai/docs/completion/prompt_caching.
    ProviderFacts(name="litellm", ports=(4000,), stops_on_hang_up=False),
    OTHER,
)

BY_NAME = {provider.name: provider for provider in PROVIDERS}

_BY_HOST = {host: provider for provider in PROVIDERS for host in provider.hosts}
_BY_PORT = {port: provider for provider in PROVIDERS for port in provider.ports}


def find_provider(base_url: str, name: str | None = None) -> ProviderFacts:
    """The provider behind this URL.

    Args:
        base_url: the base URL of the upstream.
        name: the name of a row, which overrides the URL.

    Raises:
        WattfareError: ``invalid_request``; there is no row of this name.
    """
    if name is not None:
        try:
            return BY_NAME[name]
        except KeyError:
            known = ", ".join(sorted(BY_NAME))
            raise invalid_request(
                f"The provider {name!r} is unknown. Use one of {known}."
            ) from None
    parts = urlsplit(base_url)
    host = (parts.hostname or "").rstrip(".")
    found = _BY_HOST.get(host)
    while found is None and "." in host:
        host = host.partition(".")[2]
        found = _BY_HOST.get(f".{host}")
    if found is None and _is_local(parts.hostname or ""):
        found = _BY_PORT.get(parts.port or 0)
    return found or OTHER


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        # In a container network, a host name has no dots.
        return "." not in host or host.endswith((".local", ".localhost", ".internal"))
