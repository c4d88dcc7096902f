"""estimate, train, resume, runs: the backend by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oodatcaa.cli.show import as_json, following, say

if TYPE_CHECKING:
    from oodatcaa.app.estimating import EstimateReport
    from oodatcaa.domain.training import RunRecord, TrainProgress

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def register(app: typer.Typer) -> None:
    app.command("estimate")(estimate)
    app.command("train")(train)
    app.command("resume")(resume)
    app.command("runs")(runs)


def estimate(
    model: Annotated[str | None, typer.Option(help="folder or name; the objective's")] = None,
    data: Annotated[
        Path | None, typer.Option(help="bounds the lengths; the objective's, if here")
    ] = None,
    limit: Annotated[str | None, typer.Option(help="for example 16GB; the objective's")] = None,
    backend: Annotated[
        str | None, typer.Option(help="mlx, hf or axolotl; the objective's first, or mlx")
    ] = None,
    fine_tune_type: Annotated[str | None, typer.Option(help="lora, dora or full")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adam, adamw, sgd, adafactor or muon")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="of the adapter")] = None,
    dropout: Annotated[float | None, typer.Option(help="on the input of the adapter")] = None,
    num_layers: Annotated[int | None, typer.Option(help="last N blocks; -1 = all")] = None,
    keys: Annotated[str | None, typer.Option(help="adapted layers, separated by commas")] = None,
    batch_size: Annotated[int | None, typer.Option(help="rows of a batch")] = None,
    max_seq_length: Annotated[int | None, typer.Option(help="tokens of a row")] = None,
    grad_accumulation_steps: Annotated[int | None, typer.Option(help="batches a step")] = None,
    grad_checkpoint: Annotated[
        bool | None, typer.Option("--grad-checkpoint/--no-grad-checkpoint", help="keep inputs only")
    ] = None,
    grad_checkpoint_layers: Annotated[
        int | None, typer.Option(help="with --grad-checkpoint: of N of the trained blocks")
    ] = None,
    mask_prompt: Annotated[
        bool | None, typer.Option("--mask-prompt/--no-mask-prompt", help="loss on answers only")
    ] = None,
    packing: Annotated[
        bool | None, typer.Option("--packing/--no-packing", help="several examples to a row")
    ] = None,
    dense_weights: Annotated[
        bool | None, typer.Option(help="quantised weights held as float32 on a CPU")
    ] = None,
    cache_frozen: Annotated[
        bool | None, typer.Option(help="what frozen blocks make of an example kept on disk")
    ] = None,
    quantize_bits: Annotated[int | None, typer.Option(help="2, 3, 4, 6 or 8")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="measure a few real steps first")] = False,
    json: AsJson = False,
) -> None:
    """What a spec is expected to need, part by part, and the largest batches that fit."""
    from oodatcaa.app.estimating import estimate_spec

    given = {
        "fine_tune_type": fine_tune_type,
        "optimizer": optimizer,
        "rank": rank,
        "dropout": dropout,
        "num_layers": num_layers,
        "keys": keys.split(",") if keys else None,
        "batch_size": batch_size,
        "max_seq_length": max_seq_length,
        "grad_accumulation_steps": grad_accumulation_steps,
        "grad_checkpoint": grad_checkpoint,
        "grad_checkpoint_layers": grad_checkpoint_layers,
        "mask_prompt": mask_prompt,
        "packing": packing,
        "dense_weights": dense_weights,
        "cache_frozen": cache_frozen,
        "quantize_bits": quantize_bits,
    }
    found = estimate_spec(
        _aside if json else say,
        model=model,
        data=data,
        limit=limit,
        backend=backend,
        probe=probe,
        changes={name: value for name, value in given.items() if value is not None},
    )
    if json:
        as_json(found)
        return
    say(estimate_lines(found))
    again = "oodatcaa train" if model is None else "oodatcaa init, with these in OBJECTIVE.md"
    measured = found.estimate.source == "probe" or found.backend == "axolotl"
    following(again if measured else "oodatcaa estimate --probe")


def _aside(text: str) -> None:
    """Standard output is JSON alone."""
    print(text, file=sys.stderr, flush=True)


def estimate_lines(found: EstimateReport) -> str:
    """The table that people read."""
    estimate, limit = found.estimate, found.limit_bytes
    rows = f"{found.batch} x {found.length} tokens, {found.targets} with loss"
    lines = [
        f"{found.model}: {rows}",
        f"backend: {found.backend} on {estimate.device}",
        f"data: {found.data or 'none here; every row counts as max_seq_length'}",
        f"source: {estimate.method}",
        "",
    ]
    lines += [f"{part.bytes / 1e9:9.3f} GB  {part.name}: {part.formula}" for part in estimate.parts]
    lines += [f"{estimate.total_bytes / 1e9:9.3f} GB  process tree: what the memory gate compares"]
    if estimate.mlx_peak_bytes is not None:
        lines += [f"{estimate.mlx_peak_bytes / 1e9:9.3f} GB  of it in MLX's own counter"]
    lines += [f"NOT KNOWN: {what}; the figures are a lower bound" for what in estimate.unknown]
    verdict = "fits" if found.fits else "does NOT fit"
    lines += ["", f"{verdict} the limit of {limit / 1e9:.2f} GB", "", "largest batch that fits:"]
    lines += [f"  {fit.batch:5d} x {fit.length} tokens" for fit in found.largest]
    return "\n".join(lines)


def train(
    auto_fit: Annotated[
        bool, typer.Option("--auto-fit", help="measure, and take the fastest batches that fit")
    ] = False,
) -> None:
    """One run with the objective's parameters and data, under the memory gate."""
    from oodatcaa.app.by_hand import train_objective
    from oodatcaa.app.project import open_project

    _told(train_objective(open_project(), say, _progress, auto_fit=auto_fit))


def resume(run: Annotated[str, typer.Argument(help="a run id, see `oodatcaa runs`")]) -> None:
    """Go on from the newest checkpoint of an interrupted run, in a new run."""
    from oodatcaa.app.by_hand import resume_run
    from oodatcaa.app.project import open_project

    _told(resume_run(open_project(), run, say, _progress))


def runs(json: AsJson = False) -> None:
    """Every run, oldest first."""
    from oodatcaa.app.by_hand import list_runs
    from oodatcaa.app.project import open_project

    found, problems = list_runs(open_project())
    if json:
        as_json({"runs": found, "problems": problems})
        return
    for run in found:
        say(_line(run))
    for problem in problems:
        say(f"unreadable: {problem}")
    if not found and not problems:
        say("no runs yet")
    following("oodatcaa train, or oodatcaa run")


def _line(run: RunRecord) -> str:
    loss = f"  loss {run.train_losses[-1].loss:.3f}" if run.train_losses else ""
    peak = f"  peak {run.peak_memory_bytes / 1e9:.2f} GB" if run.peak_memory_bytes else ""
    why = f"  {run.failure.message}" if run.failure else ""
    return f"{run.run_id}  {run.status.value:<9}{loss}{peak}{why}"


def _progress(progress: TrainProgress) -> None:
    from oodatcaa.cli.watch import bar

    say(bar(progress))


def _told(run: RunRecord) -> None:
    from oodatcaa.errors import OodatcaaError

    say(_line(run))
    if run.failure is not None:
        raise OodatcaaError(
            f"run.{run.failure.kind.value}", run.failure.message, hint=run.failure.hint
        )
    following("oodatcaa runs")
