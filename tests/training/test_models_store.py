"""Names of models, the cache, and what happens offline or with nonsense."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from oodatcaa.errors import OodatcaaError
from oodatcaa.training import models
from oodatcaa.training.models import ModelStore
from tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "cache")


def test_a_folder_is_resolved_to_its_absolute_path(
    store: ModelStore, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.parent)
    found = store.resolve(tiny.name, require_local=True)

    assert found.path_or_hub == str(tiny)
    assert found.title == tiny.name
    assert found.sha256 == store.model_sha256(tiny)


def test_all_problems_of_a_folder_are_told_at_once(store: ModelStore, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_text("{oops")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (bad / "model.safetensors.index.json").write_text(json.dumps(index))
    (bad / "model-1.safetensors").touch()

    with pytest.raises(OodatcaaError) as caught:
        store.resolve(str(bad))

    assert caught.value.code == "model.broken"
    told = "\n".join(caught.value.details)
    assert len(caught.value.details) == 3
    for part in ("config.json", "model-2.safetensors", "tokenizer"):
        assert part in told


def test_an_empty_folder_lacks_everything(tmp_path: Path) -> None:
    assert [p.split()[0] for p in models.folder_problems(tmp_path)] == ["config.json", "no", "no"]


@pytest.mark.parametrize("name", ["", "nonsense", "a/b/c", "./gone", "/no/such/folder", "x y/z"])
def test_nonsense_names_are_answered_with_what_is_accepted(store: ModelStore, name: str) -> None:
    with pytest.raises(OodatcaaError) as caught:
        store.resolve(name)

    assert caught.value.code == "model.unknown"
    assert any("demo" in line for line in caught.value.details)
    assert len(caught.value.details) == 3


def test_a_hub_name_offline_is_one_clear_line(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    said: list[str] = []
    for local in (True, False):
        with pytest.raises(OodatcaaError) as caught:
            store.resolve("nobody-at-all/no-model-7b", require_local=local, say=said.append)
        assert caught.value.code == "model.unavailable"
        assert "\n" not in caught.value.message
        assert caught.value.hint
    assert said == ["fetching nobody-at-all/no-model-7b from the model hub"]


def test_the_demo_model_is_never_fetched_when_it_must_be_local(store: ModelStore) -> None:
    with pytest.raises(OodatcaaError) as caught:
        store.resolve("demo", require_local=True)
    assert caught.value.code == "model.unavailable"
    assert "oodatcaa models fetch demo" in caught.value.hint
    assert "92.9 MB" in caught.value.message


@pytest.mark.parametrize("client", ["pip", "uv"])
def test_a_failed_download_leaves_nothing_and_says_the_size_first(
    store: ModelStore, client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if client == "uv":
        if shutil.which("uv") is None:
            pytest.skip("uv is not installed")
        monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    empty = tmp_path / "index"
    empty.mkdir()
    for name in ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(name, empty.as_uri())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    said: list[str] = []

    with pytest.raises(OodatcaaError) as caught:
        store.fetch_demo(said.append)

    assert caught.value.code == "model.unavailable"
    assert caught.value.details
    assert "92.9 MB" in said[0]
    left = [p for p in store.cache_dir.rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert left == []


def test_the_hash_follows_the_content(store: ModelStore, tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    first = store.model_sha256(copy)
    assert first == store.model_sha256(tiny) == ModelStore(tmp_path / "other").model_sha256(copy)

    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert store.model_sha256(copy) != first


def test_requantising_makes_a_smaller_loadable_model_once(
    store: ModelStore, tiny: Path, tmp_path: Path
) -> None:
    # What a process that was killed here would have left.
    key = f"{store.model_sha256(tiny)[:16]}-2bit"
    (tmp_path / "cache" / "tmp" / key / "requantized").mkdir(parents=True)
    made: list[Path] = []
    both = [
        threading.Thread(target=lambda: made.append(store.requantize(tiny, 2))) for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(90)

    assert made[0] == made[1]
    assert json.loads((made[0] / "config.json").read_text())["quantization"]["bits"] == 2
    size = (made[0] / "model.safetensors").stat().st_size
    assert size < 0.8 * (tiny / "model.safetensors").stat().st_size
    assert store.resolve(str(made[0])).sha256 != store.resolve(str(tiny)).sha256
    assert store.requantize(tiny, 4) == tiny
    assert not list((tmp_path / "cache" / "tmp").iterdir())


def test_a_child_that_fails_is_an_error_with_its_reason(store: ModelStore, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "qwen2"}')
    (broken / "model.safetensors").write_bytes(b"nothing")

    with pytest.raises(OodatcaaError) as caught:
        store.requantize(broken, 3)
    assert caught.value.code in {"model.requantize", "model.child"}
    assert caught.value.hint


def test_the_store_never_imports_mlx() -> None:
    code = "import oodatcaa.training.models, sys; print('mlx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.demo_model
def test_the_demo_model_is_fetched_once_and_found_again() -> None:
    first = ModelStore().resolve("demo")
    said: list[str] = []
    again = ModelStore().resolve("demo", require_local=True, say=said.append)

    assert again == first
    assert said == []
    assert first.licence == "Apache-2.0"
    assert models.folder_problems(Path(first.path_or_hub)) == []
