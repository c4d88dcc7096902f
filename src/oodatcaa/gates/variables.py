"""Variables of gate commands: filled in where they stand, and exported for scripts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

EXPORTED = {
    "run": "OODATCAA_RUN_DIR",
    "adapter": "OODATCAA_ADAPTER_DIR",
    "data": "OODATCAA_DATA_DIR",
    "model": "OODATCAA_MODEL",
    "python": "OODATCAA_PYTHON",
    "worktree": "OODATCAA_WORKTREE",
}
_TOKEN = re.compile(r"(?P<double>\{\{|\}\})|(?<!\$)\{(?P<name>[a-z][a-z0-9_]*)\}|(?P<char>[\s\S])")


class UnknownVariables(ValueError):
    """The command names variables that have no value here."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        listed = ", ".join(f"{{{name}}}" for name in names)
        super().__init__(
            f"no value for {listed}; literal braces are written {{{{ and }}}}"
            if names
            else "no variables"
        )


def fill(command: str, values: Mapping[str, str]) -> str:
    """`command` with every {name} replaced, quoted for the place where it stands.

    The shell sees one word whatever the value holds, bare or inside '…' or "…". `${name}` is the
    shell's own and `{{`, `}}` are literal braces. Raises UnknownVariables naming all at once.
    """
    parts: list[str] = []
    unknown: list[str] = []
    quote = ""
    escaped = False
    for token in _TOKEN.finditer(command):
        name, char = token["name"], token["char"]
        if token["double"]:
            parts.append(token["double"][0])
        elif name is not None:
            if name not in values:
                unknown.append(name)
            else:
                parts.append(_quoted(values[name], quote))
        else:
            parts.append(char)
            quote, escaped = _state(char, quote, escaped)
            continue
        escaped = False
    if unknown:
        raise UnknownVariables(tuple(dict.fromkeys(unknown)))
    return "".join(parts)


def exported(values: Mapping[str, str]) -> dict[str, str]:
    """The same values as environment variables: OODATCAA_RUN_DIR, OODATCAA_PYTHON, …"""
    return {EXPORTED.get(name, f"OODATCAA_{name.upper()}"): text for name, text in values.items()}


def _state(char: str, quote: str, escaped: bool) -> tuple[str, bool]:
    if escaped:
        return quote, False
    if char == "\\" and quote != "'":
        return quote, True
    if quote:
        return ("" if char == quote else quote), False
    return (char if char in "'\"" else ""), False


def _quoted(value: str, quote: str) -> str:
    if quote == "'":
        return value.replace("'", "'\\''")
    if quote == '"':
        return re.sub(r'([\\"$`])', r"\\\1", value)
    return shlex.quote(value)
