"""AGENT_LOG.md: one dialect, readable back, exactly once, rotated oldest first."""

from __future__ import annotations

from datetime import UTC, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from oodatcaa.domain.board import Decision, Event, EventKind
from oodatcaa.domain.ports import Logged
from oodatcaa.domain.task import Role
from oodatcaa.kit import faults
from oodatcaa.state import dialect
from oodatcaa.state.log import read_log, rotations
from oodatcaa.state.snapshot import QUEUE_FILE
from oodatcaa.state.store import QueueStore
from queue_making import START, begin, claim, event

plain = some.text(some.characters(exclude_categories=["Cs"]))
texts = plain.filter(bool) | some.sampled_from(
    [
        "## 2026-01-01T00:00:00Z · a · b · c",
        "<!-- 1.0 note -->",
        "- x\n\n- y\n",
        "\\",
        "a\r\nb",
        " ",
    ]
)
words = some.none() | plain
events = some.builds(
    Event,
    kind=some.sampled_from(EventKind),
    at=some.datetimes(timezones=some.just(UTC)),
    actor=texts,
    role=some.none() | some.sampled_from(Role),
    subject=texts,
    before=words,
    after=words,
    attempt=some.none() | some.integers(-3, 9),
    text=texts,
    details=some.lists(texts | some.just("evidence: x"), max_size=3).map(tuple),
    evidence=some.lists(texts, max_size=2).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(some.lists(events, min_size=1, max_size=3))
def test_what_is_written_is_read_back(items: list[Event]) -> None:
    entries = [Logged(seq=n + 1, index=n % 2, event=item) for n, item in enumerate(items)]
    text = "# Agent log\n\n" + "".join(dialect.render(one) for one in entries)
    assert list(dialect.parse(text)) == entries
    last = dialect.last_place(text)
    assert last is not None
    assert last[0] == (entries[-1].seq, entries[-1].index)
    noted = "a note\n## 2026-01-01T00:00:00Z · no · entry\n<!-- 9.0 note -->\n\n## 20 · x\n"
    for whole in (text, text + noted, noted + text, ""):
        moments = (one.event.at.replace(microsecond=0) for one in dialect.parse(whole))
        found = [moment.isoformat().replace("+00:00", "Z") for moment in moments]
        ends = (found[0], found[-1]) if found else ("", "")
        assert dialect.extent(whole) == (*ends, len(found))


def test_an_entry_looks_as_documented() -> None:
    said = Event(
        kind=EventKind.TRANSITION,
        at=START,
        actor="builder-A",
        role=Role.BUILDER,
        subject="T001-B01",
        before="in_progress",
        after="done",
        attempt=2,
        text="All exit gates passed.",
        details=("G1 tests: passed",),
        evidence=("E12",),
    )
    assert dialect.render(Logged(seq=12, index=0, event=said)) == (
        "## 2026-01-05T09:00:00Z · builder-A (builder) · T001-B01 · in_progress -> done\n\n"
        "All exit gates passed.\n\n"
        "- G1 tests: passed\n"
        "- evidence: E12\n\n"
        "<!-- 12.0 transition role=builder attempt=2 -->\n\n"
    )


def filled(work: Path, claims: int, **options: int) -> QueueStore:
    store = QueueStore(work, **options)  # type: ignore[arg-type]
    store.transact(begin(claims + 1))
    for _ in range(claims):
        store.transact(claim("a"))
    return store


def note(store: QueueStore, text: str = "more") -> None:
    store.transact(lambda old, now: Decision(old, None, (event(now, text=text),)))


def test_rotation_moves_the_oldest_and_loses_nothing(tmp_path: Path) -> None:
    with filled(tmp_path, 40, log_bytes=1200) as store:
        history = list(store.history())
    archived = rotations(tmp_path / "archive")
    assert len(archived) > 4
    assert list(read_log(tmp_path)) == history
    firsts = [next(dialect.parse(path.read_text())).seq for path in archived]
    assert firsts == sorted(firsts)
    assert firsts[0] == 1
    index = (tmp_path / "archive" / "INDEX.md").read_text()
    assert [line.split("|")[1].strip() for line in index.splitlines() if ".md" in line] == [
        path.name for path in archived
    ]
    assert "archive/INDEX.md" in (tmp_path / "AGENT_LOG.md").read_text()


def test_filters_of_read_log(tmp_path: Path) -> None:
    with filled(tmp_path, 3, log_bytes=900) as store:
        note(store)
        history = list(store.history())
    assert [one.event.subject for one in read_log(tmp_path, task="T001-B02")] == ["T001-B02"]
    assert len(list(read_log(tmp_path, task="T001"))) == 4  # the story's note and its subtasks
    assert len(list(read_log(tmp_path, agent="a"))) == 3
    moment = history[2].event.at
    assert [one.seq for one in read_log(tmp_path, since=moment)] == [3, 4, 5]
    assert list(read_log(tmp_path, since=moment + timedelta(days=1))) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text(path.read_text()[:-150]),
        lambda path: path.write_text(path.read_text()[:-150] + "\0" * 40),
        lambda path: path.write_text("# a new file\n"),
        lambda path: path.write_text(""),
    ],
    ids=["deleted", "cut off", "with a hole", "overwritten", "emptied"],
)
def test_a_damaged_log_is_completed(tmp_path: Path, damage: object) -> None:
    with filled(tmp_path, 12, log_bytes=1500) as store:
        damage(tmp_path / "AGENT_LOG.md")  # type: ignore[operator]
        note(store)
        assert list(read_log(tmp_path)) == list(store.history())


def test_notes_that_people_add_stay_where_they_are(tmp_path: Path) -> None:
    with filled(tmp_path, 2) as store:
        path = tmp_path / "AGENT_LOG.md"
        path.write_text(path.read_text() + "I looked at this by hand.")
        note(store)
        note(store)
        text = path.read_text()
        assert text.count("I looked at this by hand.\n\n## ") == 1
        assert list(read_log(tmp_path)) == list(store.history())


@pytest.mark.parametrize(("edited", "failures"), [(False, 2), (True, 1)])
def test_an_entry_that_could_not_be_written_is_never_skipped(
    tmp_path: Path, edited: bool, failures: int
) -> None:
    with filled(tmp_path, 2) as store:
        counts = range(1, failures + 1)
        faults.arm(",".join(f"log.half_written:{count}:ENOSPC" for count in counts))
        note(store, "first")
        if edited:
            path = tmp_path / QUEUE_FILE
            path.write_text(path.read_text().replace("Build 2", "Bau 2"))
        note(store, "second")
        faults.arm("")
    assert list(read_log(tmp_path)) == list(QueueStore(tmp_path).history())
    assert len(list(read_log(tmp_path))) == 5 + edited
