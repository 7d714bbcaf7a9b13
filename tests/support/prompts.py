"""Two hundred requests as apps send them, and the chat templates of common models, written from
their public descriptions."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

PROSE = {
    "english": (
        "The committee met on Tuesday to discuss the budget for the coming year. Most members "
        "agreed that the library needs longer opening hours, but nobody could say where the money "
        "should come from. In the end they asked the treasurer for three different plans. "
    ),
    "german": (
        "Der Ausschuss hat sich am Dienstag getroffen, um über den Haushalt des nächsten Jahres zu "
        "sprechen. Die meisten fanden, dass die Bücherei länger öffnen müsse, aber woher das Geld "
        "kommen soll, wusste niemand so genau. "
    ),
    "french": (
        "Le comité s'est réuni mardi pour discuter du budget de l'année prochaine. La plupart des "
        "membres étaient d'accord : la bibliothèque doit ouvrir plus longtemps, même si personne "
        "ne savait où trouver l'argent. "
    ),
    "spanish": (
        "El comité se reunió el martes para hablar del presupuesto del próximo año. ¿De dónde "
        "saldrá el dinero? Nadie lo sabía, pero todos querían más horas de biblioteca. "
    ),
    "russian": (
        "Комитет собрался во вторник, чтобы обсудить бюджет на следующий год. Большинство "
        "согласилось, что библиотека должна работать дольше. "
    ),
    "chinese": (
        "委员会星期二开会讨论明年的预算。大多数人认为图书馆应该延长开放时间。"
        "但没有人知道钱从哪里来。"
    ),
    "japanese": (
        "委員会は火曜日に集まり、来年の予算について話し合いました。"
        "図書館をもっと長く開けるべきだと多くの人が思っています。"
    ),
    "korean": (
        "위원회는 화요일에 모여 내년 예산을 논의했다. "
        "도서관이 더 오래 문을 열어야 한다는 데 대부분 동의했다. "
    ),
    "arabic": (
        "اجتمعت اللجنة يوم الثلاثاء لمناقشة ميزانية العام المقبل "
        "واتفق معظم الأعضاء على تمديد الساعات. "
    ),
    "hindi": "समिति मंगलवार को अगले वर्ष के बजट पर चर्चा करने के लिए मिली। अधिकांश सदस्य सहमत थे। ",
    "emoji": "Great work today! 🎉🎉 See you all on Friday 👋🏽 and don't forget the cake 🍰😋 ",
}

CODE = '''\
class Ledger:
    """Every billed amount is a row."""

    def __init__(self, rows: list[Row] | None = None) -> None:
        self._rows = rows or []

    def total(self, user: str, *, month: int) -> int:
        if not self._rows:
            return 0
        return sum(
            row.amount
            for row in self._rows
            if row.user == user and row.month == month and row.state != "voided"
        )
'''

SQL = """\
SELECT users.id, users.name, SUM(orders.total) AS spent
FROM users
LEFT JOIN orders ON orders.user_id = users.id
WHERE orders.created_at >= '2026-01-01'
GROUP BY users.id, users.name
HAVING SUM(orders.total) > 100.00
ORDER BY spent DESC;
"""

HTML = """\
<ul class="menu">
  <li><a href="/">Home</a></li>
  <li><a href="/prices?plan=team&amp;year=2026">Prices</a></li>
