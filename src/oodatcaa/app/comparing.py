"""Bases and adapters on the same prompts and texts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oodatcaa.app.serving import Serving
from oodatcaa.domain.base import Record
from oodatcaa.errors import OodatcaaError
from oodatcaa.pool.records import Answer, Ask, Score

AT_ONCE = 64
"""Texts of one request: each has its own time limit."""


class Compared(Record):
    """One model's answers to the prompts, in their order, and its loss on the file."""

    id: str
    answers: tuple[Answer, ...]
    score: Score | None = None


def compare(
    serving: Serving,
    ids: Sequence[str],
    asks: Sequence[Ask],
    texts: Sequence[Any],
    say: Callable[[str], None],
) -> tuple[Compared, ...]:
    """Every model on the same prompts and texts; each base is loaded once for all of them.

    The models are `ids` after their bases; without ids the default base and all adapters on it,
    where one that can not be used is said and left out. Raises OodatcaaError `compare.nothing`
    without prompts and texts, and whatever makes one of `ids` unusable.
    """
    if not asks and not texts:
        raise OodatcaaError(
            "compare.nothing",
            "there is nothing to compare on",
            hint="--prompt '…', --prompts FILE or --perplexity FILE",
        )
    wanted = _with_bases(serving, ids) if ids else _usable(serving, say)
    found = []
    for model in wanted:
        say(f"{model} …")
        answers = tuple(serving.generate(model, ask) for ask in asks)
        found.append(Compared(id=model, answers=answers, score=_score(serving, model, texts)))
    return tuple(found)


def _with_bases(serving: Serving, ids: Sequence[str]) -> list[str]:
    """Everything is checked before anything is loaded."""
    served = [serving.checked(model) for model in ids]
    return list(dict.fromkeys((*(one.base for one in served), *ids)))


def _usable(serving: Serving, say: Callable[[str], None]) -> list[str]:
    base = serving.catalogue.default
    found: dict[str | None, str] = {}
    for served in serving.catalogue.list():
        if served.base != base:
            continue
        if problems := serving.adapted(served).problems:
            say(f"left out: {served.id}: {problems[0]}")
        else:
            # `latest` is a second name of a run that is here already.
            found.setdefault(served.adapter_path, served.id)
    return list(found.values())


def _score(serving: Serving, model: str, texts: Sequence[Any]) -> Score | None:
    """Over all texts together, every token with the same weight."""
    parts = [
        serving.score(model, list(texts[start : start + AT_ONCE]))
        for start in range(0, len(texts), AT_ONCE)
    ]
    if not parts:
        return None
    tokens = sum(part.tokens for part in parts)
    losses = [part.loss * part.tokens for part in parts if part.loss is not None]
    whole = all(part.loss is not None or not part.tokens for part in parts)
    loss = sum(losses) / tokens if tokens and whole else None
    return Score(
        loss=loss,
        perplexity=math.exp(loss) if loss is not None and loss < 700 else None,
        tokens=tokens,
        window=parts[0].window,
    )


def read_lines(path: Path) -> list[str]:
    """Prompts, one a line. Raises OodatcaaError `compare.file`."""
    found = [line for line in _read(path).splitlines() if line.strip()]
    if not found:
        raise _bad(f"{path} has no prompts")
    return found


def read_texts(path: Path) -> list[Any]:
    """The texts of a file: JSON lines with `messages`, `text` or `prompt` and `completion`, or
    the whole of a plain text file. Raises OodatcaaError `compare.file` naming every bad line."""
    content = _read(path)
    if path.suffix != ".jsonl":
        found: list[Any] = [content] if content.strip() else []
    else:
        lines = [(n, line) for n, line in enumerate(content.split("\n"), 1) if line.strip()]
        read = [(number, _text(line)) for number, line in lines]
        wrong = [number for number, text in read if text is None]
        if wrong:
            say = "has no messages, text, or prompt and completion"
            problems = [f"{path}:{number} {say}" for number in wrong]
            raise _bad(problems[0], problems)
        found = [text for _, text in read]
    if not found:
        raise _bad(f"{path} has no text")
    return found


def _text(line: str) -> Any:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    if _chat(row.get("messages")):
        return row["messages"]
    if isinstance(row.get("text"), str):
        return row["text"]
    if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
        return [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
    return None


def _chat(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(m, dict) and "role" in m and "content" in m for m in messages)
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise _bad(f"{path} can not be read: {why}") from error


def _bad(message: str, details: Sequence[str] = ()) -> OodatcaaError:
    return OodatcaaError("compare.file", message, hint="give a text or JSONL file", details=details)
