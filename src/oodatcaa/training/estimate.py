"""How much memory a training step will need, before anything is loaded.

An estimate, and labelled as one; `forecast.py` replaces it by a measured one. It is computed from
config.json and tensor headers (see formulas.py for the terms and where they come from).
"""

from __future__ import annotations

from oodatcaa.domain.memory import MemoryEstimate, MemoryLayer, MemoryPart, MemoryStop, ModelShape
from oodatcaa.domain.qlora import FineTune, QLoRA
from oodatcaa.domain.training import FailureKind, RunFailure
from oodatcaa.training.formulas import (
    PAD_TO,
    Size,
    Terms,
    block_of,
    held_blocks,
    held_head,
    inner_width,
    round_up,
    runtime_bytes,
    terms,
    trained_blocks,
    trained_parameters,
)
from oodatcaa.training.shapes import read_shape as read_shape  # one door for both

METHOD = "config.json and tensor headers; constants fitted to measured peaks"


def padded_length(max_seq_length: int, seq_length: int | None) -> int:
    """Tokens of the longest row a batch may have, padded and truncated."""
    if seq_length is None:
        return max_seq_length
    return min(round_up(max(1, seq_length - 1), PAD_TO), max_seq_length)


def worst_size(
    params: QLoRA, seq_length: int | None = None, batch_targets: int | None = None
) -> Size:
    """The largest batch that data bounded like this can give. Packed rows are filled up."""
    length = padded_length(params.max_seq_length, None if params.packing else seq_length)
    every = params.batch_size * length
    targets = every if batch_targets is None else min(every, batch_targets)
    return Size(params.batch_size, length, max(1, targets))


def step_terms(
    shape: ModelShape, params: QLoRA, size: Size, *, device: str, fast_cpu: bool = True
) -> Terms:
    """The terms behind `estimate_training`, for fitting them to measurements."""
    weights = _weights(shape, params.quantize_bits, device, fast_cpu).bytes
    return terms(shape, params, size, weights, device, fast_cpu)


def estimate_training(
    shape: ModelShape,
    params: QLoRA,
    *,
    seq_length: int | None = None,
    batch_targets: int | None = None,
    device: str = "cpu",
    fast_cpu: bool = True,
) -> MemoryEstimate:
    """The peak of the training process, in bytes, part by part.

    `seq_length` is the data's longest example where it is known; `max_seq_length` bounds it.
    `batch_targets` is the largest number of target tokens that one batch can have: the worker
    computes logits for those positions alone. Not known, every position counts.
    `fast_cpu` is the worker's float32 path on the CPU device (see `oodatcaa doctor`).
    """
    size = worst_size(params, seq_length, batch_targets)
    weights = _weights(shape, params.quantize_bits, device, fast_cpu)
    found = terms(shape, params, size, weights.bytes, device, fast_cpu)
    held = held_head(shape, params, device, fast_cpu)
    dense = held_blocks(shape, params, device, fast_cpu)
    if held:
        formula = f"hidden {shape.hidden_size} x vocabulary {shape.vocab_size} x 4, held"
        weights = weights.evolve(
            bytes=found.weights - dense, formula=f"{weights.formula}; {formula}"
        )
    runtime = _runtime(shape, device)
    if found.runtime > runtime.bytes:
        formula = f"{runtime.formula}, and holes of the heap"
        runtime = runtime.evolve(bytes=found.runtime, formula=formula)
    kept: tuple[MemoryPart, ...] = (weights,)
    if dense:
        formula = f"{dense // 4} weights of the blocks x 4 bytes"
        kept += (MemoryPart(name=DENSE, bytes=dense, formula=formula),)
    parts = (*kept, *_step_parts(shape, params, size, found), runtime)
    step = sum(part.bytes for part in parts)
    more = found.weights + found.trained + found.runtime + found.after - step
    if more > 0:
        name, what = UPDATE, "gradients behind the backward pass take"
        if device.startswith("torch"):
            name, what = SAVING, "a checkpoint in memory takes"
        formula = f"{what} this much more than all that a step held before"
        parts = (*parts, MemoryPart(name=name, bytes=more, formula=formula))
    more = _making(shape, params, device) - sum(part.bytes for part in parts)
    if more > 0:
        formula = "making the re-quantised copy takes this much more than the training"
        parts = (*parts, MemoryPart(name=REQUANTISING, bytes=more, formula=formula))
    return _sum(parts, device, unknown=_unknown(shape))


