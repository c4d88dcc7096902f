"""The axolotl backend: its configuration, its command line, and a clear no where it can not run.

There is no NVIDIA card here and axolotl is a program of others: a script in its place leaves the
files that its trainer leaves.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from oodatcaa.domain.qlora import FineTune, Optimizer, QLoRA
from oodatcaa.domain.training import LossPoint, RunStatus, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.axolotl.backend import AxolotlBackend
from oodatcaa.training.axolotl.worker import write_config
from oodatcaa.training.protocol import WorkerResult
from oodatcaa.training.runs import RunStore
from tiny_model import make_tiny_data, make_tiny_model

SRC = Path(__file__).parents[2] / "src"
PARAMS = QLoRA(
    rank=4, alpha=8, num_layers=2, iters=6, grad_accumulation_steps=2, batch_size=2, save_every=4
)
SCRIPT = """#!/bin/sh
test "$1 $2" = "train axolotl.yaml" || exit 9
mkdir -p axolotl/checkpoint-3
echo weights > axolotl/adapter_model.safetensors
echo '{}' > axolotl/adapter_config.json
cat > axolotl/checkpoint-3/trainer_state.json <<END
{"global_step": 3, "log_history": [{"step": 1, "loss": 2.5}, {"step": 3, "loss": 1.5},
 {"step": 3, "eval_loss": 1.75}, {"step": 3, "train_runtime": 2.0}]}
END
"""


class Folders:
    """Models are folders here."""

    def resolve(self, model: str) -> Path:
        return Path(model)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TrainSpec:
    place = tmp_path_factory.mktemp("axolotl")
    model = make_tiny_model(place / "model", quantized=False)
    return TrainSpec(
        backend="axolotl",
        model=str(model),
        data_dir=str(make_tiny_data(place / "data")),
        params=PARAMS,
    )


def test_the_configuration_says_what_the_spec_says(spec: TrainSpec, tmp_path: Path) -> None:
    config = yaml.safe_load(write_config(tmp_path, spec).read_text())
    assert config["adapter"] == "lora"
    assert (config["lora_r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.0)
    assert config["peft_layers_to_transform"] == [1, 2]
    assert (config["max_steps"], config["save_steps"]) == (3, 2)
    assert config["datasets"][0]["type"] == "chat_template"
    assert config["train_on_inputs"] is False
    assert (config["sample_packing"], "attn_implementation" in config) == (False, False)
    packed = spec.evolve(params=PARAMS.evolve(packing=True))
    config = yaml.safe_load(write_config(tmp_path, packed).read_text())
    assert (config["sample_packing"], config["eval_sample_packing"]) == (True, False)
    four = spec.evolve(params=PARAMS.evolve(quantize_bits=4, keys=("self_attn.q_proj",)))
    config = yaml.safe_load(write_config(tmp_path, four).read_text())
    assert (config["adapter"], config["load_in_4bit"]) == ("qlora", True)
    assert config["lora_target_modules"] == ["q_proj"]


@pytest.mark.skipif(not importlib.util.find_spec("axolotl"), reason="axolotl is not installed")
def test_axolotls_own_schema_takes_it(spec: TrainSpec, tmp_path: Path) -> None:
    from axolotl.utils.schemas.config import AxolotlInputConfig

    config = yaml.safe_load(write_config(tmp_path, spec).read_text())
    unknown = set(config) - set(AxolotlInputConfig.model_fields)
    assert unknown == set()
    AxolotlInputConfig.model_validate(config)
    packed = spec.evolve(params=PARAMS.evolve(packing=True))
    config = yaml.safe_load(write_config(tmp_path, packed).read_text())
    assert set(config) - set(AxolotlInputConfig.model_fields) == set()
    found = AxolotlInputConfig.model_validate(config)
    assert found.attn_decontaminates_packing


def test_what_axolotl_can_not_do_is_said_all_at_once(spec: TrainSpec, tmp_path: Path) -> None:
    params = QLoRA(
        alpha=8.5, optimizer=Optimizer.ADAM, fine_tune_type=FineTune.FULL, quantize_bits=8,
        num_layers=9, select_best=True,
    )  # fmt: skip
    quantized = make_tiny_model(tmp_path / "q")
    with pytest.raises(OodatcaaError, match=r"train\.bad_params") as caught:
        write_config(tmp_path, spec.evolve(params=params, model=str(quantized)))
    said = "\n".join(caught.value.details)
    for word in ("quantised for MLX", "8", "whole numbers", "adam", "full", "9", "select_best"):
        assert word in said


def test_its_command_line_is_run_and_what_it_left_is_read(spec: TrainSpec, tmp_path: Path) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "axolotl").write_text(SCRIPT)
    (bin_folder / "axolotl").chmod(0o755)
    store = RunStore(tmp_path / "runs")
    folder = store.folder(store.create(spec))
    environment = {
        **os.environ,
        "PYTHONPATH": str(SRC),
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "oodatcaa.training.axolotl.worker", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = WorkerResult.model_validate(json.loads((folder / "result.json").read_text()))
    assert result.status is RunStatus.FINISHED
    assert (result.iterations_done, result.optimizer_steps) == (6, 3)
    assert result.train_losses == (
        LossPoint(iteration=2, loss=2.5),
        LossPoint(iteration=6, loss=1.5),
    )
    assert result.valid_losses == (LossPoint(iteration=6, loss=1.75),)
    assert (folder / "adapters" / "adapter_model.safetensors").read_text() == "weights\n"
    assert len(result.adapter_sha256 or "") == 64


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a card")
def test_without_a_card_it_says_no(spec: TrainSpec, tmp_path: Path) -> None:
    backend = AxolotlBackend(RunStore(tmp_path / "runs"), Folders())
    with pytest.raises(OodatcaaError, match="NVIDIA card") as caught:
        backend.train(spec)
    assert "mlx or hf" in caught.value.hint
    assert backend.runs.list().runs == ()
    assert backend.probe().problem
    assert "axolotl" in backend.estimate(spec).method
