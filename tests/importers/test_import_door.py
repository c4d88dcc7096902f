"""What is let in, and what an unreadable file is told."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from oodatcaa.errors import OodatcaaError
from oodatcaa.importers import ImportKind, detect, import_file
from oodatcaa.kit.plan_files import MAX_BYTES

FIXTURES = Path(__file__).parent / "fixtures"
NOW = datetime(2025, 10, 10, tzinfo=UTC)


def test_fixtures_are_recognised_by_their_content(tmp_path: Path) -> None:
    kinds = {path.name: detect(path) for path in FIXTURES.iterdir() if path.is_file()}
    assert len(kinds) == 13
    assert {name for name, kind in kinds.items() if kind is ImportKind.GSD} == {"plan.md"}
    other = tmp_path / "without_a_telling_name"
    other.write_bytes((FIXTURES / "truncated.json").read_bytes())
    assert detect(other) is ImportKind.OODATCAA


def test_a_folder_stands_for_the_queue_inside_it(tmp_path: Path) -> None:
    work = tmp_path / ".oodatcaa" / "work"
    work.mkdir(parents=True)
    (tmp_path / "a-PLAN.md").write_text("# A\n", encoding="utf-8")
    with pytest.raises(OodatcaaError, match=r"no SPRINT_QUEUE\.json") as caught:
        detect(tmp_path)
    assert caught.value.hint == f"name the files: oodatcaa import {tmp_path}/*.md"
    assert caught.value.details == ("it holds a-PLAN.md",)
    (work / "SPRINT_QUEUE.json").write_bytes((FIXTURES / "flat.json").read_bytes())
    assert len(import_file(tmp_path, now=NOW).stories) == 3


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "import.empty_file"),
        (b"\xef\xbb\xbf \n\n", "import.empty_file"),
        (b"# A plan\n\nSome text.\n", "import.unknown_format"),
        (b'{"name": "package", "version": "1"}', "import.unknown_format"),
        (b"PK\x03\x04\x00\x00", "import.binary"),
        (b'{"tasks": [{"id": "T001", "title": "caf\xe9"}]}', "import.not_utf8"),
        (b"\xff\xfe{\x00\x00", "import.not_utf8"),
        (b'{"schema_version": 1, "revision": 3, "stories": []}', "import.own_format"),
        (b" " * (MAX_BYTES + 1), "import.too_large"),
    ],
)
def test_what_can_not_be_imported_gets_one_clear_error(
    tmp_path: Path, data: bytes, code: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(OodatcaaError) as caught:
        import_file(path, now=NOW)
    assert caught.value.code == code
    assert caught.value.hint
    assert "\n" not in caught.value.message
    if code == "import.unknown_format":
        assert len(caught.value.details) == 6


def test_a_wrong_file_is_told_before_the_readers_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\x89PNG\0")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "oodatcaa", "import", str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "[import.binary]" in done.stderr
    assert "oodatcaa.kit.plan_files" in done.stderr
    assert "oodatcaa.importers" not in done.stderr


def test_a_missing_file_and_a_device(tmp_path: Path) -> None:
    with pytest.raises(OodatcaaError, match="there is no file"):
        detect(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OodatcaaError, match="no regular file"):
        detect(tmp_path / "pipe")


def test_a_folder_of_beads_or_task_master_stands_for_its_file(tmp_path: Path) -> None:
    for place, name in (
        (".beads/issues.jsonl", "issues.beads.jsonl"),
        (".taskmaster/tasks/tasks.json", "tagged.taskmaster.json"),
    ):
        root = tmp_path / name
        (root / place).parent.mkdir(parents=True)
        (root / place).write_bytes((FIXTURES / "plans" / name).read_bytes())
        assert import_file(root, now=NOW).drafts


@pytest.mark.parametrize("kind", [kind for kind in ImportKind if kind is not ImportKind.OODATCAA])
def test_a_wrong_format_names_the_right_one_only_when_it_is_clear(
    tmp_path: Path, kind: ImportKind
) -> None:
    path = tmp_path / "words.md"
    path.write_text("# Some words\n", encoding="utf-8")
    with pytest.raises(OodatcaaError) as caught:
        import_file(path, now=NOW, kind=kind)
    assert caught.value.code == "import.wrong_format"
    assert "looks like" not in caught.value.message
    path.write_text(" \n", encoding="utf-8")
    with pytest.raises(OodatcaaError, match="is empty"):
        import_file(path, now=NOW, kind=kind)


def test_a_forced_kind_reads_whatever_is_there(tmp_path: Path) -> None:
    path = tmp_path / "scrap"
    path.write_text("nothing to see", encoding="utf-8")
    imported = import_file(path, now=NOW, kind=ImportKind.OODATCAA)
    assert [f.code for f in imported.findings if f.code == "queue.no_tasks"]


def test_byte_order_marks_line_endings_and_utf16(tmp_path: Path) -> None:
    text = (FIXTURES / "conflict.json").read_text(encoding="utf-8")
    crlf = text.replace("\n", "\r\n")
    path = tmp_path / "queue"
    for data in (text.encode("utf-8-sig"), crlf.encode(), text.encode("utf-16")):
        path.write_bytes(data)
        imported = import_file(path, now=NOW)
        assert set(imported.renamed) == {"T001", "T002", "T003", "T004", "T005"}
        assert "json.invalid" not in {finding.code for finding in imported.findings}


def test_the_clock_may_be_of_any_zone() -> None:
    local = NOW.astimezone(timezone(timedelta(hours=2)))
    path = FIXTURES / "contradictions.json"
    assert import_file(path, now=local) == import_file(path, now=NOW)


def test_importing_changes_nothing_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "plan.md"
    path.write_bytes((FIXTURES / "plan.md").read_bytes().replace(b"pytest", b"touch ran; pytest"))
    import_file(path, now=NOW)
    assert [item.name for item in tmp_path.iterdir()] == ["plan.md"]
