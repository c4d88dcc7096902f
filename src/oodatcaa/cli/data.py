"""data check, data split: training data before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oodatcaa.cli.show import as_json, following, say

if TYPE_CHECKING:
    from oodatcaa.training.data_report import DataReport, SplitReport

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
WIDTH = 40

data = typer.Typer(no_args_is_help=True, help="Training data: check it, split it.")


def register(app: typer.Typer) -> None:
    app.add_typer(data, name="data")


@data.command("check")
def check(
    folder: Annotated[Path, typer.Argument(help="with train, valid and test.jsonl")],
    model: Annotated[str | None, typer.Option(help="whose tokenizer counts")] = None,
    max_seq_length: Annotated[int, typer.Option(help="longer examples are cut")] = 2048,
    mask_prompt: Annotated[
        bool, typer.Option("--mask-prompt/--no-mask-prompt", help="loss on answers only")
    ] = True,
    json: AsJson = False,
) -> None:
    """Every finding at once, with file and line; exit 1 when the data can not be trained on."""
    from oodatcaa.app.data import check_data

    found = check_data(folder, model=model, max_seq_length=max_seq_length, mask_prompt=mask_prompt)
    if json:
        as_json(found)
    else:
        say(report_lines(found))
        following("oodatcaa train" if found.fit else "correct the lines, then check again")
    if not found.fit:
        raise typer.Exit(1)


@data.command("split")
def split(
    file: Annotated[Path, typer.Argument(help="one JSONL file")],
    into: Annotated[Path, typer.Option(help="folder for the three files")],
    by: Annotated[
        str | None, typer.Option(help="key whose examples stay together: meta.author")
    ] = None,
    valid: Annotated[float, typer.Option(help="share of the examples")] = 0.1,
    test: Annotated[float, typer.Option(help="share of the examples")] = 0.1,
    seed: Annotated[int, typer.Option(help="another seed, another split")] = 0,
    json: AsJson = False,
) -> None:
    """Deal out whole groups, so that a test never asks for what was trained on."""
    from oodatcaa.training.data_split import split_file

    dealt = split_file(file, into, by=by, shares={"valid": valid, "test": test}, seed=seed)
    if json:
        as_json(dealt)
        return
    for name, count in dealt.examples.items():
        say(f"{name:<6}{count:8d} examples in {dealt.groups[name]} groups")
    following(f"oodatcaa data check {into}")


def report_lines(found: DataReport) -> str:
    """What people read: findings first, then the figures of each split."""
    lines = [f"problem: {text}" for text in found.problems]
    lines += [f"warning: {text}" for text in found.warnings]
    lines += [f"not checked: {text}" for text in found.not_checked]
    for name, one in found.splits.items():
        lines += ["", *_split_lines(name, one, found.max_seq_length)]
    verdict = "fit for training" if found.fit else "NOT fit for training"
    count = f"{len(found.problems)} problems, {len(found.warnings)} warnings"
    return "\n".join([*lines, "", f"{found.folder}: {verdict}; {count}"])


def _split_lines(name: str, one: SplitReport, limit: int) -> list[str]:
    if one.tokens is None:
        return [f"{name}: {one.examples} examples"]
    lines = [
        f"{name}: {one.examples} examples, {one.tokens} tokens, {one.target_tokens} with loss, "
        f"longest {one.longest}",
        f"  {one.truncated} longer than {limit}: {one.lost_tokens} tokens cut off, "
        f"{one.lost_targets} of them with loss; {one.without_target} left without any",
    ]
    if one.padded is not None and one.packed is not None:
        lines.append(
            f"  computed positions that hold a token: {one.padded:.0%} in batches of 4, "
            f"{one.packed:.0%} packed into rows of {limit}"
        )
    most = max((b.examples for b in one.histogram), default=0) or 1
    for number, part in enumerate(one.histogram):
        edge = f"<= {part.up_to}" if part.up_to else "more"
        bar = "#" * -(-part.examples * WIDTH // most)
        if part.examples or number < len(one.histogram) - 2:
            lines.append(f"  {edge:>9} {part.examples:7d} {bar}")
    return lines
