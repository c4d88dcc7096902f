"""What keeps a folder from being served as an adapter: everything at once, and never a crash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.pool.manager import ModelPoolManager
from oodatcaa.pool.validate import validate_adapter
from oodatcaa.training.mlx.infer import ENGINE
from pool_places import Folders
from tiny_adapters import KEYS, make_adapter, make_peft_adapter
from tiny_model import make_tiny_model

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


def problems(folder: Path, base: Path) -> str:
    with pytest.raises(OodatcaaError) as caught:
        validate_adapter(folder, base)
    assert caught.value.code == "pool.adapter"
    assert caught.value.hint
    return "\n".join(caught.value.details)


def test_a_sound_adapter_is_described(tiny: Path, tmp_path: Path) -> None:
    info = validate_adapter(make_adapter(tmp_path / "a", rank=4), tiny)
    assert info.adapter_path == str((tmp_path / "a").resolve())
    assert (info.rank, info.scale, info.num_layers, info.dialect) == (4, 8.0, 2, "mlx")
    assert info.keys == tuple(sorted(KEYS))
    assert info.size_bytes == sum(t.nbytes for t in load_file(tmp_path / "a" / WEIGHTS).values())
    assert len(info.content_hash) == 64
    assert info.warnings == ()

    again = validate_adapter(make_adapter(tmp_path / "b", rank=4, seed=1), tiny)
    assert again.content_hash != info.content_hash
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    config["lora_parameters"]["scale"] = 2.0
    (tmp_path / "a" / CONFIG).write_text(json.dumps(config))
    assert validate_adapter(tmp_path / "a", tiny).content_hash != info.content_hash


def test_pefts_dialect_is_the_same_adapter(tiny: Path, tmp_path: Path) -> None:
    info = validate_adapter(make_peft_adapter(tmp_path, rank=4), tiny)
    assert (info.rank, info.scale, info.num_layers, info.dialect) == (4, 8.0, 2, "peft")
    assert info.keys == tuple(sorted(KEYS))
    assert all(module.transposed for module in info.modules)


def test_peft_ranks_and_scales_may_differ_per_layer(tiny: Path, tmp_path: Path) -> None:
    folder = make_peft_adapter(tmp_path, rank=4)
    config = json.loads((folder / CONFIG).read_text())
    config |= {"use_rslora": True, "lora_alpha": 6, "alpha_pattern": {"layers.1.mlp.down_proj": 12}}
    (folder / CONFIG).write_text(json.dumps(config))
    scales = {module.name: module.scale for module in validate_adapter(folder, tiny).modules}
    assert scales["model.layers.1.mlp.down_proj"] == 6.0
    assert scales["model.layers.2.mlp.down_proj"] == 3.0


def _drop_b(t: Tensors) -> None:
    del t["model.layers.1.mlp.down_proj.lora_b"]


def _drop_block(t: Tensors) -> None:
    for name in [name for name in t if ".1." in name]:
        del t[name]


def _wrong_rank(t: Tensors) -> None:
    for leaf, axis in (("lora_a", 1), ("lora_b", 0)):
        name = f"model.layers.2.mlp.down_proj.{leaf}"
        t[name] = np.ascontiguousarray(np.concatenate([t[name], t[name]], axis))


def _wrong_size(t: Tensors) -> None:
    name = "model.layers.2.self_attn.v_proj.lora_b"
    t[name] = np.ascontiguousarray(t[name][:, :-3])


def _nan(t: Tensors) -> None:
    t["model.layers.2.self_attn.q_proj.lora_a"][3, 1] = np.nan


def _unknown(t: Tensors) -> None:
    for leaf in ("lora_a", "lora_b"):
        name = f"model.layers.2.self_attn.q_proj.{leaf}"
        t[name.replace("q_proj", "z_proj")] = t[name]


def _stranger(t: Tensors) -> None:
    t["model.norm.weight"] = np.ones(4, np.float32)


def _integers(t: Tensors) -> None:
    name = "model.layers.2.self_attn.q_proj.lora_a"
    t[name] = np.nan_to_num(t[name]).astype(np.int32)


BREAKS: list[tuple[Callable[[Tensors], None], str]] = [
    (_drop_b, "model.layers.1.mlp.down_proj has a lora_a but no lora_b"),
    (_drop_block, "blocks 1 are not adapted"),
    (_wrong_rank, "its rank is 8, adapter_config.json says 4; take the"),
    (_wrong_size, "it maps 64 to 29, the base model's maps 64 to 32; serve it on"),
    (_nan, "lora_a has values that are not finite; train it again"),
    (_unknown, "the base model has no layer model.layers.2.self_attn.z_proj"),
    (_stranger, "model.norm.weight is not an adapter tensor"),
    (_integers, "lora_a is I32, not floating point"),
]


@pytest.mark.parametrize(("change", "told"), BREAKS, ids=[told for _, told in BREAKS])
def test_each_mismatch_is_told(
    change: Callable[[Tensors], None], told: str, tiny: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    assert told in problems(folder, tiny)


def test_all_mismatches_at_once(tiny: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path, blocks=(0, 1, 2))
    tensors = load_file(folder / WEIGHTS)
    for change in (_drop_b, _wrong_size, _nan, _unknown, _stranger, _wrong_rank, _integers):
        change(tensors)
    tensors["model.layers.7.mlp.down_proj.lora_b"] = np.ones((4, 64), np.float32)
    tensors["model.layers.0.self_attn.q_proj.lora_b"][0, 0] = np.inf
    save_file(tensors, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    config["num_layers"] = 2
    del config["lora_parameters"]["scale"]
    (folder / CONFIG).write_text(json.dumps(config))
    told = problems(folder, tiny)
    kinds = ("no lora_b", "64 to 29", "not finite", "z_proj", "not an adapter tensor", "no scale",
             "its rank is 8", "not floating point", "7.mlp.down_proj has a lora_b but no lora_a",
             "no layer model.layers.7", "blocks 0, 7 are adapted")  # fmt: skip
    for part in kinds:
        assert part in told

    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-3])
    (folder / CONFIG).write_text("{")
    told = problems(folder, tiny)
    for part in ("can not be read", "cut off", "no lora_b", "64 to 29", "not finite", "z_proj"):
        assert part in told


NOT_TEXT: list[tuple[dict[str, Any], str]] = [
    ({"vision_config": {"depth": 2}}, "has a vision_config"),
    ({"audio_config": {"depth": 2}}, "has a audio_config"),
    ({"architectures": ["BertModel"]}, "its architecture is BertModel"),
    ({"architectures": ["WhisperForConditionalGeneration"]}, "WhisperForConditionalGeneration"),
]


@pytest.mark.parametrize(("change", "told"), NOT_TEXT, ids=[told for _, told in NOT_TEXT])
def test_only_text_generation_models_are_taken(
    change: dict[str, Any], told: str, tiny: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    config = json.loads((base / "config.json").read_text()) | change
    (base / "config.json").write_text(json.dumps(config))
    adapter = make_adapter(tmp_path / "adapter")
    with ModelPoolManager(ENGINE, Folders(), log_dir=tmp_path) as pool:
        for ask in (
            lambda: pool.get_model(str(base)),
            lambda: pool.get_model_with_adapter(str(base), adapter),
            lambda: pool.validate_adapter_path(adapter, str(base)),
        ):
            with pytest.raises(RefusedError) as caught:
                ask()
            assert caught.value.code == "pool.not_text"
            assert told in caught.value.message
        assert pool.get_status().loads == 0


def test_configs_that_promise_something_else(tiny: Path, tmp_path: Path) -> None:
    for number, (change, told) in enumerate(
        [
            ({"fine_tune_type": "full"}, "oodatcaa fuse"),
            ({"num_layers": 9}, "the base has 3 blocks"),
            ({"num_layers": 1}, "blocks 1 are adapted"),
            ({"lora_parameters": {"rank": 4, "alpha": 8}}, "scale = alpha / rank"),
            ({"fine_tune_type": "dora"}, "no magnitude"),
        ]
    ):
        folder = make_adapter(tmp_path / str(number))
        config = json.loads((folder / CONFIG).read_text()) | change
        (folder / CONFIG).write_text(json.dumps(config))
        assert told in problems(folder, tiny)


def test_truncated_missing_and_foreign_files(tiny: Path, tmp_path: Path) -> None:
    assert "is not a folder" in problems(tmp_path / "none", tiny)
    folder = make_adapter(tmp_path / "cut")
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-10])
    assert "it is cut off" in problems(folder, tiny)
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"x")
    assert "is a pickle" in problems(folder, tiny)
    (folder / "adapter_model.bin").unlink()
    assert "adapters.safetensors is missing" in problems(folder, tiny)
    (folder / CONFIG).unlink()
    assert "adapter_config.json is missing" in problems(folder, tiny)


def test_an_adapter_that_changes_nothing_is_a_warning(tiny: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path)
    tensors = load_file(folder / WEIGHTS)
    save_file({n: t * (not n.endswith("_b")) for n, t in tensors.items()}, folder / WEIGHTS)
    assert "all lora_b are zero" in validate_adapter(folder, tiny).warnings[0]


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_anywhere_is_told_and_never_a_crash(
    data: st.DataObject, tiny: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path)
    name = data.draw(st.sampled_from([WEIGHTS, CONFIG]))
    whole = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(whole) - 1, 3000)))
        whole[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    (folder / name).write_bytes(whole[:cut] if data.draw(st.booleans()) else whole)
    try:
        told: tuple[object, ...] = validate_adapter(folder, tiny).modules
    except OodatcaaError as error:
        told = (error.code == "pool.adapter", *error.details)
    assert all(told)
    assert len(told) > 1
