"""One JSONL file becomes train, valid and test, and what belongs together stays together.

Examples of one author, file or conversation are alike: with some of them in train and others in
test, a test loss measures memory. So whole groups are dealt out. Which split a group is in depends
on the seed and its name alone, as far as the sizes allow: a file that grew keeps most of it.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oodatcaa.domain.base import Record
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic
from oodatcaa.training.data_checks import fingerprint, parse_lines
from oodatcaa.training.tokens import SPLITS


class Dealt(Record):
    """How many examples and groups each split got."""

    examples: dict[str, int]
    groups: dict[str, int]


def split_file(
    source: Path, target: Path, *, by: str | None, shares: Mapping[str, float], seed: int = 0
) -> Dealt:
    """Write the three files into `target`; `by` is the key (`meta.author`) that names a group.

    Without it only equal examples are kept together. The key itself is not part of an example and
    is left out. Raises OodatcaaError `data.invalid` with every bad line, and never overwrites.
    """
    taken = [name for name in SPLITS if (target / f"{name}.jsonl").exists()]
    if taken:
        raise OodatcaaError(
            "data.exists",
            f"{target} already has {', '.join(taken)}",
            hint="give another folder with --into",
        )
    rows, problems = _rows(source, by)
    if not rows and not problems:
        problems = [f"{source.name}: empty"]
    if problems:
        raise OodatcaaError(
            "data.invalid",
            f"{source} has {len(problems)} bad lines: {problems[0]}",
            hint="correct them and run the same command again",
            details=problems,
        )
    dealt = deal([name for name, _ in rows], shares, seed)
    for split in SPLITS:
        lines = [json.dumps(row, ensure_ascii=False) for name, row in rows if dealt[name] == split]
        write_atomic(target / f"{split}.jsonl", "".join(line + "\n" for line in lines))
    return Dealt(
        examples={s: sum(dealt[name] == s for name, _ in rows) for s in SPLITS},
        groups={s: sum(chosen == s for chosen in dealt.values()) for s in SPLITS},
    )


def _rows(source: Path, by: str | None) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    rows: list[tuple[str, dict[str, Any]]] = []
    problems = []
    for number, example, reasons in parse_lines(source):
        problems += [f"{source.name}:{number}: {reason}" for reason in reasons]
        if example is None or reasons:
            continue
        group: Any = fingerprint(example) if by is None else _take(example, by.split("."))
        if group is None or isinstance(group, dict | list):
            problems.append(f"{source.name}:{number}: no {by!r} to group by")
            continue
        rows.append((str(group), example))
    return rows, problems


def _take(example: dict[str, Any], path: Sequence[str]) -> Any:
    """The value at `path`, taken out of the example together with its outermost key."""
    value: Any = example.pop(path[0], None)
    for key in path[1:]:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def deal(names: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """group -> split. test and valid are filled to their share of the examples, the rest trains.

    Raises OodatcaaError `data.shares` for shares that leave no room for training, and
    `data.too_few_groups` when there are not enough groups for the three splits.
    """
    valid, test = shares.get("valid", 0.0), shares.get("test", 0.0)
    if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
        raise OodatcaaError(
            "data.shares",
            f"valid {valid:g} and test {test:g} must be above 0 and leave room for training",
            hint="for example --valid 0.1 --test 0.1",
        )
    sizes: dict[str, int] = defaultdict(int)
    for name in names:
        sizes[name] += 1
    if len(sizes) < len(SPLITS):
        raise OodatcaaError(
            "data.too_few_groups",
            f"{len(sizes)} groups can not be in three splits",
            hint="group by a key with more values, or leave --by out",
        )
    order = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    dealt: dict[str, str] = {}
    for split, share in (("test", test), ("valid", valid)):
        wanted, got = max(1, round(share * len(names))), 0
        for name in order:
            left = len(sizes) - len(dealt)
            # One group at least stays for each split that is still to be filled, and for train.
            if name in dealt or left <= (2 if split == "test" else 1):
                continue
            if got == 0 or got + sizes[name] <= wanted:
                dealt[name] = split
                got += sizes[name]
            if got >= wanted:
                break
    return {name: dealt.get(name, "train") for name in sizes}
