"""Looks into files for what a plan promises; a process of its own, because patterns and files come
from strangers: a pattern may need for ever, a file may bring the parser down.

Run by path (`python -I -S _inspect.py REQUEST`), never imported; standard library only. The last
line of the output is a JSON list of what is wrong, [] = nothing.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any


def artifact(check: dict[str, Any], text: str, python: bool) -> list[str]:
    problems = []
    filled = sum(1 for line in text.splitlines() if line.strip())
    if filled < check["min_lines"]:
        problems.append(f"{filled} lines that are not blank, at least {check['min_lines']} wanted")
    problems += [f"{part!r} does not stand in it" for part in check["contains"] if part not in text]
    if check["exports"]:
        problems += python_exports(check, text) if python else mentions(check, text)
    return problems


def mentions(check: dict[str, Any], text: str) -> list[str]:
    return [
        f"{name} is not in it"
        for name in check["exports"]
        if not re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", text)
    ]


def python_exports(check: dict[str, Any], text: str) -> list[str]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return [f"its Python can not be read: {error}"]
    names: set[str] = set()
    for node in tree.body:
        names |= defined(node)
    return [f"it does not define {name}" for name in check["exports"] if not has(name, names, tree)]


def has(name: str, names: set[str], tree: ast.Module) -> bool:
    """`name`, or `Class.method`."""
    first, _, rest = name.partition(".")
    if not rest:
        return name in names
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == first:
            return any(rest in defined(inner) for inner in node.body)
    return False


def defined(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is None:  # an annotation alone defines nothing
            return set()
        inner = [part for target in targets for part in ast.walk(target)]
        return {part.id for part in inner if isinstance(part, ast.Name)}
    if isinstance(node, ast.If):
        return {name for item in (*node.body, *node.orelse) for name in defined(item)}
    if isinstance(node, ast.Try):
        bodies = (*node.body, *node.orelse, *node.finalbody)
        handled = [item for handler in node.handlers for item in handler.body]
        return {name for item in (*bodies, *handled) for name in defined(item)}
    if type(node).__name__ == "TypeAlias":
        return {node.name.id}  # type: ignore[attr-defined]  # since Python 3.12
    return set()


def link(check: dict[str, Any], texts: list[str]) -> list[str]:
    if check["pattern"]:
        try:
            pattern = re.compile(check["pattern"], re.MULTILINE)
        except (re.error, RecursionError, OverflowError) as error:
            print(json.dumps({"crashed": f"the pattern is no regular expression: {error}"}))
            raise SystemExit(0) from error
        if any(pattern.search(text) for text in texts):
            return []
        return [f"nothing in it matches {check['pattern']}"]
    wanted = names_of(check["target"])
    if any(mentioned(name, text) for name in wanted for text in texts):
        return []
    return [f"it does not mention {' or '.join(wanted)}"]


def names_of(target: str) -> list[str]:
    """How one file speaks of another: its path, its module name, its bare name."""
    path = target.strip("/")
    bare = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", path)
    module = re.sub(r"^(src|lib)/", "", bare).removesuffix("/__init__").replace("/", ".")
    last = bare.rsplit("/", 1)[-1]
    return list(dict.fromkeys(name for name in (target, bare, module, last) if name))


def mentioned(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    texts = [Path(name).read_bytes().decode("utf-8", errors="replace") for name in request["files"]]
    if request["kind"] == "artifact":
        problems = artifact(request["check"], texts[0], request["python"])
    else:
        problems = link(request["check"], texts)
    print(json.dumps(problems))


if __name__ == "__main__":
    main()
