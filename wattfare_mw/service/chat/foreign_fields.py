"""Names of fields that a request must not have at any depth. They redirect a call, change its
credentials, store it elsewhere, set its price, or read the operator's data at the provider.

A gateway behind the service may apply such a field with the operator's keys. Sources:

- LiteLLM 1.110: the parameters that its proxy bans in a request and in ``metadata``
  (``proxy/auth/auth_utils.py``), those of its callbacks
  (``litellm_core_utils/initialize_dynamic_callback_params.py``), and those that it keeps for itself
  (``types/litellm_params.py``). ``input_cost_per_token`` and its like set the price of a call.
- vLLM: ``kv_transfer_params`` and ``ec_transfer_params`` name a remote host; ``logits_processors``
  names code to load. SGLang: ``bootstrap_host``, ``custom_logit_processor``.
- OpenAI, Anthropic, Mistral, xAI: ids of files, vector stores, containers, libraries, collections,
  conversations and earlier responses, all of the account whose key is used; ``mcp_servers``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

#: Names that contain one of these words are refused, in any spelling: ``api_key``, ``apiKey``,
#: ``API-Key``.
WORDS = (
    *("api_base", "api_host", "api_key", "api_url", "api_version", "base_url"),
    *("access_key", "access_token", "auth_token", "identity_token", "session_token"),
    *("authorization", "credential", "password", "secret", "public_key", "bearer"),
    *("callback", "webhook", "guardrail", "fallbacks", "fallback_dict", "cost_per"),
    *("extra_body", "extra_headers", "extra_query", "server_url", "deployment_url"),
)
#: Names that begin with one of these prefixes are refused.
PREFIXES = (
    *("aws_", "azure_", "vertex_", "sagemaker_", "watsonx_", "oci_", "databricks_", "nvcf_"),
    *("litellm_", "langfuse_", "langsmith_", "arize_", "posthog_", "braintrust_", "humanloop_"),
    *("lunary_", "signoz_", "newrelic_", "dd_", "gcs_", "s3_", "wandb_", "weave_", "bootstrap_"),
    *("user_api_", "github_copilot_", "mcp_", "mock_"),
)
#: These names are refused, in any spelling.
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
    *("kv_transfer_params", "ec_transfer_params", "logits_processors", "custom_logit_processor"),
    "lora_path",
    *("file_id", "file_ids", "vector_store_id", "vector_store_ids", "container", "containers"),
    *("collection_ids", "library_ids", "conversation", "previous_response_id", "cached_content"),
    *("container_id", "additional_drop_params"),
    *("assistant_id", "thread_id", "endpoint", "endpoint_url", "ad_token"),
)


def _normalized(text: str) -> str:
    for separator in "_-. ":
        text = text.replace(separator, "")
    return text


_WORDS = tuple(map(_normalized, WORDS))
_NAMES = frozenset(map(_normalized, NAMES))
_LINE_PREFIXES = tuple(f"\n{prefix}" for prefix in PREFIXES)


def is_foreign(name: str) -> bool:
    """True if a request must not have a field with this name."""
    return _any_is_foreign([name])


def find(value: Any, *, fields: bool = True) -> str | None:
    """Find the first such name in a value, at any depth. The time grows linearly with the size.

    Args:
        value: decoded JSON, nested no deeper than :data:`~wattfare_mw.json_limits.MAX_DEPTH`.
        fields: False if the client chooses the keys of the value, as in ``metadata``. There, a key
            such as ``thread_id`` has no effect, so it is allowed.
    """
    names = list(_names_in(value))
    if not _any_is_foreign(names, fields=fields):
        return None
    return next((name for name in names if _any_is_foreign([name], fields=fields)), None)


def _names_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in cast("dict[str, Any]", value).items():
            yield name
            yield from _names_in(inner)
    elif isinstance(value, list):
        for inner in cast("list[Any]", value):
            yield from _names_in(inner)


def _any_is_foreign(names: list[str], *, fields: bool = True) -> bool:
    # Search all names at once: a request can have thousands, and each search is one pass in C. Some
    # parsers ignore the case of names. `casefold` also covers unusual letters.
    text = "\n".join(("", *names)).casefold().replace("-", "_")
    if any(prefix in text for prefix in _LINE_PREFIXES):
        return True
    text = _normalized(text)
    if any(word in text for word in _WORDS):
        return True
    return fields and not _NAMES.isdisjoint(text.split("\n"))
