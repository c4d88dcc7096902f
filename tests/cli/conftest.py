"""One tiny model and its data for all tests of the command line; they are only read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiny_model import make_tiny_data, make_tiny_model
from typing_in import new_project


@pytest.fixture(scope="session", autouse=True)
def own_probes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Memory probes of this run alone, in one folder for all of its processes: what the user's own
    cache knows must not answer for a model of the tests."""
    os.environ["OODATCAA_PROBES"] = str(tmp_path_factory.getbasetemp().parent / "probes")


@pytest.fixture(scope="session", autouse=True)
def a_person_for_git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commits need a name; the machine's own configuration may have none, or say other things."""
    path = tmp_path_factory.mktemp("git") / "config"
    path.write_text("[user]\n\tname = Ada\n\temail = ada@example.org\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(path))
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(model folder, data folder)."""
    root = tmp_path_factory.mktemp("tiny")
    return make_tiny_model(root / "model"), make_tiny_data(root / "data")


@pytest.fixture
def project(tmp_path: Path, tiny: tuple[Path, Path]) -> Path:
    """A committed project whose objective is the tiny model."""
    return new_project(tmp_path / "project", model=tiny[0], data=tiny[1])
