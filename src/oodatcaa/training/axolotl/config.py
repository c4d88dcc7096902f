"""A TrainSpec under the names of axolotl's configuration (AxolotlInputConfig, version 0.19)."""

from __future__ import annotations

from typing import Any

from oodatcaa.domain.memory import ModelShape
from oodatcaa.domain.qlora import FineTune, LrSchedule, Optimizer
from oodatcaa.domain.training import TrainSpec
from oodatcaa.errors import OodatcaaError

OPTIMIZERS = {
    Optimizer.ADAMW: "adamw_torch",
    Optimizer.SGD: "sgd",
    Optimizer.ADAFACTOR: "adafactor",
    Optimizer.MUON: "muon",
}
SCHEDULES = {
    LrSchedule.CONSTANT: "constant_with_warmup",
    LrSchedule.COSINE: "cosine",
    LrSchedule.LINEAR: "linear",
}


def axolotl_config(spec: TrainSpec, shape: ModelShape, rows: str, output: str) -> dict[str, Any]:
    """What `axolotl train` reads. `rows` is the data's form: `messages`, `prompt` or `text`.

    Steps are optimizer steps, where ours are micro-steps. Raises OodatcaaError `train.bad_params`
    listing everything that axolotl can not do.
    """
    p = spec.params
    problems = _problems(spec, shape, rows)
    if problems:
        raise OodatcaaError(
            "train.bad_params",
            f"this spec is not one that axolotl can run: {problems[0]}",
            hint="change it in OBJECTIVE.md, or use backend hf",
            details=problems,
        )
    accumulate = p.grad_accumulation_steps
    config: dict[str, Any] = {
        "base_model": spec.model,
        "datasets": [_dataset(spec, "train", rows)],
        "test_datasets": [_dataset(spec, "valid", rows)],
        "val_set_size": 0.0,
        "dataset_prepared_path": f"{output}/prepared",
        "output_dir": output,
        "train_on_inputs": not p.mask_prompt,
        "sequence_len": p.max_seq_length,
        "excess_length_strategy": "truncate",
        "sample_packing": p.packing,
        "group_by_length": False,
        "micro_batch_size": p.batch_size,
        "gradient_accumulation_steps": accumulate,
        "max_steps": p.optimizer_steps,
        "learning_rate": p.learning_rate,
        "lr_scheduler": SCHEDULES[p.schedule],
        "warmup_steps": p.warmup_steps,
        "optimizer": OPTIMIZERS[p.optimizer],
        "weight_decay": p.weight_decay,
        "seed": p.seed,
        "bf16": "auto",
        "gradient_checkpointing": p.grad_checkpoint,
        "logging_steps": _steps(p.steps_per_report, accumulate),
        "eval_steps": _steps(p.steps_per_eval, accumulate),
        "save_steps": _steps(p.save_every, accumulate),
        "save_total_limit": p.keep_checkpoints,
    }
    if p.packing:
        # Of axolotl's ways to keep packed examples apart, the one that needs nothing but PyTorch.
        config |= {"attn_implementation": "flex_attention", "pad_to_sequence_len": True}
        config["eval_sample_packing"] = False
    if p.fine_tune_type is not FineTune.FULL:
        config |= _adapter(spec, shape)
    return config


def _adapter(spec: TrainSpec, shape: ModelShape) -> dict[str, Any]:
    p = spec.params
    four = p.quantize_bits == 4
    config: dict[str, Any] = {
        "adapter": "qlora" if four else "lora",
        "load_in_4bit": four,
        "lora_r": p.rank,
        "lora_alpha": int(p.alpha),
        "lora_dropout": p.dropout,
        "peft_use_dora": p.fine_tune_type is FineTune.DORA,
    }
    if p.keys is None:
        config["lora_target_linear"] = True
    else:
        config["lora_target_modules"] = sorted({key.rpartition(".")[2] for key in p.keys})
    if p.num_layers >= 0:
        blocks = range(shape.num_layers - p.num_layers, shape.num_layers)
        config["peft_layers_to_transform"] = list(blocks)
    return config


def _dataset(spec: TrainSpec, split: str, rows: str) -> dict[str, Any]:
    data: dict[str, Any] = {
        "path": f"{spec.data_dir}/{split}.jsonl",
        "ds_type": "json",
        "split": "train",
    }
    if rows == "text":
        return {**data, "type": "completion", "field": "text"}
    return {
        **data,
        "type": "chat_template",
        "field_messages": "messages",
        "message_property_mappings": {"role": "role", "content": "content"},
        # Ours masks everything before the last answer.
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }


def _problems(spec: TrainSpec, shape: ModelShape, rows: str) -> list[str]:
    p = spec.params
    problems = []
    if shape.bits is not None:
        problems.append("the model is quantised for MLX; name its original folder")
    if p.quantize_bits not in (None, 4):
        problems.append(f"quantize_bits is {p.quantize_bits}: axolotl offers 4 here")
    if p.alpha != int(p.alpha):
        problems.append(f"alpha is {p.alpha:g}: axolotl takes whole numbers")
    if p.optimizer not in OPTIMIZERS:
        problems.append(f"optimizer {p.optimizer.value}: use {', '.join(OPTIMIZERS)}")
    if p.fine_tune_type is FineTune.FULL:
        problems.append("fine_tune_type is full: only lora and dora are wired to axolotl")
    if p.num_layers > shape.num_layers or p.num_layers == 0:
        problems.append(f"num_layers is {p.num_layers}, the model has {shape.num_layers} blocks")
    if rows == "prompt":
        problems.append("the data are prompt and completion: write them as messages")
    if p.grad_checkpoint_layers is not None:
        problems.append("grad_checkpoint_layers: axolotl recomputes every block, leave it out")
    if p.selects:
        problems.append("select_best and early stopping are not wired to axolotl")
    return problems


def _steps(iterations: int, accumulate: int) -> int:
    return max(1, iterations // accumulate)
