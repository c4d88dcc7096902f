"""From a TrainSpec to a PyTorch model with PEFT adapters, an optimizer and learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer

from oodatcaa.domain.qlora import FineTune, LrSchedule, Optimizer, QLoRA
from oodatcaa.domain.training import TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.hf.counters import device
from oodatcaa.training.hf.dequantize import dense_tensors, is_quantized
from oodatcaa.training.protocol import PEFT_ADAPTER_FILE

OPTIMIZERS = {
    Optimizer.ADAM: torch.optim.Adam,
    Optimizer.ADAMW: torch.optim.AdamW,
    Optimizer.SGD: torch.optim.SGD,
}


def load_base(model: str, quantize_bits: int | None = None) -> tuple[Any, Any]:
    """Model (frozen, in eval mode, float32) and tokenizer, from a local folder alone.

    A folder that mlx-lm quantised is dequantised: the same numbers, eight times the memory of
    4 bits. Raises OodatcaaError `model.unreadable`, `train.bad_params`.
    """
    if quantize_bits is not None:
        raise _bad_params(["quantize_bits: backend hf trains beside float32 weights, leave it out"])
    folder = Path(model)
    try:
        network = _dequantized(folder) if is_quantized(folder) else _plain(folder)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OodatcaaError(
            "model.unreadable",
            f"{folder} can not be loaded by transformers: {first}",
            hint="check the folder with `oodatcaa models`, or use backend mlx",
        ) from error
    network.config.use_cache = False
    network.requires_grad_(False)
    return network.to(device()).eval(), tokenizer


def _plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, local_files_only=True
    )


def _dequantized(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    # mlx-lm writes its quantisation under both names; transformers would look for a method.
    for name in ("quantization", "quantization_config"):
        if hasattr(config, name):
            delattr(config, name)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    found = dict(dense_tensors(folder))
    missing, unexpected = network.load_state_dict(found, strict=False, assign=True)
    network.tie_weights()
    lost = [name for name, tensor in network.named_parameters() if tensor.is_meta]
    if lost or unexpected:
        names = ", ".join((lost or list(unexpected))[:3])
        raise ValueError(f"its tensors are not those of a {config.model_type} model: {names}")
    del missing
    _fill_buffers(network, config)
    return network


def _fill_buffers(network: Any, config: Any) -> None:
    """Buffers that no file holds (rotary frequencies) are computed by their modules."""
    empty = {name for name, buffer in network.named_buffers() if buffer.is_meta}
    for name in sorted({full.rpartition(".")[0] for full in empty}):
        module = network.get_submodule(name)
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, type(module)(config=config))


def attach_adapters(network: Any, params: QLoRA) -> Any:
    """LoRA or DoRA on the last `num_layers` blocks.

    Raises OodatcaaError `train.bad_params` listing everything that does not fit.
    """
    blocks = _blocks(network)
    linear = _linear_names(blocks)
    problems = _problems(params, len(blocks), linear)
    if problems:
        raise _bad_params(problems)
    count = len(blocks) if params.num_layers < 0 else params.num_layers
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=params.rank,
        lora_alpha=params.alpha,
        lora_dropout=params.dropout,
        use_dora=params.fine_tune_type is FineTune.DORA,
        target_modules=sorted({name.rpartition(".")[2] for name in params.keys or linear}),
        layers_to_transform=list(range(len(blocks) - count, len(blocks))),
        bias="none",
    )
    return get_peft_model(network, config)


def _blocks(network: Any) -> Any:
    inner = network.get_decoder() if hasattr(network, "get_decoder") else network
    for name in ("layers", "h", "blocks"):
        found = getattr(inner, name, None)
        if isinstance(found, torch.nn.ModuleList):
            return found
    raise OodatcaaError(
        "train.bad_params",
        f"the transformer blocks of a {network.config.model_type} model were not found",
        hint="use backend mlx for this model",
    )


def _linear_names(blocks: Sequence[Any]) -> tuple[str, ...]:
    return tuple(
        name for name, module in blocks[-1].named_modules() if isinstance(module, torch.nn.Linear)
    )


def _problems(params: QLoRA, blocks: int, linear: Sequence[str]) -> list[str]:
    problems = []
    if params.num_layers > blocks:
        problems.append(f"num_layers is {params.num_layers}, the model has {blocks} blocks")
    if params.num_layers == 0:
        problems.append("num_layers is 0, which trains nothing; -1 means every block")
    if params.fine_tune_type is FineTune.FULL:
        problems.append("fine_tune_type is full: backend hf trains lora and dora")
    if params.optimizer not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        problems.append(f"optimizer {params.optimizer.value}: backend hf has {known}")
    for key in params.keys or ():
        if key not in linear:
            problems.append(f"keys: a block has no layer {key!r} (it has {', '.join(linear)})")
    return problems


def _bad_params(problems: Sequence[str]) -> OodatcaaError:
    return OodatcaaError(
        "train.bad_params",
        f"the QLoRA parameters do not fit this model and backend: {problems[0]}",
        hint="change them in OBJECTIVE.md, or plan again with `oodatcaa sprint new`",
        details=problems,
    )


def put_on_adapter(network: Any, folder: Path) -> Any:
    """The network with a finished adapter in PEFT's format; OodatcaaError `adapter.unreadable`."""
    try:
        return PeftModel.from_pretrained(network, str(folder)).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first, *more = str(error).strip().splitlines() or [type(error).__name__]
        raise OodatcaaError(
            "adapter.unreadable",
            f"the adapter in {folder} can not be loaded by PEFT: {first}",
            hint="see the run it came from with `oodatcaa runs`",
            details=more,
        ) from error


