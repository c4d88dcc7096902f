"""Goals of a plan as gates: looked at in the commit, bounded whatever a plan asks for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from oodatcaa.domain.evidence import Evidence, Verdict, Waiver
from oodatcaa.domain.goal_gates import goal_gates, person_gates
from oodatcaa.domain.goals import ArtifactCheck, Goals, KeyLink, Truth

Check = Callable[..., tuple[Evidence, ...]]
Change = Callable[[dict[str, str | None]], str]

SHOP = """\
from __future__ import annotations
from decimal import Decimal as Money
import os.path

RATE: float = 0.19
note: str

if os.path.exists("x"):
    fast = True
else:
    def fallback(): ...

class Till:
    open = True

    def close(self) -> None: ...

async def later(): ...

def outer():
    def hidden(): ...
"""
JS = "export const total = (a, b) => a + b\nfetch(`/api/prices`)\n"


@pytest.fixture
def commit(commit_change: Change) -> str:
    broken = "def half(:\n"
    files: dict[str, str | None] = {
        "src/shop/till.py": SHOP, "web/total.js": JS, "src/shop/broken.py": broken,
        "src/shop/page.py": "from shop.price import total\n", "src/long.txt": "a" * 60 + "!\n",
    }  # fmt: skip
    return commit_change(files)


def artifacts(check: Check, commit: str, *items: ArtifactCheck) -> list[Evidence]:
    return list(check(commit, *goal_gates(Goals(artifacts=items))))


def links(check: Check, commit: str, *items: KeyLink) -> list[Evidence]:
    return list(check(commit, *goal_gates(Goals(key_links=items))))


def test_artifacts_are_there_with_substance(check: Check, commit: str) -> None:
    names = ("Money", "os", "RATE", "fast", "fallback", "Till", "Till.close", "later")
    found = artifacts(
        check,
        commit,
        ArtifactCheck(
            path="src/shop/till.py", min_lines=10, contains=("def close",), exports=names
        ),
        ArtifactCheck(path="./web/total.js", exports=("total",)),
        ArtifactCheck(path="src/shop", provides="the package"),
        ArtifactCheck(path="src/shop/till.py", min_lines=16),
        ArtifactCheck(path="src/shop/till.py", exports=("hidden", "note", "Till.shut", "RAT")),
        ArtifactCheck(path="web/total.js", exports=("tot",), contains=("axios", "fetch")),
        ArtifactCheck(path="src/shop/nothing.py"),
        ArtifactCheck(path="empty.txt"),
        ArtifactCheck(path="src/shop/broken.py", exports=("half",)),
    )
    assert [item.verdict for item in found] == [Verdict.PASSED] * 3 + [Verdict.FAILED] * 6
    details = [item.detail for item in found[3:]]
    assert details[0] == "src/shop/till.py: 15 lines that are not blank, at least 16 wanted"
    for name in ("hidden", "note", "Till.shut", "RAT"):
        assert f"does not define {name}" in details[1]
    assert "'axios' does not stand in it" in details[2]
    assert "tot is not in it" in details[2]
    assert "fetch" not in details[2]
    assert (details[3], details[4]) == ("src/shop/nothing.py is missing", "empty.txt is empty")
    assert "can not be read" in details[5]
    assert found[0].gate.id == "GA1"


def test_links_are_found_from_their_source(check: Check, commit: str) -> None:
    found = links(
        check,
        commit,
        KeyLink(source="src/shop/page.py", target="src/shop/price.py", via="import"),
        KeyLink(source="web/total.js", target="/api/prices", pattern=r"fetch.*api/prices"),
        KeyLink(source="src/shop", target="total", pattern=r"^from shop\.price import total$"),
        KeyLink(source="src/shop/*.py", target="Decimal"),
        KeyLink(source="src/shop/till.py", target="src/shop/price.py"),
        KeyLink(source="web/total.js", target="x", pattern="fetch.*orders"),
        KeyLink(source="web/none.js", target="x"),
    )
    assert [item.verdict for item in found] == [Verdict.PASSED] * 4 + [Verdict.FAILED] * 3
    assert "src/shop/price.py or src/shop/price or shop.price or price" in found[4].detail
    assert found[6].detail == "web/none.js is missing"


def test_a_hostile_pattern_is_crashed_in_bounded_time(check: Check, commit: str) -> None:
    found = links(
        check,
        commit,
        KeyLink(source="src/long.txt", target="x", pattern="(a|a)*(a|a)*b"),
        KeyLink(source="src/long.txt", target="x", pattern="(unclosed"),
        KeyLink(source="src/long.txt", target="x", pattern="a" * 3_000),
    )
    assert [item.verdict for item in found] == [Verdict.CRASHED] * 3
    assert "did not end within" in found[0].detail
    assert "no regular expression" in found[1].detail
    assert "longer than" in found[2].detail


def test_truths_are_commands_or_wait_for_a_person(check: Check) -> None:
    goals = Goals(
        truths=(
            Truth(statement="totals add up", command="{python} -c 'from shop import price'"),
            Truth(statement="it feels fast"),
            Truth(statement="never", command="exit 3"),
        )
    )
    gates = (*goal_gates(goals), *person_gates(goals))
    assert [gate.id for gate in gates] == ["GT1", "GT3", "GT2"]
    found = check("main", *gates)
    assert [item.verdict for item in found] == [Verdict.PASSED, Verdict.FAILED, Verdict.NOT_RUN]
    assert "oodatcaa waive T001 GT2" in found[2].detail
    now = datetime.now(UTC)
    said = Waiver(gate_id="GT2", by="ann", why="I tried it", at=now, until=now + timedelta(hours=1))
    (decided,) = check("main", *person_gates(goals), waivers=(said,))
    assert (decided.verdict, decided.acceptable) == (Verdict.WAIVED, True)
    assert "ann" in decided.detail


def test_goals_are_empty_by_default() -> None:
    assert not Goals()
    assert goal_gates(Goals()) == person_gates(Goals()) == ()
