"""What is trained with, and what it will take: sequence length, options, minutes."""

from __future__ import annotations

import math
from collections.abc import Callable

from oodatcaa.domain.auto_fit import with_cache
from oodatcaa.domain.checkpointing import fewest_recomputed
from oodatcaa.domain.memory import MemoryEstimate, ModelShape
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import DatasetRecord, Machine
from oodatcaa.roles.planner.inputs import ParamOption, PlanInputs
from oodatcaa.roles.planner.wording import count, plural

PAD = 32
"""mlx-lm pads a batch to one more than a multiple of this (mlx_lm/tuner/trainer.py,
`iterate_batches`, 0.32.2): the loss reads width - 1 inputs and as many shifted targets."""

PARAMETER_TOKENS_PER_SECOND = {"metal": 1.5e12, "cuda": 3e12, "cpu": 1.2e10, "cpu-slow": 1.1e9}
"""Planning figures, parameters x trained tokens per second. Metal: mlx-lm's LORA.md reports about
250 tokens/s for a 7B model on an M1 Max. CPU: 125 (with a real BLAS) and 8 tokens/s (without) of a
135M model on two cores. CUDA is a guess of the same kind; a measured run replaces them all."""

LOAD_BYTES_PER_SECOND = 50e6
UNKNOWN_MINUTES = 10


def fitted_length(params: QLoRA, longest: int | None) -> tuple[int, str]:
    """(max_seq_length, one line why): as short as the data allow without cutting anything.

    32 * ceil(longest / 32) + 1 is the width mlx-lm gives a batch with the longest example, so the
    batches are the same as with any larger value. A length that already cuts is left as asked, and
    so is that of packed rows, which are filled with as many examples as they hold.
    """
    asked = params.max_seq_length
    if params.packing:
        return asked, f"{asked} tokens as asked: rows are filled up to it with whole examples"
    if not longest:
        return asked, f"{asked} tokens as asked: no token lengths are known for the data"
    needed = PAD * math.ceil(longest / PAD) + 1
    if asked < longest:
        return asked, (
            f"{asked} tokens as asked: the longest example has {longest}, so it will be cut"
        )
    if needed >= asked:
        return asked, f"{asked} tokens as asked: the longest example has {longest}, nothing is cut"
    return needed, (
        f"lowered from {asked} to {needed} tokens: the longest example has {longest}, mlx-lm pads "
        f"to a multiple of {PAD} plus one; nothing is cut"
    )


def planned_params(
    params: QLoRA, dataset: DatasetRecord | None, cached_of: int | None = None
) -> QLoRA:
    """What a train story's plan will use for `params`; ask the memory estimate for these.

    `cached_of`: the model's blocks, where the backend can keep what the frozen ones make.
    """
    longest = dataset.longest if dataset else None
    found = params.evolve(max_seq_length=fitted_length(params, longest)[0])
    if cached_of is None or dataset is None or "train" not in dataset.splits:
        return found
    return with_cache(found, dataset.splits["train"].examples, cached_of)


def options_for(
    params: QLoRA,
    dataset: DatasetRecord | None,
    *,
    blocks: int | None = None,
    cached: bool = False,
    fits: Callable[[QLoRA], bool] | None = None,
) -> tuple[ParamOption, ...]:
    """The parameters a train story weighs, without estimates: inherited, smaller, larger.

    `smaller` needs less memory for the same optimizer steps over the same examples where the
    batch can be halved; otherwise gradient checkpointing, otherwise half the layers. Where a model
    of so many `blocks` is known, and `fits` says what its estimate allows, it is the largest batch
    that fits; if not one row does, then one with the fewest blocks computed again that fits.
    `cached`: the backend can keep what frozen blocks make, where examples come again.
    """
    base = planned_params(params, dataset, blocks if cached else None)
    smaller, how = _smaller(base)
    if blocks is not None and fits is not None and not fits(base):
        smaller, how = _first_that_fits(base, blocks, fits) or (smaller, how)
    larger = base.evolve(batch_size=base.batch_size * 2)
    return (
        ParamOption(key="inherited", title="Parameters as inherited", params=base),
        ParamOption(key="smaller", title=f"Smaller: {how}", params=smaller),
        ParamOption(key="larger", title=f"Larger: batch {larger.batch_size}", params=larger),
    )