def _step_parts(
    shape: ModelShape, params: QLoRA, size: Size, found: Terms
) -> tuple[MemoryPart, ...]:
    """Adapter, activations, and whichever of loss and block is the larger moment."""
    batch = f"{size.batch} x {size.length} tokens"
    blocks = trained_blocks(shape, params)
    what = "weights'" if params.fine_tune_type is FineTune.FULL else "adapter's"
    count = trained_parameters(shape, params)
    trained = f"{count} of the {what} parameters with gradient, {params.optimizer.value}'s moments"
    again = params.recomputed(blocks)
    whole = f"blocks x {batch}, hidden {shape.hidden_size}, inner {inner_width(shape)}"
    kept = f"{blocks} {whole}"
    if again:
        kept = f"inputs of {again} checkpointed blocks: {batch} x hidden {shape.hidden_size}"
        kept += f"; {blocks - again} {whole}" if again < blocks else ""
    parts = [
        MemoryPart(name=ADAPTER, bytes=found.trained, formula=trained),
        MemoryPart(name=ACTIVATIONS, bytes=found.kept, formula=kept),
    ]
    if found.loss + found.head >= found.block + found.scores:
        targets = size.tokens if shape.dense_logits else size.targets
        loss = f"{targets} positions x vocabulary {shape.vocab_size}, several times"
        dense = f"hidden {shape.hidden_size} x vocabulary {shape.vocab_size}, dense"
        parts.append(MemoryPart(name=LOSS, bytes=found.loss, formula=loss))
        parts.append(MemoryPart(name=SCRATCH, bytes=found.head, formula=dense))
    else:
        scores = f"{size.batch} x {shape.num_heads} heads x {size.length}^2, one block at a time"
        if found.block:
            parts.append(MemoryPart(name=BLOCK, bytes=found.block, formula=f"one block, {batch}"))
        parts.append(MemoryPart(name=SCORES, bytes=found.scores, formula=scores))
    return tuple(parts)


def _unknown(shape: ModelShape) -> tuple[str, ...]:
    odd = block_of(shape).unknown
    return (f"blocks with tensors of more than two axes ({odd[0]})",) if odd else ()


def estimate_loading(
    shape: ModelShape,
    *,
    quantize_bits: int | None = None,
    device: str = "cpu",
    fast_cpu: bool = True,
) -> MemoryEstimate:
    """What it takes to have the model loaded and nothing else: the least a limit must allow."""
    parts = (_weights(shape, quantize_bits, device, fast_cpu), _runtime(shape, device))
    return _sum(parts, device)


def estimate_evaluation(
    shape: ModelShape,
    *,
    max_seq_length: int,
    batch_size: int = 1,
    quantize_bits: int | None = None,
    device: str = "cpu",
    fast_cpu: bool = True,
) -> MemoryEstimate:
    """Losses of a batch without a backward pass: weights, one layer's results, and the logits.

    On MLX's fast CPU path the rows are on several threads, and logits are made in tiles beside a
    dense output layer; fitted to the peaks of six models, from 4 % to 13 % over them.
    """
    if device != "cpu" or not fast_cpu or shape.dense_logits:
        return estimate_forward(
            shape,
            max_seq_length=max_seq_length,
            batch_size=batch_size,
            quantize_bits=quantize_bits,
            device=device,
            fast_cpu=fast_cpu,
        )
    params = QLoRA(batch_size=batch_size, quantize_bits=quantize_bits)
    size = Size(batch_size, max_seq_length, batch_size * max_seq_length)
    head = held_head(shape, params, device, fast_cpu)
    found = step_terms(shape, params, size, device=device, fast_cpu=fast_cpu)
    layer = _one_layer(shape, batch_size, max_seq_length)
    passing = sum(part.bytes for part in layer)
    loose = min(round(LOOSE * passing), MOST_LOOSE_BYTES) + THREADS_BYTES
    parts = (
        _weights(shape, quantize_bits, device, fast_cpu),
        *layer,
        MemoryPart(name=LOSS, bytes=found.loss, formula=f"tiles of {size.tokens} positions"),
        MemoryPart(
            name=SCRATCH, bytes=head + found.head, formula="the output layer, dense as far as held"
        ),
        MemoryPart(name=LEFT, bytes=loose, formula="holes of the heap, and the rows' threads"),
        _runtime(shape, device),
    )
    return _sum(parts, device)


