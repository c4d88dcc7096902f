"""What a training step holds at its peak, term by term, from a model's shape alone.

The structure follows from reverse-mode differentiation: frozen weights get no gradient; every
trained block keeps what its backward pass needs, or only its input where it is checkpointed; then
comes the larger of two moments, the output layer's loss or one block on its way back. The
constants are fitted to measured peaks (`make bench-memory` prints how well they hold).
"""

from __future__ import annotations

import functools
import importlib.metadata
from dataclasses import dataclass, replace

from oodatcaa.domain.memory import BlockShape, Matrix, ModelShape
from oodatcaa.domain.qlora import FineTune, Optimizer, QLoRA
from oodatcaa.training.identity import cores

PAD_TO = 32
"""Rows of a batch are padded to a multiple of this."""
EVALUATED = 4
"""Examples whose losses are computed together in an evaluation."""
TARGETS_TO = 64
"""Target positions of a batch are padded to a multiple of this."""
STATE_COPIES = {
    Optimizer.ADAM: 2.0,
    Optimizer.ADAMW: 2.0,
    Optimizer.SGD: 1.0,
    Optimizer.MUON: 1.0,
    Optimizer.ADAFACTOR: 0.05,
}
"""Moments per trained parameter; Adafactor keeps a row and a column instead of a matrix."""
UPDATE_COPIES = {Optimizer.ADAFACTOR: 2.0, Optimizer.MUON: 2.0}
"""Temporaries while the optimizer works; one unless named here."""
RUNTIME_BYTES = {"cpu": 150_000_000, "metal": 500_000_000, "cuda": 1_200_000_000}
RUNTIME_BYTES |= {f"torch-{name}": 270_000_000 + size for name, size in RUNTIME_BYTES.items()}
"""Interpreter, libraries and the supervisor's process. Only the CPU's was measured."""
TOKENIZER_FACTOR = 2
"""A loaded tokenizer per byte of its tokenizer.json."""


@dataclass(frozen=True)
class Kind:
    """What differs between float32 on the CPU and half precision on a GPU, in bytes."""

    itemsize: int
    hidden: float
    attention: float
    """Of the queries, keys, values and what attention makes of them, together."""
    width: float
    """Of what else a block's matrices make."""
    kept_scores: float
    scores: float
    head_copies: int
    """Dense copies of a quantised output layer."""
    mask: int = 2
    mask_each: int = 0
    """Of a score of packed rows' mask, once and in every block."""
    dora: float = 0
    """Of the matrices' sides, for the products before DoRA scales them."""
    scratch: int = 0
    """For each part of a batch, however small."""


AT_ONCE = Kind(
    itemsize=4,
    hidden=20,
    attention=7.6,
    width=5.9,
    kept_scores=4,
    scores=9,
    head_copies=1,
    mask=6,
    dora=1.65,
    scratch=9_000_000,
)
"""float32 where layers evaluate as they are met: everything is kept, so nothing comes on top but
a block that is computed again, what the gradient of one block's scores takes, and buffers.
Fitted to MLX's own count of 220 steps of the 56 trainings of docs/benchmarks.md that leave their
logits as they are (Llama, Qwen2, Gemma)."""
LOADED_HOLES, STEP_HOLES, MOST_HOLES = 0.14, (0.02, 0.11), 45_000_000
"""Of the heap where layers evaluate as they are met: as a share of what is loaded and trained, and
of the rest, with one part of a batch and with several side by side. With these what the processes
of those trainings held beside MLX's count is met with a standard deviation of 6 MB."""
HALF = Kind(
    itemsize=2,
    hidden=14.9,
    attention=4.13,
    width=4.13,
    kept_scores=1.73,
    scores=12,
    head_copies=0,
)
"""HALF was fitted on the CPU build in bfloat16; on Metal it is not measured."""


