"""Everything that is to be known of a data folder before a model is loaded, all at once.

Problems make data unfit for training; warnings are for a person to look at. Both name file and
line. Token figures need a model's tokenizer; without one they are left out and said to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from oodatcaa.domain.base import Record
from oodatcaa.errors import OodatcaaError
from oodatcaa.training import secrets
from oodatcaa.training.data_checks import check_folder, fingerprint, parse_lines
from oodatcaa.training.packing import efficiency, padded_efficiency
from oodatcaa.training.tokens import SPLITS, ChatTokenizer, Measured

BINS = 8
"""Of the histogram, up to max_seq_length; what is longer has two more."""
BATCH = 4
"""Examples of a batch, for how well batches are filled."""


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


class DataReport(Record):
    """`problems` and `warnings` are `file:line: reason`."""

    folder: str
    max_seq_length: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    not_checked: tuple[str, ...] = ()
    splits: dict[str, SplitReport]

    @property
    def fit(self) -> bool:
        return not self.problems


def examine(
    folder: Path,
    *,
    model_path: Path | None = None,
    max_seq_length: int = 2048,
    mask_prompt: bool = True,
) -> DataReport:
    """Schema, empty targets, duplicates, lengths, truncation, masking and secrets of a folder."""
    problems = list(check_folder(folder))
    warnings: list[str] = []
    skipped: list[str] = []
    tokenizer = _tokenizer(model_path, skipped)
    splits = {}
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        if not path.is_file():
            continue
        warnings += _repeated(path)
        if tokenizer is None:
            splits[split] = SplitReport(examples=sum(1 for _ in _good(path)))
            continue
        splits[split], bad, odd = _measure(path, tokenizer, max_seq_length, mask_prompt)
        problems += bad
        warnings += odd
    warnings += _secrets(folder, skipped)
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
        skipped.append("tokens were not counted: give a model with --model")
        return None
    try:
        return ChatTokenizer(model_path)
    except OodatcaaError as error:
        skipped.append(f"tokens were not counted: {error.message}")
        return None


def _good(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, example, reasons in parse_lines(path, check=True):
        if example is not None and not reasons:
            yield number, example


def _repeated(path: Path) -> list[str]:
    """Examples that occur more than once in one split: they weigh double, and validate nothing."""
    first: dict[int, int] = {}
    found = []
    for number, example in _good(path):
        at = first.setdefault(fingerprint(example), number)
        if at != number:
            found.append(f"{path.name}:{number}: the same example as in line {at}")
    return found


def _measure(
    path: Path, tokenizer: ChatTokenizer, longest: int, mask_prompt: bool
) -> tuple[SplitReport, list[str], list[str]]:
    bad: list[str] = []
    odd: list[str] = []
    totals: list[int] = []
    targets = truncated = lost = lost_targets = without = 0
    for number, example in _good(path):
        where = f"{path.name}:{number}"
        try:
            (one,) = tokenizer.measure([example])
        except (OodatcaaError, ValueError, KeyError, TypeError, AttributeError) as error:
            bad.append(f"{where}: the chat template can not render it: {error}")
            continue
        if mask_prompt and (wrong := _masking(one)):
            bad.append(f"{where}: {wrong}")
        own = one.target if mask_prompt else one.total - 1
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
    if not one.prompt_is_prefix:
        return "the template writes the prompt differently before an answer: masking would cut it"
    return ""


def _secrets(folder: Path, skipped: list[str]) -> list[str]:
    if not secrets.available():
        skipped.append(secrets.MISSING)
        return []
    return [
        f"{split}.jsonl:{number}: looks like a secret ({kind})"
        for split in SPLITS
        if (folder / f"{split}.jsonl").is_file()
        for number, kind in secrets.find_secrets(folder / f"{split}.jsonl")
    ]


def histogram(totals: list[int], longest: int) -> tuple[Bin, ...]:
    """Equal bins up to `longest`, then up to twice as much, then the rest."""
    edges = [longest * (i + 1) // BINS for i in range(BINS)] + [2 * longest]
    counts = [0] * (len(edges) + 1)
    for total in totals:
        counts[next((i for i, edge in enumerate(edges) if total <= edge), len(edges))] += 1
    return tuple(
        Bin(up_to=edge, examples=count) for edge, count in zip([*edges, None], counts, strict=True)
    )
