"""Model card and data card, in the form that the model hubs read."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.training import DatasetRecord, EvalResult, RunRecord
from oodatcaa.views.evaluation import Comparison, reading, side_by_side
from oodatcaa.views.framework import machine_facts
from oodatcaa.views.markdown import (
    code,
    facts,
    fence,
    image,
    page,
    prose,
    section,
    stack,
    table,
)
from oodatcaa.views.model_checks import against_limit, load_path
from oodatcaa.views.plan_parts import model_name, parameters
from oodatcaa.views.units import (
    count,
    duration,
    interval,
    loss,
    memory,
    moment,
    number,
    rate,
    short,
    size,
    words,
)


class AdapterCard(Record):
    """What a model card needs beside the run, the data and the evaluation.

    Licences are SPDX names as the hubs write them (`apache-2.0`); "" is left out. `adapter_path`
    is where the adapter lies, relative to the project. Paths of plots are relative to the card.
    `mlx_quantised`: mlx-lm packed the base model's weights, which no other framework reads.
    """

    name: NonEmpty
    base_model: NonEmpty
    mlx_quantised: bool = False
    licence: str = ""
    purpose: str = ""
    adapter_path: NonEmpty
    adapter_bytes: int | None = None
    prompt: str = ""
    plots: tuple[tuple[str, str], ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    limits: tuple[str, ...] = ()


def model_card(
    card: AdapterCard,
    run: RunRecord,
    *,
    data: DatasetRecord | None = None,
    evaluation: EvalResult | None = None,
) -> str:
    """The card as Markdown with YAML front matter; only measured results appear in it."""
    front = yaml.safe_dump(_front_matter(card, run, data, evaluation), sort_keys=False, width=100)
    base = model_name(card.base_model)
    body = page(
        card.name,
        f"A LoRA adapter for {code(base)}. {prose(card.purpose)}".rstrip(),
        section("Use it", _usage(card) if run.backend == "mlx" else _peft_usage(card)),
        section("Results", *_results(evaluation)),
        section("Memory and speed", memory_table(run)),
        section("Training", _training(run), parameters(run.params), *_plots(card)),
        section("Data", _data(data)),
        side_by_side(card.comparisons),
        section("Intended use and limits", _limits(card, data, evaluation)),
        section("Provenance", _provenance(card, run), machine_facts(run.machine)),
        section("Versions", _versions(run)),
    )
    return f"---\n{front}---\n\n{body}"


def _front_matter(
    card: AdapterCard,
    run: RunRecord,
    data: DatasetRecord | None,
    evaluation: EvalResult | None,
) -> dict[str, Any]:
    front: dict[str, Any] = {"base_model": model_name(card.base_model)}
    if card.licence:
        front["license"] = card.licence.lower()
    library, *more = ("mlx", "mlx-lm") if run.backend == "mlx" else ("peft",)
    front |= {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["lora", "qlora", library, *more],
    }
    if data is not None:
        front["datasets"] = [data.name]
    if evaluation is not None and evaluation.adapter_loss is not None:
        metric = {"type": "loss", "name": "mean loss, nats per target token"}
        front["model-index"] = [
            {
                "name": card.name,
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {
                            "type": data.name if data else "local",
                            "name": data.name if data else "local",
                            "split": evaluation.split,
                        },
                        "metrics": [{**metric, "value": round(evaluation.adapter_loss, 4)}],
                    }
                ],
            }
        ]
    return front


def _usage(card: AdapterCard) -> str:
    prompt = card.prompt or "Write a Python function."
    command = " \\\n  ".join(
        (
            "mlx_lm.generate",
            f"--model {_shell(load_path(card.base_model))}",
            f"--adapter-path {_shell(card.adapter_path)}",
            f"--prompt {_shell(prompt)}",
        )
    )
    local = load_path(card.base_model)
    where = f"{code(local)} is the base model's mlx-lm folder." if local != card.base_model else ""
    return stack(fence(command, "bash"), _python(card), where)


def _peft_usage(card: AdapterCard) -> str:
    folder = load_path(card.base_model)
    if not card.mlx_quantised:
        return _with_peft(folder, card.adapter_path)
    dense = f"{folder.rpartition('/')[2]}-dense"
    places = f"--hf-path {_shell(folder)}", f"--mlx-path {_shell(dense)}"
    command = " \\\n  ".join(("mlx_lm.convert --dequantize", *places))
    why = "Transformers can not read weights that mlx-lm quantised, so they are unpacked once:"
    return stack(why, fence(command, "bash"), _with_peft(dense, card.adapter_path))


def _with_peft(folder: str, adapter: str) -> str:
    return fence(
        "import torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({folder!r}, dtype=torch.float32)\n"
        f"model = PeftModel.from_pretrained(base, {adapter!r})",
        "python",
    )


def _shell(text: str) -> str:
    return shlex.quote(" ".join(text.split()))


def _python(card: AdapterCard) -> str:
    return "Or from Python:\n\n" + fence(
        "from mlx_lm import generate, load\n\n"
        f"model, tokenizer = load({load_path(card.base_model)!r}, "
        f"adapter_path={card.adapter_path!r})\n"
        f"messages = [{{'role': 'user', 'content': {card.prompt or 'Write a function.'!r}}}]\n"
        "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)\n"
        "print(generate(model, tokenizer, prompt=prompt))",
        "python",
    )


def _results(evaluation: EvalResult | None) -> tuple[str, ...]:
    if evaluation is None:
        return ()
    rows = [
        ("base model, mean loss", loss(evaluation.base_loss), ""),
        ("this adapter, mean loss", loss(evaluation.adapter_loss), ""),
        ("drop", loss(evaluation.drop), interval(evaluation.drop_low, evaluation.drop_high)),
    ]
    text = reading(evaluation)
    return (
        table(("Measured", "Value", "95 % interval"), rows, "lrr"),
        f"Nats per target token over {count(evaluation.examples, 'example')} "
        f"({count(evaluation.target_tokens, 'target token')}) of the {evaluation.split} split; "
        f"the interval is a paired bootstrap over examples. {text[:1].upper()}{text[1:]}",
    )


def memory_table(run: RunRecord) -> str:
    """Predicted and measured peak against the limit, speed and time of a run."""
    limit = run.memory_limit_bytes
    peak = run.peak_memory_bytes
    rows = [
        ("peak, measured", against_limit(peak, limit) if peak is not None else memory(None)),
        ("peak, the framework's own count", memory(run.mlx_peak_bytes)),
        ("peak, estimated before the run", memory(run.estimated_peak_bytes)),
        ("speed", rate(run.tokens_per_second)),
        ("trained tokens",
         memory(None) if run.trained_tokens is None else number(run.trained_tokens)),
        ("wall time", duration(wall_seconds(run))),
    ]  # fmt: skip
    if run.longest_unwatched_seconds is not None:
        gap = f"{1000 * run.longest_unwatched_seconds:.0f} ms"
        rows.insert(1, ("longest time between two looks at it", gap))
    return table(("What", "Value"), rows, "lr")


def wall_seconds(run: RunRecord) -> float | None:
    """Seconds from the run's start to its end; None while it has none."""
    if run.finished_at is None:
        return None
    return (run.finished_at - run.started_at).total_seconds()


