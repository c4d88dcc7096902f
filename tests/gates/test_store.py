"""Evidence is written once, found again, and never silently replaced."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oodatcaa.domain.evidence import Evidence, GateKind, GateSpec, Verdict
from oodatcaa.errors import OodatcaaError, StateError
from oodatcaa.gates import EvidenceStore
from oodatcaa.gates.variables import fill


def evidence(
    name: str, detail: str = "ok", story: str = "T001", task: str = "T001-B01"
) -> Evidence:
    gate = GateSpec(id="G1", name="g", kind=GateKind.COMMAND, command="true")
    return Evidence(
        id=name, gate=gate, verdict=Verdict.PASSED, story=story, task=task, attempt=1,
        commit="c", detail=detail, host="h", started_at=datetime(2026, 1, 1, tzinfo=UTC),
        duration_seconds=0.5,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> EvidenceStore:
    return EvidenceStore(tmp_path / "work")


def test_ids_are_unique_under_contention(store: EvidenceStore) -> None:
    def reserve(_: int) -> str:
        return store.reserve("T001", "T001-B01", 2, "a gate/with: signs")

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(reserve, range(24)))
    assert sorted(names) == [f"E-T001-B01-a2-{n:03}-a-gate-with-signs" for n in range(1, 25)]
    assert store.reserve("T001", "T001-B01", 3, "G1") == "E-T001-B01-a3-001-G1"
    assert store.reserve("T001", "T001", 2, "G1") == "E-T001-a2-001-G1"


def test_saved_evidence_never_changes(store: EvidenceStore) -> None:
    name = store.reserve("T001", "T001-B01", 1, "G1")
    store.save(evidence(name))
    store.save(evidence(name))
    with pytest.raises(StateError, match=r"evidence\.exists"):
        store.save(evidence(name, "better"))
    assert store.load(name).detail == "ok"


def test_lists_by_story_and_task(store: EvidenceStore) -> None:
    first = evidence(store.reserve("T001", "T001-B01", 1, "G1"))
    second = evidence(store.reserve("T001", "T001", 1, "G1"), task="T001")
    other = evidence(store.reserve("T002", "T002", 1, "G1"), story="T002", task="T002")
    for item in (first, second, other):
        store.save(item)
    assert set(store.of_story("T001")) == {first, second}
    assert store.of_story("T001", task="T001") == (second,)
    assert store.of_story("T001", attempt=2) == ()
    assert store.of_story("T009") == ()
    assert store.load(second.id) == second


def test_unreadable_and_unknown_evidence_is_loud(store: EvidenceStore) -> None:
    name = store.reserve("T001", "T001-B01", 1, "G1")
    store.save(evidence(name))
    path = store.output_file(name).with_suffix(".json")
    path.write_text(path.read_text()[:50])
    for call in (lambda: store.load(name), lambda: store.of_story("T001")):
        with pytest.raises(StateError) as caught:
            call()
        assert caught.value.code == "evidence.unreadable"
        assert str(path) in caught.value.message
    assert path.exists()
    for unknown in ("E-T001-B01-a1-009-G9", "../../etc/passwd", "E-T001-a1-001-../../x"):
        with pytest.raises(OodatcaaError, match=r"evidence\.unknown"):
            store.load(unknown)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=3, max_size=3)
)
def test_a_filled_value_is_one_word_wherever_it_stands(values: list[str]) -> None:
    names = dict(zip("abc", values, strict=True))
    line = fill("""printf '%s\\0' {a} "x{b}y" 'x{c}y' \\' "\\"" end""", names)
    result = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=True)
    words = result.stdout.decode().split("\0")
    assert words == [values[0], f"x{values[1]}y", f"x{values[2]}y", "'", '"', "end", ""]


@pytest.mark.parametrize("value", ["$(touch pwned)", "`id`", "a'b\"c", "$HOME", "\\", "a\nb", "!x"])
def test_a_real_shell_sees_the_value_as_it_is(value: str, tmp_path: Path) -> None:
    line = fill("""printf '%s|' {v} "{v}" '{v}'""", {"v": value})
    result = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert result.stdout == f"{value}|" * 3
    assert list(tmp_path.iterdir()) == []
