"""Every reader against text that nobody meant: a record or one clear error, soon, and no traceback.

`make fuzz` runs the same with far more examples (FUZZ_EXAMPLES).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oodatcaa.domain.draft_changes import draft_changes
from oodatcaa.errors import OodatcaaError
from oodatcaa.importers import Imported, ImportKind, Severity, as_drafts, detect, import_file
from oodatcaa.importers.beads import read_beads
from oodatcaa.importers.gsd import read_plan
from oodatcaa.importers.oodatcaa import read_queue
from oodatcaa.importers.own import read_own
from oodatcaa.importers.superpowers import read_superpowers
from oodatcaa.importers.taskmaster import read_taskmaster
from oodatcaa.roles.planner.imported_groups import pieces_of

pytestmark = pytest.mark.timeout(120 + 2 * int(os.environ.get("FUZZ_EXAMPLES", "0")))

FIXTURES = Path(__file__).parent / "fixtures"
NOW = datetime(2025, 10, 10, tzinfo=UTC)
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "30"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
READERS: dict[ImportKind, Callable[[str], Imported]] = {
    ImportKind.GSD: lambda text: read_plan(text, source="f"),
    ImportKind.SUPERPOWERS: lambda text: read_superpowers(text, source="f"),
    ImportKind.TASKMASTER: lambda text: read_taskmaster(text, source="f"),
    ImportKind.BEADS: lambda text: read_beads(text, source="f"),
    ImportKind.JSON: lambda text: read_own(text, source="f"),
    ImportKind.OODATCAA: lambda text: read_queue(text, source="f", now=NOW),
}
KINDS = st.sampled_from(list(READERS))


def encoded(parts: list[str]) -> bytes:
    return "".join(parts).encode("utf-8", "surrogatepass")


def example_of_our_own() -> str:
    plan = read_plan((FIXTURES / "plans/adapter_pool.gsd.md").read_text("utf-8"), source="f")
    plans = [draft.model_dump(mode="json") for draft in plan.drafts]
    return json.dumps({"format": "oodatcaa-plans", "version": 1, "plans": plans}, indent=1)


def examples() -> dict[ImportKind, list[str]]:
    texts: dict[ImportKind, list[str]] = {kind: [] for kind in READERS}
    for path in sorted([*FIXTURES.glob("*.*"), *(FIXTURES / "plans").glob("*.*")]):
        texts[detect(path)].append(path.read_text(encoding="utf-8"))
    texts[ImportKind.JSON].append(example_of_our_own())
    return texts


EXAMPLES_OF = examples()
JUNK = st.sampled_from(
    ["<task>", "</task>", "<tasks>", "<verify>", "```", "~~~", "---", "\t", "*a", "&a", "{", "}"]
    + ["[", "]", ",", '"', "\\", "\n", "\r", "\0", "\x85", "null", "- [ ] **Step 1:", "# ", "Run:"]
    + [
        "### Task 1: x\n",
        "Expected: FAIL",
        "<<<<<<< HEAD\n",
        "=======\n",
        ">>>>>>> x\n",
        "\\ud800",
        "\\ud83d",
    ]
    + [
        "depends_on: [",
        "!!python/object:os.system",
        "1e999",
        "-",
        "9" * 5000,
        "\N{ZERO WIDTH SPACE}",
    ]
) | st.text(max_size=10)


def check(kind: ImportKind, text: str) -> Imported:
    """What holds of whatever is read: it can be stored, and its ids and places make sense."""
    imported = READERS[kind](text)
    drafts = as_drafts(imported).drafts
    wrong = [item for item in imported.findings if item.severity is Severity.ERROR]
    assert Imported.model_validate_json(imported.model_dump_json()) == imported
    assert len({draft.key for draft in drafts}) == len(drafts)
    for draft in drafts:
        assert draft.title
        assert draft.steps or wrong
        assert [step.number for step in draft.steps] == list(range(1, len(draft.steps) + 1))
        assert len({gate.id for gate in draft.gates}) == len(draft.gates)
        assert draft.key not in draft.depends_on
        assert draft.fingerprint
        assert draft_changes(draft, draft) == ()
        pieces, asked = pieces_of(draft)  # what the planner makes of it
        steps = sum(step.kind != "commit" for step in draft.steps)
        assert len(pieces) + sum(len(piece.asks) for piece in pieces) + len(asked) == steps
    for finding in imported.findings:
        assert "\n" not in finding.message
        line = finding.place.partition(":")[2]
        assert not line or 1 <= int(line) <= text.count("\n") + text.count("\r") + 2
    if not drafts and not imported.done and not imported.stories:
        assert imported.findings  # nothing recovered is never nothing said
    return imported


@fuzzed
@given(kind=KINDS, text=st.text(max_size=400) | st.lists(JUNK, max_size=30).map("".join))
def test_any_text_is_read_by_any_reader(kind: ImportKind, text: str) -> None:
    check(kind, text)


@fuzzed
@given(kind=KINDS, data=st.data())
def test_lines_cut_doubled_and_swapped(kind: ImportKind, data: st.DataObject) -> None:
    lines = data.draw(st.sampled_from(EXAMPLES_OF[kind])).split("\n")
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(lines)))
        other = data.draw(st.integers(0, len(lines)))
        first, last = sorted((at, other))
        how = data.draw(st.sampled_from(["cut", "double", "swap", "end", "indent", "begin"]))
        if how == "cut":
            del lines[first : min(last, first + 20)]
        elif how == "double":
            lines[last:last] = lines[first : first + 20]
        elif how == "swap":
            lines[first:last] = reversed(lines[first:last])
        elif how == "indent":
            lines[first:last] = [f"    {line}" for line in lines[first:last]]
        else:
            lines = lines[:last] if how == "end" else lines[first:]
    check(kind, "\n".join(lines))


@fuzzed
@given(kind=KINDS, data=st.data())
def test_characters_cut_and_put_in(kind: ImportKind, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(EXAMPLES_OF[kind]))
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.sampled_from([0, 0, 1, 2, 9, 80, 100_000]))
        text = text[:start] + data.draw(JUNK) + text[end:]
    check(kind, text)


ODD: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["1", "1.2", "T001", "done", "2025-01-01T00:00:00", "../../x", "x\ny"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.just("id"), inner, max_size=3)
    ),
    max_leaves=6,
)


@fuzzed
@given(
    kind=st.sampled_from(
        [ImportKind.TASKMASTER, ImportKind.BEADS, ImportKind.JSON, ImportKind.OODATCAA]
    ),
    data=st.data(),
)
def test_any_value_in_any_field(kind: ImportKind, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(EXAMPLES_OF[kind]))
    try:
        value: Any = json.loads(text)
        lines = False
    except ValueError:
        value, lines = [_loaded(line) for line in text.split("\n")], True
    for _ in range(data.draw(st.integers(1, 4))):
        places = list(_places(value))
        if not places:
            break
        holder, key = data.draw(st.sampled_from(places))
        if data.draw(st.integers(0, 5)):
            holder[key] = data.draw(ODD)
        else:
            del holder[key]
    check(kind, "\n".join(map(json.dumps, value)) if lines else json.dumps(value, indent=1))


def _loaded(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def _places(value: Any) -> Any:
    """(holder, key) of every value inside `value`."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


@fuzzed
@given(data=st.binary(max_size=200) | st.lists(JUNK, max_size=20).map(encoded))
def test_any_bytes_at_the_door(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    try:
        assert import_file(path, now=NOW).file_sha256
    except OodatcaaError as error:
        caught = error
    else:
        return
    assert caught.hint
    assert "\n" not in caught.message


@pytest.mark.parametrize("kind", READERS, ids=str)
@pytest.mark.parametrize(
    "unit",
    [
        "<tasks>\n",
        "<feature>\n",
        "<tasks>\n<task>\n",
        "```x\n",
        "[",
        '{"a":',
        "- ",
        "> ",
        '"id":1,',
    ],
)
def test_one_thing_thousands_of_times(kind: ImportKind, unit: str) -> None:
    check(kind, unit * (20_000 // len(unit)))