CHUNK_BYTES = 16 << 20
"""Float32 logits of one chunk of the loss: large enough for an efficient product, small because
MLX allocates ahead of what has been computed."""
LEAST_ROWS = 32
TILE_BYTES, MOST_TILE_ROWS, MOST_COLUMNS = 2 << 20, 2048, 4096
"""Float32 logits of one tile of the loss where layers are evaluated as they are met: small enough
for the processor's cache, large enough for an efficient product (1, 2 and 4 MB were tried)."""
AHEAD, MOST_AHEAD = 10, 70
"""Of a chunk's logits, so many buffers were seen at once in a graph of MLX's CPU device, which
allocates ahead; as long as a GPU is not measured, seven times as many are counted there."""
BACK = {FineTune.LORA: 1.3, FineTune.DORA: 1.8, FineTune.FULL: 2.0}
"""Of what a block keeps, what is there while it goes back alone, where layers evaluate as they are
met and it is computed again; by the same fit. Gradients of DoRA need each product with and without
its scale."""
HELD_HEAD_BYTES = 256_000_000
"""On the CPU an output layer up to this size is held in float32: dequantising it every step takes
as long as multiplying with it."""


@dataclass(frozen=True)
class Size:
    """A batch: `targets` of its positions carry loss."""

    batch: int
    length: int
    targets: int

    @property
    def tokens(self) -> int:
        return self.batch * self.length


@dataclass(frozen=True)
class Terms:
    """Bytes. `kept` grows with tokens and trained blocks; `loss` and `block` are never there
    together, so only the larger counts; nor are those and `kept` there with `after`, which comes
    behind the backward pass."""

    weights: int
    trained: int
    kept: int
    loss: int
    block: int
    scores: int
    head: int
    runtime: int
    after: int

    @property
    def moment(self) -> int:
        """The larger of the two moments at the end of the forward pass."""
        return max(self.loss + self.head, self.block + self.scores)


@functools.cache
def mlx_version() -> tuple[int, ...]:
    """The installed mlx; without one the newest behaviour is assumed."""
    try:
        parts = importlib.metadata.version("mlx").split(".")[:3]
    except importlib.metadata.PackageNotFoundError:
        return (999,)
    return tuple(int(part) if part.isdigit() else 0 for part in parts)


def loss_copies(version: tuple[int, ...]) -> int:
    """Float tensors of the logits' shape that stock cross entropy holds at once."""
    return 4 if version >= (0, 32, 1) else 3


WHOLE_COPIES, CAPPED_COPIES = (4, 9), 8
"""Float tensors of the logits' shape where layers evaluate as they are met and a model changes its
logits: without and with blocks that are computed again, for which all of it is evaluated while MLX
keeps what it evaluates; and what a soft cap adds. Fitted to five peaks of processes, which it meets
within 8 %; the soft cap to MLX's own count of four steps."""


TORCH = Kind(
    itemsize=4,
    hidden=30,
    attention=6,
    width=6,
    kept_scores=0,
    scores=0,
    head_copies=0,
    mask=10,
    mask_each=4,
)
"""PyTorch with attention fused (scaled_dot_product_attention) and PEFT's layers, in float32.
Fitted to 12 peaks on the CPU (Llama, Qwen2, Gemma; with and without checkpointing), which it meets
within 9 %; a probe says more."""
TORCH_LOSS_COPIES = 4
"""Float tensors of the logits' shape that PyTorch's cross entropy and its gradient hold."""


def at_once(device: str, fast_cpu: bool) -> bool:
    """Whether the worker evaluates layers as they are met (`training/mlx/vector.py`)."""
    return device == "cpu" and fast_cpu


def parts(params: QLoRA, rows: int, device: str, fast_cpu: bool) -> int:
    """How many parts of a batch of `rows` go through the model side by side, each with the
    intermediate arrays of its own rows (`training/mlx/parallel.py`).

    Full fine-tuning stays in one: another gradient of all weights would be there for each part.
    """
    if not at_once(device, fast_cpu) or params.fine_tune_type is FineTune.FULL:
        return 1
    return max(1, min(rows, cores()))