def estimate_forward(
    shape: ModelShape,
    *,
    max_seq_length: int,
    batch_size: int = 1,
    quantize_bits: int | None = None,
    device: str = "cpu",
    fast_cpu: bool = True,
) -> MemoryEstimate:
    """A pass over whole sequences as frameworks make it: weights, one layer's results, logits
    twice."""
    tokens = batch_size * max_seq_length
    parts = (
        _weights(shape, quantize_bits, device, fast_cpu),
        *_one_layer(shape, batch_size, max_seq_length),
        MemoryPart(
            name=LOSS,
            bytes=2 * tokens * shape.vocab_size * 4,
            formula=f"2 x {tokens} positions x vocabulary {shape.vocab_size} x 4 bytes",
        ),
        _runtime(shape, device),
    )
    return _sum(parts, device)


def _one_layer(shape: ModelShape, rows: int, length: int) -> tuple[MemoryPart, MemoryPart]:
    tokens = rows * length
    width = round(PASSING_HIDDEN * shape.hidden_size + PASSING_WIDTH * inner_width(shape)) // 4
    scores = rows * shape.num_heads * length**2 * 4
    return (
        MemoryPart(
            name=ACTIVATIONS, bytes=tokens * width * 4, formula=f"{tokens} tokens x {width} x 4"
        ),
        MemoryPart(name=SCORES, bytes=2 * scores, formula="2 copies, one layer at a time"),
    )


def check_before(estimate: MemoryEstimate, limit: int) -> RunFailure | None:
    """The memory gate's first layer: a failure with its numbers, or None when it fits."""
    over = estimate.total_bytes - limit
    if over <= 0:
        return None
    parts = sorted(estimate.parts, key=lambda part: -part.bytes)
    biggest = ", ".join(f"{part.name} {gb(part.bytes)}" for part in parts[:3])
    fixed = sum(part.bytes for part in parts if part.name in (WEIGHTS, BASELINE))
    if fixed > limit:
        hint = (
            f"loading the model alone needs about {gb(fixed)}: "
            "use a smaller or more heavily quantised model, or raise memory_limit in OBJECTIVE.md"
        )
    else:
        hint = _hint(parts, over)
    return RunFailure(
        kind=FailureKind.MEMORY_GATE,
        layer=MemoryLayer.BEFORE,
        stop=MemoryStop.PREFLIGHT,
        message=(
            f"the estimate of {gb(estimate.total_bytes)} is {gb(over)} over the limit of "
            f"{gb(limit)}; largest parts: {biggest}"
        ),
        needed_bytes=estimate.total_bytes,
        limit_bytes=limit,
        hint=hint,
    )


def gb(size: int) -> str:
    """Decimal gigabytes for people."""
    return f"{size / 1e9:.2f} GB" if size < 100e9 else f"{size / 1e9:.0f} GB"


WEIGHTS = "weights"
DENSE = "dense weights"
ADAPTER = "adapter, gradients and optimizer"
ACTIVATIONS = "activations"
SCORES = "attention scores"
LOSS = "logits and cross entropy"
SCRATCH = "dequantised scratch"
BASELINE = "runtime"
BLOCK = "one block on its way back"
LEFT = "left by passes before"
SAVING = "saving"
UPDATE = "update"
REQUANTISING = "re-quantising"


PASSING_HIDDEN, PASSING_WIDTH = 17.3, 5.78
"""Bytes a token of what one layer makes where no gradient is traced, for each of the hidden size
and of its inner widths; as seen."""
LOOSE, MOST_LOOSE_BYTES, THREADS_BYTES = 0.45, 33_000_000, 15_000_000
"""Of an evaluation on the fast CPU path: the heap's holes as a share of a layer's results, and what
it holds besides; as seen."""

UNPACKING_BYTES = 100_000_000
"""Integers and floats of the rows that the PyTorch backend unpacks at once, as seen."""


