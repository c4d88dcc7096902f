"""The judge and the inference child, on adapters that a real run made."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tuner.trainer import evaluate as stock_evaluate

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import JUDGED_LENGTH, EvalRequest, EvalResult, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.builder.evaluate import judgement
from oodatcaa.training.comparison import paired_bootstrap
from oodatcaa.training.examples import read_split
from oodatcaa.training.mlx import evaluate as judge
from oodatcaa.training.mlx import setup
from oodatcaa.training.mlx.batches import BatchIterator, tokenize
from oodatcaa.training.mlx.evaluate import evaluate, evaluator_sha256
from oodatcaa.training.mlx.loss import WHOLE, make_loss
from oodatcaa.training.mlx.trainer import Run
from oodatcaa.training.protocol import ADAPTER_FILE, REQUEST_FILE, RESULT_FILE, InferResult
from tiny_model import make_tiny_data, make_tiny_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Model, data and an adapter that learned something."""
    root = tmp_path_factory.mktemp("trained")
    model, data = make_tiny_model(root / "model"), make_tiny_data(root / "data", 24)
    params = {"rank": 8, "num_layers": 3, "iters": 20, "learning_rate": 0.02}
    cadence = {"save_every": 100, "steps_per_eval": 100, "max_seq_length": 64}
    values = {"model": str(model), "data_dir": str(data), "params": {**params, **cadence}}
    (root / "run").mkdir()
    Run(root / "run", TrainSpec.model_validate(values), None).train()
    return {
        "model": str(model),
        "data_dir": str(data),
        "adapter_dir": str(root / "run" / "adapters"),
    }


def request(trained: dict[str, str], **changes: Any) -> EvalRequest:
    return EvalRequest.model_validate({**trained, "max_seq_length": 64, **changes})


def test_base_and_adapter_are_measured_on_the_same_examples(trained: dict[str, str]) -> None:
    result = evaluate(request(trained))

    assert result.examples == 8 == len(result.per_example_base)
    assert result.base_loss is not None
    assert result.adapter_loss is not None
    assert result.drop is not None
    assert result.drop == pytest.approx(result.base_loss - result.adapter_loss)
    assert result.drop_low is not None
    assert result.drop_high is not None
    assert 0.1 < result.drop_low < result.drop < result.drop_high
    assert sum(result.per_example_tokens) == result.target_tokens
    weighted = np.average(result.per_example_adapter, weights=result.per_example_tokens)
    assert weighted == pytest.approx(result.adapter_loss)
    assert result.evaluator_sha256 == evaluator_sha256()
    assert result.adapter_sha256


def test_the_losses_are_those_of_mlx_lms_own_evaluation(trained: dict[str, str]) -> None:
    network, tokenizer = setup.load_base(trained["model"])
    rows = read_split(Path(trained["data_dir"]) / "test.jsonl")
    examples = tokenize(rows, tokenizer, mask_prompt=True, max_seq_length=64).items
    setup.put_on_adapter(network, Path(trained["adapter_dir"]))
    stock = stock_evaluate(
        model=network,
        dataset=examples,
        batch_size=3,
        num_batches=-1,
        max_seq_length=64,
        loss=make_loss(WHOLE),
        iterate_batches=BatchIterator(0),
    )
    assert evaluate(request(trained)).adapter_loss == pytest.approx(stock, rel=1e-4)