MISSED = 0.75
"""Of the share by which a part of a batch is shorter than the longest one, what of its memory is
gone again when that one needs most; the same fit."""


def at_once_share(rows: int, together: int) -> float:
    """Of a batch's `rows`, dealt to `together` parts as evenly as can be, how many are in memory at
    the largest moment: a shorter part is on its way back by then."""
    shorter, longer_parts = divmod(max(1, rows), together)
    if not longer_parts:
        return 1.0
    longer = shorter + 1
    there = shorter * (1 - MISSED * (1 - shorter / longer))
    return (longer_parts * longer + (together - longer_parts) * there) / rows


def kind_for(device: str, fast_cpu: bool) -> Kind:
    if device.startswith("torch"):
        return TORCH
    return AT_ONCE if at_once(device, fast_cpu) else HALF


def held_head(shape: ModelShape, params: QLoRA, device: str, fast_cpu: bool) -> int:
    """Bytes of the output layer's float32 copy that the worker holds all the time."""
    quantised = shape.bits is not None or params.quantize_bits is not None
    size = 4 * shape.hidden_size * shape.vocab_size
    wanted = device == "cpu" and fast_cpu and quantised and not shape.dense_logits
    return size if wanted and size <= HELD_HEAD_BYTES else 0


def held_blocks(shape: ModelShape, params: QLoRA, device: str, fast_cpu: bool) -> int:
    """Bytes of the float32 copies of the blocks' matrices with `dense_weights`."""
    quantised = shape.bits is not None or params.quantize_bits is not None
    if not (params.dense_weights and device == "cpu" and fast_cpu and quantised):
        return 0
    every = shape.blocks or (block_of(shape),) * shape.num_layers
    count = sum(m.rows * m.columns for block in every for m in block.matrices)
    return 4 * count


