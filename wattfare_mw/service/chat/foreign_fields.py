"""Names of fields that no request may have, at any depth: they redirect a call, authenticate it,
store it elsewhere, set its price, or read what the operator keeps at the provider.

A gateway behind the service may act on them with the operator's keys. Sources:

- LiteLLM 1.110: the parameters that its proxy bans in a request and in ``metadata``
  (``proxy/auth/auth_utils.py``), those of its callbacks
  (``litellm_core_utils/initialize_dynamic_callback_params.py``), and those that it keeps for itself
  (``types/litellm_params.py``). ``input_cost_per_token`` and its like set the price of a call.
- vLLM: ``kv_transfer_params`` names a remote host; ``logits_processors`` names code to load.
  SGLang: ``bootstrap_host``, ``custom_logit_processor``.
- OpenAI, Anthropic, Mistral, xAI: ids of files, vector stores, containers, libraries, collections,
  conversations and earlier responses, all of the account whose key is used; ``mcp_servers``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, cast

#: A name that holds one of these words, in any spelling: ``api_key``, ``apiKey``, ``API-Key``.
WORDS = (
    *("api_base", "api_host", "api_key", "api_url", "api_version", "base_url"),
    *("access_key", "access_token", "auth_token", "identity_token", "session_token"),
    *("authorization", "credential", "password", "secret", "public_key", "bearer"),
    *("callback", "webhook", "guardrail", "fallbacks", "fallback_dict", "cost_per"),
    *("extra_body", "extra_headers", "extra_query", "server_url", "deployment_url"),
)
#: A name that begins so.
PREFIXES = (
    *("aws_", "azure_", "vertex_", "sagemaker_", "watsonx_", "oci_", "databricks_", "nvcf_"),
    *("litellm_", "langfuse_", "langsmith_", "arize_", "posthog_", "braintrust_", "humanloop_"),
    *("lunary_", "signoz_", "newrelic_", "dd_", "gcs_", "s3_", "wandb_", "weave_", "bootstrap_"),
    *("user_api_", "github_copilot_", "mcp_", "mock_"),
)
#: Exactly this name, in any spelling.
NAMES = (
    *(
        "headers",
        "proxy",
        "proxies",
        "http_proxy",
        "https_proxy",
        "proxy_server_request",
        "provider_specific_header",
    ),
    *("custom_llm_provider", "model_list", "model_info", "base_model", "user_config", "client"),
    *("organization", "project", "workspace_id", "tenant_id", "client_id", "deployment_id"),
    *("region_name", "allowed_model_region", "specific_deployment", "secret_fields", "policies"),
    *("num_retries", "max_retries", "retry_policy", "retry_strategy", "no_log", "caching"),
    *("prompt_id", "prompt_variables", "prompt_version", "logger_fn", "hf_model_name", "rust"),
    *("kv_transfer_params", "logits_processors", "custom_logit_processor", "lora_path"),
    *("file_id", "file_ids", "vector_store_id", "vector_store_ids", "container", "containers"),
    *("collection_ids", "library_ids", "conversation", "previous_response_id", "cached_content"),
    *("assistant_id", "thread_id", "endpoint", "endpoint_url", "ad_token"),
)


#: Keys of up to so many characters are remembered.
MAX_KEPT = 64


def _squashed(name: str) -> str:
    # A reader may take names in any case for the same. `casefold` knows the odd letters, too.
    return re.sub(r"[\W_]", "", name.casefold())


_HAS_WORD = re.compile("|".join(map(_squashed, WORDS)))
# A prefix ends at a separator or, in `langfuseHost`, at a capital.
_BEGINS = re.compile(
    f"(?i:{'|'.join(prefix.rstrip('_') for prefix in PREFIXES)})(?:[\\W_]|(?=[A-Z]))"
)
_SQUASHED_NAMES = frozenset(map(_squashed, NAMES))


def is_foreign(name: str) -> bool:
    """May no request have a field of this name?"""
    return is_foreign_key(name) or _squashed(name) in _SQUASHED_NAMES


def is_foreign_key(name: str) -> bool:
    """May no request have such a key among the client's own, as in ``metadata``? A key is not a
    field: ``thread_id`` is the client's own there."""
    # The keys of an app are few, and come with each of its calls. A long one is not kept.
    return _known(name) if len(name) <= MAX_KEPT else _is_foreign_key(name)


def _is_foreign_key(name: str) -> bool:
    return _BEGINS.match(name) is not None or _HAS_WORD.search(_squashed(name)) is not None


_known = lru_cache(maxsize=1024)(_is_foreign_key)


def find(value: Any, is_one: Callable[[str], bool] = is_foreign) -> str | None:
    """The first such name in a value, at any depth.

    Args:
        value: decoded JSON, nested no deeper than :data:`~wattfare_mw.json_limits.MAX_DEPTH`.
        is_one: :func:`is_foreign_key` for a value whose keys are the client's own.
    """
    inner: Iterable[Any] = ()
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        found = next(filter(is_one, fields), None)
        if found is not None:
            return found
        inner = fields.values()
    elif isinstance(value, list):
        inner = cast("list[Any]", value)
    return next((found for each in inner if (found := find(each, is_one)) is not None), None)
