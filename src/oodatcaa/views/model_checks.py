"""Model loading, the inference check and the memory profile, written from what was run."""

from __future__ import annotations

from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.memory import MemoryEstimate, ModelShape
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import InferenceProbe, RunFailure
from oodatcaa.views.markdown import (
    bold,
    code,
    facts,
    fence,
    page,
    prose,
    prose_bullets,
    section,
    table,
)
from oodatcaa.views.plan_parts import model_name, parameters
from oodatcaa.views.units import count, duration, memory, moment, number, percent, rate, size


class ModelLoad(Record):
    """One loading of a model in a child process."""

    model: NonEmpty
    source: str = ""
    sha256: str = ""
    licence: str = ""
    file_bytes: int | None = None
    shape: ModelShape | None = None
    load_seconds: float | None = None
    peak_memory_bytes: int | None = None
    peak_covers: str = "loading the model"
    device: str = ""
    notes: tuple[str, ...] = ()
    at: Utc | None = None


class MemoryProbe(Record):
    """A short real training run under the memory gate, made to check an estimate.

    `peak_bytes` is the larger of the process tree's largest sample and MLX's own count; the two
    are shown as well where they are known. `failure` says why it did not come to its end.
    """

    params: QLoRA
    iterations: int
    estimated_bytes: int | None = None
    peak_bytes: int | None = None
    mlx_peak_bytes: int | None = None
    process_peak_bytes: int | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    device: str = ""
    run_id: str = ""
    failure: RunFailure | None = None


def model_loading(load: ModelLoad) -> str:
    """How the model is loaded here, and what that took."""
    return page(
        f"Loading {model_name(load.model)}",
        facts(
            [
                ("Model", code(model_name(load.model))),
                ("Source", prose(load.source)),
                ("SHA-256", code(load.sha256)),
                ("Licence", prose(load.licence)),
                ("Size on disk", size(load.file_bytes) if load.file_bytes is not None else None),
                ("Device", prose(load.device)),
                ("Checked", moment(load.at) if load.at else None),
            ]
        ),
        section(
            "Measured",
            table(
                ("What", "Value"),
                [
                    ("load time", duration(load.load_seconds)),
                    (f"peak memory, {prose(load.peak_covers)}", memory(load.peak_memory_bytes)),
                ],
                "lr",
            ),
        ),
        _shape(load.shape),
        section(
            "Load it yourself",
            fence(
                "from mlx_lm import load\n\n"
                f'model, tokenizer = load("{_quoted(load_path(load.model))}")\n'
                "model.freeze()  # load() leaves the weights trainable",
                "python",
            ),
        ),
        section("Notes", prose_bullets(load.notes)),
    )


def load_path(model: str) -> str:
    """What a reader elsewhere types: a hub name (`owner/name`) as it is, else a folder's name."""
    name = model_name(model)
    return name if "/" in name else f"path/to/{name}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _shape(shape: ModelShape | None) -> str:
    if shape is None:
        return ""
    quantised = "not quantised"
    if shape.bits is not None:
        group = f", group size {shape.group_size}" if shape.group_size else ""
        quantised = f"{shape.bits} bits{group}"
    return section(
        "Shape",
        table(
            ("Property", "Value"),
            [
                ("architecture", code(shape.model_type)),
                ("parameters", f"{number(shape.parameters)}"),
                ("weights as stored", size(shape.weight_bytes)),
                ("linear layers", quantised),
                ("blocks", str(shape.num_layers)),
                ("hidden size", number(shape.hidden_size)),
                ("feed-forward size", number(shape.intermediate_size)),
                ("attention heads", f"{shape.num_heads}, of which key/value {shape.num_kv_heads}"),
                ("vocabulary", count(shape.vocab_size, "token")),
                ("embeddings", "tied" if shape.tied_embeddings else "separate"),
            ],
            "lr",
        ),
        "Read from `config.json` and the tensor headers.",
    )


def inference_check(
    probes: tuple[InferenceProbe, ...], *, memory_limit_bytes: int | None = None
) -> str:
    """Load time, tokens per second and the text itself, for every prompt that was tried."""
    rows = [
        (str(place), code(model_name(probe.model)), prose(probe.device),
         duration(probe.load_seconds), number(probe.prompt_tokens),
         number(probe.generation.tokens), rate(probe.generation.tokens_per_second),
         memory(probe.peak_memory_bytes))
        for place, probe in enumerate(probes, 1)
    ]  # fmt: skip
    measured = table(
        ("No.", "Model", "Device", "Load", "Prompt tokens", "New tokens", "Speed", "Peak memory"),
        rows,
        "rllrrrrr",
    )
    return page(
        "Inference check",
        "The model was loaded in a child process of its own and asked for a few tokens; every "
        "number below was measured there.",
        section("Measured", measured, _inference_verdict(probes, memory_limit_bytes))
        or "Nothing was run: no prompt was given.",
        *(_generated(place, probe) for place, probe in enumerate(probes, 1)),
    )