def continued(run: RunRecord) -> str:
    """The run that this one went on from, and where; "" for one from the beginning."""
    if run.resumed_from is None:
        return ""
    return f"{code(run.resumed_from)}, from iteration {number(run.start_iteration)}"


def _training(run: RunRecord) -> str:
    first = run.train_losses[0] if run.train_losses else None
    last = run.train_losses[-1] if run.train_losses else None
    best = min(run.valid_losses, key=lambda point: point.loss, default=None)
    return facts(
        [
            ("Method", "QLoRA on the frozen, quantised base model"),
            ("Run", f"{code(run.run_id)} ({words(run.status.value)})"),
            ("Iterations", f"{number(run.iterations_done)} of {number(run.params.iters)} "
             f"({count(run.optimizer_steps, 'optimizer step')})"),
            ("Training loss", f"{loss(first.loss)} at iteration {first.iteration}, "
             f"{loss(last.loss)} at {last.iteration}" if first and last else None),
            ("Best validation loss", f"{loss(best.loss)} at iteration {best.iteration}"
             if best else None),
        ]
    )  # fmt: skip


def _plots(card: AdapterCard) -> tuple[str, ...]:
    return tuple(image(alt, target) for alt, target in card.plots)


def _data(data: DatasetRecord | None) -> str:
    if data is None:
        return ""
    return "\n\n".join(
        (
            facts(
                [
                    ("Name", prose(data.name)),
                    ("Source", prose(data.source)),
                    ("Licence", prose(data.licence)),
                    ("SHA-256", code(data.sha256)),
                ]
            ),
            splits(data),
        )
    )