</ul>
"""


def records(number: int) -> str:
    """Rows as JSON, as a tool returns them."""
    rows = [
        {
            "id": f"ord_{index:06}",
            "customer": {"name": "Ada Lovelace", "email": f"ada{index}@example.com"},
            "total": 19.99 + index,
            "items": [{"sku": "A-1", "count": index % 3}],
            "paid": index % 2 == 0,
        }
        for index in range(number)
    ]
    return json.dumps(rows, indent=2 if number % 2 else None)


_FIELDS = {
    "query": {"type": "string", "description": "What to search for, in plain words."},
    "limit": {"type": "integer", "description": "How many to return.", "minimum": 1},
    "status": {"type": "string", "enum": ["open", "closed", "in progress"]},
    "customer's city": {"type": "string", "description": "A city, e.g. 'São Paulo' or \"Köln\"."},
    "range": {
        "type": "object",
        "description": "Between these two days.\nBoth of them count.",
        "properties": {
            "from": {"type": "string", "format": "date"},
            "to": {"type": "string", "format": "date"},
        },
        "required": ["from", "to"],
        "additionalProperties": False,
    },
    "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 10},
}


def tools(number: int) -> list[dict[str, Any]]:
    """This many functions of different sizes."""
    names = ("search", "create", "update", "delete", "list", "send")
    things = ("orders", "customers", "invoices", "tickets", "messages")
    return [
        {
            "type": "function",
            "function": {
                "name": f"{verb}_{thing}_{turn}" if turn else f"{verb}_{thing}",
                "description": f"Use this to {verb} {thing} of the shop. Ask the user first if "
                "anything is not clear; don't guess.",
                "parameters": {
                    "type": "object",
                    "properties": dict(itertools.islice(_FIELDS.items(), 1 + place % 6)),
                    "required": ["query"],
                },
            },
        }
        for place, (turn, verb, thing) in enumerate(
            itertools.islice(itertools.product(range(9), names, things), number)
        )
    ]


def corpus() -> Iterator[tuple[str, dict[str, Any]]]:
    """The requests, each with a name."""
    random_ = random.Random(14)
    system = {"role": "system", "content": "You are a helpful assistant. Answer briefly."}

    def user(text: str) -> dict[str, Any]:
        return {"role": "user", "content": text}

    for language, text in PROSE.items():
        for times in (1, 4, 20, 60):
            yield f"{language} {times}", {"messages": [system, user(text * times)]}
        for turns in (2, 7):
            talk = [system]
            for _ in range(turns):
                cut = random_.randrange(len(text) // 2)
                talk += [user(text[cut:]), {"role": "assistant", "content": text * 3}]
            yield f"{language} in {turns} turns", {"messages": [*talk, user(text)]}
    for name, text in (("code", CODE), ("sql", SQL), ("html", HTML)):
        for times in (1, 3, 10, 40):
            part = {"type": "text", "text": f"What does this do?\n```\n{text * times}```"}
            yield f"{name} {times}", {"messages": [system, {"role": "user", "content": [part]}]}
    for number in (1, 2, 5, 15, 40, 61):
        call = {
            "id": "call_x7Kq",
            "type": "function",
            "function": {"name": "search_orders", "arguments": '{"query":"ada","limit":5}'},
        }
        talk = [
            system,
            user("What did Ada order?"),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_x7Kq", "content": records(number)},
        ]
        yield f"a tool's answer of {number}", {"messages": talk, "tools": tools(3)}
        schema = {
            "type": "object",
            "properties": dict(itertools.islice(_FIELDS.items(), 1 + number % 6)),
        }
        form = {"type": "json_schema", "json_schema": {"name": "order", "schema": schema}}
        yield (
            f"{number} records to sort",
            {"messages": [system, user(records(number))], "response_format": form},
        )
    for number in (1, 2, 3, 5, 8, 12, 20, 30, 45, 60):
        for language in ("english", "german", "chinese", "emoji"):
            yield (
                f"{number} tools, {language}",
                {"messages": [system, user(PROSE[language] * 2)], "tools": tools(number)},
            )
    questions = ("hi", "What is 2+2?", "Translate 'good morning' to French.", "ok thanks!!", "?")
    for place in range(72):
        text = questions[place % 5] + " " + PROSE["english"][: random_.randrange(200)]
        yield f"short {place}", {"messages": [system, user(text)][place % 2 :]}


CHATML = """\
{%- if tools %}<|im_start|>system
{{ system }}

# Tools

You may call one or more functions. You are given their signatures in <tools></tools> XML tags:
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>

For each call, return a json object with its name and arguments in <tool_call></tool_call> tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message | text }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""

