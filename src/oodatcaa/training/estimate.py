"""How much memory a training step will need, before anything is loaded.

An estimate, and labelled as one. It is built to err on the high side: a refused run costs a
minute, a run that takes the machine down costs the night. The constants below were fitted to peaks
measured with mlx-lm's trainer (tests/training/test_estimate.py holds the table); the structure
follows from what reverse-mode differentiation has to keep:

- every layer from the first trained one up keeps its intermediate results for the backward pass
  (with gradient checkpointing only its input, plus one layer in full while it is recomputed);
- frozen weights get no gradient, but the LoRA matrices get one, and two Adam moments;
- the loss needs the logits of every position over the whole vocabulary, several times.
"""

from __future__ import annotations

from dataclasses import dataclass

from oodatcaa.domain.training import (
    FailureKind,
    MemoryEstimate,
    MemoryLayer,
    MemoryPart,
    ModelShape,
    QLoRA,
    RunFailure,
)
from oodatcaa.training.shapes import read_shape as read_shape  # one door for both

PAD_TO = 32
"""Rows of a batch are padded to a multiple of this."""
TARGETS_TO = 64
"""Target positions of a batch are padded to a multiple of this."""
LOSS_COPIES = 4
"""Logits, softmax, the gradient's scatter and their sum: what cross entropy holds at once."""
SCORE_COPIES = 4
"""Scores, softmax, their gradient and its product, for the one layer in work."""
HIDDEN_COPIES = 10
"""Tensors of width hidden_size that a block keeps: residuals, norms, projections, LoRA outputs."""
WIDE_COPIES = 6
"""Tensors of width intermediate_size that a block keeps: gate, up, activation, product, LoRA's."""
KV_COPIES = 4
BASELINE_BYTES = {"cpu": 200_000_000, "metal": 500_000_000, "cuda": 1_200_000_000}
"""Interpreter, mlx, tokenizer, BLAS buffers. Only the CPU's was measured (0.145 GB)."""
DENSE_COPIES = 4
"""The largest matrix dequantised: forward, its transpose, again for the backward pass, and load."""
METHOD = "config.json and tensor headers; constants fitted to measured peaks, rounded up"


@dataclass(frozen=True)
class _Step:
    """The sizes that the formulas share."""

    shape: ModelShape
    params: QLoRA
    tokens: int
    targets: int
    length: int
    itemsize: int
    trained_layers: int

    @property
    def q_dim(self) -> int:
        return self.shape.num_heads * self.shape.head_dim

    @property
    def kv_dim(self) -> int:
        return self.shape.num_kv_heads * self.shape.head_dim


def padded_length(max_seq_length: int, seq_length: int | None) -> int:
    """Tokens of the longest row a batch may have, padded and truncated."""
    if seq_length is None:
        return max_seq_length
    return min(_round_up(max(1, seq_length), PAD_TO), max_seq_length)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


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
    length = padded_length(params.max_seq_length, seq_length)
    trained = shape.num_layers if params.num_layers < 0 else params.num_layers
    every = params.batch_size * length
    targets = every if batch_targets is None else min(every, batch_targets)
    step = _Step(
        shape=shape,
        params=params,
        tokens=params.batch_size * length,
        targets=_round_up(targets, TARGETS_TO),
        length=length,
        itemsize=4 if device == "cpu" and fast_cpu else 2,
        trained_layers=min(trained, shape.num_layers),
    )
    parts: tuple[MemoryPart, ...] = (
        _weights(shape, params.quantize_bits, device, fast_cpu),
        _adapter(step),
        _activations(step),
        _scores(step),
        _loss(step),
        _scratch(step, device, fast_cpu),
        _baseline(device),
    )
    more = _making(shape, params, device) - sum(part.bytes for part in parts)
    if more > 0:
        formula = "making the re-quantised copy takes this much more than the training"
        parts = (*parts, MemoryPart(name=REQUANTISING, bytes=more, formula=formula))
    return _sum(parts, device)


def estimate_loading(
    shape: ModelShape,
    *,
    quantize_bits: int | None = None,
    device: str = "cpu",
    fast_cpu: bool = True,
) -> MemoryEstimate:
    """What it takes to have the model loaded and nothing else: the least a limit must allow."""
    return _sum((_weights(shape, quantize_bits, device, fast_cpu), _baseline(device)), device)


