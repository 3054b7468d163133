"""Values of parameters as plain text between marks: their grammars, in Lark form, by what parsers make of the text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ollmlx.runner.errors import unsupported
from ollmlx.runner.mlx.tool_schemas import asserts, string_part, types, without
from ollmlx.runner.schemas import Schema, json_value

# Makes of a mark what stands for it in Lark: a token, or its text.
Marker = Callable[[str], str]

_DATE = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
# The formats of strings that are known here, each as a regular expression of texts that have it.
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "email": "[A-Za-z0-9_+-]{1,64}@[A-Za-z0-9]{1,63}(\\.[A-Za-z0-9]{1,63}){1,3}",
    "hostname": "[A-Za-z0-9]{1,63}(\\.[A-Za-z0-9]{1,63}){0,3}",
    "ipv4": f"{_OCTET}(\\.{_OCTET}){{3}}",
    "uri": "[a-z][a-z0-9+.-]*:[A-Za-z0-9/?#@!$&*+,;=:._~-]+",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}

# Text that no parser takes for anything else: it begins with a letter and is none of the words.
_WORD = r"[\p{L}_][^\x00-\x1f\x7f\"'`()\[\]{}\\]*"
_PYTHON_WORD = r"[^\W\d][^\x00-\x1f\x7f\"'`()\[\]{}\\]*"
_WORDS = "(?i:true|false|null|none|nil|nan|inf|infinity|yes|no|on|off)"

# A number that float64 has.
_NUMBER = "/-?(0|[1-9][0-9]{0,15})(\\.[0-9]{1,15})?([eE][+-]?[0-9]{1,2})?/"


@dataclass(frozen=True)
class Reading:
    """How a parser reads the text of a value."""

    # Texts that may not occur in it.
    ends: tuple[str, ...] = ()
    # White space around it is lost.
    strips: bool = False
    # Which schemas have their text taken as it is: those that say {"type": "string"} ("said"), all that allow nothing
    # but strings and null ("meant"), or none. Any other text is JSON if it can be.
    plain: str = "said"
    # The text "null" is never a string.
    null: bool = False
    # Text may stand in <![CDATA[...]]>, and has to where it has line breaks or marks of XML.
    cdata: bool = False

    def is_plain(self, schema: Schema) -> bool:
        if self.plain == "meant":
            return (types(schema, schema) or set()) - {"null"} == {"string"}
        return self.plain == "said" and schema.get("type") == "string"


def value(name: str, schema: Schema, reading: Reading, close: str, what: str) -> list[str]:
    """Rules, the first of which is `name`, of a value and the mark behind it, which is a literal or a token.

    `what` names the parameter in errors.
    """
    part = string_part(schema)
    ways: list[str] = []
    rules: list[str] = []
    if reading.is_plain(schema):
        if part is None:
            raise unsupported(f"tool_choice cannot be kept: the schema of {what} is too much for such calls")
        ways, rules = _text(name, part, reading, close, what, word=False)
        if not ways:
            raise unsupported(f"tool_choice cannot be kept: none of the values of {what} can be written")
        if reading.null and "null" in (types(schema, schema) or ()):
            ways.append(f'"null" {close}')
        return [f"{name}: {' | '.join(ways)}", *rules]
    # A pattern might hold for nothing but what is no word.
    if part is not None and not part.keys() & {"pattern", "format"}:
        ways, rules = _text(name, part, reading, close, what, word=True)
    rest = schema
    bare = _bare_types(schema)
    if bare is not None and "number" in bare:
        ways.append(f"{name.upper()}_NUMBER {close}")
        rules.append(f"{name.upper()}_NUMBER: {_NUMBER}")
        rest = {"type": sorted(bare - {"number", "integer"})}
    if rest.get("type") != []:
        ways.append(f"{name}_json {close}")
        rules.append(f"{name}_json: {json_value(without(rest, reading.ends))}")
    return [f"{name}: {' | '.join(ways)}", *rules]


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def separated(required: Sequence[str], optional: Sequence[str], between: str, some: bool = False) -> str:
    """Rules one after the other, of which the optional ones may be missing; with `some`, not all of them."""
    first = f" {between} ".join(required)
    if required:
        return first + "".join(f" ({between} {o})?" for o in optional)
    if not optional:
        return ""
    # Before the one that comes first there is nothing.
    rests = ["".join(f" ({between} {o})?" for o in optional[k + 1 :]) for k in range(len(optional))]
    ways = " | ".join(o + rest for o, rest in zip(optional, rests, strict=True))
    return f"({ways})" if some else f"({ways})?"


def _bare_types(schema: Schema) -> set[str] | None:
    """The types of a schema that says nothing else."""
    says = asserts(schema)
    if says == {"type"} or (
        len(says) == 1
        and says <= {"anyOf", "oneOf"}
        and all(isinstance(s, dict) and asserts(s) == {"type"} for s in schema[next(iter(says))])
    ):
        return types(schema, schema)
    return None


def _text(
    name: str, part: Schema, reading: Reading, close: str, what: str, word: bool
) -> tuple[list[str], list[str]]:
    """Alternatives, and the terminals that they name, of text that fits `part`; a word where the parser guesses."""
    if "enum" in part:
        values = [v for v in part["enum"] if _can_be_written(v, reading, word)]
        if reading.cdata:
            return [f"{literal(_in_cdata(v))} {close}" for v in values], []
        return [f"{literal(v) if v else ''} {close}" for v in values], []
    wanted = _requirements(part, what) + ([_WORD] if word else [])
    ends = "|".join(re.escape(end) for end in reading.ends if end)
    unwanted = [f"(?s:.*)({ends})(?s:.*)"]
    if word:
        unwanted.append(_WORDS)
    if reading.null:
        unwanted.append("(?i:null)")
    # What Python strips.
    space = [r"[\s\x00-\x1f](?s:.*)", r"(?s:.*)[\s\x00-\x1f]"] if reading.strips else []
    terminal = name.upper()
    empty = not word and not part.get("minLength") and not part.keys() & {"pattern", "format"}
    if not reading.cdata:
        return _terminal(terminal, wanted, unwanted + space, "", close, empty)
    plain, rules = _terminal(terminal, [*wanted, "[^<&\\n]*"], unwanted[1:] + space, "", close, empty)
    if word:
        return plain, rules
    unwanted[0] = rf"(?s:.*)(\]\]>|{ends})(?s:.*)"
    quoted, more = _terminal(f"{terminal}_CDATA", wanted, unwanted, "]]>", close, empty)
    return [*plain, *(f'"<![CDATA[" {way}' for way in quoted)], [*rules, *more]


def _terminal(
    name: str, wanted: list[str], unwanted: list[str], tail: str, close: str, empty: bool
) -> tuple[list[str], list[str]]:
    """A terminal holds all text up to a token: what follows as text has to be part of it.

    Text matches all that is wanted and nothing of what is not, which is one expression: several would be multiplied.
    """
    if not close.startswith("<["):
        tail, close = tail + json.loads(close), ""
    if not tail:
        unwanted = ["", *unwanted]
    body = " & ".join([*map(_regex, wanted), "~" + _regex("|".join(unwanted))])
    if tail:
        return [f"{name} {close}"], [f"{name}: ({body}) {literal(tail)}"]
    return [f"{name}{'?' if empty else ''} {close}"], [f"{name}: {body}"]


def _requirements(part: Schema, what: str) -> list[str]:
    """Regular expressions that text has to match as a whole."""
    least, most = part.get("minLength", 0), part.get("maxLength", "")
    wanted = ["(?s:.*)" if (least, most) == (0, "") else f"(?s:.{{{least},{most}}})"]
    if "pattern" in part:
        wanted.append(_whole(str(part["pattern"])))
    if "format" in part:
        known = _FORMATS.get(part["format"])
        if known is None:
            raise unsupported(
                f"tool_choice cannot be kept: the format {part['format']!r} of {what} is not one of "
                + ", ".join(_FORMATS)
            )
        wanted.append(known)
    return wanted


def _whole(pattern: str) -> str:
    """A pattern that is searched for, as one of the whole text."""
    before = after = "(?s:.*)"
    if not _alternates(pattern):
        if pattern.startswith("^"):
            pattern, before = pattern[1:], ""
        if pattern.endswith("$") and not pattern.endswith("\\$"):
            pattern, after = pattern[:-1], ""
    return f"{before}({pattern}){after}"


def _alternates(pattern: str) -> bool:
    depth = 0
    for char in re.sub(r"\\.|\[\^?\]?[^\]]*\]", "", pattern, flags=re.DOTALL):
        depth += (char == "(") - (char == ")")
        if char == "|" and depth == 0:
            return True
    return False


def _regex(pattern: str) -> str:
    return (
        "/"
        + re.sub(r"\\.|/", lambda m: m[0] if m[0] != "/" else "\\/", pattern, flags=re.DOTALL).replace(
            "\n", "\\n"
        )
        + "/"
    )


def _can_be_written(text: str, reading: Reading, word: bool) -> bool:
    if any(end and end in text for end in reading.ends) or (reading.null and text.lower() == "null"):
        return False
    if reading.strips and text != text.strip() and not reading.cdata:
        return False
    if reading.cdata and "]]>" in text:
        return False
    return not word or (
        re.fullmatch(_PYTHON_WORD, text) is not None
        and re.fullmatch(_WORDS, text) is None
        and text == text.strip()
    )


def _in_cdata(text: str) -> str:
    return f"<![CDATA[{text}]]>" if re.search(r"[<&\n]", text) or text != text.strip() else text