def _inference_verdict(probes: tuple[InferenceProbe, ...], limit: int | None) -> str:
    if limit is None or not probes:
        return ""
    peak = max(probe.peak_memory_bytes for probe in probes)
    return f"{bold('Against the limit:')} {against_limit(peak, limit)}."


def _generated(place: int, probe: InferenceProbe) -> str:
    return section(
        f"Prompt {place}",
        fence(probe.generation.prompt, "text"),
        "Answer:",
        fence(probe.generation.text, "text") or "(the model answered nothing)",
    )


def against_limit(amount: int, limit: int) -> str:
    """`2.40 GB, 15 % of the limit of 16.0 GB`, or by how much it is over."""
    if amount > limit:
        return f"{memory(amount)}, {memory(amount - limit)} over the limit of {memory(limit)}"
    return f"{memory(amount)}, {percent(amount / limit)} of the limit of {memory(limit)}"


def memory_profile(
    estimate: MemoryEstimate,
    *,
    params: QLoRA,
    memory_limit_bytes: int,
    model: str = "",
    probe: MemoryProbe | None = None,
    inference: InferenceProbe | None = None,
) -> str:
    """The estimate part by part, a probe measured against its own estimate, and the verdict."""
    return page(
        "Memory profile",
        facts(
            [
                ("Verdict", _profile_verdict(estimate.total_bytes, memory_limit_bytes)),
                ("Model", code(model_name(model)) if model else None),
                ("Device", prose(estimate.device)),
                ("Limit", f"{memory(memory_limit_bytes)} for the whole process tree"),
            ]
        ),
        estimate_parts(estimate, memory_limit_bytes),
        section("Parameters of the estimate", parameters(params)),
        _probe(probe, memory_limit_bytes),
        section(
            "Inference",
            f"Loading the model and generating "
            f"{count(inference.generation.tokens, 'token')} peaked at "
            f"{against_limit(inference.peak_memory_bytes, memory_limit_bytes)} (measured)."
            if inference
            else "",
        ),
        section("What the gate does", prose_bullets(_LAYERS)),
    )


_LAYERS = (
    "Before a run: the estimate refuses a specification that cannot fit; the model is not loaded.",
    "During a run: the trainer checks MLX's own peak at every step, and a watcher outside samples "
    "the process tree at least every 100 ms and kills it when it is over.",
    "After a run: the measured peak decides the critical acceptance criterion.",
)


def _profile_verdict(total: int, limit: int) -> str:
    word = "fits" if total <= limit else "does not fit"
    return f"{bold(word)} (estimate: {against_limit(total, limit)})"


def estimate_parts(estimate: MemoryEstimate, limit: int) -> str:
    """The section that shows an estimate part by part, labelled as one."""
    rows = [
        (prose(part.name), memory(part.bytes),
         percent(part.bytes / estimate.total_bytes) if estimate.total_bytes else "",
         code(part.formula))
        for part in estimate.parts
    ]  # fmt: skip
    rows.append((bold("total"), memory(estimate.total_bytes), "", ""))
    rows.append(("limit", memory(limit), "", ""))
    return section(
        "Estimate",
        f"An estimate, not a measurement: {prose(estimate.method)}",
        table(("Part", "Memory", "Share", "From"), rows, "lrrl"),
    )


def _probe(probe: MemoryProbe | None, limit: int) -> str:
    if probe is None:
        return ""
    peak = probe.peak_bytes
    rows = [
        ("estimated for these parameters", memory(probe.estimated_bytes)),
        ("measured peak", memory(peak)),
    ]
    for what, amount in (
        ("of the process tree", probe.process_peak_bytes),
        ("by MLX's own count", probe.mlx_peak_bytes),
    ):
        if amount is not None:
            rows.append((what, memory(amount)))
    if peak is not None and probe.estimated_bytes:
        rows.append(("measured / estimated", percent(peak / probe.estimated_bytes)))
    if probe.tokens_per_second is not None:
        rows.append(("speed", rate(probe.tokens_per_second)))
    if probe.seconds is not None:
        rows.append(("time", duration(probe.seconds)))
    params = probe.params
    outcome = f"Peak {against_limit(peak, limit)}." if peak is not None else ""
    if probe.failure is not None:
        outcome = f"{bold('The probe failed:')} {prose(probe.failure.message)} {outcome}".rstrip()
    return section(
        "Probe",
        f"{count(probe.iterations, 'iteration')} of real training with batch {params.batch_size}, "
        f"{count(params.max_seq_length, 'token')} and rank {params.rank}"
        + (f" on {prose(probe.device)}." if probe.device else "."),
        table(("What", "Value"), rows, "lr"),
        outcome,
    )
