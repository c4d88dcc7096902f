"""The Hugging Face backend from outside: real tiny runs on the CPU, the same gate and records.

`make test-hf` runs these in an environment of their own; elsewhere they are skipped.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oodatcaa.domain.ports import TrainingBackend
from oodatcaa.domain.qlora import FineTune, Optimizer, QLoRA
from oodatcaa.domain.training import FailureKind, RunRecord, RunStatus, TrainProgress, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.pool.manager import ModelPoolManager
from oodatcaa.training.backend import HfBackend
from oodatcaa.training.forecast import ProbeCache
from oodatcaa.training.mlx.infer import ENGINE
from oodatcaa.training.reservation import Reservations
from oodatcaa.training.runs import RunStore
from oodatcaa.views import training_docs
from pool_places import Folders as Places
from tiny_model import make_tiny_data, make_tiny_model
from typing_in import type_in
from views import samples

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

MB = 1_000_000
SMALL = QLoRA(
    rank=4, alpha=8, iters=7, batch_size=2, num_layers=2, max_seq_length=64,
    grad_accumulation_steps=2, steps_per_eval=4, val_batches=2, save_every=2, learning_rate=2e-3,
)  # fmt: skip


class Folders:
    """Models are folders here."""

    def resolve(self, model: str) -> Path:
        return Path(model)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def tiny(place: Path) -> Path:
    return make_tiny_model(place / "float", quantized=False)


@pytest.fixture(scope="module")
def spec(place: Path, tiny: Path) -> TrainSpec:
    data = make_tiny_data(place / "data")
    return TrainSpec(backend="hf", model=str(tiny), data_dir=str(data), params=SMALL)


@pytest.fixture(scope="module")
def backend(place: Path) -> HfBackend:
    return HfBackend(
        RunStore(place / "runs"),
        Folders(),
        reservations=Reservations(place / "ledger"),
        probes=ProbeCache(place / "probes"),
    )


@pytest.fixture(scope="module")
def told() -> list[TrainProgress]:
    return []


@pytest.fixture(scope="module")
def run(backend: HfBackend, spec: TrainSpec, told: list[TrainProgress]) -> RunRecord:
    done = backend.train(spec, on_progress=told.append)
    assert done.failure is None, done.failure
    return done


def test_it_is_a_training_backend_that_says_what_it_has(backend: HfBackend) -> None:
    port: TrainingBackend = backend
    assert port.name == "hf"
    found = port.probe()
    assert found.importable
    assert found.problem is None
    assert found.accelerator in ("cpu", "cuda", "metal")


def test_a_run_ends_with_a_whole_record_in_its_own_folder(
    backend: HfBackend, run: RunRecord, told: list[TrainProgress]
) -> None:
    assert run.status is RunStatus.FINISHED
    assert run.backend == "hf"
    assert (run.iterations_done, run.optimizer_steps) == (7, 4)
    assert [point.iteration for point in run.train_losses] == list(range(1, 8))
    assert run.valid_losses[-1].loss < run.valid_losses[0].loss
    assert [point.iteration for point in run.valid_losses] == [0, 4, 7]
    assert 0.8 <= (run.estimated_peak_bytes or 0) / (run.peak_memory_bytes or 1) <= 1.25
    assert run.peak_memory_bytes == max(run.process_peak_bytes or 0, run.mlx_peak_bytes or 0)
    assert run.versions["torch"] == torch.__version__
    assert run.versions["peft"]
    folder = backend.runs.folder(run)
    assert folder.parent.name == "hf"
    names = {path.name for path in folder.iterdir()}
    assert {"spec.json", "memory.jsonl", "metrics.jsonl", "train.log", "lora_config.yaml"} <= names
    assert backend.runs.latest("hf") == run
    assert backend.runs.find(run.run_id) == run
    assert {progress.run_id for progress in told} == {run.run_id}
    assert backend.reservations.holders() == ()


def test_the_adapter_is_one_that_peft_loads(backend: HfBackend, run: RunRecord) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapters = backend.runs.folder(run) / "adapters"
    config = json.loads((adapters / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert config["layers_to_transform"] == [1, 2]
    base = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapters))
    changed = [t for name, t in model.named_parameters() if "lora_B" in name and t.abs().max() > 0]
    assert len(changed) == 14


def test_a_checkpointed_step_needs_what_is_estimated(backend: HfBackend, spec: TrainSpec) -> None:
    params = SMALL.evolve(
        batch_size=8, max_seq_length=1024, grad_accumulation_steps=1, num_layers=1,
        grad_checkpoint=True, mask_prompt=False,
    )  # fmt: skip
    large = spec.evolve(data_dir="-", params=params)
    estimated = backend.estimate(large).total_bytes
    measured = backend.forecast(large, budget=8 * 1024)
    assert measured.source == "probe"
    assert 0.85 < estimated / measured.total_bytes < 1.15


def test_an_estimate_by_hand_is_measured_with_this_backend(tmp_path: Path, spec: TrainSpec) -> None:
    words = ["--backend", "hf", "--model", spec.model, "--data", spec.data_dir, "--limit", "4GB"]
    words += ["--batch-size", "2", "--num-layers", "1", "--rank", "2", "--probe", "--json"]
    place = tmp_path / "place"
    place.mkdir()
    answer = type_in(place, "estimate", *words, OODATCAA_PROBES=str(tmp_path / "probes"))
    assert answer.code == 0, answer.text
    found = json.loads(answer.out)
    assert found["backend"] == "hf"
    assert (found["estimate"]["source"], found["fits"]) == ("probe", True)
    assert found["estimate"]["device"].startswith("torch-")


@pytest.mark.parametrize("quantised", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_the_model_card_says_loads_what_was_trained(
    backend: HfBackend, spec: TrainSpec, tiny: Path, tmp_path: Path, quantised: bool
) -> None:
    from oodatcaa.training.hf.setup import load_base, put_on_adapter

    model = make_tiny_model(tmp_path / "quantised") if quantised else tiny
    run = backend.train(spec.evolve(model=str(model), params=SMALL.evolve(iters=2)))
    assert run.failure is None, run.failure
    card = training_docs.model_card(
        title="x", model_name="tiny", mlx_quantised=quantised, run=run, dataset=samples.DATASET
    )
    adapters = backend.runs.folder(run) / "adapters"
    for shown, there in (
        ("path/to/tiny", model),
        (f"models/runs/hf/{run.run_id}", adapters.parent),
    ):
        (tmp_path / shown).parent.mkdir(parents=True)
        (tmp_path / shown).symlink_to(there)
    ids = torch.arange(8)[None]
    tried = "model.eval(); ids = torch.arange(8)[None]\nprint(model(ids).logits.tolist())\n"
    said = ""
    for language, code in re.findall(r"```(bash|python)\n(.*?)```", card, re.DOTALL):
        tool = ["bash", "-ec", code] if language == "bash" else [sys.executable, "-c", code + tried]
        said = _said(tool, tmp_path)
    wanted = put_on_adapter(load_base(str(model))[0], adapters)(ids).logits
    torch.testing.assert_close(torch.tensor(json.loads(said.splitlines()[-1])), wanted)


def _said(command: list[str], folder: Path) -> str:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": tools}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pool_computes_what_peft_computes(
    backend: HfBackend, run: RunRecord, tiny: Path, tmp_path: Path
) -> None:
    """The run's adapter, and others that PEFT itself wrote: patterns, rsLoRA, DoRA."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "def add_3(x):\n    return x + 3\n"
    tokens = torch.tensor([AutoTokenizer.from_pretrained(tiny).encode(text)])

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)

    folders = [backend.runs.folder(run) / "adapters"]
    common: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    others: tuple[dict[str, Any], ...] = (
        {"use_dora": True},
        {"use_rslora": True, "rank_pattern": {"down_proj": 6}, "alpha_pattern": {"q_proj": 3}},
    )
    for number, more in enumerate(others):
        torch.manual_seed(number)
        model = get_peft_model(
            base(), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **common, **more)
        )
        folders.append(tmp_path / str(number))
        model.save_pretrained(folders[-1])
    with ModelPoolManager(ENGINE, Places(), log_dir=tmp_path) as pool:
        bare = pool.score(str(tiny), None, [text])
        for folder in folders:
            model = PeftModel.from_pretrained(base(), str(folder))
            expected = float(model(input_ids=tokens, labels=tokens).loss)
            score = pool.score(str(tiny), folder, [text])
            assert score.loss == pytest.approx(expected, rel=1e-3), folder
            assert score.loss != pytest.approx(bare.loss, rel=1e-3), folder


def test_a_forecast_is_measured_and_the_next_one_known(
    backend: HfBackend, spec: TrainSpec, run: RunRecord
) -> None:
    found = backend.forecast(spec)
    assert found.source == "probe"
    assert found.device.startswith("torch-")
    assert 0.9 < found.total_bytes / (run.process_peak_bytes or 1) < 1.2
    assert backend.forecast(spec) == found


def test_what_it_does_not_offer_is_said_all_at_once(backend: HfBackend, spec: TrainSpec) -> None:
    params = SMALL.evolve(
        fine_tune_type=FineTune.FULL, optimizer=Optimizer.MUON, num_layers=9, keys=("nothing",)
    )
    run = backend.train(spec.evolve(params=params))
    assert run.failure is not None
    assert run.failure.kind is FailureKind.BAD_INPUT
    for word in ("full", "muon", "9", "nothing"):
        assert word in run.failure.message
    with pytest.raises(OodatcaaError, match="mismatch"):
        backend.train(spec.evolve(backend="mlx"))