def tile_columns(rows: int) -> int:
    """Of the output layer, whose logits for so many rows make one tile of the loss."""
    return max(1, min(TILE_BYTES // (4 * max(1, rows)), MOST_COLUMNS))


def chunk_bytes(shape: ModelShape) -> int:
    """Logits of one chunk of the loss."""
    return 4 * shape.vocab_size * max(LEAST_ROWS, CHUNK_BYTES // (4 * shape.vocab_size))


def _loss(shape: ModelShape, params: QLoRA, size: Size, device: str, fast_cpu: bool) -> int:
    """What the output layer's cross entropy takes at its peak."""
    torch = device.startswith("torch")
    whole = shape.changed_logits if torch else shape.dense_logits
    targets = size.tokens if whole else size.targets
    logits = round_up(targets, TARGETS_TO) * shape.vocab_size * 4
    if torch:
        return TORCH_LOSS_COPIES * logits
    if shape.dense_logits:
        if not at_once(device, fast_cpu):
            return loss_copies(mlx_version()) * logits
        capped = CAPPED_COPIES if shape.capped_logits else 0
        return (WHOLE_COPIES[params.grad_checkpoint] + capped) * logits
    if at_once(device, fast_cpu):
        together = parts(params, size.batch, device, fast_cpu)
        rows = min(-(-targets // together), MOST_TILE_ROWS)
        tile = 4 * rows * min(tile_columns(rows), shape.vocab_size)
        # Two of a tile; the rows' gradient, what is added to it, and the targets' own rows.
        return together * (2 * tile + 4 * 4 * rows * shape.hidden_size)
    return min((AHEAD if device == "cpu" else MOST_AHEAD) * chunk_bytes(shape), logits)


def block_of(shape: ModelShape) -> BlockShape:
    """The widest of the last blocks; a Llama-like one where the tensors showed none."""
    if shape.blocks:
        return max(shape.blocks, key=lambda block: block.parameters)
    hidden, wide = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    matrices = tuple(Matrix(name=n, rows=r, columns=c) for n, (r, c) in sizes.items())
    return BlockShape(matrices=matrices, parameters=sum(m.rows * m.columns for m in matrices))


def trained_blocks(shape: ModelShape, params: QLoRA) -> int:
    return params.trained_blocks(shape.num_layers)


def adapted(shape: ModelShape, params: QLoRA) -> tuple[Matrix, ...]:
    """The matrices of one block that get an adapter."""
    matrices = block_of(shape).matrices
    if params.keys is None:
        return matrices
    return tuple(
        m
        for m in matrices
        if any(m.name == key or m.name.endswith(f".{key}") for key in params.keys)
    )


def trained_parameters(shape: ModelShape, params: QLoRA) -> int:
    """Parameters with a gradient: rank x (in + out) of every adapted matrix, or whole blocks."""
    blocks = trained_blocks(shape, params)
    if params.fine_tune_type is FineTune.FULL:
        return blocks * block_of(shape).parameters
    matrices = adapted(shape, params)
    count = params.rank * sum(m.rows + m.columns for m in matrices)
    if params.fine_tune_type is FineTune.DORA:
        count += sum(m.rows for m in matrices)
    return blocks * count


def inner_width(shape: ModelShape) -> int:
    """Sum over a block's matrices of the side that is not the residual stream's."""
    hidden = shape.hidden_size
    return sum(m.rows if m.columns == hidden else m.columns for m in block_of(shape).matrices)


def terms(
    shape: ModelShape, params: QLoRA, size: Size, weights: int, device: str, fast_cpu: bool
) -> Terms:
    """All terms of one step; `weights` is what the loaded model takes."""
    kind = kind_for(device, fast_cpu)
    blocks = trained_blocks(shape, params)
    quantised = shape.bits is not None or params.quantize_bits is not None
    inner = inner_width(shape)
    attention = min(inner, 2 * (shape.num_heads + shape.num_kv_heads) * shape.head_dim)
    sides = kind.attention * attention + kind.width * (inner - attention)
    if params.fine_tune_type is FineTune.DORA:
        sides += kind.dora * inner
    layer = round(size.tokens * (kind.hidden * shape.hidden_size + sides))
    scores = size.batch * shape.num_heads * size.length**2
    mask = size.batch * size.length**2 if params.packing else 0
    one = layer + round(kind.kept_scores * scores) + _dora(shape, params, kind)
    one += _masks(shape, params, size, kind)
    one += kind.mask_each * mask
    trained = trained_parameters(shape, params)
    again = params.recomputed(blocks)
    inputs = again * size.tokens * shape.hidden_size * kind.itemsize
    largest = max((m.rows * m.columns for m in block_of(shape).matrices), default=0)
    dense_blocks = held_blocks(shape, params, device, fast_cpu)
    matrix = kind.itemsize * largest if quantised and kind.head_copies and not dense_blocks else 0
    together = parts(params, size.batch, device, fast_cpu)
    dense = (2 * matrix + kind.scratch) * together
    head = _head(shape, size, kind, together)
    held = held_head(shape, params, device, fast_cpu)
    at_a_moment = there = 1.0
    if kind is AT_ONCE:
        there = at_once_share(size.batch, together)
        # Parts of a batch come to the same block at different times.
        at_a_moment = -(-size.batch // together) / max(1, size.batch)
        # The trace holds what other blocks have kept until it ends.
        back = round(BACK[params.fine_tune_type] * there * one)
        block = (back if again else 0) + dense
    else:
        # What blocks above have kept is gone again when the first one is computed a second time.
        block = (2 * one if again == blocks else one) + dense
    found = Terms(
        weights=weights + held + dense_blocks,
        # Every part has a gradient before they are added up.
        trained=round(4 * trained * (_copies(params, kind) + together - 1)),
        kept=inputs + round((blocks - again) * there * one) + kind.mask * mask,
        loss=_loss(shape, params, size, device, fast_cpu),
        block=block,
        scores=round(kind.scores * scores * at_a_moment),
        head=head if quantised and not held else 0,
        runtime=runtime_bytes(shape, device),
        after=_after(trained, params, device, fast_cpu),
    )
    if kind is not AT_ONCE:
        return found
    holes = LOADED_HOLES * (found.weights + found.trained)
    holes += STEP_HOLES[together > 1] * (found.kept + found.moment)
    return replace(found, runtime=found.runtime + min(round(holes), MOST_HOLES))


def _after(trained: int, params: QLoRA, device: str, fast_cpu: bool) -> int:
    """PyTorch's checkpoints are made in memory; MLX's are written a tensor at a time. Gradients of
    all weights may be more than what was kept for them."""
    if device.startswith("torch"):
        return round(4 * trained * (1.2 * max(1.0, STATE_COPIES[params.optimizer])))
    if params.fine_tune_type is not FineTune.FULL or not at_once(device, fast_cpu):
        return 0
    update = UPDATE_COPIES.get(params.optimizer, 1.0)
    if params.grad_accumulation_steps > 1:
        # Weights and moments of the last window's end stay, for a checkpoint, beside the new ones.
        update = 1 + STATE_COPIES[params.optimizer]
    already = 0 if _gradients_last(params, kind_for(device, fast_cpu)) else 1
    return round(4 * trained * max(0.0, update - already))


def _gradients_last(params: QLoRA, kind: Kind) -> bool:
    """Whether there are few gradients yet at the largest moment of a step. A block that is computed
    again comes after those of the blocks above it."""
    return kind is AT_ONCE and params.fine_tune_type is FineTune.FULL and not params.grad_checkpoint


def _head(shape: ModelShape, size: Size, kind: Kind, together: int) -> int:
    """A quantised output layer as float32 while it is multiplied with."""
    columns = shape.vocab_size
    if kind is AT_ONCE and not shape.dense_logits:
        # The tile, and two of its intermediate stages.
        rows = min(-(-size.targets // together), MOST_TILE_ROWS)
        columns = min(columns, 3 * together * tile_columns(rows))
    return kind.head_copies * kind.itemsize * shape.hidden_size * columns


def _copies(params: QLoRA, kind: Kind) -> float:
    """float32 copies of the trained parameters at a step's largest moment: gradient, moments,
    update; the weights themselves too, unless they are the model's own."""
    accumulated = 1 if params.grad_accumulation_steps > 1 else 0
    state = STATE_COPIES[params.optimizer] + accumulated
    if _gradients_last(params, kind):
        return state
    update = UPDATE_COPIES.get(params.optimizer, 1.0)
    if params.fine_tune_type is not FineTune.FULL:
        return 1 + 1 + state + update
    return 1 + state + (0 if kind is AT_ONCE else update)


def _dora(shape: ModelShape, params: QLoRA, kind: Kind) -> int:
    """mlx-lm's DoRA builds the adapted weight to take its norm: two dense copies of each matrix."""
    if params.fine_tune_type is not FineTune.DORA or kind is AT_ONCE:
        return 0
    return 2 * kind.itemsize * sum(m.rows * m.columns for m in adapted(shape, params))


def _masks(shape: ModelShape, params: QLoRA, size: Size, kind: Kind) -> int:
    """Dropout's, of one block: those of all blocks that keep their activations are there together
    on the way back where layers evaluate as they are met. Elsewhere they are not known."""
    if not params.dropout or params.fine_tune_type is FineTune.FULL or kind is not AT_ONCE:
        return 0
    return size.tokens * sum(m.columns for m in adapted(shape, params))


def runtime_bytes(shape: ModelShape, device: str) -> int:
    base = RUNTIME_BYTES.get(device, max(RUNTIME_BYTES.values()))
    return base + TOKENIZER_FACTOR * shape.tokenizer_bytes


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step