def _smaller(params: QLoRA) -> tuple[QLoRA, str]:
    if params.batch_size > 1:
        factor = math.ceil(params.batch_size / (params.batch_size // 2))
        smaller = params.evolve(
            batch_size=params.batch_size // 2,
            grad_accumulation_steps=params.grad_accumulation_steps * factor,
            iters=params.iters * factor,
        )
        return smaller, f"batch {smaller.batch_size} accumulated {smaller.grad_accumulation_steps}x"
    if not params.grad_checkpoint:
        return params.evolve(grad_checkpoint=True), "gradient checkpointing"
    layers = 8 if params.num_layers < 0 else max(1, params.num_layers // 2)
    return params.evolve(num_layers=layers), f"last {layers} layers"


def _first_that_fits(
    params: QLoRA, blocks: int, fits: Callable[[QLoRA], bool]
) -> tuple[QLoRA, str] | None:
    said = []
    while params.batch_size > 1:
        params, how = _smaller(params)
        said = [how]
        if fits(params):
            return params, how
    trained = params.trained_blocks(blocks)
    again = params.recomputed(trained)
    found = fewest_recomputed(params, trained, fits, more_than=again)
    if found is None:
        return None
    count = found.recomputed(trained)
    return found, ", ".join([*said, f"gradient checkpointing of {count} of {trained} blocks"])


def estimate_for(inputs: PlanInputs, params: QLoRA) -> tuple[MemoryEstimate | None, str]:
    """(estimate, source) for `params`; an estimate for a longer sequence is an upper bound."""
    for option in inputs.options:
        if option.params == params and option.estimate is not None:
            return option.estimate, f"estimated from {option.estimate.method}"
    if inputs.estimate is None:
        return None, "not available"
    known = inputs.estimated_for or inputs.params
    source = f"estimated from {inputs.estimate.method}"
    if known == params:
        return inputs.estimate, source
    longer = known.max_seq_length > params.max_seq_length
    if longer and known.evolve(max_seq_length=params.max_seq_length) == params:
        return inputs.estimate, f"{source}, for {known.max_seq_length} tokens: an upper bound"
    return None, "not available"


def training_tokens(params: QLoRA, dataset: DatasetRecord | None) -> int:
    """Tokens that one run reads: iterations x batch x mean length (or the full length, which
    packed rows have)."""
    mean: float = params.max_seq_length
    if not params.packing and dataset is not None and "train" in dataset.splits:
        measured = dataset.splits["train"].tokens_mean
        mean = min(mean, measured) if measured else mean
    return round(params.iters * params.batch_size * mean)


def training_speed(inputs: PlanInputs) -> tuple[float | None, str]:
    """(tokens/s, where it comes from): a run on this machine, the profile's short run, or a
    planning figure for parameters and device."""
    run = inputs.run
    if run is not None and run.tokens_per_second:
        return run.tokens_per_second, f"measured in run {run.run_id}"
    if inputs.profiled_speed:
        return inputs.profiled_speed, "measured in the memory profile's run"
    if inputs.shape is None:
        return None, "not available"
    rate = PARAMETER_TOKENS_PER_SECOND[_device(inputs.machine)]
    return rate / inputs.shape.parameters, (
        f"planning figure for {count(inputs.shape.parameters)} parameters on "
        f"{inputs.machine.accelerator}"
    )


def _device(machine: Machine) -> str:
    if machine.accelerator == "cpu":
        return "cpu" if machine.blas else "cpu-slow"
    return machine.accelerator if machine.accelerator in PARAMETER_TOKENS_PER_SECOND else "cpu"


def training_minutes(inputs: PlanInputs, params: QLoRA) -> tuple[int, str]:
    """(minutes, derivation in one line) of one training run; an estimate."""
    speed, source = training_speed(inputs)
    if speed is None:
        return UNKNOWN_MINUTES, f"{UNKNOWN_MINUTES} min assumed: no speed is known for this model"
    tokens = training_tokens(params, inputs.dataset)
    minutes = max(1, math.ceil(tokens / speed / 60))
    return minutes, (
        f"about {plural(tokens, 'token')} at {speed:,.0f} tokens/s ({source}) = {minutes} min"
    )


def evaluation_minutes(inputs: PlanInputs) -> tuple[int, str]:
    """(minutes, derivation) of base and adapter over the evaluated examples; an estimate.

    A forward pass alone costs about a third of a training step (Kaplan et al. 2020, section 2.1).
    """
    dataset = inputs.dataset
    speed, source = training_speed(inputs)
    if speed is None or dataset is None or "test" not in dataset.splits:
        return 5, "5 min assumed: test data or speed are not known yet"
    test = dataset.splits["test"]
    examples = min(test.examples, inputs.objective.eval_examples or test.examples)
    tokens = round(2 * examples * (test.tokens_mean or inputs.params.max_seq_length))
    minutes = max(1, math.ceil(tokens / (3 * speed) / 60))
    return minutes, (
        f"{plural(examples, 'example')} twice, about {count(tokens)} tokens at three times "
        f"{speed:,.0f} tokens/s ({source}) = {minutes} min"
    )


def loading_minutes(shape: ModelShape | None) -> int:
    """Reading the weights at 50 MB/s, at least a minute; 5 when the size is not known."""
    return 5 if shape is None else math.ceil(shape.weight_bytes / LOAD_BYTES_PER_SECOND / 60)


def adapter_bytes(shape: ModelShape, params: QLoRA) -> int:
    """float32 bytes of A and B for every linear layer of the adapted blocks: rank * (in + out)."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sides = {
        "q_proj": hidden + queries,
        "k_proj": hidden + keys,
        "v_proj": hidden + keys,
        "o_proj": queries + hidden,
        "gate_proj": hidden + inner,
        "up_proj": hidden + inner,
        "down_proj": inner + hidden,
    }
    wanted = [
        side
        for name, side in sides.items()
        if params.keys is None or any(key.endswith(name) for key in params.keys)
    ]
    layers = shape.num_layers if params.num_layers < 0 else min(params.num_layers, shape.num_layers)
    return 4 * params.rank * sum(wanted) * layers
