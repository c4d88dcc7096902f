"""The other sides of bench_train: PEFT on PyTorch, stock mlx_lm, and a bare mlx-lm trainer.

`train_sides.py SIDE FOLDER` reads FOLDER/work.json. `peft` and `stock` begin again without the
environment that our own children get: it is not part of their documented configuration.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

CLEAN = "BENCH_TRAIN_CLEAN"
LINEAR = [
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
]
OURS = ("MKL_", "OMP_", "MALLOC_", "TOKENIZERS_")


def clean(threads: int) -> None:
    """Run this very program again as a user of those tools would."""
    if os.environ.get(CLEAN):
        return
    environment = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    environment |= {CLEAN: "1", "OMP_NUM_THREADS": str(threads)}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def dense(folder: Path, work: dict[str, Any]) -> None:
    """The model as float32, for PEFT: what backend hf computes with."""
    del folder
    from oodatcaa.training.hf.setup import load_base

    network, tokenizer = load_base(work["model"])
    network.save_pretrained(work["dense"])
    tokenizer.save_pretrained(work["dense"])


def peft(folder: Path, work: dict[str, Any]) -> None:
    """transformers and PEFT as documented: labels to the model, AdamW, float32, MKL-DNN."""
    clean(work["threads"])
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(work["threads"])
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(work["dense"])
    network = AutoModelForCausalLM.from_pretrained(work["dense"], dtype=torch.float32)
    network.config.use_cache = False
    count = network.config.num_hidden_layers
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=work["rank"],
        lora_alpha=work["alpha"],
        target_modules=LINEAR,
        layers_to_transform=list(range(count - work["layers"], count)),
    )
    model = get_peft_model(network, config)
    model.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=work["rate"]
    )
    lines = (Path(work["data"]) / "train.jsonl").read_text().splitlines()
    rows = [tokenizer.encode(json.loads(line)["text"])[: work["length"]] for line in lines]
    seconds = []
    for step in range(work["steps"]):
        began = time.perf_counter()
        first = step * work["batch"] % len(rows)
        inputs = torch.tensor(rows[first : first + work["batch"]])
        loss = model(input_ids=inputs, labels=inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - began)
    tokens = work["batch"] * (work["length"] - 1)
    answer(folder, {"seconds": seconds, "tokens": tokens, "loss": float(loss)})


def stock(folder: Path, work: dict[str, Any]) -> None:
    """`mlx_lm.lora -c` with the options of our own run, as it is installed.

    What it reports is taken before it is rounded for the screen (below 0.5 tokens a second: 0).
    """
    clean(work["threads"])
    import mlx.core as mx
    from mlx_lm import cli_ui, lora

    seconds: list[float] = []
    counts = [0]
    told = cli_ui.TrainUI.report_train

    def report(self: Any, it: int, loss: float, rate: float, total: int) -> None:
        told(self, it, loss, rate, total)
        seconds.append((total - counts[-1]) / rate)
        counts.append(total)

    cli_ui.TrainUI.report_train = report
    sys.argv = ["mlx_lm.lora", "-c", work["config"]]
    lora.main()
    tokens = counts[-1] - counts[-2]
    answer(folder, {"seconds": seconds, "tokens": tokens, "mlx_peak": mx.get_peak_memory()})


def bare(folder: Path, work: dict[str, Any]) -> None:
    """mlx-lm's trainer with our mathematics, with and without what we do after each step."""
    from oodatcaa.domain.training import TrainSpec
    from oodatcaa.training.mlx.blas import preload

    blas = preload()
    from mlx_lm.tuner import trainer as stock_trainer

    from oodatcaa.training.mlx import trainer

    spec = TrainSpec.model_validate(work["spec"])
    run = trainer.Run(folder, spec, blas)
    inside: list[float] = []
    with_us: list[float] = []
    without: list[float] = []
    told = trainer._Steps.on_train_loss_report

    def timed(self: Any, info: dict[str, Any]) -> None:
        began = time.perf_counter()
        told(self, info)
        inside.append(time.perf_counter() - began)

    def both(**options: Any) -> None:
        args, per = options["args"], work["per"]
        for _ in range(args.iters // (2 * per)):
            options["args"] = stock_trainer.TrainingArgs(
                **{**vars(args), "iters": per, "steps_per_save": per + 1}
            )
            began = time.perf_counter()
            stock_trainer.train(**options)
            with_us.append((time.perf_counter() - began) / per)
            quiet = {**options, "training_callback": None}
            began = time.perf_counter()
            stock_trainer.train(**quiet)
            without.append((time.perf_counter() - began) / per)
            monitor = run.monitor
            assert monitor is not None
            monitor.segment(monitor.iteration)

    trainer._Steps.on_train_loss_report = timed  # type: ignore[method-assign]
    trainer.train = both
    result = run.train()
    if result.failure is not None:
        raise SystemExit(result.failure.message)
    step = statistics.median(without)
    ratios = [a / b for a, b in zip(with_us[1:], without[1:], strict=True)]
    answer(
        folder,
        {
            "step": step,
            "inside": statistics.median(inside[1:]) / step,
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "pairs": len(ratios),
        },
    )


def answer(folder: Path, found: dict[str, Any]) -> None:
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (folder / "answer.json").write_text(json.dumps({**found, "maxrss": own}))


if __name__ == "__main__":
    place = Path(sys.argv[2])
    sides = {"dense": dense, "peft": peft, "stock": stock, "bare": bare}
    sides[sys.argv[1]](place, json.loads((place / "work.json").read_text()))
