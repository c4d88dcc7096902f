"""Pairs from the Python standard library's own source: name and docstring -> function source.

Everything follows from the interpreter's version, the limits and the seed.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED_PARTS = frozenset(
    {
        "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__",
        "turtledemo", "_bundled", "pydoc_data", "ensurepip", "lib2to3", "__phello__",
    }
)  # fmt: skip
MIN_SOURCE, MAX_SOURCE = 60, 800
MIN_DOC, MAX_DOC = 20, 400
PER_FILE = 10
"""No more pairs than this from one file, so that one large module does not fill a split."""
PROMPT = "Write this Python function.\n\n{signature}\n\n{docstring}"


@dataclass(frozen=True)
class Pair:
    """One example; `file` is relative to the standard library."""

    file: str
    name: str
    prompt: str
    source: str
    body: str
    """The body without names of its place: what two copies of one function share."""

    def messages(self) -> dict[str, list[dict[str, str]]]:
        """As chat JSONL wants it."""
        return {
            "messages": [
                {"role": "user", "content": self.prompt},
                {"role": "assistant", "content": self.source},
            ]
        }


def stdlib_root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def collect(root: Path, dropped: Counter[str]) -> list[Pair]:
    """Every usable pair below `root`, in a fixed order, each body once. `dropped` counts why."""
    pairs: list[Pair] = []
    bodies: set[str] = set()
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        parts = path.relative_to(root).parts
        if SKIPPED_PARTS & set(parts) or parts[0].startswith("config-"):
            continue
        for pair in _pairs_of(path, path.relative_to(root).as_posix(), dropped):
            if pair.body in bodies:
                dropped["the same body again"] += 1
                continue
            bodies.add(pair.body)
            pairs.append(pair)
    return pairs


def _pairs_of(path: Path, file: str, dropped: Counter[str]) -> Iterator[Pair]:
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        dropped["file that can not be parsed"] += 1
        return
    lines = text.splitlines()
    for node in _functions(tree):
        docstring = ast.get_docstring(node)
        if not docstring:
            dropped["no docstring"] += 1
            continue
        pair = _pair(node, docstring, lines, file)
        if isinstance(pair, str):
            dropped[pair] += 1
        else:
            yield pair


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods, not the functions inside functions: those need their closure."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        else:
            yield from _functions(node)


def _pair(
    node: ast.FunctionDef | ast.AsyncFunctionDef, docstring: str, lines: list[str], file: str
) -> Pair | str:
    """The pair, or why not."""
    if node.name.startswith("test"):
        return "a test"
    if not MIN_DOC <= len(docstring) <= MAX_DOC:
        return "docstring too short or too long"
    rest = node.body[1:]
    if not rest or all(isinstance(s, ast.Pass | ast.Raise | ast.Expr) for s in rest):
        return "no body worth learning"
    first = node.body[0]
    head = lines[node.lineno - 1 : first.lineno - 1]
    # The docstring is the question; leaving it in the answer would teach copying.
    after = first.end_lineno or first.lineno
    tail = lines[after : node.end_lineno]
    if not head or ";" in lines[after - 1].split('"')[-1]:
        return "written in one line"
    source = textwrap.dedent("\n".join(head + tail)).rstrip() + "\n"
    if not MIN_SOURCE <= len(source) <= MAX_SOURCE:
        return "source too short or too long"
    try:
        ast.parse(source)
    except SyntaxError:  # a string that spans lines and does not like to be dedented
        return "source that does not stand alone"
    signature = textwrap.dedent("\n".join(head)).strip().rstrip(":").strip()
    body = "\n".join(ast.dump(statement) for statement in rest)
    prompt = PROMPT.format(signature=signature, docstring=docstring.strip())
    return Pair(file, node.name, prompt, source, hashlib.sha256(body.encode()).hexdigest())


def split_by_file(
    pairs: list[Pair], seed: int, limits: dict[str, int], dropped: Counter[str]
) -> dict[str, list[Pair]]:
    """No file in two splits. Files come in a seeded order; test and valid are filled first.

    With too few pairs for all limits, the splits shrink in proportion.
    """
    files: dict[str, list[Pair]] = {}
    for pair in pairs:
        files.setdefault(pair.file, []).append(pair)
    for name, group in files.items():
        kept = sorted(group, key=lambda p: _rank(seed, f"{p.file}:{p.name}:{p.body}"))[:PER_FILE]
        dropped["more than enough from one file"] += len(group) - len(kept)
        files[name] = kept
    available = sum(map(len, files.values()))
    scale = min(1.0, available / max(1, sum(limits.values())))
    order = sorted(files, key=lambda name: _rank(seed, name))
    result: dict[str, list[Pair]] = {}
    for split in sorted(limits, key=lambda s: s == "train"):
        wanted = max(1, int(limits[split] * scale)) if split != "train" else limits[split]
        chosen: list[Pair] = []
        while order and len(chosen) < wanted:
            chosen += files[order.pop(0)]
        dropped["more than asked for"] += max(0, len(chosen) - wanted)
        result[split] = chosen[:wanted]
    dropped["more than asked for"] += sum(len(files[name]) for name in order)
    return result


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()
