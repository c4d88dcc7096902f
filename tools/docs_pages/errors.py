"""Every error code, read from the places in the source that raise it.

Nothing is listed by hand: the extraction follows the call `OodatcaaError(code, message, hint=…)`
and its subclasses, and raises `UnreadableCodeError` at a place whose code it can not tell, so that
no code is left out unnoticed.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from docs_pages.tables import table
from oodatcaa import errors as source_of_errors
from oodatcaa.domain.training import FailureKind
from oodatcaa.errors import EXIT_FAILURE, EXIT_REFUSED, EXIT_STATE
from oodatcaa.views.markdown import code, prose

SOURCE = Path(__file__).parents[2] / "src" / "oodatcaa"
CLASSES = {
    "OodatcaaError": EXIT_FAILURE,
    "RefusedError": EXIT_REFUSED,
    "StateError": EXIT_STATE,
}
EXPANDED = {"f'run.{run.failure.kind.value}'": tuple(f"run.{kind.value}" for kind in FailureKind)}
"""Codes made from an enumeration."""
RELAYED = ("error.code", "e['code']", "error['code']", "result.code", "self._code", "code")
"""A child's own error raised again, or a code that came as the argument `code`: it is found where
it is first written down."""
NOTHING: Mapping[str, str] = {}
_CODE = re.compile(r"[a-z_]+\.[a-z0-9_]+")
SEVERITIES = ("error", "warning", "info")


class UnreadableCodeError(Exception):
    """A raise whose code this module can not tell: teach it, or write the code literally."""


@dataclass(frozen=True)
class Raised:
    """One place that can raise a code. `message` and `hint` hold ‹placeholders›."""

    code: str
    exit_code: int
    message: str
    hint: str
    place: str


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def raised() -> tuple[Raised, ...]:
    """Every place in the source, by code."""
    found: list[Raised] = []
    for path in sorted(SOURCE.rglob("*.py")):
        found += _in_module(parsed(path), str(path.relative_to(SOURCE)))
    return tuple(sorted(found, key=lambda item: (item.code, item.place)))


def _in_module(tree: ast.Module, place: str) -> Iterator[Raised]:
    classes = {**CLASSES, **_subclasses(tree)}
    for owner, local, call in _calls(tree):
        name = _name(call.func)
        if name in CLASSES and place != "errors.py":
            yield from _from_call(call, CLASSES[name], place, local)
        elif name == "__init__" and owner in classes and owner not in CLASSES:
            yield from _from_call(call, classes[owner], place, local)
    yield from _passed_on(tree, place)


def _subclasses(tree: ast.Module) -> dict[str, int]:
    """Classes of this module that derive from an error, with its exit code."""
    return {
        node.name: CLASSES[base.id]
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name) and base.id in CLASSES
    }


def _calls(tree: ast.Module) -> Iterator[tuple[str, dict[str, str], ast.Call]]:
    """(name of the class around it or "", texts of local variables, call)."""
    classes: dict[ast.AST, str] = {}
    local: dict[ast.AST, dict[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            classes |= dict.fromkeys(ast.walk(node), node.name)
        elif isinstance(node, ast.FunctionDef):
            local |= dict.fromkeys(ast.walk(node), _texts(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield classes.get(node, ""), local.get(node, {}), node


def _texts(function: ast.FunctionDef) -> dict[str, str]:
    """Variables of a function that are set once, to a text."""
    values: dict[str, list[ast.expr]] = defaultdict(list)
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id].append(node.value)
    literal = (ast.JoinedStr, ast.Constant)
    return {
        name: text_of(found[0])
        for name, found in values.items()
        if len(found) == 1 and isinstance(found[0], literal)
    }


def _from_call(
    call: ast.Call, exit_code: int, place: str, local: Mapping[str, str]
) -> Iterator[Raised]:
    given = {word.arg: word.value for word in call.keywords}
    code_node = call.args[0] if call.args else given.get("code")
    message = call.args[1] if len(call.args) > 1 else given.get("message")
    if code_node is None:
        return
    named = [_name(one) for one in ast.walk(given.get("exit_code", call.func))]
    exits = [getattr(source_of_errors, one) for one in named if one.startswith("EXIT_")]
    for name in _codes(code_node, f"{place}:{call.lineno}"):
        hint = text_of(given.get("hint"), local)
        for number in exits or [exit_code]:
            yield Raised(name, int(number), text_of(message, local), hint, place)


def _codes(node: ast.expr, place: str) -> tuple[str, ...]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return (node.value,)
    written = ast.unparse(node)
    if written in EXPANDED:
        return EXPANDED[written]
    if written in RELAYED:
        return ()
    if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
        return (text_of(node),)
    raise UnreadableCodeError(f"{place}: {written}")


def _passed_on(tree: ast.Module, place: str) -> Iterator[Raised]:
    """Codes that travel as an argument or variable `code`: locks, leases, late submissions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) not in (*CLASSES, "Finding"):
            for word in node.keywords:
                if word.arg == "code" and isinstance(word.value, ast.Constant):
                    name = _name(node.func)
                    state = name == "FileLock"
                    what = {item.arg: item.value for item in node.keywords}.get("what")
                    subject = text_of(what) or "a file"
                    message = f"{subject} is locked by another process" if state else _HELD
                    exit_code = EXIT_STATE if state else EXIT_REFUSED
                    yield Raised(str(word.value.value), exit_code, message, "", place)
        elif isinstance(node, ast.Assign) and _name(node.targets[0]) == "code":
            for value in ast.walk(node.value):
                if isinstance(value, ast.Constant) and _CODE.fullmatch(str(value.value)):
                    yield Raised(str(value.value), EXIT_REFUSED, _DIRTY, "", place)


