"""Families of models by what their templates and vocabularies show, and answers as they write them.

The templates are only shaped like the families' own: what matters of them is which marks they write.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.tiny_models import write_tokenizer

TOOLS = [
    pb.Tool(
        json=json.dumps(
            {
                "type": "function",
                "function": {
                    "name": name,
                    "parameters": {
                        "type": "object",
                        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                        "required": ["city"],
                        "additionalProperties": False,
                    },
                },
            }
        )
    )
    for name in ("get_weather", "get_time")
]
KÖLN = ("get_weather", {"city": "Köln", "days": 2})
ROME = ("get_time", {"city": "Rome"})


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Family:
    # Special tokens of the vocabulary.
    tokens: tuple[str, ...] = ()
    template: str = ""
    # What the prompt ends with.
    prompt: str = "<|im_start|>assistant\n"
    # An answer, and what it is: thinking, content, calls.
    answer: str = ""
    thinking: str = ""
    content: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=lambda: [KÖLN, ROME])
    # A call of KÖLN as the grammar of a required call has it; empty: there is no grammar.
    required: str = ""
    # Text before which the call breaks off.
    broken_at: str = "Köln"


def _tagged(call: tuple[str, dict[str, Any]]) -> str:
    return f"<tool_call>\n{dump({'name': call[0], 'arguments': call[1]})}\n</tool_call>"


def _xml(call: tuple[str, dict[str, Any]], start: str, end: str) -> str:
    body = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in call[1].items())
    return f"{start}\n<function={call[0]}>\n{body}</function>\n{end}"


def _listed(
    *calls: tuple[str, dict[str, Any]], name: str = "name", arguments: str = "arguments", **first: str
) -> Any:
    return [{**first, name: c[0], arguments: c[1]} for c in calls]


def _deepseek(call: tuple[str, dict[str, Any]], old: bool) -> str:
    if old:
        inner = f"function<｜tool▁sep｜>{call[0]}\n```json\n{compact(call[1])}\n```"
    else:
        inner = f"{call[0]}<｜tool▁sep｜>{dump(call[1])}"
    return f"<｜tool▁call▁begin｜>{inner}<｜tool▁call▁end｜>"


_DEEPSEEK = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)
_HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>")
_COHERE = (
    "<|START_THINKING|>", "<|END_THINKING|>", "<|START_ACTION|>", "<|END_ACTION|>", "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
)  # fmt: skip
_KIMI = (
    "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>",
    "<|tool_call_argument_begin|>",
)  # fmt: skip

_QUOTE = '<|"|>'
_KIMI_K3 = ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>")


def _arg_pairs(call: tuple[str, dict[str, Any]], prefix: str = "", line: str = "\n") -> str:
    pairs = "".join(
        f"<{prefix}arg_key>{k}</{prefix}arg_key>{line}<{prefix}arg_value>{v}</{prefix}arg_value>{line}"
        for k, v in call[1].items()
    )
    return f"<{prefix}tool_call>{call[0]}{line}{pairs}</{prefix}tool_call>"


def _invoked(call: tuple[str, dict[str, Any]], prefix: str = "") -> str:
    parameters = "".join(
        f'<{prefix}parameter name="{k}">{v}</{prefix}parameter>\n' for k, v in call[1].items()
    )
    return f'<{prefix}invoke name="{call[0]}">\n{parameters}</{prefix}invoke>\n'


def _minicpm(call: tuple[str, dict[str, Any]]) -> str:
    return (
        f'<function name="{call[0]}">'
        + "".join(f'<param name="{k}">{v}</param>' for k, v in call[1].items())
        + "</function>"
    )


def _gemma(call: tuple[str, dict[str, Any]], quote: str) -> str:
    values = (
        f"{k}:{quote}{v}{quote}" if isinstance(v, str) else f"{k}:{dump(v)}" for k, v in call[1].items()
    )
    return f"call:{call[0]}{{{','.join(values)}}}"


def _kimi_k3(*calls: tuple[str, dict[str, Any]]) -> str:
    def argument(key: str, value: Any) -> str:
        kind = "string" if isinstance(value, str) else "integer"
        return f'<|open|>argument key="{key}" type="{kind}"<|sep|>{value}<|close|>argument<|sep|>'

    written = "".join(
        f'<|open|>call tool="{n}" index="{i}"<|sep|>'
        + "".join(argument(k, v) for k, v in a.items())
        + "<|close|>call<|sep|>"
        for i, (n, a) in enumerate(calls)
    )
    return f"<|open|>tools<|sep|>{written}<|close|>tools<|sep|>"


FAMILIES: dict[str, Family] = {
    "qwen3": Family(
        ("<think>", "</think>", "<tool_call>", "</tool_call>"),
        "{% for t in tools %}{% endfor %}<tool_call>{{ tool_call.name }}</tool_call>",
        answer=f"<think>\nHm.\n</think>\n\nLet me see.\n{_tagged(KÖLN)}\n{_tagged(ROME)}",
        thinking="Hm.",
        content="Let me see.\n",
        required=f"<tool_call>\n{compact({'name': KÖLN[0], 'arguments': KÖLN[1]})}\n</tool_call>",
    ),
    "hermes, its markers plain text, other names of keys": Family(
        (),
        "{% for t in tools %}{% endfor %}<tool_call>{'name': ...}</tool_call>",
        answer=f"<tool_call>{dump({'function': KÖLN[0], 'parameters': KÖLN[1]})}</tool_call>"
        f"<tool_call>{{'name': 'get_time', 'arguments': {{'city': 'Rome'}}}}</tool_call>",
        required=f"<tool_call>\n{compact({'name': KÖLN[0], 'arguments': KÖLN[1]})}\n</tool_call>",
    ),
    "qwen3 coder": Family(
        ("<tool_call>", "</tool_call>"),
        "{% for t in tools %}{% endfor %}<tool_call>\n<function=",
        answer=f"Now.\n{_xml(KÖLN, '<tool_call>', '</tool_call>')}\n{_tagged(ROME)}",
        content="Now.\n",
        required=_xml(KÖLN, "<tool_call>", "</tool_call>"),
    ),
    "seed": Family(
        ("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),
        "{% for t in tools %}{% endfor %}<seed:tool_call>",
        answer=f"<seed:think>Hm.</seed:think>{_xml(KÖLN, '<seed:tool_call>', '</seed:tool_call>')}"
        f"{_xml(ROME, '<seed:tool_call>', '</seed:tool_call>')}",
        thinking="Hm.",
        required=_xml(KÖLN, "<seed:tool_call>", "</seed:tool_call>"),
    ),
    "mistral": Family(
        ("[TOOL_CALLS]",),
        "{% for t in tools %}{% endfor %}[TOOL_CALLS]",
        answer=f"[TOOL_CALLS]{dump(_listed(KÖLN, ROME))}",
        required=f"[TOOL_CALLS]{compact(_listed(KÖLN))}",
    ),
    "magistral": Family(
        ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
        "{% for t in tools %}{% endfor %}[TOOL_CALLS][ARGS]",
        answer=f"[THINK]Hm.[/THINK]Yes.[TOOL_CALLS]{KÖLN[0]}[ARGS]{dump(KÖLN[1])}[TOOL_CALLS]{ROME[0]}[ARGS]{dump(ROME[1])}",
        thinking="Hm.",
        content="Yes.",
        required=f"[TOOL_CALLS]{KÖLN[0]}[ARGS]{compact(KÖLN[1])}",
    ),
    "llama3, bare": Family(
        ("<|python_tag|>", "<|eom_id|>"),
        "{% for t in tools %}{% endfor %}<|python_tag|>",
        answer=f"{dump({'name': KÖLN[0], 'parameters': KÖLN[1]})}; {dump({'name': ROME[0], 'parameters': ROME[1]})}",
        required=compact({"name": KÖLN[0], "parameters": KÖLN[1]}),
    ),
    "llama3, tagged": Family(
        ("<|python_tag|>", "<|eom_id|>"),
        "{% for t in tools %}{% endfor %}<|python_tag|>",
        answer=f"Hm. <|python_tag|>{dump({'type': 'function', 'name': KÖLN[0], 'parameters': KÖLN[1]})}",
        content="Hm. ",
        calls=[KÖLN],
        required=compact({"name": KÖLN[0], "parameters": KÖLN[1]}),
    ),
    "llama3, python": Family(
        ("<|python_tag|>",),
        "{% for t in tools %}{% endfor %}<|python_tag|>",
        answer='<|python_tag|>get_weather.call(city="Köln", days=2)',
        calls=[KÖLN],
    ),
    "deepseek v3": Family(
        _DEEPSEEK,
        "{% for t in tools %}{% endfor %}<｜tool▁calls▁begin｜>",
        answer=f"Now.<｜tool▁calls▁begin｜>{_deepseek(KÖLN, True)}\n{_deepseek(ROME, True)}<｜tool▁calls▁end｜>",
        content="Now.",
        required=f"<｜tool▁calls▁begin｜>{_deepseek(KÖLN, True)}<｜tool▁calls▁end｜>",
    ),
    "deepseek v3.1, thinking as text": Family(
        _DEEPSEEK,
        "{% for t in tools %}{% endfor %}<｜tool▁calls▁begin｜></think>",
        prompt="<｜Assistant｜><think>",
        answer="Hm.</think>Now.<｜tool▁calls▁begin｜>"
        f"{_deepseek(KÖLN, False)}{_deepseek(ROME, False)}<｜tool▁calls▁end｜>",
        thinking="Hm.",
        content="Now.",
    ),
    "granite": Family(
        ("<|tool_call|>",),
        "{% for t in tools %}{% endfor %}<|tool_call|>",
        answer=f"<|tool_call|>{dump(_listed(KÖLN, ROME))}",
        required=f"<|tool_call|>{compact(_listed(KÖLN))}",
    ),
    "phi4": Family(
        ("<|tool_call|>", "<|/tool_call|>"),
        "{% for t in tools %}{% endfor %}<|tool_call|><|/tool_call|>",
        answer=f"Hm.<|tool_call|>{dump(_listed(KÖLN, ROME))}<|/tool_call|>",
        content="Hm.",
        required=f"<|tool_call|>{compact(_listed(KÖLN))}<|/tool_call|>",
    ),
    "nemotron": Family(
        (),
        "{% for t in tools %}{% endfor %}<TOOLCALL></think>",
        answer=f"<think>\nHm.\n</think>\n\n<TOOLCALL>{dump(_listed(KÖLN, ROME))}</TOOLCALL>",
        thinking="Hm.",
        required=f"<TOOLCALL>{compact(_listed(KÖLN))}</TOOLCALL>",
    ),
    "cohere": Family(
        _COHERE,
        "{% for t in tools %}{% endfor %}<|START_ACTION|>",
        answer="<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>"
        + dump(_listed(KÖLN, ROME, name="tool_name", arguments="parameters", tool_call_id="0"))
        + "<|END_ACTION|>",
        thinking="Hm.",
        required="<|START_ACTION|>"
        + compact(_listed(KÖLN, name="tool_name", arguments="parameters", tool_call_id="0"))
        + "<|END_ACTION|>",
    ),
    "cohere, an answer": Family(
        _COHERE,
        "{% for t in tools %}{% endfor %}<|START_ACTION|>",
        answer="<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>",
        thinking="Hm.",
        content="Yes.",
        calls=[],
        broken_at="",
    ),
    "hunyuan": Family(
        (),
        "{% for t in tools %}{% endfor %}<tool_calls>",
        answer=f"<tool_calls>\n{dump(_listed(KÖLN, ROME))}\n</tool_calls>",
        required=f"<tool_calls>{compact(_listed(KÖLN))}</tool_calls>",
    ),
    "kimi k2": Family(
        _KIMI,
        "{% for t in tools %}{% endfor %}<|tool_calls_section_begin|>",
        answer="Hm.<|tool_calls_section_begin|>"
        + "".join(
            f"<|tool_call_begin|>functions.{n}:{i}<|tool_call_argument_begin|>{dump(a)}<|tool_call_end|>"
            for i, (n, a) in enumerate((KÖLN, ROME))
        )
        + "<|tool_calls_section_end|>",
        content="Hm.",
        required="<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        + compact(KÖLN[1])
        + "<|tool_call_end|><|tool_calls_section_end|>",
        broken_at="",
    ),
    "lfm2": Family(
        ("<|tool_call_start|>", "<|tool_call_end|>"),
        "{% for t in tools %}{% endfor %}<|tool_call_start|>",
        answer='<|tool_call_start|>[get_weather(city="Köln", days=2), get_time(city="Rome")]<|tool_call_end|>',
        required='<|tool_call_start|>[get_weather(city="Köln", days=2)]<|tool_call_end|>',
    ),
    "glm 4.5": Family(
        (
            "<think>",
            "</think>",
            "<tool_call>",
            "</tool_call>",
            "<arg_key>",
            "</arg_key>",
            "<arg_value>",
            "</arg_value>",
        ),
        "{% for t in tools %}{% endfor %}<tool_call><arg_key>",
        answer=f"<think>Hm.</think>\n{_arg_pairs(KÖLN)}\n{_arg_pairs(ROME)}",
        thinking="Hm.",
        required=_arg_pairs(KÖLN),
    ),
    "glm 4.7, its markers plain text": Family(
        (),
        "{% for t in tools %}{% endfor %}<tool_call><arg_key>",
        answer=f"{_arg_pairs(KÖLN, line='')}{_arg_pairs(ROME, line='')}",
        required=_arg_pairs(KÖLN, line=""),
    ),
    "longcat": Family(
        ("<longcat_tool_call>", "</longcat_tool_call>"),
        "{% for t in tools %}{% endfor %}<longcat_tool_call>",
        answer=f"{_arg_pairs(KÖLN, 'longcat_')}\n<longcat_tool_call>"
        f"{dump({'name': ROME[0], 'arguments': ROME[1]})}</longcat_tool_call>",
        required=_arg_pairs(KÖLN, "longcat_"),
    ),
    "minimax m2": Family(
        ("<minimax:tool_call>", "</minimax:tool_call>"),
        "{% for t in tools %}{% endfor %}<minimax:tool_call>",
        answer=f"Hm.<minimax:tool_call>\n{_invoked(KÖLN)}{_invoked(ROME)}</minimax:tool_call>",
        content="Hm.",
        required=f"<minimax:tool_call>\n{_invoked(KÖLN)}</minimax:tool_call>",
    ),
    "minicpm5": Family(
        (),
        '{% for t in tools %}{% endfor %}<function name="<param name="',
        answer=f"{_minicpm(KÖLN)}\n{_minicpm(ROME)}",
        required=_minicpm(KÖLN),
    ),
    "muse": Family(
        (),
        "{% for t in tools %}{% endfor %}<atem:function_calls>",
        answer=f"<atem:function_calls>\n{_invoked(KÖLN, 'atem:')}{_invoked(ROME, 'atem:')}</atem:function_calls>",
        required=f"<atem:function_calls>\n{_invoked(KÖLN, 'atem:')}</atem:function_calls>",
    ),
    "kimi k3": Family(
        _KIMI_K3,
        "{% for t in tools %}{% endfor %}",
        answer=_kimi_k3(KÖLN, ROME),
        required=_kimi_k3(KÖLN),
    ),
    "gemma 4": Family(
        ("<|tool_call>", "<tool_call|>", '<|"|>'),
        "{% for t in tools %}{% endfor %}<|tool_call><tool_call|>",
        answer="".join(f"<|tool_call>{_gemma(c, _QUOTE)}<tool_call|>" for c in (KÖLN, ROME)),
        required=f"<|tool_call>{_gemma(KÖLN, _QUOTE)}<tool_call|>",
    ),
    "function gemma": Family(
        ("<start_function_call>", "<end_function_call>", "<escape>"),
        "{% for t in tools %}{% endfor %}<start_function_call>",
        answer="".join(
            f"<start_function_call>{_gemma(c, '<escape>')}<end_function_call>" for c in (KÖLN, ROME)
        ),
        required=f"<start_function_call>{_gemma(KÖLN, '<escape>')}<end_function_call>",
    ),
    "gpt-oss": Family(
        _HARMONY,
        "{% for t in tools %}{% endfor %}<|channel|>",
        prompt="<|start|>assistant",
        answer="<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me see."
        "<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        + dump(KÖLN[1]),
        thinking="Hm.",
        content="Let me see.",
        calls=[KÖLN],
        required="<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        + compact(KÖLN[1]),
    ),
    "gpt-oss, the recipient first": Family(
        _HARMONY,
        "{% for t in tools %}{% endfor %}<|channel|>",
        prompt="<|start|>assistant",
        answer=" to=functions.get_weather<|channel|>commentary json<|message|>" + dump(KÖLN[1]) + "<|call|>",
        calls=[KÖLN],
    ),
    "gpt-oss, an answer": Family(
        _HARMONY,
        "{% for t in tools %}{% endfor %}<|channel|>",
        prompt="<|start|>assistant",
        answer="<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        thinking="Hm.",
        content="Yes.",
        calls=[],
        broken_at="",
    ),
    "gpt-oss that has forgotten its form": Family(
        _HARMONY,
        "{% for t in tools %}{% endfor %}<|channel|>",
        prompt="<|start|>assistant",
        answer="Yes, of course.<|end|><|start|>assistant<|channel|>analysis<|message|>Hm.",
        thinking="Hm.",
        content="Yes, of course.",
        calls=[],
        broken_at="",
    ),
}


def make_tokenizer(directory: Path, family: Family) -> Any:
    from ollmlx.runner.mlx import mlxlm

    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(directory, extra_tokens=family.tokens)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(
        json.dumps(settings | {"chat_template": family.template})
    )
    return mlxlm.load_tokenizer(directory, {"eos_token_id": 258})
