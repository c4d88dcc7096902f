"""Numbers and names the way every plan writes them."""

from __future__ import annotations

from oodatcaa.domain.memory import ModelShape
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import DatasetRecord, Machine


def size(count: float) -> str:
    """Decimal units, like the memory limit: 2400000000 -> `2.40 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} bytes"


def count(number: float) -> str:
    return f"{number:,.0f}"


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def setting(params: QLoRA) -> str:
    """`rank 16, alpha 32 (scale 2), last 8 layers, batch 4 x 512 tokens, 40 iterations, …`"""
    layers = "all layers" if params.num_layers == -1 else f"last {params.num_layers} layers"
    batch = f"batch {params.batch_size} x {params.max_seq_length} tokens"
    if params.packing:
        batch += " packed"
    if params.grad_accumulation_steps > 1:
        batch += f" accumulated {params.grad_accumulation_steps} times"
    extras = []
    if params.grad_checkpoint:
        extras.append(f"gradient checkpointing {params.checkpointing}".removesuffix(" on"))
    if params.dense_weights:
        extras.append("the blocks' weights held as float32")
    if params.cache_frozen:
        extras.append("what frozen blocks make of an example kept on disk")
    if params.quantize_bits is not None:
        extras.append(f"base model re-quantised to {params.quantize_bits} bits")
    return ", ".join(
        [
            f"rank {params.rank}",
            f"alpha {params.alpha:g} (scale {params.scale:g})",
            layers,
            batch,
            f"{params.iters} iterations = {plural(params.optimizer_steps, 'optimizer step')}",
            f"learning rate {params.learning_rate:g}",
            *extras,
        ]
    )


def machine_line(machine: Machine) -> str:
    blas = f", BLAS {machine.blas}" if machine.blas else ""
    return (
        f"{plural(machine.cpu_count, 'CPU')} ({machine.processor}), "
        f"{size(machine.memory_bytes)} memory, accelerator {machine.accelerator}{blas}"
    )


def model_line(name: str, shape: ModelShape | None, error: str | None) -> str:
    if error is not None:
        return f"{name}: could not be read ({error})"
    if shape is None:
        return f"{name}: not read yet"
    bits = f"{shape.bits}-bit" if shape.bits else "not quantised"
    return (
        f"{name}: {shape.model_type}, {count(shape.parameters)} parameters, {bits}, "
        f"{plural(shape.num_layers, 'layer')}, {size(shape.weight_bytes)} of weights"
    )


def data_line(dataset: DatasetRecord | None) -> str:
    if dataset is None:
        return "not built yet"
    counts = ", ".join(f"{name} {s.examples:,}" for name, s in sorted(dataset.splits.items()))
    longest = dataset.longest
    tail = f", longest example {longest:,} tokens" if longest else ""
    return f"{dataset.name}: {counts} examples{tail}, sha256 {dataset.sha256[:12]}"