def test_options_of_the_request_arrive(
    trained: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OODATCAA_CACHE", str(tmp_path))
    whole = evaluate(request(trained, adapter_dir=None))
    assert (whole.adapter_loss, whole.drop, whole.adapter_sha256) == (None, None, None)
    assert whole.base_loss is not None

    changes: list[dict[str, Any]] = [
        {"split": "valid"},
        {"max_examples": 3},
        {"mask_prompt": False},
    ]
    for change in changes:
        other = evaluate(request(trained, adapter_dir=None, **change))
        assert other.base_loss != whole.base_loss, change
    coarse = evaluate(request(trained, adapter_dir=None, quantize_bits=2))
    assert coarse.base_loss != whole.base_loss


def test_what_the_losses_say_nothing_about_is_counted(
    trained: dict[str, str], tmp_path: Path
) -> None:
    whole = evaluate(request(trained, adapter_dir=None))
    assert (whole.dropped_examples, whole.lost_tokens, whole.unseen) == (0, 0, "")
    rows = read_split(Path(trained["data_dir"]) / "test.jsonl")
    rows[2]["messages"][0]["content"] = "y" * 200
    rows[3]["messages"][1]["content"] = "x = 1\n" * 40
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # transformers overrules the tiny tokenizer's splitting rules, so its own count is asked.
    tokenizer = setup.load_base(trained["model"])[1]
    lengths = [
        len(tokenizer.apply_chat_template(row["messages"], return_dict=False)) for row in rows
    ]
    cut = evaluate(request(trained, adapter_dir=None, data_dir=str(tmp_path)))
    assert (cut.examples, cut.dropped_examples) == (7, 1)
    assert cut.lost_tokens == sum(max(0, length - 64) for length in lengths) > 0
    assert cut.unseen == (
        f"1 example whose prompt fills max_seq_length; {cut.lost_tokens} tokens beyond "
        "max_seq_length"
    )
    longer = evaluate(
        request(trained, adapter_dir=None, data_dir=str(tmp_path), max_seq_length=max(lengths))
    )
    assert (longer.examples, longer.unseen) == (8, "")


def test_a_judge_reads_at_least_what_was_trained_on() -> None:
    for trained_on, judged in ((512, JUDGED_LENGTH), (4096, 4096)):
        params = QLoRA(max_seq_length=trained_on)
        asked = judgement(
            params,
            model="m", adapter_dir="a", data_dir="d", examples=None, memory_limit_bytes=1,
        )  # fmt: skip
        assert (asked.max_seq_length, asked.max_examples) == (judged, None)


def test_an_adapter_of_nan_has_no_loss_at_all(trained: dict[str, str], tmp_path: Path) -> None:
    source = Path(trained["adapter_dir"])
    tensors: Any = mx.load(str(source / ADAPTER_FILE))
    broken = {name: mx.full(t.shape, float("nan")) for name, t in tensors.items()}
    mx.save_safetensors(str(tmp_path / ADAPTER_FILE), broken)
    config = (source / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(config)

    result = evaluate(request(trained, adapter_dir=str(tmp_path)))

    assert result.base_loss is not None
    assert (result.adapter_loss, result.drop, result.drop_low) == (None, None, None)
    assert EvalResult.model_validate_json(result.model_dump_json()) == result


def test_bad_requests_are_one_clear_error(trained: dict[str, str], tmp_path: Path) -> None:
    codes: dict[str, dict[str, Any]] = {
        "memory_gate.during": {"memory_limit_bytes": 1000},
        "adapter.unreadable": {"adapter_dir": str(tmp_path)},
        "data.unreadable": {"data_dir": str(tmp_path)},
        "model.broken": {"model": str(tmp_path), "quantize_bits": 4},
        "model.unreadable": {"model": str(tmp_path)},
    }
    for code, change in codes.items():
        with pytest.raises(OodatcaaError) as caught:
            evaluate(request(trained, **change))
        assert caught.value.code == code
        assert caught.value.hint


losses = st.floats(0.1, 9.0)


@given(st.lists(st.tuples(losses, losses, st.integers(1, 400)), min_size=2, max_size=30))
def test_the_interval_lies_within_what_the_examples_allow(
    pairs: list[tuple[float, float, int]],
) -> None:
    base, adapter, tokens = zip(*pairs, strict=True)
    low, high = paired_bootstrap(base, adapter, tokens, samples=200, seed=1)

    drops = [b - a for b, a, _ in pairs]
    assert min(drops) - 1e-9 <= low <= high <= max(drops) + 1e-9
    again = paired_bootstrap(base, adapter, tokens, samples=200, seed=1)
    assert again == (low, high)


def test_equal_models_have_an_interval_of_exactly_zero() -> None:
    assert paired_bootstrap([1, 2], [1, 2], [5, 6], samples=50, seed=0) == (0.0, 0.0)


def run_child(name: str, folder: Path, content: dict[str, Any]) -> int:
    folder.mkdir(exist_ok=True)
    (folder / REQUEST_FILE).write_text(json.dumps(content))
    command = [sys.executable, "-m", f"oodatcaa.training.mlx.{name}", str(folder)]
    return subprocess.run(command, capture_output=True, timeout=90, check=False).returncode


def test_inference_answers_every_prompt_with_and_without_adapter(
    trained: dict[str, str], tmp_path: Path
) -> None:
    asked = {"model": trained["model"], "prompts": ["Write add_3(x).", "Hi"], "max_tokens": 6}
    texts = []
    for adapter in (None, trained["adapter_dir"]):
        folder = tmp_path / str(adapter is None)
        assert run_child("infer", folder, {**asked, "adapter_dir": adapter}) == 0
        result = InferResult.model_validate_json((folder / RESULT_FILE).read_bytes())
        assert [p.generation.prompt for p in result.probes] == asked["prompts"]
        assert all(0 < p.generation.tokens <= 6 for p in result.probes)
        assert all(p.generation.tokens_per_second > 0 for p in result.probes)
        assert all(p.peak_memory_bytes > 0 and p.load_seconds > 0 for p in result.probes)
        texts.append(result.probes[0].generation.text)
    assert texts[0] != texts[1]


def test_a_childs_error_is_described_in_its_result(trained: dict[str, str], tmp_path: Path) -> None:
    evaluated = {**trained, "adapter_dir": str(tmp_path / "none")}
    assert run_child("evaluate", tmp_path / "e", evaluated) == 3
    error = json.loads((tmp_path / "e" / RESULT_FILE).read_text())["error"]
    assert error["code"] == "adapter.unreadable"
    assert error["hint"]

    assert run_child("evaluate", tmp_path / "r", {"model": 1}) == 3
    error = json.loads((tmp_path / "r" / RESULT_FILE).read_text())["error"]
    assert error["code"] == "child.request"


NOT_OF_A_JUDGE = {"block_attention", "guard", "packed", "prefix", "randomness"}
"""Packed rows, the memory gate, steps with a gradient: no evaluation computes with them."""


def test_the_evaluators_hash_covers_all_that_computes() -> None:
    home = Path(judge.__file__).parent
    package = judge.__name__.rpartition(".")[0]
    seen, todo = set(), [Path(judge.__file__).stem]
    while todo:
        name = todo.pop()
        seen.add(name)
        for node in ast.walk(ast.parse((home / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                said = [f"{node.module}.{item.name}" for item in node.names]
                found = [node.module] if node.module != package else said
                inside = [one.removeprefix(f"{package}.") for one in found if package in one]
                todo += [one for one in inside if one not in seen]
    assert len(seen) > 10
    assert seen - NOT_OF_A_JUDGE == {path.stem for path in judge.JUDGE if path.parent == home}
