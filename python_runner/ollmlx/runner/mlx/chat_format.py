"""How a model marks thinking and tool calls in its answers, as its chat template and vocabulary show it.

mlx-lm knows many forms of tool calls and some of thinking; those come first. The others are known here, by what their
templates write. The name of a model decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ollmlx.runner.mlx import tool_calls
from ollmlx.runner.mlx.tool_schemas import simplified

# Takes the text of a call and the tools' definitions; raises for what is no call.
CallParser = Callable[[str, list[dict[str, Any]]], Any]

# Pairs of markers around thinking, besides those of mlx-lm. Written as text in templates, or tokens.
_THINKING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)


@dataclass(frozen=True)
class _Form:
    """A form of tool calls that mlx-lm does not know, and the text in a template that shows it."""

    family: str
    shown_by: str
    start: str
    end: str
    parse: CallParser = tool_calls.json_calls


_FORMS = (
    _Form(
        "deepseek",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        tool_calls.deepseek_calls,
    ),
    _Form("cohere", "<|START_ACTION|>", "<|START_ACTION|>", "<|END_ACTION|>"),
    _Form("llama3", "<|python_tag|>", "<|python_tag|>", "", tool_calls.llama_calls),
    _Form("seed", "<seed:tool_call>", "<seed:tool_call>", "</seed:tool_call>", tool_calls.xml_calls),
    _Form("nemotron", "<TOOLCALL>", "<TOOLCALL>", "</TOOLCALL>"),
    _Form("phi4", "<|/tool_call|>", "<|tool_call|>", "<|/tool_call|>"),
    _Form("granite", "<|tool_call|>", "<|tool_call|>", ""),
    _Form("hunyuan", "<tool_calls>", "<tool_calls>", "</tool_calls>"),
    _Form("json_tools", "<tool_call>", "<tool_call>", "</tool_call>"),
)

# Forms whose parsers read each value by the type of its parameter.
_TYPED = frozenset({"minimax_m2", "minicpm5", "qwen3_coder"})

# Forms whose parsers read what there is of a call.
_LENIENT = frozenset({"glm47", "longcat", "minicpm5", "muse_spark"})

HARMONY_THINKING = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")


@dataclass(frozen=True)
class ChatFormat:
    """The markers of one model; None where it has none."""

    think_start: str | None = None
    think_end: str | None = None
    think_start_tokens: Sequence[int] = ()
    think_end_tokens: Sequence[int] = ()
    # Name of the form of tool calls; empty: none.
    family: str = ""
    # Text around a call; without an end it ends with the answer.
    call_start: str | None = None
    call_end: str = ""
    # The parsers make a call of one that breaks off, without what is missing: its end has to be there.
    closed_calls: bool = False
    # In the order in which they are tried.
    parsers: tuple[CallParser, ...] = ()
    # A call may also be an answer that is nothing but JSON.
    bare_calls: bool = False
    # Markers around plain content, which are no part of it.
    dropped: tuple[str, ...] = ()
    # Calls follow their names in a form with a token between the name and the arguments.
    named_arguments: bool = False

    @property
    def harmony(self) -> bool:
        """Answers are messages in channels."""
        return self.family == "harmony"

    @property
    def thinks(self) -> bool:
        return self.think_start is not None

    @property
    def calls_tools(self) -> bool:
        return bool(self.family)


def find_format(tokenizer: Any) -> ChatFormat:
    """What the tokenizer of a model tells of it. Walks the vocabulary: once for a model."""
    template = getattr(tokenizer, "chat_template", None)
    template = template if isinstance(template, str) else ""
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    if "<|channel|>" in template and {"<|channel|>", "<|message|>", "<|start|>"} <= vocabulary.keys():
        start, end = HARMONY_THINKING
        return ChatFormat(start, end, _encode(tokenizer, start), _encode(tokenizer, end), family="harmony")
    return ChatFormat(
        *_thinking(tokenizer, template, vocabulary),
        **_calls(tokenizer, template, vocabulary),
        dropped=tuple(m for m in ("<|START_RESPONSE|>", "<|END_RESPONSE|>") if m in vocabulary),
    )


def _thinking(tokenizer: Any, template: str, vocabulary: dict[str, int]) -> tuple[Any, ...]:
    if tokenizer.has_thinking:
        return (
            tokenizer.think_start,
            tokenizer.think_end,
            getattr(tokenizer, "think_start_tokens", ()),
            getattr(tokenizer, "think_end_tokens", ()),
        )
    for start, end in _THINKING:
        if end in template or {start, end} <= vocabulary.keys():
            return start, end, _encode(tokenizer, start), _encode(tokenizer, end)
    return None, None, (), ()


def _calls(tokenizer: Any, template: str, vocabulary: dict[str, int]) -> dict[str, Any]:
    if tokenizer.has_tool_calling:
        family = getattr(tokenizer.tool_parser, "__module__", "").rpartition(".")[2]
        # Models stray from their own form: a finetune may write another's between the same markers.
        others = (
            (tool_calls.json_calls, tool_calls.xml_calls)
            if tokenizer.tool_call_start == "<tool_call>"
            else ()
        )
        return {
            "family": family,
            "call_start": tokenizer.tool_call_start,
            "call_end": tokenizer.tool_call_end,
            "closed_calls": family in _LENIENT,
            "parsers": (
                _typed(tokenizer.tool_parser) if family in _TYPED else tokenizer.tool_parser,
                *others,
            ),
            "named_arguments": "[ARGS]" in vocabulary,
        }
    for form in _FORMS:
        if form.shown_by in template or (
            form.family == "llama3" and form.start in vocabulary and "tools" in template
        ):
            return {
                "family": form.family,
                "call_start": form.start,
                "call_end": form.end,
                "parsers": (form.parse,),
                "bare_calls": form.family == "llama3",
            }
    return {}


def _typed(parse: CallParser) -> CallParser:
    """The parser, shown no more of the tools' schemas than it understands."""
    return lambda text, tools: parse(text, [simplified(tool) for tool in tools])


def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))
