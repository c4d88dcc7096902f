"""Everything that is to be known of a data folder before a model is loaded, all at once.

Problems make data unfit for training; warnings are for a person to look at. Both name file and
line. Token figures need a model's tokenizer; without one they are left out and said to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from oodatcaa.domain.base import Record
from oodatcaa.domain.training import DataFindings
from oodatcaa.errors import OodatcaaError
from oodatcaa.training import secrets
from oodatcaa.training.data_checks import good_lines, look_over
from oodatcaa.training.masks import WRONG_MASK
from oodatcaa.training.packing import efficiency, padded_efficiency
from oodatcaa.training.tokens import (
    SPLITS,
    UNREADABLE,
    ChatTokenizer,
    Measured,
    NoTemplateError,
    measured,
)

BINS = 8
"""Of the histogram, up to max_seq_length; what is longer has two more."""
BATCH = 4
"""Examples of a batch, for how well batches are filled."""
SCANNED = 250_000
"""Characters of a split that are searched for secrets, unless all are asked for: two seconds."""


class Bin(Record):
    """Examples of at most `up_to` tokens (None: longer than all of them) and not in a lower bin."""

    up_to: int | None
    examples: int = Field(ge=0)


class SplitReport(Record):
    """One split at a given max_seq_length. Tokens are None without a tokenizer."""

    examples: int = 0
    tokens: int | None = None
    target_tokens: int | None = None
    longest: int | None = None
    truncated: int = 0
    lost_tokens: int = 0
    lost_targets: int = 0
    without_target: int = 0
    padded: float | None = None
    """Of the positions computed in batches of BATCH padded examples, those that hold a token."""
    packed: float | None = None
    """Of those of rows that are packed."""
    histogram: tuple[Bin, ...] = ()


class DataReport(DataFindings):
    """With the figures of every split that is there."""

    folder: str
    max_seq_length: int
    splits: dict[str, SplitReport]


def examine(
    folder: Path,
    *,
    model_path: Path | None = None,
    max_seq_length: int = 2048,
    mask_prompt: bool = True,
    scanned: int | None = SCANNED,
) -> DataReport:
    """Schema, empty targets, duplicates, lengths, truncation, masking and secrets of a folder.

    `scanned`: characters of each split that are searched for secrets, which takes long; 0 = none,
    None = all.
    """
    found = look_over(folder)
    problems, warnings = list(found.problems), list(found.repeated)
    skipped: list[str] = []
    tokenizer = _tokenizer(model_path, skipped)
    splits = {}
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        if not path.is_file():
            continue
        if tokenizer is None or model_path is None:
            splits[split] = SplitReport(examples=sum(1 for _ in good_lines(path)))
            continue
        clean = not any(problem.startswith(f"{path.name}:") for problem in found.problems)
        lengths = _lengths(path, tokenizer, model_path if clean else None)
        try:
            splits[split], bad, odd = _measure(path.name, lengths, max_seq_length, mask_prompt)
        except NoTemplateError as error:
            splits[split] = SplitReport(examples=sum(1 for _ in good_lines(path)))
            skipped.append(f"{path.name}: tokens were not counted, nor masks: {error.message}")
            continue
        problems += bad
        warnings += odd
    if scanned != 0:
        warnings += _secrets(folder, skipped, scanned)
    return DataReport(
        folder=str(folder),
        max_seq_length=max_seq_length,
        problems=tuple(problems),
        warnings=tuple(warnings),
        not_checked=tuple(skipped),
        splits=splits,
    )


def _tokenizer(model_path: Path | None, skipped: list[str]) -> ChatTokenizer | None:
    if model_path is None:
        skipped.append(
            "tokens were not counted, nor masks checked, without a model "
            "(oodatcaa data check takes --model)"
        )
        return None
    try:
        return ChatTokenizer(model_path)
    except OodatcaaError as error:
        skipped.append(f"tokens were not counted: {error.message}")
        return None


def _lengths(
    path: Path, tokenizer: ChatTokenizer, model_path: Path | None
) -> Iterator[tuple[int, Measured | Exception]]:
    """What the lines hold that are an example, or why it can not be told.

    A file without a bad line comes with its `model_path`: measured at once, and remembered.
    """
    if model_path is not None:
        try:
            every = measured(path, model_path)
        except NoTemplateError:
            raise
        except UNREADABLE:
            pass  # each line tells for itself below
        else:
            yield from enumerate(every, 1)
            return
    for number, example in good_lines(path):
        try:
            (one,) = tokenizer.measure([example])
        except NoTemplateError:
            raise
        except UNREADABLE as error:
            yield number, error
        else:
            yield number, one


def _measure(
    name: str,
    lengths: Iterator[tuple[int, Measured | Exception]],
    longest: int,
    mask_prompt: bool,
) -> tuple[SplitReport, list[str], list[str]]:
    bad: list[str] = []
    odd: list[str] = []
    unmasked: dict[str, list[int]] = {}
    totals: list[int] = []
    targets = truncated = lost = lost_targets = without = 0
    for number, one in lengths:
        where = f"{name}:{number}"
        if isinstance(one, Exception):
            bad.append(f"{where}: the chat template can not render it: {one}")
            continue
        if mask_prompt and (wrong := _masking(one)):
            unmasked.setdefault(wrong, []).append(number)
        own = max(0, one.target) if mask_prompt else one.total - 1
        totals.append(one.total)
        targets += own
        over = max(0, one.total - longest)
        gone = min(own, over)
        truncated, lost, lost_targets = truncated + (over > 0), lost + over, lost_targets + gone
        if own and gone == own:
            without += 1
            odd.append(f"{where}: the prompt fills all {longest} tokens: it will not be trained on")
        elif over:
            odd.append(f"{where}: {one.total} tokens, the last {over} are cut off")
    # The template, or the way of training, is what is wrong: not so many lines, each by itself.
    for wrong, lines in unmasked.items():
        bad.append(f"{name}:{lines[0]}: {wrong} (lines: {len(lines)})")
    sizes = [max(1, min(total, longest) - 1) for total in totals]
    report = SplitReport(
        examples=len(totals),
        tokens=sum(totals),
        target_tokens=targets,
        longest=max(totals, default=None),
        truncated=truncated,
        lost_tokens=lost,
        lost_targets=lost_targets,
        without_target=without,
        padded=round(padded_efficiency(sizes, longest, BATCH), 3) if sizes else None,
        packed=round(efficiency(sizes, longest), 3) if sizes else None,
        histogram=histogram(totals, longest),
    )
    return report, bad, odd


def _masking(one: Measured) -> str:
    """Why `mask_prompt` would cut this example at the wrong place; "" when it would not."""
    if one.plain:
        return "plain text has no prompt to mask; set mask_prompt to false"
    if not one.maskable:
        return WRONG_MASK
    return ""


def _secrets(folder: Path, skipped: list[str], most: int | None) -> list[str]:
    if not secrets.available():
        skipped.append(secrets.MISSING)
        return []
    found = []
    for path in (folder / f"{split}.jsonl" for split in SPLITS):
        if not path.is_file():
            continue
        search = secrets.Search(path, most)
        found += [f"{path.name}:{number}: looks like a secret ({kind})" for number, kind in search]
        if search.ended_at is not None:
            skipped.append(
                f"{path.name} was scanned for secrets up to line {search.ended_at} only: "
                "oodatcaa data check scans all"
            )
    return found


def histogram(totals: list[int], longest: int) -> tuple[Bin, ...]:
    """Equal bins up to `longest`, then up to twice as much, then the rest."""
    edges = [longest * (i + 1) // BINS for i in range(BINS)] + [2 * longest]
    counts = [0] * (len(edges) + 1)
    for total in totals:
        counts[next((i for i, edge in enumerate(edges) if total <= edge), len(edges))] += 1
    return tuple(
        Bin(up_to=edge, examples=count) for edge, count in zip([*edges, None], counts, strict=True)
    )