def estimate_evaluation(
    shape: ModelShape,
    *,
    max_seq_length: int,
    batch_size: int = 1,
    quantize_bits: int | None = None,
    device: str = "cpu",
    fast_cpu: bool = True,
) -> MemoryEstimate:
    """Computing losses without a backward pass: weights, one layer's results, logits twice."""
    tokens = batch_size * max_seq_length
    width = shape.hidden_size * HIDDEN_COPIES + shape.intermediate_size * WIDE_COPIES
    scores = batch_size * shape.num_heads * max_seq_length**2 * 4
    parts = (
        _weights(shape, quantize_bits, device, fast_cpu),
        MemoryPart(
            name=ACTIVATIONS, bytes=tokens * width * 4, formula=f"{tokens} tokens x {width} x 4"
        ),
        MemoryPart(name=SCORES, bytes=2 * scores, formula="2 copies, one layer at a time"),
        MemoryPart(
            name=LOSS,
            bytes=2 * tokens * shape.vocab_size * 4,
            formula=f"2 x {tokens} positions x vocabulary {shape.vocab_size} x 4 bytes",
        ),
        _baseline(device),
    )
    return _sum(parts, device)


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
        hint = _advice(parts[0].name)
    return RunFailure(
        kind=FailureKind.MEMORY_GATE,
        layer=MemoryLayer.BEFORE,
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
ADAPTER = "adapter, gradients and optimizer"
ACTIVATIONS = "activations"
SCORES = "attention scores"
LOSS = "logits and cross entropy"
SCRATCH = "dequantised scratch"
BASELINE = "runtime"
REQUANTISING = "re-quantising"


def _advice(part: str) -> str:
    if part == ACTIVATIONS:
        return "smaller batch_size with grad_accumulation_steps, grad_checkpoint, fewer num_layers"
    if part in (LOSS, SCORES):
        return "smaller batch_size with grad_accumulation_steps, or a shorter max_seq_length"
    return "quantize_bits 4 or less, a smaller rank, or a smaller model"


def _weights(
    shape: ModelShape, quantize_bits: int | None, device: str, fast_cpu: bool
) -> MemoryPart:
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
    if bits is None or bits == shape.bits:
        return 0
    largest = shape.hidden_size * max(shape.vocab_size, shape.intermediate_size)
    return shape.weight_bytes + _packed(shape, bits, 4) + 8 * largest + 2 * _baseline(device).bytes


def lora_parameters(shape: ModelShape, params: QLoRA) -> int:
    """An upper bound of the adapter's parameters: rank x (in + out) of every adapted matrix."""
    trained = shape.num_layers if params.num_layers < 0 else params.num_layers
    hidden, wide = shape.hidden_size, shape.intermediate_size
    q_dim, kv_dim = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes = {
        "q_proj": hidden + q_dim,
        "k_proj": hidden + kv_dim,
        "v_proj": hidden + kv_dim,
        "o_proj": q_dim + hidden,
        "gate_proj": hidden + wide,
        "up_proj": hidden + wide,
        "down_proj": wide + hidden,
    }
    keys = [key.rpartition(".")[2] for key in params.keys] if params.keys else list(sizes)
    per_layer = sum(sizes.get(key, hidden + max(hidden, wide)) for key in keys)
    return params.rank * per_layer * min(trained, shape.num_layers)


def _adapter(step: _Step) -> MemoryPart:
    count = lora_parameters(step.shape, step.params)
    copies = 5 + (1 if step.params.grad_accumulation_steps > 1 else 0)
    return MemoryPart(
        name=ADAPTER,
        bytes=copies * 4 * count,
        formula=f"{count} parameters x 4 bytes x {copies} (weight, gradient, 2 moments, update)",
    )


def _activations(step: _Step) -> MemoryPart:
    hidden, wide = step.shape.hidden_size, step.shape.intermediate_size
    width = HIDDEN_COPIES * max(hidden, step.q_dim) + KV_COPIES * step.kv_dim + WIDE_COPIES * wide
    layer = step.tokens * width * step.itemsize
    layers = step.trained_layers
    if step.params.grad_checkpoint:
        kept = layers * step.tokens * hidden * step.itemsize + 2 * layer
        formula = f"{layers} layer inputs + 2 layers in full: {step.tokens} tokens x {width}"
    else:
        kept = (layers + 1) * layer
        formula = f"{layers}+1 layers x {step.tokens} tokens x {width} x {step.itemsize} bytes"
    return MemoryPart(name=ACTIVATIONS, bytes=kept, formula=formula)


def _scores(step: _Step) -> MemoryPart:
    size = step.params.batch_size * step.shape.num_heads * step.length**2 * 4
    return MemoryPart(
        name=SCORES,
        bytes=SCORE_COPIES * size,
        formula=(
            f"{SCORE_COPIES} x batch {step.params.batch_size} x {step.shape.num_heads} heads x "
            f"{step.length}^2 x 4 bytes, one layer at a time"
        ),
    )


def _loss(step: _Step) -> MemoryPart:
    return MemoryPart(
        name=LOSS,
        bytes=LOSS_COPIES * step.targets * step.shape.vocab_size * 4,
        formula=(
            f"{LOSS_COPIES} x {step.targets} positions x "
            f"vocabulary {step.shape.vocab_size} x 4 bytes"
        ),
    )


def _scratch(step: _Step, device: str, fast_cpu: bool) -> MemoryPart:
    shape = step.shape
    if shape.bits is None and step.params.quantize_bits is None:
        return MemoryPart(name=SCRATCH, bytes=0, formula="weights are not quantised")
    largest = shape.hidden_size * max(shape.vocab_size, shape.intermediate_size)
    if device == "cpu" and fast_cpu:
        return MemoryPart(
            name=SCRATCH,
            bytes=DENSE_COPIES * 4 * largest,
            formula=f"{DENSE_COPIES} x the largest matrix ({largest} elements) x 4 bytes",
        )
    return MemoryPart(name=SCRATCH, bytes=0, formula="quantised products need none")


def _baseline(device: str) -> MemoryPart:
    size = BASELINE_BYTES.get(device, max(BASELINE_BYTES.values()))
    return MemoryPart(name=BASELINE, bytes=size, formula=f"measured once for {device}, rounded up")


def _sum(parts: tuple[MemoryPart, ...], device: str) -> MemoryEstimate:
    total = sum(part.bytes for part in parts)
    return MemoryEstimate(total_bytes=total, parts=parts, device=device, method=METHOD)
