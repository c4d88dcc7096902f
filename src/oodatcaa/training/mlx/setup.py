"""From a TrainSpec to a model with adapters, an optimizer, and the files that describe them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import yaml
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.utils import build_schedule, linear_to_lora_layers, load_adapters

from oodatcaa.domain.qlora import FineTune, LrSchedule, Optimizer, QLoRA
from oodatcaa.domain.training import TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.mlx import adapted
from oodatcaa.training.mlx.cpu import fast_cpu, speed_up
from oodatcaa.training.models import ModelStore, unavailable
from oodatcaa.training.protocol import fast_cpu_wanted


def load_base(model: str, quantize_bits: int | None = None) -> tuple[Any, Any]:
    """Model (frozen, in eval mode, CPU measures applied) and tokenizer.

    Raises OodatcaaError `model.unavailable` or `model.unreadable`, never a hub traceback.
    """
    source = model
    if quantize_bits is not None:
        store = ModelStore()
        source = str(store.requantize(Path(store.resolve(model).path_or_hub), quantize_bits))
    try:
        loaded: Any = load(source)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if not Path(source).exists():
            raise unavailable(source, error) from error
        raise OodatcaaError(
            "model.unreadable",
            f"{source} can not be loaded by mlx-lm: {str(error).splitlines()[0]}",
            hint="check the folder with `oodatcaa models`, or convert it with `mlx_lm.convert`",
        ) from error
    network, tokenizer = loaded[0], loaded[1]
    # mlx-lm's load() leaves everything trainable.
    network.freeze()
    if fast_cpu_wanted():
        speed_up(network)
    return network, tokenizer


def lora_parameters(params: QLoRA) -> dict[str, Any]:
    """mlx-lm's `lora_parameters`; its `scale` is alpha / rank."""
    described: dict[str, Any] = {
        "rank": params.rank,
        "scale": params.scale,
        "dropout": params.dropout,
    }
    if params.keys is not None:
        described["keys"] = list(params.keys)
    return described


def attach_adapters(network: Any, params: QLoRA) -> None:
    """Make the last `num_layers` blocks trainable: LoRA or DoRA layers on them, or all weights.

    Raises OodatcaaError `train.bad_params` listing everything that does not fit this model.
    """
    problems = _adapter_problems(network, params)
    if problems:
        raise OodatcaaError(
            "train.bad_params",
            f"the QLoRA parameters do not fit this model: {problems[0]}",
            hint="change them in OBJECTIVE.md, or plan again with `oodatcaa sprint new`",
            details=problems,
        )
    network.freeze()
    if params.fine_tune_type is FineTune.FULL:
        for block in network.layers[-max(params.num_layers, 0) :]:
            block.unfreeze()
        return
    linear_to_lora_layers(
        network,
        params.num_layers,
        lora_parameters(params),
        use_dora=params.fine_tune_type is FineTune.DORA,
    )
    for layer in network.modules():
        if isinstance(layer, DoRALinear):
            # One at a time: each takes the norm of a dense matrix.
            mx.eval(layer.m)
    if fast_cpu():
        adapted.prepare(network)


def _adapter_problems(network: Any, params: QLoRA) -> list[str]:
    problems = []
    blocks = len(network.layers)
    if params.num_layers > blocks:
        problems.append(f"num_layers is {params.num_layers}, the model has {blocks} blocks")
    if params.num_layers == 0:
        # mlx-lm would take layers[-0:], which is all of them.
        problems.append("num_layers is 0, which trains nothing; -1 means every block")
    if params.fine_tune_type is FineTune.FULL and any(
        "scales" in module for module in network.layers[-1].modules()
    ):
        problems.append("fine_tune_type is full, but quantised weights can not be trained")
    if params.fine_tune_type is not FineTune.FULL and params.keys is not None:
        linear = {name for name, module in network.layers[-1].named_modules() if "weight" in module}
        for key in params.keys:
            if key not in linear:
                known = ", ".join(sorted(name for name in linear if "norm" not in name))
                problems.append(f"keys: a block has no layer {key!r} (it has {known})")
    return problems


def adapter_tensors(network: Any) -> dict[str, mx.array]:
    """The trainable tensors by name: exactly what an adapter file holds."""
    return dict(tree_flatten(network.trainable_parameters()))


