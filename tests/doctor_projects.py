"""A project whose every part is sound, for damage that doctor has to find."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from oodatcaa.app.doctor import Diagnosis, diagnose, mend
from oodatcaa.app.project import Project, open_project
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import RunStatus, TrainSpec
from oodatcaa.training.hashes import file_sha256
from oodatcaa.training.runs import RunStore
from real_project import finish, make_project, plan
from tiny_model import make_tiny_model


def make_template(folder: Path) -> Iterator[Path]:
    """T001 is integrated, T002 planned; a finished run and a data set are in their stores."""
    model = make_tiny_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        made = make_project(folder / "project", model=str(model))
        finish(made, "T001")
        plan(made, "T002")
        made.store.close()
        training_run(made, "adapter")
        yield made.root


def copied(template: Path, folder: Path, patch: pytest.MonkeyPatch) -> Project:
    """A copy of the template, to be damaged."""
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    shutil.copytree(template, folder / "project", symlinks=True)
    return open_project(folder / "project")


def training_run(project: Project, text: str) -> str:
    """A finished run with an adapter of `text`."""
    store = RunStore(project.models / "runs")
    spec = TrainSpec(
        backend="mlx", model="m", data_dir="d", params=QLoRA(), memory_limit_bytes=10**9
    )
    run = store.create(spec)
    adapter = store.folder(run) / "adapters" / "adapters.safetensors"
    adapter.parent.mkdir()
    adapter.write_text(text, encoding="utf-8")
    done = run.evolve(
        status=RunStatus.FINISHED,
        adapter_sha256=file_sha256(adapter),
        finished_at=datetime.now(UTC),
    )
    store.finish(done)
    return run.run_id


def fresh(project: Project) -> Project:
    project.store.close()
    return open_project(project.root)


def codes(found: Diagnosis) -> list[str]:
    return sorted({one.code for one in found.findings})


def everything(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its bytes, without what git and locks touch by themselves."""
    return {
        str(path): (path.stat().st_mode, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(root).parts
        and not path.name.endswith((".lock", ".holder"))
    }  # fmt: skip


def found_and_mended(project: Project, code: str) -> str:
    """The damage is found, the repair says what it did, and a second one changes nothing."""
    project = fresh(project)
    assert codes(diagnose(project)) == [code]
    done = mend(project)
    assert [(one.code, one.ok) for one in done] == [(code, True)]
    assert diagnose(project).findings == ()
    project.store.close()
    before = everything(project.root)
    assert mend(fresh(project)) == ()
    assert everything(project.root) == before
    return done[0].text


def found_and_left(project: Project, *expected: str) -> Diagnosis:
    """The damage is found, and no repair touches anything."""
    project = fresh(project)
    found = diagnose(project)
    assert codes(found) == sorted(expected)
    assert all(one.meaning and one.place and one.repair for one in found.findings)
    before = everything(project.root)
    assert mend(project) == ()
    assert everything(project.root) == before
    return found
