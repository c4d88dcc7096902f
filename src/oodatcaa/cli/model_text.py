"""Models, their adapters and their answers as text for a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oodatcaa.app.comparing import Compared
    from oodatcaa.app.serving import Adapted

NARROWEST = 24
"""Of a column: below it the answers stand one under the other."""
GAP = "   "


def columns() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def printable(text: str) -> str:
    """A model may say anything; a terminal must not obey it."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def line(item: Adapted) -> str:
    """One model id of a list."""
    served, info = item.served, item.info
    if item.problems:
        more = f" (and {len(item.problems) - 1} more)" if len(item.problems) > 1 else ""
        return f"{served.id}  NOT USABLE: {item.problems[0]}{more}"
    if info is None:
        return f"{served.id}  {served.base_path}"
    about = f"{info.fine_tune_type} rank {info.rank}, {info.num_layers} blocks"
    size = f"{info.size_bytes / 1e6:.2f} MB"
    run = "" if not served.run_id or served.run_id in served.id else f"  = {served.run_id}"
    notes = "".join(f"  note: {warning}" for warning in info.warnings)
    return f"{served.id}  {about}, {size}{run}{notes}"


def card(item: Adapted) -> str:
    """Everything about one model id."""
    served, info = item.served, item.info
    rows = [("base", served.base_path), ("adapter", served.adapter_path or "")]
    if served.run_id:
        rows.append(("run", f"{served.run_id}, backend {served.backend}"))
    if info is not None:
        rows += [
            ("about", printable(info.description or "")),
            ("kind", f"{info.fine_tune_type}, {info.dialect}'s dialect"),
            ("rank", f"{info.rank}, scale {info.scale:g}"),
            ("blocks", str(info.num_layers)),
            ("keys", ", ".join(info.keys)),
            ("size", f"{info.size_bytes / 1e6:.3f} MB"),
            ("content", f"sha256 {info.content_hash}"),
            ("trained on", printable(info.base_model or "")),
            *(("note", warning) for warning in info.warnings),
        ]
    rows += [("PROBLEM", problem) for problem in item.problems]
    return "\n".join([served.id, *(f"  {name:<11}{text}" for name, text in rows if text)])


def side_by_side(prompts: Sequence[str], found: Sequence[Compared], width: int) -> str:
    """Answers in columns, as many as `width` has room for, and the losses in one table."""
    parts = []
    for number, prompt in enumerate(prompts):
        parts.append(f"\n## {printable(prompt)}\n")
        parts += _answers([(m.id, printable(m.answers[number].text)) for m in found], width)
    parts += _losses(found)
    return "\n".join(parts)


def _answers(answers: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    count = min(len(answers), max(1, (width + len(GAP)) // (NARROWEST + len(GAP))))
    wide = (width - len(GAP) * (count - 1)) // count
    for start in range(0, len(answers), count):
        row = answers[start : start + count]
        high = max(-(-len(name) // wide) for name, _ in row)
        row = [(name.ljust(high * wide), text) for name, text in row]
        for cells in zip_longest(*(_column(name, text, wide) for name, text in row), fillvalue=""):
            yield GAP.join(f"{cell:<{wide}}" for cell in cells).rstrip()
        yield ""


def _column(name: str, text: str, wide: int) -> list[str]:
    lines = [name[start : start + wide] for start in range(0, len(name), wide)]
    lines.append("-" * wide)
    for said in text.rstrip().expandtabs(4).split("\n"):
        lines += textwrap.wrap(said, wide, drop_whitespace=False) or [""]
    return lines


def _losses(found: Sequence[Compared]) -> Iterator[str]:
    """Against the first model, which is a base."""
    if not any(model.score for model in found):
        return
    first = found[0].score
    yield "perplexity      loss  against the first    tokens  model"
    for model in found:
        score = model.score
        if score is None:
            continue
        shown = "not finite" if score.perplexity is None else f"{score.perplexity:10.3f}"
        loss = "-" if score.loss is None else f"{score.loss:.4f}"
        change = ""
        if model is not found[0] and first and first.loss is not None and score.loss is not None:
            change = f"{score.loss - first.loss:+.4f}"
        yield f"{shown:>10}  {loss:>8}  {change:>17}  {score.tokens:8d}  {model.id}"