_HELD = "the caller no longer holds the task under this attempt; the result is kept as evidence"
_DIRTY = "the checkout of the target holds work that a merge may not touch"


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def text_of(node: ast.expr | None, known: Mapping[str, str] = NOTHING) -> str:
    """A message as people see it, with ‹name› where a value is filled in.

    `known` holds what variables were set to, for a message that was put together earlier.
    """
    if node is None:
        return ""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, known) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"‹{_placeholder(node.value)}›"
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left, known) + text_of(node.right, known)
    if isinstance(node, ast.IfExp):
        return text_of(node.body, known) or text_of(node.orelse, known)
    return f"‹{_placeholder(node)}›"


def _placeholder(node: ast.expr) -> str:
    if isinstance(node, ast.IfExp) and isinstance(node.body, ast.Constant):
        return _name(node.test) or "…"
    if isinstance(node, (ast.Name, ast.Attribute)):
        skip = ("value", "name", "message")
        name = _name(node)
        if name in skip and isinstance(node, ast.Attribute) and _name(node.value) != "self":
            return _placeholder(node.value)
        return name.strip("_").replace("_", " ")
    if isinstance(node, ast.Subscript):
        return _placeholder(node.value)
    if isinstance(node, ast.Call) and node.args:
        return "number" if _name(node.func) == "len" else _placeholder(node.args[0])
    return "…"


def exit_codes() -> str:
    """The constants of errors.py with the docstring below each."""
    tree = parsed(SOURCE / "errors.py")
    rows = [("0", "", "The command did what it was asked to.")]
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.Assign) and _name(node.targets[0]).startswith("EXIT_"):
            name = _name(node.targets[0])
            assert isinstance(following, ast.Expr)
            assert isinstance(following.value, ast.Constant)
            number = str(getattr(source_of_errors, name))
            rows.append((number, code(name), prose(str(following.value.value))))
    return table(["Exit code", "Constant", "Meaning"], rows)


def error_codes() -> str:
    """One section per first word, one row per code."""
    by_group: dict[str, dict[str, list[Raised]]] = defaultdict(lambda: defaultdict(list))
    for item in raised():
        by_group[item.code.partition(".")[0]][item.code].append(item)
    parts = []
    for group, codes in sorted(by_group.items()):
        rows = [
            (
                code(name),
                ", ".join(sorted({str(one.exit_code) for one in places})),
                _joined(one.message for one in places),
                _joined(one.hint for one in places),
            )
            for name, places in sorted(codes.items())
        ]
        parts.append(f"### {group}\n\n" + table(["Code", "Exit", "Message", "Hint"], rows))
    return "\n\n".join(parts)


def _joined(texts: Iterator[str]) -> str:
    distinct = dict.fromkeys(text for text in texts if text)
    return "<br>".join(_inline(text) for text in distinct)


def _inline(text: str) -> str:
    return prose(text).replace("<", "&lt;").replace("]:", "]\\:")


def findings() -> str:
    """What `doctor` and `import` list: they do not end a command by themselves."""
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE).parts[0]
        if place not in ("importers", "state"):
            continue
        for _, local, call in _calls(parsed(path)):
            literal = call.args and isinstance(call.args[0], ast.Constant)
            if not literal or "." not in str(call.args[0].value):  # type: ignore[attr-defined]
                continue
            name = _name(call.func)
            severity = name if name in SEVERITIES else "finding" if name == "Finding" else ""
            if severity and len(call.args) > 2:
                key = (str(call.args[0].value), severity)  # type: ignore[attr-defined]
                rows[key].append(text_of(call.args[2], local))
    lines = [(code(name), kind, _joined(iter(texts))) for (name, kind), texts in rows.items()]
    return table(["Code", "Severity", "Message"], sorted(lines))


def strings_of(path: Path) -> tuple[str, ...]:
    """Every string that a module may print, without docstrings; values as ‹placeholders›."""
    tree = parsed(path)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, documented):
            skipped |= {item.value for item in node.body if isinstance(item, ast.Expr)}
        elif isinstance(node, ast.JoinedStr):
            skipped |= set(ast.walk(node)) - {node}
    return tuple(
        text_of(node)
        for node in ast.walk(tree)
        if node not in skipped
        and (
            isinstance(node, ast.JoinedStr)
            or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        )
    )