def _hint(parts: list[MemoryPart], over: int) -> str:
    """What to do about a step that needs `over` bytes too many; `parts` from large to small."""
    if any(part.name == DENSE for part in parts):
        return _advice(DENSE)
    smaller = [part for part in parts if part.name != BASELINE]
    # What a training decides before what a model is, where that can be enough.
    enough = (part for part in smaller if part.name != WEIGHTS and part.bytes > over)
    if (one := next(enough, None)) is not None:
        return _advice(one.name)
    return f"{_advice(smaller[0].name)}, or raise memory_limit in OBJECTIVE.md"


def _advice(part: str) -> str:
    if part == DENSE:
        return "without dense_weights: the same training in more time"
    if part in (ACTIVATIONS, BLOCK):
        return "smaller batch_size with grad_accumulation_steps, grad_checkpoint, fewer num_layers"
    if part in (LOSS, SCORES):
        return "smaller batch_size with grad_accumulation_steps, or a shorter max_seq_length"
    if part in (ADAPTER, SAVING, UPDATE):
        return "a smaller rank, fewer num_layers, or fine_tune_type lora where it is full"
    if part == REQUANTISING:
        return "a model that is stored with quantize_bits bits already"
    return "a smaller or more heavily quantised model (quantize_bits 4 or less)"


def _weights(
    shape: ModelShape, quantize_bits: int | None, device: str, fast_cpu: bool
) -> MemoryPart:
    if device.startswith("torch"):
        parameters = shape.parameters + shape.other_parameters
        formula = f"4 bytes x {parameters} parameters (float32)"
        dense = 4 * parameters
        if shape.bits is None:
            return MemoryPart(name=WEIGHTS, bytes=dense, formula=formula)
        formula += ", and as stored beside them while dequantising"
        return MemoryPart(
            name=WEIGHTS, bytes=dense + shape.weight_bytes + UNPACKING_BYTES, formula=formula
        )
    wide = device == "cpu" and fast_cpu
    stored = shape.weight_bytes
    if quantize_bits is not None and quantize_bits != shape.bits:
        packed = _packed(shape, quantize_bits, 4 if wide else 2)
        formula = f"re-quantised to {quantize_bits} bits, with a scale and bias per group"
        return MemoryPart(name=WEIGHTS, bytes=packed, formula=formula)
    if shape.bits is not None:
        # Scales and biases of every group are floats; the float32 path widens them.
        group = shape.group_size or 64
        floats = 2 * shape.parameters // group
        loaded = stored + (2 * floats if wide else 0)
        formula = "as stored" + (", scales widened to float32" if wide else "")
    elif wide:
        loaded = max(stored, 4 * shape.parameters)
        formula = f"4 bytes x {shape.parameters} parameters (float32 on the CPU)"
    else:
        loaded, formula = stored, "as stored"
    return MemoryPart(name=WEIGHTS, bytes=loaded, formula=formula)


def _packed(shape: ModelShape, bits: int, itemsize: int) -> int:
    group = shape.group_size or 64
    return shape.parameters * bits // 8 + 2 * itemsize * shape.parameters // group


def _making(shape: ModelShape, params: QLoRA, device: str) -> int:
    """The peak of the process that re-quantises once, beside the worker that waits for it."""
    bits = params.quantize_bits
    if bits is None or bits == shape.bits or device.startswith("torch"):
        return 0
    largest = shape.hidden_size * max(shape.vocab_size, shape.intermediate_size)
    return (
        shape.weight_bytes
        + _packed(shape, bits, 4)
        + 8 * largest
        + 2 * runtime_bytes(shape, device)
    )


def _runtime(shape: ModelShape, device: str) -> MemoryPart:
    formula = f"interpreter, libraries and tokenizer on {device}"
    return MemoryPart(name=BASELINE, bytes=runtime_bytes(shape, device), formula=formula)


def _sum(
    parts: tuple[MemoryPart, ...], device: str, unknown: tuple[str, ...] = ()
) -> MemoryEstimate:
    total = sum(part.bytes for part in parts)
    runtime = sum(part.bytes for part in parts if part.name == BASELINE)
    return MemoryEstimate(
        total_bytes=total,
        parts=parts,
        device=device,
        method=METHOD,
        mlx_peak_bytes=total - runtime,
        unknown=unknown,
    )
