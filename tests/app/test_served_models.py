"""Which adapters a project offers, and which it refuses: real run stores, real children."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from oodatcaa.app.comparing import compare, read_lines, read_texts
from oodatcaa.app.project import open_project
from oodatcaa.app.served import Catalogue
from oodatcaa.app.serving import Serving
from oodatcaa.domain.base import GB
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import RunStatus, TrainSpec
from oodatcaa.errors import OodatcaaError, StateError
from oodatcaa.pool.records import Ask
from oodatcaa.pool.tensors import sha256_of
from oodatcaa.training.models import ModelStore
from oodatcaa.training.protocol import ADAPTERS_DIR, adapter_weights
from oodatcaa.training.runs import LATEST, RunStore
from tiny_adapters import make_adapter, make_peft_adapter
from tiny_model import make_tiny_model
from typing_in import new_project

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HELLO = Ask(prompt="hello", max_tokens=4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def root(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OODATCAA_RESERVATIONS", str(tmp_path / "reservations"))
    return new_project(tmp_path / "project", model=tiny, data="demo")


@pytest.fixture
def serving(root: Path, tmp_path: Path) -> Iterator[Serving]:
    with Serving(Catalogue(open_project(root)), 4 * GB, tmp_path / "logs") as made:
        yield made


def finished(root: Path, tiny: Path, backend: str, minute: int, seed: int = 0) -> Path:
    """A finished run as its backend leaves it; its adapter folder."""
    store = RunStore(root / "models" / "runs")
    moment = NOON + timedelta(minutes=minute)
    spec = TrainSpec(backend=backend, model=str(tiny), data_dir=str(root), params=QLoRA(rank=4))
    run = store.create(spec, now=moment)
    folder = store.folder(run) / ADAPTERS_DIR
    make = make_adapter if backend == "mlx" else make_peft_adapter
    make(folder, seed=seed)
    store.finish(
        run.evolve(
            status=RunStatus.FINISHED,
            finished_at=moment + timedelta(seconds=30),
            adapter_sha256=sha256_of(adapter_weights(folder)),
            model_sha256=ModelStore().model_sha256(tiny),
        )
    )
    return folder


def ids(serving: Serving) -> list[str]:
    return [model["id"] for model in serving.models()]


def test_runs_of_every_backend_are_there_and_latest_finished_last(
    serving: Serving, root: Path, tiny: Path
) -> None:
    assert ids(serving) == ["tiny"]
    finished(root, tiny, "mlx", 0, seed=1)
    finished(root, tiny, "hf", 5, seed=2)
    first, second = "tiny::2030-01-01_12-00-00", "tiny::2030-01-01_12-05-00"
    assert ids(serving) == ["tiny", first, second, "tiny::latest"]
    found = serving.adapted(serving.catalogue.find("tiny::latest"))
    assert (found.served.backend, found.problems) == ("hf", ())
    assert found.info is not None
    assert found.info.dialect == "peft"
    hf = serving.generate("tiny::latest", HELLO).tokens
    assert hf == serving.generate(second, HELLO).tokens
    mlx = serving.generate(first, HELLO).tokens
    assert len({hf, mlx, serving.generate("tiny", HELLO).tokens}) == 3

    finished(root, tiny, "mlx", 9, seed=3)
    assert serving.catalogue.find("tiny::latest").backend == "mlx"
    assert serving.generate("tiny::latest", HELLO).tokens not in (hf, mlx)
    link = root / "models" / "runs" / "mlx" / LATEST
    link.unlink()
    link.symlink_to("2030-01-01_12-00-00")
    assert serving.generate("tiny::latest", HELLO).tokens == hf, "hf's is the newer one of two"
    (root / "models" / "runs" / "hf" / LATEST).unlink()
    assert serving.generate("tiny::latest", HELLO).tokens == mlx
    assert serving.status().loads == 1


def test_two_runs_of_one_second_are_told_apart_by_their_backend(
    serving: Serving, root: Path, tiny: Path
) -> None:
    for backend in ("mlx", "hf"):
        finished(root, tiny, backend, 0)
    run = "2030-01-01_12-00-00"
    assert ids(serving) == ["tiny", f"tiny::hf/{run}", f"tiny::mlx/{run}", "tiny::latest"]


@pytest.mark.parametrize("backend", ["mlx", "hf"])
def test_other_weights_than_run_json_names_are_refused(
    serving: Serving, root: Path, tiny: Path, backend: str
) -> None:
    folder = finished(root, tiny, backend, 0, seed=1)
    weights = adapter_weights(folder)
    weights.chmod(0o644)
    (folder / "adapter_config.json").chmod(0o644)
    # Sound, and of the right form: only run.json knows that they are not the run's.
    (make_adapter if backend == "mlx" else make_peft_adapter)(folder, seed=2)
    with pytest.raises(StateError) as caught:
        serving.generate("tiny::latest", HELLO)
    assert caught.value.code == "adapter.checksum"
    assert sha256_of(weights)[:12] in caught.value.message
    found = serving.adapted(serving.catalogue.find("tiny::latest"))
    assert "the weights are not those that run.json names" in found.problems[0]
    assert serving.status().loads == 0


def test_another_base_than_the_run_was_trained_on_is_refused(
    serving: Serving, root: Path, tmp_path: Path
) -> None:
    base = make_tiny_model(tmp_path / "mine")
    finished(root, base, "mlx", 0)
    assert serving.generate("mine::latest", HELLO).tokens
    make_tiny_model(base, seed=4)
    with pytest.raises(StateError) as caught:
        serving.generate("mine::latest", HELLO)
    assert caught.value.code == "adapter.base_changed"
    assert serving.generate("mine", HELLO).tokens, "the bare base is what it is"


def test_all_are_compared_but_those_that_can_not_be_used(
    serving: Serving, root: Path, tiny: Path, tmp_path: Path
) -> None:
    finished(root, tiny, "mlx", 0, seed=1)
    broken = adapter_weights(finished(root, tiny, "hf", 1))
    broken.chmod(0o644)
    broken.write_bytes(broken.read_bytes()[:-4])
    lines = [{"text": f"def f_{n}(x): return x + {n}"} for n in range(70)]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    texts, said = read_texts(path), list[str]()
    base, adapter = compare(serving, (), (HELLO, HELLO), texts, said.append)
    assert (base.id, adapter.id) == ("tiny", "tiny::2030-01-01_12-00-00")
    assert [len(one.answers) for one in (base, adapter)] == [2, 2]
    assert len([line for line in said if line.startswith("left out: tiny::")]) == 2
    assert base.score is not None
    assert adapter.score is not None
    assert base.score.tokens == adapter.score.tokens > 70
    assert base.score.loss != adapter.score.loss
    whole = serving.score("tiny", texts)
    assert base.score.loss == pytest.approx(whole.loss), "parts weigh what their tokens weigh"
    assert base.score.perplexity == pytest.approx(whole.perplexity)

    named = compare(serving, [adapter.id], (HELLO,), (), said.append)
    assert [one.id for one in named] == ["tiny", adapter.id]
    with pytest.raises(OodatcaaError) as caught:
        compare(serving, ["tiny::latest"], (HELLO,), (), said.append)
    assert caught.value.code == "pool.adapter"


def test_files_that_say_nothing_are_told(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    deep = "[" * 200_000
    bad.write_text(f'{{"text": "a"}}\n{{"messages": [1]}}\n\n{deep}\n{{"prompt": "p"}}\n')
    with pytest.raises(OodatcaaError) as caught:
        read_texts(bad)
    assert caught.value.code == "compare.file"
    assert [line.partition(" ")[0] for line in caught.value.details] == [
        f"{bad}:{number}" for number in (2, 4, 5)
    ]
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    for name, told in (("empty.txt", "has no"), ("binary", "not UTF-8"), ("none", "No such file")):
        for read in (read_texts, read_lines):
            with pytest.raises(OodatcaaError, match=told) as caught:
                read(tmp_path / name)
            assert caught.value.code == "compare.file"