def put_on_adapter(network: Any, folder: Path) -> None:
    """Load a finished adapter as stock mlx-lm does; OodatcaaError `adapter.unreadable`."""
    try:
        load_adapters(network, str(folder))
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise OodatcaaError(
            "adapter.unreadable",
            f"the adapter in {folder} can not be loaded: {str(error).splitlines()[0]}",
            hint="see the run it came from with `oodatcaa runs`",
            details=str(error).splitlines()[1:],
        ) from error
    network.eval()


def schedule_config(params: QLoRA) -> dict[str, Any] | None:
    """mlx-lm's `lr_schedule`, counted in optimizer steps; None = constant from the first step.

    Warmup starts at lr / (warmup + 1) instead of mlx-lm's 0: short runs have few optimizer steps,
    and the first one would otherwise change nothing.
    """
    rate = params.learning_rate
    steps = max(1, params.optimizer_steps - params.warmup_steps)
    config: dict[str, Any]
    match params.schedule:
        case LrSchedule.CONSTANT:
            if not params.warmup_steps:
                return None
            config = {"name": "linear_schedule", "arguments": [rate, rate, steps]}
        case LrSchedule.COSINE:
            config = {"name": "cosine_decay", "arguments": [rate, steps]}
        case LrSchedule.LINEAR:
            config = {"name": "linear_schedule", "arguments": [rate, 0.0, steps]}
    if params.warmup_steps:
        config["warmup"] = params.warmup_steps
        config["warmup_init"] = rate / (params.warmup_steps + 1)
    return config


OPTIMIZERS = {
    Optimizer.ADAM: optim.Adam,
    Optimizer.ADAMW: optim.AdamW,
    Optimizer.SGD: optim.SGD,
    Optimizer.ADAFACTOR: optim.Adafactor,
    Optimizer.MUON: optim.Muon,
}


def optimizer_config(params: QLoRA) -> dict[str, Any]:
    """mlx-lm's `optimizer_config` for the chosen optimizer.

    MLX leaves Kingma & Ba's bias correction out by default, which makes the first steps more
    than three times the learning rate: in a run of a few optimizer steps, most of the run. An
    Adafactor of relative steps would ignore the learning rate (Shazeer & Stern 2018, section 8).
    """
    decay = {"weight_decay": params.weight_decay}
    match params.optimizer:
        case Optimizer.ADAM:
            return {"bias_correction": True}
        case Optimizer.ADAMW:
            return {**decay, "bias_correction": True}
        case Optimizer.ADAFACTOR:
            return {**decay, "relative_step": False, "scale_parameter": False}
        case Optimizer.SGD | Optimizer.MUON:
            return decay


def make_optimizer(params: QLoRA) -> Any:
    """The optimizer that `mlx_lm.lora` would make from the same lora_config.yaml."""
    schedule = schedule_config(params)
    rate = build_schedule(schedule) if schedule else params.learning_rate
    return OPTIMIZERS[params.optimizer](learning_rate=rate, **optimizer_config(params))


def lora_config(spec: TrainSpec, adapter_path: Path) -> dict[str, Any]:
    """Every option under the name that `mlx_lm.lora -c` reads."""
    p = spec.params
    return {
        "model": spec.model,
        "train": True,
        "fine_tune_type": p.fine_tune_type.value,
        "data": spec.data_dir,
        "adapter_path": str(adapter_path),
        "seed": p.seed,
        "num_layers": p.num_layers,
        "batch_size": p.batch_size,
        "grad_accumulation_steps": p.grad_accumulation_steps,
        "iters": p.iters,
        "val_batches": p.val_batches,
        "learning_rate": p.learning_rate,
        "lr_schedule": schedule_config(p),
        "optimizer": p.optimizer.value,
        "optimizer_config": {p.optimizer.value: optimizer_config(p)},
        "steps_per_report": p.steps_per_report,
        "steps_per_eval": p.steps_per_eval,
        "save_every": p.save_every,
        "max_seq_length": p.max_seq_length,
        "grad_checkpoint": p.grad_checkpoint,
        "mask_prompt": p.mask_prompt,
        "lora_parameters": lora_parameters(p),
    }


UNPACKED = (
    "# The rows were packed, for which mlx_lm.lora has no option: it would train other batches.\n"
)


def lora_yaml(config: dict[str, Any], *, packing: bool = False) -> str:
    header = (
        "# The options of this run under mlx-lm's names: mlx_lm.lora -c lora_config.yaml\n"
        "# scale = alpha / rank; iters are micro-steps; lr_schedule counts optimizer steps.\n"
    )
    header += UNPACKED if packing else ""
    return header + yaml.safe_dump(config, sort_keys=False)
