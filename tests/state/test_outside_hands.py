"""What somebody else does to SPRINT_QUEUE.json is taken over or set aside, never lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import pytest
from jsonschema import Draft202012Validator

from oodatcaa.domain.board import Board, Decision, EventKind
from oodatcaa.domain.task import SubtaskStatus
from oodatcaa.errors import StateError
from oodatcaa.kit import faults
from oodatcaa.state.schema import queue_schema, schema_problems, schema_text
from oodatcaa.state.snapshot import QUEUE_FILE, SCHEMA_FILE, QueueFile, intact
from oodatcaa.state.store import QueueStore
from queue_making import begin, claim, event, release

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def store(tmp_path: Path) -> QueueStore:
    made = QueueStore(tmp_path / "work")
    made.transact(begin(4))
    made.transact(claim("a"))
    return made


def edit(store: QueueStore, change: Change) -> None:
    path = store.work_dir / QUEUE_FILE
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=4))


def note(store: QueueStore) -> None:
    store.transact(lambda old, now: Decision(old, None, (event(now),)))


def rejected(store: QueueStore) -> list[Path]:
    return sorted(store.work_dir.glob("SPRINT_QUEUE.rejected-*.json"))


def test_the_file_is_what_its_schema_says(store: QueueStore) -> None:
    text = (store.work_dir / QUEUE_FILE).read_bytes()
    document = json.loads(text)
    Draft202012Validator.check_schema(queue_schema())
    assert queue_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert list(Draft202012Validator(queue_schema()).iter_errors(document)) == []
    assert json.loads((store.work_dir / SCHEMA_FILE).read_text()) == queue_schema()
    assert document["$schema"] == f"./{SCHEMA_FILE}"
    assert (document["seq"], document["revision"], document["exact"]) == (2, 2, True)
    assert intact(text)
    assert not intact(text.replace(b"Build 1", b"Build 9"))
    del document["subtasks"][0]["lease"]["kind"]
    assert list(Draft202012Validator(queue_schema()).iter_errors(document)) != []


@pytest.mark.parametrize("through", ["read", "transact", "another store"])
def test_a_legal_edit_is_an_audited_transaction(store: QueueStore, through: str) -> None:
    edit(store, lambda document: document["stories"][0].update(title="Another title"))
    if through == "read":
        board = store.read()
    elif through == "transact":
        board = store.transact(lambda old, _: Decision(old, old))
    else:
        store.close()
        board = QueueStore(store.work_dir).read()
    assert board.stories[0].title == "Another title"
    assert board.revision == 3
    last = list(store.history())[-1].event
    assert last.kind is EventKind.MANUAL
    assert last.subject == "T001"
    assert last.details == ('title: "Story 1" -> "Another title"',)
    assert rejected(store) == []
    assert intact((store.work_dir / QUEUE_FILE).read_bytes())


def test_an_edit_that_puts_the_files_time_back_is_seen(store: QueueStore) -> None:
    path = store.work_dir / QUEUE_FILE
    before = path.stat()
    time.sleep(1.1)
    text = path.read_text()
    assert '"title": "Story 1"' in text
    with path.open("r+") as file:  # in place, and as long as before
        file.write(text.replace('"title": "Story 1"', '"title": "Story X"'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with QueueStore(store.work_dir) as other:
        assert "Story X" in {task.title for task in other.read().stories}


def test_only_the_layout_changed(store: QueueStore) -> None:
    edit(store, lambda _: None)
    assert store.read().revision == 2
    assert len(list(store.history())) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["stories"][0].update(status="working"), "stories[0].status"),
        (lambda d: d["subtasks"][0].update(priority="high"), "priority"),
        (lambda d: d["stories"][0].update(created_at="yesterday"), "stories[0].created_at"),
        (lambda d: d["stories"].append(d["stories"][0]), "used 2 times"),
        (lambda d: d.update(stories=[]), "its story T001 does not exist"),
        (lambda d: d["subtasks"][0].update(depends_on=["T009"]), "T009"),
        (
            lambda d: (d.update(seq=1), d["subtasks"][0].update(title="mine")),
            "T001-B01: it was changed here since seq 1",
        ),
        (lambda d: d.update(seq=77), "it comes from another queue"),
        (lambda d: d.pop("seq"), "'seq' is a required property"),
        (lambda d: d.update(schema_version=2), "schema_version"),
    ],
)
def test_an_impossible_edit_is_set_aside(store: QueueStore, change: Change, reason: str) -> None:
    before = store.read()
    edit(store, change)
    written = (store.work_dir / QUEUE_FILE).read_bytes()
    after = store.read()
    assert after.evolve(revision=2) == before
    (aside,) = rejected(store)
    assert aside.read_bytes() == written
    assert reason in aside.with_suffix(".errors.txt").read_text()
    last = list(store.history())[-1].event
    assert last.kind is EventKind.REFUSED
    assert reason in "\n".join(last.details)
    assert json.loads((store.work_dir / QUEUE_FILE).read_text())["revision"] == 3


def test_every_error_is_listed(store: QueueStore) -> None:
    def wreck(document: dict[str, Any]) -> None:
        document["stories"][0]["status"] = "working"
        document["subtasks"][1]["attempt"] = -1
        document["subtasks"][2]["id"] = "B3"

    edit(store, wreck)
    store.read()
    assert len(rejected(store)[0].with_suffix(".errors.txt").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda _: "", "line 1, column 1"),
        (lambda text: text[: len(text) // 2], "line "),
        (
            lambda text: text.replace(
                '"title": "Story 1"',
                '"title": "S"\n<<<<<<< HEAD\n=======\n>>>>>>> other\n',
            ),
            "a conflict marker of git: <<<<<<< HEAD",
        ),
        (lambda text: text.replace('"seq": 2,', '"seq": 2, "seq": 2,'), "given twice"),
        (lambda _: "[" * 100_000, "nested"),
        (lambda _: "{}", "required"),
    ],
)
def test_an_unreadable_file_is_set_aside(
    store: QueueStore, damage: Callable[[str], str], reason: str
) -> None:
    path = store.work_dir / QUEUE_FILE
    before, damaged = store.read(), damage(path.read_text())
    path.write_text(damaged)
    note(store)
    assert store.read().evolve(revision=2) == before
    (aside,) = rejected(store)
    assert aside.read_text() == damaged
    assert reason in aside.with_suffix(".errors.txt").read_text()


def test_an_old_file_restored_over_the_new_one_changes_nothing(store: QueueStore) -> None:
    old = (store.work_dir / QUEUE_FILE).read_bytes()
    store.transact(release("T001-B01", "a", SubtaskStatus.DONE))
    store.close()
    (store.work_dir / QUEUE_FILE).write_bytes(old)
    assert QueueStore(store.work_dir).read().subtasks[0].status is SubtaskStatus.DONE
    assert "would be lost" in rejected(store)[0].with_suffix(".errors.txt").read_text()


def test_an_edit_of_an_older_state_is_merged_when_it_does_not_collide(store: QueueStore) -> None:
    old = (store.work_dir / QUEUE_FILE).read_bytes()
    store.transact(claim("b"))
    (store.work_dir / QUEUE_FILE).write_bytes(old.replace(b"Build 3 of", b"Bau 3 von"))
    board = store.read()
    assert board.subtasks[2].title == "Bau 3 von story 1"
    assert board.subtasks[1].lease is not None
    old = (store.work_dir / QUEUE_FILE).read_bytes()
    store.transact(release("T001-B02", "b", SubtaskStatus.DONE))
    (store.work_dir / QUEUE_FILE).write_bytes(old.replace(b"Build 2 of", b"Bau 2 von"))
    assert store.read().subtasks[1].status is SubtaskStatus.DONE
    assert (
        "T001-B02: it was changed here" in rejected(store)[0].with_suffix(".errors.txt").read_text()
    )


def test_the_rules_have_a_say(tmp_path: Path) -> None:
    def legal(old: Board, new: Board) -> tuple[str, ...]:
        if old.subtasks[0].status is new.subtasks[0].status:
            return ()
        return ("T001-B01: nobody assigns a status by hand",)

    told: list[str] = []
    store = QueueStore(tmp_path, legal=legal, on_notice=told.append)
    store.transact(begin(3))
    edit(store, lambda document: document["subtasks"][0].update(status="done"))
    assert store.read().subtasks[0].status is SubtaskStatus.READY
    assert "nobody assigns" in told[0]
    edit(store, lambda document: document["subtasks"][0].update(title="allowed"))
    assert store.read().subtasks[0].title == "allowed"


def test_a_program_with_filelock_may_write(store: QueueStore) -> None:
    with filelock.FileLock(store.work_dir / f"{QUEUE_FILE}.lock"):
        edit(store, lambda document: document["subtasks"][2].update(reason="by a script"))
    assert store.transact(lambda old, _: Decision(old, old.subtasks[2].reason)) == "by a script"


def test_a_deleted_file_comes_back(store: QueueStore) -> None:
    (store.work_dir / QUEUE_FILE).unlink()
    assert len(store.read().subtasks) == 3
    note(store)
    assert json.loads((store.work_dir / QUEUE_FILE).read_text())["revision"] == 3


def test_a_queue_without_a_journal_is_taken_over(store: QueueStore, tmp_path: Path) -> None:
    new = tmp_path / "copy"
    new.mkdir()
    (new / QUEUE_FILE).write_bytes((store.work_dir / QUEUE_FILE).read_bytes())
    other = QueueStore(new)
    assert other.read().evolve(revision=2) == store.read()
    assert [one.event.kind for one in other.history()] == [EventKind.MANUAL]


def test_an_unreadable_queue_without_a_journal_is_an_error(tmp_path: Path) -> None:
    (tmp_path / QUEUE_FILE).write_text('{"stories": [,]}')
    with pytest.raises(StateError) as caught:
        QueueStore(tmp_path).read()
    assert caught.value.code == "queue.unreadable"
    assert "line 1, column 14" in caught.value.message
    assert "oodatcaa doctor --repair" in caught.value.hint
    assert (tmp_path / QUEUE_FILE).read_text() == '{"stories": [,]}'


def _write_slowly(path: Path, text: str) -> None:
    with path.open("w") as file:
        for start in range(0, len(text), 1 + len(text) // 8):
            file.write(text[start : start + 1 + len(text) // 8])
            file.flush()
            time.sleep(0.03)


def test_a_script_that_is_still_writing_is_given_time(store: QueueStore) -> None:
    path = store.work_dir / QUEUE_FILE
    text = path.read_text().replace('"Story 1"', '"Written slowly"')
    context = multiprocessing.get_context("fork")
    writer = context.Process(target=_write_slowly, args=(path, text))
    writer.start()
    while path.stat().st_size in (0, len(text)) and writer.is_alive():
        time.sleep(0.001)
    note(store)
    writer.join()
    assert store.read().stories[0].title == "Written slowly"
    assert rejected(store) == []


def test_the_same_change_saved_twice_is_one(store: QueueStore) -> None:
    path = store.work_dir / QUEUE_FILE
    text = path.read_text().replace('"Story 1"', '"Saved twice"')
    for _ in range(2):
        path.write_text(text)
        assert store.read().stories[0].title == "Saved twice"
    assert rejected(store) == []
    kinds = [one.event.kind for one in store.history()]
    assert kinds.count(EventKind.MANUAL) == 1


def test_every_error_of_every_kind_is_listed(store: QueueStore) -> None:
    def wreck(document: dict[str, Any]) -> None:
        document["stories"][0]["created_at"] = "yesterday"
        document["stories"][0]["status_since"] = "2026-01-05T09:00:00"
        document["stories"][0]["kind"] = "poem"
        document["subtasks"][0]["lease"]["pid"] = 1
        del document["subtasks"][0]["lease"]["owner"]
        document["subtasks"][1].update(attempt=-1, priority="high")
        del document["revision"], document["seq"]

    edit(store, wreck)
    store.read()
    places = [
        line.split(":")[0]
        for line in rejected(store)[0].with_suffix(".errors.txt").read_text().splitlines()
    ]
    assert places == [
        *("the document", "the document"),
        *("stories[0].created_at", "stories[0].kind", "stories[0].status_since"),
        *("subtasks[0].lease.owner", "subtasks[0].lease.pid"),
        *("subtasks[1]", "subtasks[1].attempt"),
    ]


def test_records_are_checked_as_json_and_not_as_python_values(store: QueueStore) -> None:
    """Tuples are no arrays to a JSON Schema: only mode="json" gives what the file will hold."""
    board = store.read()
    values = {"schema_version": 1, "seq": 2, "sha256": "0" * 64, "exact": True, "note": ""}
    made = QueueFile(
        **values,
        revision=board.revision,
        sprint=board.sprint,
        stories=board.stories,
        subtasks=board.subtasks,
    )
    assert schema_problems(made.model_dump(mode="json", by_alias=True)) == []
    assert schema_problems(made.model_dump(by_alias=True)) != []


def test_the_word_that_tells_members_of_a_union_apart_is_required() -> None:
    """With a default the schema would not ask for it, and a lease could be read as either kind."""
    definitions = queue_schema()["$defs"]
    told_apart = [
        (part["discriminator"]["propertyName"], reference.rpartition("/")[2])
        for part in _parts(queue_schema())
        if "discriminator" in part
        for reference in part["discriminator"]["mapping"].values()
    ]
    assert {name for _, name in told_apart} == {"ProcessLease", "ManualLease"}
    for word, name in told_apart:
        assert word in definitions[name]["required"]


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part)


def test_the_published_schema_is_the_one_in_the_reference() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / SCHEMA_FILE
    assert page.read_text() == schema_text(), f"run: oodatcaa schema > docs/reference/{SCHEMA_FILE}"


def test_another_versions_schema_is_replaced(store: QueueStore) -> None:
    path = store.work_dir / SCHEMA_FILE
    path.write_text(schema_text().replace(" of oodatcaa 0", " of oodatcaa 9"))
    store.close()
    note(QueueStore(store.work_dir))
    assert path.read_text() == schema_text()


def _die_before_the_snapshot(work: Path) -> None:
    faults.arm("snapshot.before_rename:1")
    QueueStore(work).transact(claim("b"))


def test_a_file_that_a_dead_writer_left_behind_is_caught_up(store: QueueStore) -> None:
    store.close()
    process = multiprocessing.get_context("fork").Process(
        target=_die_before_the_snapshot, args=(store.work_dir,)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    path = store.work_dir / QUEUE_FILE
    assert json.loads(path.read_text())["revision"] == 2
    QueueStore(store.work_dir).transact(lambda old, _: Decision(old, None))
    assert (json.loads(path.read_text())["revision"], rejected(store)) == (3, [])


def _count_with_filelock(path: Path, rounds: int) -> None:
    """A foreign program, as its author would write it with the real package."""
    for _ in range(rounds):
        with filelock.FileLock(f"{path}.lock"):
            document = json.loads(path.read_text())
            assert document["exact"] is True
            story = document["stories"][0]
            story["goal"] = str(int(story["goal"] or 0) + 1)
            path.write_text(json.dumps(document))


def test_our_programs_and_foreign_ones_with_filelock_lose_nothing_of_each_other(
    store: QueueStore,
) -> None:
    foreign, rounds = 2, 15
    context = multiprocessing.get_context("fork")
    path = store.work_dir / QUEUE_FILE
    store.close()
    others = [
        context.Process(target=_count_with_filelock, args=(path, rounds)) for _ in range(foreign)
    ]
    for one in others:
        one.start()

    def count(old: Board, _: datetime) -> Decision[None]:
        story = old.stories[0]
        return Decision(old.with_task(story.evolve(goal=str(int(story.goal or 0) + 1))), None)

    for _ in range(rounds):
        store.transact(count)
    for one in others:
        one.join(120)
    assert [one.exitcode for one in others] == [0] * foreign
    assert store.read().stories[0].goal == str((foreign + 1) * rounds)
    assert rejected(store) == []
