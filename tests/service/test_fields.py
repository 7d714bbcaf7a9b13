"""Which fields an inference request may have, and the kind of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.service import chat_body
from typing_extensions import get_type_hints, is_typeddict

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.chat import allowed_fields, foreign_fields, prompt_bound
from wattfare_mw.service.chat import request as chat_request
from wattfare_mw.service.chat.allowed_fields import Kind, Policy
from wattfare_mw.service.chat.found import MAX_NAMED

FUNCTION = {"name": "weather", "description": "…", "parameters": {"type": "object"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}

ORDINARY = {
    "temperature": 0.2,
    "top_p": 1,
    "top_k": 4,
    "min_p": 0.1,
    "stop": ["\n"],
    "seed": 7,
    "user": "u",
    "n": 3,
    "logprobs": True,
    "top_logprobs": 5,
    "logit_bias": {"50256": -100},
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "max_completion_tokens": 5,
    "metadata": {"a": "b"},
    "parallel_tool_calls": False,
    "tools": [{"type": "function", "function": FUNCTION}, {"type": "custom", "custom": {}}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "functions": [FUNCTION],
    "function_call": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "reasoning_effort": "high",
    "reasoning": {"max_tokens": 4000, "exclude": True},
    "verbosity": "low",
    "store": False,
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "service_tier": "default",
    "modalities": ["text"],
    "transforms": ["middle-out"],
    "usage": {"include": True},
    "provider": {
        "data_collection": "deny",
        "order": ["x"],
        "preferred_min_throughput": {"p90": 50},
        "preferred_max_latency": 3,
        "max_price": {"prompt": 1, "completion": 2.5, "image": None},
    },
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "thinking_budget": 500,
    "enable_thinking": True,
    "think": "high",
    "chat_template_kwargs": {"enable_thinking": False, "documents": [{"text": "x"}]},
    "guided_json": {"type": "object"},
    "guided_regex": "[a-z]+",
    "guided_choice": ["a", "b"],
    "guided_grammar": "root ::= x",
    "structured_outputs": {"choice": ["a"]},
    "stop_token_ids": [1, 2],
    "options": {"num_predict": 5000, "num_ctx": 4096, "stop": ["x"], "seed": 1},
    "keep_alive": -1,
    "ttl": 60,
    "trace": {"trace_id": "t", "more": {"a": [1]}},
    "cache_control": {"type": "ephemeral"},
    "documents": [{"source": {"type": "text", "text": "x"}}],
    "search_domain_filter": ["example.com"],
    "best_of": 1,
    "prompt_logprobs": 1,
    "ignore_eos": True,
    # These request nothing.
    "plugins": [],
    "models": [],
    "use_beam_search": False,
    "web_search_options": None,
    "audio": None,
    "prediction": None,
    "something_unknown": None,
    "priority": 0,
    "samplers": ["top_k", "xtc"],
    "dry_multiplier": 0.8,
    "xtc_probability": 0.5,
    "stop_sequences": ["x"],
    "safety_settings": [{"category": "x", "threshold": "BLOCK_NONE"}],
    "translation_options": {"source_lang": "auto", "target_lang": "English"},
    "output_format": {"type": "json_schema", "schema": {}},
    "citation_options": {"mode": "FAST"},
    "request_id": "r",
    "vllm_xargs": {"a": 1},
    "debug": {"echo_upstream_body": True},
    "num_ctx": 8192,
    "promptCacheKey": "k",
    "reasoning_budget": 512,
    "user_security_context": {"application_name": "a", "end_user_tenant_id": "t"},
    "nvext": {"max_thinking_tokens": 512, "guided_json": {"type": "object"}},
    "return_cached_tokens_details": True,
    "return_meta_info": True,
    "return_prompt_token_ids": True,
    # llama.cpp, vLLM and Perplexity
    "thinking_budget_tokens": 512,
    "reasoning_control": True,
    "backend_sampling": False,
    "typ_p": 1,
    "logprob_token_ids": [1],
    "stream_interval": 5,
    "return_citations": True,
    # Baseten and NVIDIA
    "chat_template_args": {"enable_thinking": True},
    "prompt_cache_options": {"mode": "explicit", "ttl": "30m"},
    # Home Assistant, opencode, NVIDIA and Zhipu
    "require_parameters": True,
    "include": ["reasoning.encrypted_content"],
    "reasoning_summary": "auto",
    "reasoningSummary": "auto",
    "max_thinking_tokens": 512,
    "min_thinking_tokens": 1,
    "sensitive_word_check": {"type": "ALL", "status": "ENABLE"},
    "watermark_enabled": False,
}
#: More values of fields of that table.
ALSO_ORDINARY: list[tuple[str, Any]] = [
    ("google", {"thinking_config": {"thinking_budget": 9, "include_thoughts": True}}),
    ("google", {"thought_tag_marker": "think", "safety_settings": [{"category": "x"}]}),
    ("extra_body", {"google": {"thinking_config": {"thinking_level": "low"}}}),
    ("extra_body", {"thinking": {"type": "enabled"}, "thinking_budget": -1}),
    ("extra_body", {"reasoning_effort": "high", "enable_thinking": False, "think": True}),
    ("extra_body", {"chat_template_kwargs": {"enable_thinking": False}, "top_k": 20}),
    ("service_tier", "auto"),
    ("search_parameters", {"mode": "off"}),
    ("logit_bias", [[15043, -1.0], ["x", False]]),
    ("metadata", {"tags": ["a", "b"], "trace_id": "t"}),
    ("metadata", {"spend_logs_metadata": {"team": "x", "steps": [{"a": None}]}}),
    ("max_tokens", -1),
    ("options", {"num_predict": -1}),
    ("reasoning", {"effort": "xhigh", "summary": "auto", "generate_summary": "x"}),
    ("response_format", {"type": "json_schema", "name": "x", "strict": True, "schema": {}}),
    ("reasoning", {"mode": "standard"}),
    ("response_format", {"type": "regex", "pattern": "a"}),
    ("response_format", {"type": "regex", "regex": {"regex": "a"}}),
    ("response_format", {"type": "json_schema", "json_schema": {"type": "object", "title": "x"}}),
    ("response_format", {"type": "json_schema", "json_schema": {"schema_definition": {}}}),
    ("response_format", {"type": "grammar", "grammar": {"root": "x"}}),
    ("response_format", {"type": "structural_tag", "structures": [{}], "triggers": ["a"]}),
    ("tool_choice", {"type": "function", "name": "weather"}),
    ("tool_choice", {"type": "function", "function": FUNCTION}),
    ("stream_options", {"include_usage": True}),
    ("tool_choice", {"function": {"name": "weather"}}),
    ("tool_choice", {"type": "tool", "name": "weather"}),
    ("tool_choice", {"type": "any", "disable_parallel_tool_use": True}),
    ("tool_choice", {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function"}]}),
    ("thinking", {"type": "disabled", "budget_tokens": 0}),
    ("thinking", {"type": "enabled", "budget_tokens": -1}),
    ("provider", {"max_price": {"prompt": "1.5", "audio": 2}}),
    ("tools", [{"type": "custom", "name": "w", "format": {"type": "grammar", "syntax": "lark"}}]),
    ("reasoning_effort", {"effort": "high", "summary": "detailed"}),
    ("thinking", {"type": "enabled", "token_budget": 512}),
    ("provider", {"order": ["x"], "only": None, "added_later": None}),
    ("tools", [{"function": FUNCTION}]),
    ("tools", [{"type": "function", **FUNCTION, "strict": True}]),
    ("tools", [{"name": "weather", "input_schema": {"type": "object"}}]),
    ("tools", [{"type": "custom", "name": "weather", "input_schema": {"type": "object"}}]),
    ("response_format", {"type": "json_object", "response_schema": {}, "enforce_validation": True}),
    ("plugins", [{"id": "response-healing"}, {"id": "context-compression", "enabled": True}]),
    ("plugins", [{"id": "file-parser", "pdf": {"engine": "cloudflare-ai"}}]),
    ("plugins", [{"id": "web", "enabled": False}]),
]

#: Fields whose cost has no bound.
HELD = {
    "plugins": [{"id": "web", "max_results": 5}],
    "web_search_options": {},
    "search_parameters": {"mode": "on", "sources": [{"type": "x"}]},
    "search_settings": {"include_domains": ["x"]},
    "prediction": {"type": "content", "content": "x"},
    "service_tier": "priority",
    "speed": "fast",
    "route": "fallback",
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "preset": "mine",
    "best_of": 2,
    "use_beam_search": True,
    "moderation": {"model": "x"},
    "safety_model": "x",
    "image_config": {"size": "4k"},
    "cache_control": {"type": "ephemeral", "ttl": "1h"},
    "tools": [{"type": "function"}, {"type": "openrouter:web_search", "parameters": {"a": 1}}],
    "return_images": True,
    "google": {"image_config": {"aspect_ratio": "16:9"}},
    "extra_body": {"google": {"response_modalities": ["IMAGE"]}},
    "prompt_cache_options": {"ttl": "12h"},
    "media_io_kwargs": {"video": {"num_frames": -1}},
    "venice_parameters": {"enable_web_search": "on"},
    "reasoning": {"effort": "high", "mode": "pro"},
}

REFUSED = {
    "transforms": ["other"],
    "prompt": "hello",
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"chat_template": "{{ messages }}"},
    "chat_template_args": {"messages": []},
    "deferred": True,
    "background": True,
    "n": 129,
    "options": {"num_predict": 0},
    "thinking": {"type": "enabled", "budget_tokens": "many"},
    "Temperature": 1,
    "something_new": 1,
    "provider": {"max_price": {"prompt": "x"}},
    **dict.fromkeys(("input", "system", "instructions"), "x"),
    **dict.fromkeys(("n_predict", "max_new_tokens", "max_output_tokens"), 5),
    **dict.fromkeys(("max_gen_len", "max_length"), 5),
    "reasoning": {"budget": 1},
    "stream_options": {"what": 1},
}


def read(*, policy: Policy = allowed_fields.DEFAULT_POLICY, **fields) -> chat_request.ChatRequest:
    return chat_request.read(json.dumps(chat_body(**fields)).encode(), policy=policy)


def refusal(**fields) -> str:
    with pytest.raises(WattfareError) as refused:
        read(**fields)
    assert (refused.value.code, refused.value.http_status) == ("invalid_request", 400)
    return refused.value.message


def test_ordinary_fields_are_forwarded_unchanged() -> None:
    for name, value in ORDINARY.items():
        assert read(**{name: value}).body.get(name) == value, name


def test_other_allowed_values_are_unchanged() -> None:
    for name, value in ALSO_ORDINARY:
        request = read(**{name: value})
        assert (request.body[name], request.held) == (value, ()), name


def test_unknown_field_that_is_null_is_left_out() -> None:
    assert "something_unknown" not in read(something_unknown=None, stop=None).body
    assert read(something_unknown=None, stop=None).body["stop"] is None


@pytest.mark.parametrize(
    "value",
    [
        {"api_base": "x"},
        {"google": {}, "model": "x"},
        *({"stream": True}, {"max_tokens": 5}, {"n": 2}, {"tools": []}, {"service_tier": "x"}),
        {},
        "x",
    ],
    ids=str,
)
def test_extra_body_may_have_known_fields_only(value: object) -> None:
    assert "`extra_body` is never allowed" in refusal(extra_body=value)
    assert "never allowed" in refusal(extra_body={"google": {"cached_content": "x"}})
    for arguments in ({"documents": [1]}, {"chat_template": "x"}, {"eos_token": "x"}):
        assert "chat_template_kwargs" in refusal(extra_body={"chat_template_kwargs": arguments})


@pytest.mark.parametrize(
    "plugin",
    [
        {"id": "moderation"},
        {"id": "web", "enabled": True},
        {"id": "web", "enabled": "false"},
        {"id": "auto-router", "allowed_models": ["x"]},
        {"id": "file-parser", "pdf": {"engine": "mistral-ocr"}},
        {},
        "web",
    ],
    ids=str,
)
def test_plugin_that_can_cost_is_held(plugin: object) -> None:
    (held,) = read(plugins=[{"id": "response-healing"}, plugin]).held
    assert held.startswith("plugins[1]")


def test_free_plugin_has_no_other_option() -> None:
    """Another option could choose a model that repairs the answer."""
    assert "`plugins[0].model`" in refusal(plugins=[{"id": "response-healing", "model": "x"}])
    assert "`plugins[0].engine`" in refusal(
        plugins=[{"id": "context-compression", "engine": "summary"}]
    )
    assert "never allowed" in refusal(plugins=[{"id": "web", "enabled": False, "api_key": "x"}])


@pytest.mark.parametrize("limit", [50, 50.0, "50"])
def test_limit_is_sent_as_a_whole_number(limit: object) -> None:
    request = read(max_tokens=limit, n="2")
    assert (request.limits(500), request.n) == ((16, 50), 2)
    assert type(request.limited(50, *request.limit_names)["max_tokens"]) is int


def test_lowest_of_two_limits_counts() -> None:
    request = read(max_tokens=50, max_completion_tokens=20)
    assert request.limits(500) == (16, 20)
    sent = request.limited(20, *request.limit_names)
    assert sent["max_tokens"] == sent["max_completion_tokens"] == 20
    assert read(max_tokens=-1, max_completion_tokens=20).limits(500) == (16, 20)


def test_only_automatic_caching_passes_in_the_options_of_a_gateway() -> None:
    def options(**gateway: Any) -> dict[str, Any]:
        return {"providerOptions": {"gateway": {"order": ["x"], **gateway}}}

    request = read(**options(caching="auto"))
    assert (request.held, request.body["providerOptions"]) == (
        ("providerOptions",),
        options(caching="auto")["providerOptions"],
    )
    assert "`caching`" in refusal(**options(caching=True))
    assert "never allowed" in refusal(**options(caching="auto", byok={"x": [{"apiKey": "x"}]}))


def test_request_without_a_limit_gets_the_limit_of_the_service() -> None:
    request = read(max_tokens=-1, options={"num_predict": -1})
    assert request.limits(500) == (16, 500)
    sent = request.limited(500, *request.limit_names)
    assert (sent["max_tokens"], sent["options"]) == (500, {"num_predict": 500})
    assert "max_tokens" not in request.limited(500, "max_completion_tokens")


@pytest.mark.parametrize(("name", "value"), REFUSED.items(), ids=REFUSED)
def test_refusal_names_the_field_that_cannot_be_bounded(name: str, value: object) -> None:
    more = {"stream": True} if name == "stream_options" else {}
    assert f"`{name}" in refusal(**{name: value}, **more)


@pytest.mark.parametrize(("name", "value"), HELD.items(), ids=HELD)
def test_unbounded_field_is_reserved_or_refused(name: str, value: object) -> None:
    request = read(**{name: value})
    assert [held.partition("[")[0].partition(".")[0] for held in request.held] == [name]
    assert request.body[name] == value
    assert f"`{name}" in refusal(**{name: value}, policy=Policy(unbounded="refuse"))


@pytest.mark.parametrize("value", [True, 1.0])
def test_true_is_not_one(value: object) -> None:
    assert read(best_of=value).held == ("best_of",)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
            ],
        },
    ],
    ids=["message", "part"],
)
def test_one_hour_cache_is_reserved(message: dict) -> None:
    [name] = read(messages=[message]).held
    assert name.endswith("cache_control.ttl")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "x"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "T2dnUw==", "format": "ogg"}},
        {"type": "file", "file": {"file_data": "data:text/plain,x"}},
        {"type": "tool_result", "content": [{"type": "text", "text": "x"}]},
    ],
    ids=lambda part: part["type"],
)
def test_part_may_end_a_prefix_that_openai_caches(part: dict[str, Any]) -> None:
    def held(ttl: str | None) -> tuple[str, ...]:
        marked = {**part, "prompt_cache_breakpoint": {"mode": "explicit", "ttl": ttl}}
        return read(messages=[{"role": "user", "content": [marked]}]).held

    usual = read(messages=[{"role": "user", "content": [part]}]).held
    assert held(None) == held("30m") == usual
    assert set(held("12h")) - set(usual) == {"messages[0].content[0].prompt_cache_breakpoint.ttl"}


KINDS = list(Kind)


def kind_of(name: str, value: object, **more: object) -> Kind:
    """The kind that the table gives to a request with this field."""
    try:
        held = read(**{name: value, **more}).held
    except WattfareError:
        return Kind.REFUSED
    return Kind.HELD if held else Kind.COUNTED


@given(
    st.dictionaries(
        st.sampled_from([*ORDINARY, *HELD, *REFUSED]),
        st.sampled_from([ORDINARY, HELD, REFUSED]),
        max_size=6,
    )
)
def test_request_has_the_kind_of_its_strongest_field(chosen: dict[str, dict]) -> None:
    fields = {name: table[name] for name, table in chosen.items() if name in table}
    strongest = max((KINDS.index(kind_of(*each)) for each in fields.items()), default=1)
    try:
        held = read(**fields).held
    except WattfareError:
        assert KINDS[strongest] == Kind.REFUSED
        return
    assert KINDS[strongest] == (Kind.HELD if held else Kind.COUNTED)
    assert {name.partition("[")[0].partition(".")[0] for name in held} == {
        name for name, value in fields.items() if kind_of(name, value) == Kind.HELD
    }


def test_row_has_the_strongest_kind_of_its_values() -> None:
    for name, row in allowed_fields.REQUEST.items():
        if name in HELD:
            assert row.kind in (Kind.HELD, Kind.COUNTED), name  # a one-hour cache, or a tool
        elif row.kind == Kind.HELD:
            value = next(each for each in (True, "x", ["x"], {"x": 1}) if passes(name, each))
            assert read(**{name: value}).held == (name,)
        elif row.kind == Kind.REFUSED:
            assert name in REFUSED


def passes(name: str, value: object) -> bool:
    try:
        read(**{name: value})
    except WattfareError:
        return False
    return True


PASS = Policy(unknown="pass")
REFUSE = Policy(unbounded="refuse")


@pytest.mark.parametrize(
    "fields",
    [
        {"something_new": {"a": [1]}},
        {"provider": {"something_new": 1}},
    ],
    ids=str,
)
def test_unknown_field_passes_only_with_the_option(fields: dict) -> None:
    assert "--unknown-fields pass" in refusal(**fields)
    [name] = read(**fields, policy=PASS).held
    assert name.endswith("something_new")


FOREIGN = [
    *("api_base", "base_url", "baseURL", "api_key", "apiKey", "API-KEY", "api_version"),
    *("callbacks", "success_callback", "failure_callback", "callback_url", "webhook"),
    *("fallbacks", "context_window_fallbacks", "mock_response", "custom_llm_provider"),
    *("model_list", "extra_headers", "headers", "proxy", "user_config"),
    *("aws_access_key_id", "vertex_project", "litellm_metadata", "langfuse_host", "guardrails"),
    *("input_cost_per_token", "mcp_servers", "kv_transfer_params", "azure_ad_token", "no-log"),
    *("logits_processors", "custom_logit_processor", "bootstrap_host", "previous_response_id"),
    "ec_transfer_params",
]


@pytest.mark.parametrize("policy", [allowed_fields.DEFAULT_POLICY, PASS], ids=["refuse", "pass"])
def test_field_that_uses_the_operators_keys_never_passes(policy: Policy) -> None:
    for name in FOREIGN:
        for fields in (
            {name: "x"},
            {name: None},
            {"plugins": [{"id": "web", name: "x"}]},
            {"tools": [{"type": "web_search", "more": {name: "x"}}]},
            {"provider": {name: 1}},
            {"messages": [{"role": "user", "content": "x", name: "x"}]},
            {"something_new": {"deep": [{name: 1}]}},
        ):
            assert "never allowed" in refusal(**fields, policy=policy), fields


NESTED = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*FOREIGN, "a", "max_results", "x\nb"]), inner, max_size=3
        )
    ),
    max_leaves=10,
)


def names_in(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(names_in, value))
    if isinstance(value, dict):
        return set(value).union(*map(names_in, value.values()))
    return set()


@given(NESTED)
def test_foreign_field_is_found_at_any_depth(value: Any) -> None:
    found = foreign_fields.find(value)
    foreign = set(filter(foreign_fields.is_foreign, names_in(value)))
    assert foreign == names_in(value).intersection(FOREIGN)
    assert found in foreign if foreign else found is None


@pytest.mark.parametrize("name", ["langfuse_host", "aws_role_name", "api_key", "callback_url"])
def test_foreign_field_in_metadata_is_refused(name: str) -> None:
    assert "never allowed" in refusal(metadata={"a": 1, name: "x"})
    assert "never allowed" in refusal(trace={"a": [{name: "x"}]})


def test_clients_own_key_is_not_a_foreign_field() -> None:
    own = {"thread_id": "t", "project": "p", "client": "c", "endpoint": "/x", "thread_tokens": 1}
    assert read(metadata=own, trace=own).held == ()
    assert read(metadata={"spend_logs_metadata": own}).held == ()
    for name in ("headers", "model_info", "user_config"):
        assert "never allowed" in refusal(metadata={name: {"id": "x"}})
    schema = {"type": "object", "properties": {"api_key": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    assert read(tools=tools).held == ()


@pytest.mark.parametrize("kind", ["file_search", "mcp", "x_new"])
def test_tool_that_reads_the_operators_data_is_refused(kind: str) -> None:
    assert "`tools[0]`" in refusal(tools=[{"type": kind}], policy=PASS)


def test_template_writes_no_token_of_the_client() -> None:
    """It would write the text behind each message, and the bound counts it once."""
    for name in ("eos_token", "bos_token", "additional_special_tokens"):
        for value in ("x" * 1000, ["x"], {"content": "x"}):
            assert "replaces the input" in refusal(chat_template_kwargs={name: value})
    assert read(chat_template_kwargs={"max_thinking_tokens": 512}).held == ()


def test_list_of_models_in_one_name_is_refused() -> None:
    """LiteLLM calls each of them, and the reservation covers one."""
    for fields in ({"model": "a,b"}, {"model": "a, b"}, {"models": ["a", "b,c"]}):
        assert "`model` must not have a comma" in refusal(**fields)


def test_list_of_reserved_fields_is_short() -> None:
    tools = [{"type": "web_search"}] * 1000
    held = read(tools=tools, unknown=1, policy=PASS).held
    assert len(held) == MAX_NAMED + 1
    assert held[-1] == "unknown"
    assert "unknown" in refusal(tools=tools, unknown=1)


def test_num_predict_is_a_name_of_the_limit() -> None:
    request = read(options={"num_predict": 50, "seed": 1})
    assert request.limits(8192) == (16, 50)
    sent = request.limited(30, "max_tokens")
    assert (sent["max_tokens"], sent["options"]) == (30, {"num_predict": 30, "seed": 1})
    assert request.body["options"]["num_predict"] == 50
    both = read(options={"num_predict": 50}, max_tokens=20)
    assert both.limits(8192) == (16, 20)
    assert both.limited(20, "max_completion_tokens")["options"] == {"num_predict": 20}


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "enabled", "budget_tokens": 100}},
        {"thinking_budget": 100},
        {"reasoning": {"max_tokens": 100}},
    ],
    ids=str,
)
def test_thinking_counts_in_the_limit(fields: dict) -> None:
    assert read(**fields).limits(8192) == (116, 8192)
    # Some providers end the thinking earlier, and others refuse the call.
    assert read(**fields, max_tokens=100).limits(8192) == (100, 100)


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": {"system": "x " * 500}},
        {"documents": [{"text": "x " * 500}]},
        {"guided_json": {"description": "x " * 500}},
        {"structured_outputs": {"regex": "x" * 1000}},
        # A template writes a frame around each document, even around an empty one.
        {"documents": [{}] * 32},
        {"chat_template_kwargs": {"documents": [1] * 32}},
        {"chat_template_args": {"documents": [1] * 32}},
        {"chat_template_args": {"system": "x " * 500}},
        {"nvext": {"guided_json": {"description": "x " * 500}}},
        {"extra_body": {"chat_template_kwargs": {"system": "x " * 500}}},
    ],
    ids=str,
)
def test_template_text_counts_in_the_bound(fields: dict) -> None:
    plain, more = prompt_bound.bound(read().body), prompt_bound.bound(read(**fields).body)
    assert more >= plain + 1000


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": 5}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "tiles": 9}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "image_url", "image_url": None},
        {"type": "image_url", "image_url": {"url": " "}},
        {"type": "file", "file": {}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "document", "source": {"type": "file", "file_id": "file-1"}},
        {"type": 5},
        {"text": "x"},
        "text",
        None,
        {"type": "text", "text": "x", "image_url": {}},
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "2h"}},
    ],
    ids=str,
)
def test_part_types_that_are_always_refused(part: object) -> None:
    said = refusal(messages=[{"role": "user", "content": ["x", part][1:]}])
    assert "messages[0].content[0]" in said


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "T2dnUw==", "format": "ogg"}},
        {"type": "file", "file": {"file_data": "https://example.com/a.pdf"}},
        {"type": "file", "file": {"file_data": "UEsDBBQ/"}},
        {"type": "input_file", "file_url": "https://example.com/a.pdf"},
        {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
        {"type": "file", "file": {"file_data": "data:text/plain,x", "detail": "high"}},
        {"type": "file", "file": {"file_data": "data:text/plain,x", "video_metadata": {"fps": 1}}},
        {"type": "input_file", "file_data": "data:text/plain,x", "detail": "high"},
    ],
    ids=str,
)
def test_parts_with_unbounded_cost_are_reserved(part: object) -> None:
    messages = [{"role": "user", "content": [part]}]
    (held,) = read(messages=messages).held
    assert held.startswith("messages[0].content[0]")
    assert "messages[0].content[0]" in refusal(messages=messages, policy=REFUSE)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": {"type": "image_url"}},
        {"role": "assistant", "audio": {"id": "a", "url": "gs://b/a"}},
        {"role": "user", "content": "x", "images": [{}]},
        {"role": "user", "content": "x", "images": [{"type": "file", "file": {}}]},
        {"role": "user", "content": "x", "attachments": [1]},
        {"role": "assistant", "tool_calls": [{"type": "web_search"}]},
        {"role": "assistant", "tool_calls": "x"},
    ],
    ids=str,
)
def test_messages_with_more_than_text(message: dict) -> None:
    assert "messages[0]." in refusal(messages=[message])


@pytest.mark.parametrize("kind", ["web_search", "code_interpreter", "openrouter:x"])
def test_tools_that_the_upstream_runs_are_reserved(kind: str) -> None:
    assert read(tools=[{"type": "function"}, {"type": kind}]).held == ("tools[1]",)


@pytest.mark.parametrize("kind", [None, 1])
def test_tools_without_a_type_are_refused(kind: object) -> None:
    assert "`tools[1]`" in refusal(tools=[{"type": "function"}, {"type": kind}])


def test_answer_can_be_sent_back_unchanged() -> None:
    """SDKs send the assistant's message with all its nulls, then the tool's message."""
    answer = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "audio": None,
        "annotations": [],
        "function_call": None,
        "tool_calls": [CALL],
        "reasoning": "so",
        "reasoning_details": [{"type": "reasoning.text", "text": "so"}],
    }
    part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "system", "content": [part]},
        {"role": "user", "content": "x", "name": "ada"},
        answer,
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    assert read(messages=messages).messages == messages


def samples(shape: Any) -> list[Any]:
    """Values of this type with all fields, one value for each member of a union."""
    if is_typeddict(shape):
        fields = {name: samples(each) for name, each in get_type_hints(shape).items()}
        fields.pop("file_id", None)  # it is refused
        usual = {name: values[0] for name, values in fields.items()}
        return [{**usual, name: value} for name, values in fields.items() for value in values]
    if shape is None or shape is type(None) or shape is object:
        return [None]
    if shape in (str, int, float, bool):
        return [shape(1)]
    inner = [value for each in get_args(shape) for value in samples(each)]
    origin = get_origin(shape)
    if origin is Literal:
        return list(get_args(shape))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return [{"type": "function"}]
    return [[value] for value in inner] if origin in (list, Iterable) else inner


@pytest.mark.parametrize("streams", [False, True])
def test_every_field_of_the_openai_package_is_known(streams: bool) -> None:
    from openai.types.chat import completion_create_params as params

    shape = (
        params.CompletionCreateParamsStreaming
        if streams
        else params.CompletionCreateParamsNonStreaming
    )
    hints = get_type_hints(shape)
    assert set(hints) <= set(allowed_fields.REQUEST)
    for name, inner in hints.items():
        for value in samples(inner):
            allowed_fields.check({name: value})


@given(st.text().filter(lambda name: name not in allowed_fields.REQUEST), st.integers())
def test_unknown_fields_are_refused(name: str, value: object) -> None:
    if foreign_fields.is_foreign(name):
        return
    with pytest.raises(WattfareError, match="is unknown, so its cost"):
        allowed_fields.check({name: value})


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=3),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
            max_leaves=8,
        ),
    ),
    st.sampled_from(sorted(allowed_fields.REQUEST)),
)
def test_any_value_passes_or_is_refused(value: object, name: str) -> None:
    for given_value in (value, [value]):
        try:
            allowed_fields.check({name: given_value})
        except WattfareError as refused:
            assert refused.code == "invalid_request"  # noqa: PT017
            assert name in refused.message  # noqa: PT017
