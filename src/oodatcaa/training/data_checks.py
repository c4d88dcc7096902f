"""Is a user's train/valid/test.jsonl fit for training? Every bad line is named, all at once.

Reads line by line; what stays in memory is 8 bytes per example (and the problems).
"""

from __future__ import annotations

import array
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from oodatcaa.training.tokens import SPLITS

MAX_LINE = 32_000_000
BOM = b"\xef\xbb\xbf"
FORMATS = {
    "chat": ({"messages"}, {"tools"}),
    "completion": ({"prompt", "completion"}, {"tools"}),
    "text": ({"text"}, set()),
}
"""What mlx-lm reads: required and optional keys of a line."""
ROLES = ("system", "user", "assistant", "tool")
MESSAGE_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "thinking"}


@dataclass(frozen=True)
class _Line:
    number: int
    raw: bytes


class Checked(NamedTuple):
    """Findings as `file:line: reason`; `repeated` are examples twice in one split."""

    problems: tuple[str, ...]
    repeated: tuple[str, ...] = ()


def check_folder(folder: Path) -> tuple[str, ...]:
    """Every problem as `file:line: reason` (`file: reason` for a whole file); empty = valid."""
    return look_over(folder).problems


def look_over(folder: Path) -> Checked:
    """The same, and what else is to be known without a tokenizer."""
    if not folder.is_dir():
        return Checked((f"{folder}: no such folder",))
    problems: list[str] = []
    repeated: list[str] = []
    seen: dict[str, array.array[int]] = {}
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        if not path.is_file():
            problems.append(f"{path.name}: missing")
            continue
        seen[split] = _check_file(path, problems)
        if len(set(seen[split])) < len(seen[split]):
            repeated += _repeated(path)
    problems += _leaks(folder, seen)
    return Checked(tuple(problems), tuple(repeated))


def _check_file(path: Path, problems: list[str]) -> array.array[int]:
    """Appends the file's problems; the fingerprints of its good examples."""
    prints = array.array("Q")
    first_format = ""
    lines = 0
    for line in _lines(path):
        lines += 1
        example, reasons = _parse(line)
        if example is not None:
            form, more = check_example(example)
            reasons += more
            if form and first_format and form != first_format:
                reasons.append(f"{form} line in a {first_format} file; one file has one format")
            first_format = first_format or form
            if not reasons:
                prints.append(fingerprint(example))
        problems += [f"{path.name}:{line.number}: {reason}" for reason in reasons]
    if not lines:
        problems.append(f"{path.name}: empty")
    return prints


def parse_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None, list[str]]]:
    """(line, its object if it is one, what is wrong)."""
    for line in _lines(path):
        yield line.number, *_parse(line)


def good_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines that are an example to train on, with their numbers."""
    for number, example, reasons in parse_lines(path):
        if example is not None and not reasons and not check_example(example)[1]:
            yield number, example


def _lines(path: Path) -> Iterator[_Line]:
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE + 1):
            number += 1
            yield _Line(number, raw)
            while len(raw) > MAX_LINE and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE + 1)


def _parse(line: _Line) -> tuple[dict[str, Any] | None, list[str]]:
    raw = line.raw
    reasons = []
    if line.number == 1 and raw.startswith(BOM):
        reasons.append("starts with a byte order mark; save as UTF-8 without BOM")
        raw = raw[len(BOM) :]
    if len(raw) > MAX_LINE:
        return None, [*reasons, f"longer than {MAX_LINE // 1_000_000} MB"]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return None, [*reasons, f"not UTF-8 (byte {error.start + 1})"]
    if not text.strip():
        return None, [*reasons, "empty line"]
    try:
        value = json.loads(text)
    except RecursionError:
        return None, [*reasons, "nested too deeply"]
    except ValueError as error:
        return None, [*reasons, f"not JSON: {error}"]
    if not isinstance(value, dict):
        return None, [*reasons, f"a JSON {_kind(value)}, not an object"]
    return value, reasons


def check_example(example: dict[str, Any]) -> tuple[str, list[str]]:
    """(format, reasons why it can not be trained on); format "" when it is none of them."""
    for form, (required, optional) in FORMATS.items():
        if required <= set(example):
            unknown = sorted(set(example) - required - optional)
            reasons = [f"unknown key {key!r}" for key in unknown]
            if form == "chat":
                return form, reasons + _check_messages(example["messages"])
            for key in sorted(required):
                if not isinstance(example[key], str):
                    reasons.append(f"{key} is a JSON {_kind(example[key])}, not text")
                elif key != "prompt" and not example[key].strip():
                    reasons.append(f"{key} is empty: nothing to learn")
            return form, reasons
    keys = ", ".join(sorted(example)) or "none"
    return "", [f"needs messages, prompt and completion, or text (its keys: {keys})"]


def _check_messages(messages: Any) -> list[str]:
    if not isinstance(messages, list) or not messages:
        return [f"messages is {'an empty list' if messages == [] else f'a JSON {_kind(messages)}'}"]
    reasons: list[str] = []
    for place, message in enumerate(messages):
        reasons += [f"messages[{place}]: {reason}" for reason in _check_message(message)]
    if reasons:
        return reasons
    if not any(message["role"] == "assistant" for message in messages):
        return ["no assistant turn: nothing to learn"]
    if messages[-1]["role"] != "assistant":
        return [f"the last turn is {messages[-1]['role']}'s; it must be the assistant's"]
    last = messages[-1]
    if not (last.get("content") or "").strip() and not last.get("tool_calls"):
        return ["the last assistant turn is empty: nothing to learn"]
    return []


def _check_message(message: Any) -> list[str]:
    if not isinstance(message, dict):
        return [f"a JSON {_kind(message)}, not an object"]
    reasons = [f"unknown key {key!r}" for key in sorted(set(message) - MESSAGE_KEYS)]
    role = message.get("role")
    if role not in ROLES:
        reasons.append(f"role is {role!r}, not one of {', '.join(ROLES)}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return reasons
    if not isinstance(content, str):
        reasons.append("no content" if content is None else f"content is a JSON {_kind(content)}")
    return reasons


def _kind(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def fingerprint(example: dict[str, Any]) -> int:
    """The same for examples that differ in spacing or key order only."""
    text = " ".join(json.dumps(example, sort_keys=True, ensure_ascii=False).split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _repeated(path: Path) -> list[str]:
    """They weigh double, and validate nothing."""
    first: dict[int, int] = {}
    found = []
    for number, example in good_lines(path):
        at = first.setdefault(fingerprint(example), number)
        if at != number:
            found.append(f"{path.name}:{number}: the same example as in line {at}")
    return found


def _leaks(folder: Path, seen: dict[str, array.array[int]]) -> list[str]:
    """Examples that occur in more than one split: a test loss on them would mean nothing."""
    shared: set[int] = set()
    splits: Sequence[str] = list(seen)
    for i, one in enumerate(splits):
        rest = {p for other in splits[i + 1 :] for p in seen[other]}
        shared |= {p for p in seen[one] if p in rest}
    if not shared:
        return []
    problems: list[str] = []
    first: dict[int, tuple[str, int]] = {}
    for split in splits:
        for line in _lines(folder / f"{split}.jsonl"):
            example, _ = _parse(line)
            mark = fingerprint(example) if example is not None else None
            if mark is None or mark not in shared:
                continue
            where = first.setdefault(mark, (split, line.number))
            if where[0] != split:
                problems.append(
                    f"{split}.jsonl:{line.number}: the same example is in "
                    f"{where[0]}.jsonl:{where[1]} (leakage between splits)"
                )
    return problems