def make_optimizer(network: Any, params: QLoRA) -> torch.optim.Optimizer:
    """PyTorch's; AdamW's decay is decoupled, as in Loshchilov & Hutter 2019."""
    trained = [tensor for tensor in network.parameters() if tensor.requires_grad]
    options: dict[str, Any] = {"lr": learning_rate(params, 0)}
    if params.optimizer is not Optimizer.ADAM:
        options["weight_decay"] = params.weight_decay
    return OPTIMIZERS[params.optimizer](trained, **options)


def learning_rate(params: QLoRA, step: int) -> float:
    """Of optimizer step `step`, counted from 0; the course of the mlx backend's schedules."""
    rate, warmup = params.learning_rate, params.warmup_steps
    if warmup:
        if step <= warmup:
            first = rate / (warmup + 1)
            return first + step * (rate - first) / warmup
        step -= warmup + 1
    steps = max(1, params.optimizer_steps - warmup)
    done = min(step, steps) / steps
    match params.schedule:
        case LrSchedule.CONSTANT:
            return rate
        case LrSchedule.COSINE:
            return rate * 0.5 * (1 + math.cos(math.pi * done))
        case LrSchedule.LINEAR:
            return rate * (1 - done)


def described(spec: TrainSpec) -> dict[str, Any]:
    """The run's options under the names of transformers and PEFT, for lora_config.yaml."""
    p = spec.params
    return {
        "base_model": spec.model,
        "data": spec.data_dir,
        "lora": {"r": p.rank, "lora_alpha": p.alpha, "lora_dropout": p.dropout},
        "use_dora": p.fine_tune_type is FineTune.DORA,
        "last_layers": p.num_layers,
        "target_modules": list(p.keys) if p.keys is not None else "every linear layer of a block",
        "seed": p.seed,
        "max_steps": p.optimizer_steps,
        "per_device_train_batch_size": p.batch_size,
        "gradient_accumulation_steps": p.grad_accumulation_steps,
        "learning_rate": p.learning_rate,
        "lr_scheduler_type": p.schedule.value,
        "warmup_steps": p.warmup_steps,
        "optim": p.optimizer.value,
        "weight_decay": p.weight_decay,
        "max_seq_length": p.max_seq_length,
        "gradient_checkpointing": p.grad_checkpoint,
        "gradient_checkpointing_lowest": p.grad_checkpoint_layers,
        "mask_prompt": p.mask_prompt,
        "packing": p.packing,
    }


def checkpoint_blocks(network: Any, params: QLoRA) -> None:
    """Recompute the lowest `params.recomputed()` trained blocks in the backward pass; transformers
    is renaming the method.

    Raises OodatcaaError `train.bad_params` for an architecture whose blocks can not be chosen.
    """
    newer = getattr(network, "activation_checkpointing_enable", None)
    (newer or network.gradient_checkpointing_enable)({"use_reentrant": False})
    # Only reentrant checkpoints need an input with a gradient. It would be traced through the
    # frozen blocks, which then keep their inputs and are computed again and backwards.
    network.disable_input_require_grads()
    blocks = _blocks(network)
    first = len(blocks) - params.trained_blocks(len(blocks))
    last = first + params.recomputed(len(blocks) - first)
    for place, block in enumerate(blocks):
        if isinstance(block, GradientCheckpointingLayer):
            block.gradient_checkpointing = first <= place < last
        elif place >= last:
            raise _bad_params(
                ["grad_checkpoint_layers: transformers recomputes this model's blocks all or none"]
            )


def adapter_config(network: Any, spec: TrainSpec) -> dict[str, Any]:
    """adapter_config.json as PEFT writes it for inference."""
    found = network.peft_config["default"].to_dict()
    config = {
        name: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for name, value in found.items()
    }
    return {**config, "base_model_name_or_path": spec.model, "inference_mode": True}


def load_adapter(network: Any, folder: Path) -> None:
    """Put the adapter of a checkpoint into a network that trains one of the same shape."""
    set_peft_model_state_dict(network, load_file(str(folder / PEFT_ADAPTER_FILE)))