def splits(data: DatasetRecord) -> str:
    """Examples, source files and token lengths of each split."""
    tokenised = any(split.tokens_max is not None for split in data.splits.values())
    head = ("Split", "Examples", "Files")
    lengths = ("Tokens, shortest", "Mean", "95th percentile", "Longest")
    rows = []
    for name, split in data.splits.items():
        row = [name, number(split.examples), number(split.files)]
        if tokenised:
            row += [
                number(value) if value is not None else memory(None)
                for value in (
                    split.tokens_min,
                    None if split.tokens_mean is None else round(split.tokens_mean, 1),
                    split.tokens_p95,
                    split.tokens_max,
                )
            ]
        rows.append(row)
    return table((*head, *(lengths if tokenised else ())), rows, "lrrrrrr")


def _limits(card: AdapterCard, data: DatasetRecord | None, evaluation: EvalResult | None) -> str:
    lines = [
        "It needs the base model named above; other models or quantisations of it were not tried."
    ]
    if data is not None:
        lines.append(f"It was trained on {prose(data.name)} only, which is what it can be good at.")
    if evaluation is None:
        lines.append("It was not evaluated.")
    else:
        lines.append(
            f"It was measured by loss on {count(evaluation.examples, 'example')} of the same kind "
            "as the training data; what it generates was not scored."
        )
    lines += [
        "It has had no safety training of its own: what holds for the base model holds for it.",
        *(prose(line) for line in card.limits),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _provenance(card: AdapterCard, run: RunRecord) -> str:
    dirty = " (with uncommitted changes)" if run.git_dirty else ""
    return facts(
        [
            ("Trained", f"{moment(run.started_at)} to {moment(run.finished_at)}"),
            ("Commit", f"{code(short(run.git_sha))}{dirty}" if run.git_sha else None),
            ("Adapter", f"{code(card.adapter_path)}"
             + (f", {size(card.adapter_bytes)}" if card.adapter_bytes is not None else "")),
            ("Adapter SHA-256", code(run.adapter_sha256 or "")),
            ("Base model SHA-256", code(run.model_sha256)),
            ("Continues run", continued(run)),
        ]
    )  # fmt: skip


def _versions(run: RunRecord) -> str:
    rows = [(code(name), code(version)) for name, version in sorted(run.versions.items())]
    return table(("Package", "Version"), rows)


def data_card(data: DatasetRecord) -> str:
    """The data card: where the examples come from, how many, how long, and what was left out."""
    front: dict[str, Any] = {"pretty_name": data.name, "task_categories": ["text-generation"]}
    dropped = [(prose(words(why)), number(amount)) for why, amount in data.dropped.items()]
    total = sum(split.examples for split in data.splits.values())
    body = page(
        f"Data: {data.name}",
        facts(
            [
                ("Source", prose(data.source)),
                ("Licence", prose(data.licence)),
                ("Examples", number(total)),
                ("SHA-256", code(data.sha256)),
                ("Seed of the split", str(data.seed)),
                ("Token lengths counted with", code(model_name(data.tokenizer))),
            ]
        ),
        section("Splits", splits(data)),
        section("Left out", table(("Reason", "Examples"), dropped, "lr")),
        section(
            "Files",
            table(
                ("File", "SHA-256"),
                [(code(f"{name}.jsonl"), code(split.sha256))
                 for name, split in data.splits.items()],
            ),
        ),
    )  # fmt: skip
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{body}"