HEADERS = """\
<|begin_of_text|>{% if tools %}<|start_header_id|>system<|end_header_id|>

Environment: ipython
Cutting Knowledge Date: December 2023
Today Date: 28 Nov 2026

You have access to the following functions. To call a function, respond with JSON for a call.
Respond in the format {"name": function name, "parameters": dictionary of names and values}.
Do not use variables.

{% for tool in tools %}{{ tool | tojson(indent=4) }}

{% endfor %}<|eot_id|>{% endif %}
{%- for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message | text }}
{%- for call in message.tool_calls or [] %}
{"name": "{{ call.function.name }}", \
"parameters": {{ call.function.arguments | fromjson | tojson }}}
{%- endfor %}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>

"""

INST = """\
<s>{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in messages %}{% if message.role == "assistant" %} {{ message | text }}
{%- if message.tool_calls %}[TOOL_CALLS] {{ message.tool_calls | tojson }}{% endif %}</s>
{%- elif message.role == "tool" %}[TOOL_RESULTS] {"content": {{ (message | text) | tojson }}, \
"call_id": "{{ message.tool_call_id }}"}[/TOOL_RESULTS]
{%- else %}[INST] {{ message | text }}[/INST]{% endif %}{% endfor %}"""

XML = """\
{% if tools %}You have access to the following functions:

<tools>{% for tool in tools %}
<function>
<name>{{ tool.function.name }}</name>
<description>{{ tool.function.description }}</description>
<parameters>{% for name, field in tool.function.parameters.properties.items() %}
<parameter>
<name>{{ name }}</name>
<type>{{ field.type }}</type>
<description>{{ field.description }}</description>
{% for key, value in field.items() if key not in ("type", "description") %}\
<{{ key }}>{{ value | tojson }}</{{ key }}>
{% endfor %}</parameter>{% endfor %}
<required>{{ tool.function.parameters.required | tojson }}</required>
</parameters>
</function>{% endfor %}
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:
<tool_call><function=name><parameter=name>value</parameter></function></tool_call>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message | text }}{% for call in message.tool_calls or [] %}
<tool_call><function={{ call.function.name }}>{{ call.function.arguments }}</function></tool_call>
{%- endfor %}<|im_end|>
{% endfor %}"""

TYPESCRIPT = """\
{% if tools %}# Tools

## functions

namespace functions {
{% for tool in tools %}
// {{ tool.function.description }}
type {{ tool.function.name }} = (_: {
{% for name, field in tool.function.parameters.properties.items() %}\
{% if field.description %}// {{ field.description }}
{% endif %}{{ name }}?: {% if field.enum %}{{ field.enum | map("tojson") | join(" | ") }}\
{% elif field.properties %}{
{% for inner, value in field.properties.items() %}{{ inner }}: {{ value.type }},
{% endfor %}}{% else %}{{ field.type }}{% endif %},
{% endfor %}}) => any;
{% endfor %}
} // namespace functions
{% endif %}{% for message in messages %}<|start|>{{ message.role }}<|message|>{{ message | text }}
{%- for call in message.tool_calls or [] %}<|start|>assistant<|channel|>commentary to=functions.\
{{ call.function.name }} <|constrain|>json<|message|>{{ call.function.arguments }}<|call|>
{%- endfor %}<|end|>{% endfor %}<|start|>assistant"""

TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "inst": INST,
    "xml": XML,
    "typescript": TYPESCRIPT,
}


def render(template: str, request: dict[str, Any], *, html: bool) -> str:
    """Renders the request with this template.

    Args:
        html: True if ``tojson`` writes ASCII and escapes ``<``, as Jinja's own does. Those of
            vLLM and transformers do not.
    """
    import jinja2

    environment = jinja2.Environment()

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def text(message: dict[str, Any]) -> str:
        content = message.get("content") or ""
        return content if isinstance(content, str) else "".join(part["text"] for part in content)

    environment.filters["text"] = text
    environment.filters["fromjson"] = json.loads
    if not html:
        environment.filters["tojson"] = tojson
    written = environment.from_string(TEMPLATES[template]).render(
        messages=request["messages"],
        tools=request.get("tools"),
        system="You are a helpful assistant.",
    )
    form = request.get("response_format")
    return written + (f"\n# Response Formats\n{json.dumps(form, indent=2)}" if form else "")
