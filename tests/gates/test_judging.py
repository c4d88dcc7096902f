"""Metrics, files, waivers and bounds: what may pass and what never does."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oodatcaa.domain.evidence import (
    Bound,
    Evidence,
    GateKind,
    GateSpec,
    Verdict,
    Waiver,
    verdict_of,
)
from oodatcaa.errors import OodatcaaError
from oodatcaa.gates import GateRequest, MetricValue
from oodatcaa.gates.bounds import bounded
from oodatcaa.gates.judging import judge_metric, waive
from oodatcaa.kit.config import GatesConfig

Check = Callable[..., tuple[Evidence, ...]]
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def metric(bound: str) -> GateSpec:
    return GateSpec(id="AC1", name="m", kind=GateKind.METRIC, bound=Bound.parse(bound))


def files(*paths: str) -> GateSpec:
    return GateSpec(id="F1", name="f", kind=GateKind.FILES, paths=paths)


def judged(bound: str, value: float | None, interval: tuple[float, float] | None = None) -> Verdict:
    return judge_metric(metric(bound), MetricValue(value=value, interval=interval)).verdict


class Source:
    """Recomputed metrics, as an artefact reader would give them."""

    def __init__(self, answer: MetricValue | Exception | None) -> None:
        self.answer = answer

    def measure(self, metric: str, request: GateRequest) -> MetricValue | None:
        assert (metric, request.task) == ("peak_memory", "T001-B01")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_bounds_decide() -> None:
    assert judged("peak_memory <= 16GB", 16e9) is Verdict.PASSED
    assert judged("peak_memory <= 16GB", 16e9 + 1) is Verdict.FAILED
    assert judged("test_loss < 2", 2.0) is Verdict.FAILED
    assert judge_metric(metric("peak_memory <= 16GB"), MetricValue(value=17e9)).detail == (
        "peak_memory = 17.000 GB, wanted <= 16GB"
    )


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("op", ["<=", ">=", "<", ">", "=="])
def test_no_number_is_crashed_never_passed_or_failed(value: float | None, op: str) -> None:
    assert judged(f"peak_memory {op} 1", value) is Verdict.CRASHED


def test_a_drop_in_loss_needs_an_interval_without_zero() -> None:
    bound = "test_loss_drop >= 0.1"
    assert judged(bound, 0.5, (0.2, 0.8)) is Verdict.PASSED
    assert judged(bound, 0.5, (-0.01, 0.8)) is Verdict.FAILED
    assert judged(bound, 0.5, (0.0, 0.8)) is Verdict.FAILED
    assert judged(bound, 0.05, (0.02, 0.08)) is Verdict.FAILED
    assert judged(bound, 0.5) is Verdict.CRASHED
    assert judged(bound, 0.5, (math.nan, 0.8)) is Verdict.CRASHED


def test_a_metric_is_measured_and_kept(check: Check) -> None:
    source = Source(MetricValue(value=2.4e9, interval=(2e9, 3e9)))
    (found,) = check("main", metric("peak_memory <= 16GB critical"), metrics=source)
    assert (found.verdict, found.measured, found.interval) == (Verdict.PASSED, 2.4e9, (2e9, 3e9))
    assert found.output_path is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "could not be measured"),
        (MetricValue(value=None, detail="no run"), "no run"),
        (OodatcaaError("run.missing", "the run is gone"), "the run is gone"),
        (KeyError("peak"), "KeyError"),
        (MetricValue(value=math.nan), "nan"),
    ],
)
def test_a_metric_that_can_not_be_had_is_crashed(
    check: Check, answer: MetricValue | Exception | None, words: str
) -> None:
    found = check("main", metric("peak_memory <= 16GB"), "true", metrics=Source(answer))
    assert [item.verdict for item in found] == [Verdict.CRASHED, Verdict.PASSED]
    assert words in found[0].detail


def test_a_metric_that_was_stopped_did_not_run(check: Check) -> None:
    source = Source(OodatcaaError("child.stopped", "mlx.evaluate was stopped"))
    asked = iter((False, True))
    found = check(
        "main", metric("peak_memory <= 16GB"), metrics=source, should_stop=lambda: next(asked)
    )
    assert [item.verdict for item in found] == [Verdict.NOT_RUN]


def test_without_a_source_or_a_bound_nothing_passes(check: Check) -> None:
    bare = GateSpec(id="AC2", name="m", kind=GateKind.METRIC)
    found = check("main", metric("peak_memory <= 16GB"), bare)
    assert [item.verdict for item in found] == [Verdict.CRASHED] * 2


def test_promised_files_are_at_the_commit_and_not_empty(check: Check, root: object) -> None:
    from pathlib import Path

    assert isinstance(root, Path)
    (root / "docs.md").write_text("never committed")
    found = check(
        "main", files("README.md", "src/", "tests", "src/shop/*.py"),
        files("docs.md", "empty.txt", "src/none/"), files(), files("src/sh"),
    )  # fmt: skip
    assert [item.verdict for item in found] == [
        Verdict.PASSED, Verdict.FAILED, Verdict.CRASHED, Verdict.FAILED
    ]  # fmt: skip
    assert found[1].detail == "docs.md is missing; empty.txt is empty; src/none/ is missing"


def seen(verdict: Verdict) -> Evidence:
    return Evidence(
        id="E-T001-B01-a1-001-AC1", gate=metric("peak_memory <= 1GB"), verdict=verdict,
        story="T001", task="T001-B01", attempt=1, commit="c", detail="2 GB", host="h",
        started_at=NOW, duration_seconds=1,
    )  # fmt: skip


def waiver(start: float, end: float, gate: str = "AC1") -> Waiver:
    return Waiver(
        gate_id=gate, by="ada", why="known", at=NOW + timedelta(hours=start),
        until=NOW + timedelta(hours=end),
    )  # fmt: skip


@given(
    verdict=st.sampled_from(list(Verdict)),
    start=st.floats(-48, 48),
    end=st.floats(-48, 48),
    gate=st.sampled_from(["AC1", "AC2"]),
)
def test_only_a_valid_waiver_of_this_gate_changes_a_verdict(
    verdict: Verdict, start: float, end: float, gate: str
) -> None:
    given_waiver = waiver(start, end, gate)
    result = waive(seen(verdict), (given_waiver,), NOW)
    valid = gate == "AC1" and given_waiver.at <= NOW < given_waiver.until
    if verdict in (Verdict.PASSED, Verdict.WAIVED) or not valid:
        assert result.verdict is verdict
        assert result.waiver is None
    else:
        assert (result.verdict, result.waiver) == (Verdict.WAIVED, given_waiver)
        assert verdict.value in result.detail


def test_a_waiver_is_valid_from_its_first_to_before_its_last_moment() -> None:
    assert waive(seen(Verdict.FAILED), (waiver(0, 1),), NOW).verdict is Verdict.WAIVED
    expired = waive(seen(Verdict.FAILED), (waiver(-1, 0),), NOW)
    assert expired.verdict is Verdict.FAILED
    assert "not valid" in expired.detail


def test_a_waiver_works_through_the_runner_and_names_who(check: Check) -> None:
    now = datetime.now(UTC)
    mine = Waiver(gate_id="G1", by="ada", why="flaky", at=now, until=now + timedelta(hours=1))
    found = check("main", "exit 1", "exit 1", waivers=(mine,))
    assert [item.verdict for item in found] == [Verdict.WAIVED, Verdict.FAILED]
    assert "ada" in found[0].detail
    assert found[0].exit_code == 1


UNITS = {"": 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "GiB": 2**30, "%": 0.01, "s": 1,
         "ms": 1e-3, "min": 60}  # fmt: skip


@given(
    value=st.decimals(-(10**6), 10**6, places=3, allow_nan=False),
    unit=st.sampled_from(sorted(UNITS)),
    op=st.sampled_from(["<=", ">=", "<", ">", "=="]),
    critical=st.booleans(),
)
def test_a_bound_means_what_it_says(value: object, unit: str, op: str, critical: bool) -> None:
    critical = critical and unit != ""
    bound = Bound.parse(f"some_metric {op} {value}{unit}{' critical' if critical else ''}")
    expected = float(str(value)) * UNITS[unit]
    assert math.isclose(bound.value, expected, abs_tol=1e-12)
    assert (bound.op, bound.critical) == (op, critical)
    assert Bound.parse(str(bound)) == bound.evolve(critical=False)
    assert bound.holds(bound.value) == (op in ("<=", ">=", "=="))


def test_a_bound_without_unit_can_be_critical() -> None:
    bound = Bound.parse("test_loss_drop >= 0.1 critical")
    assert (bound.value, bound.critical) == (0.1, True)


@given(st.text(max_size=30))
def test_no_text_breaks_the_bound_parser(text: str) -> None:
    try:
        bound = Bound.parse(text)
    except ValueError:
        return
    assert math.isfinite(bound.value)
    assert not bound.holds(math.nan)


def test_a_plans_gate_may_use_less_than_the_project_allows_but_not_more() -> None:
    config = GatesConfig.model_validate(
        {
            "timeout_seconds": 100,
            "limits": {"memory_bytes": "4GB", "file_bytes": "1GB"},
            "quality": [
                {
                    "name": "big",
                    "command": "make all",
                    "timeout_seconds": 900,
                    "limits": {"memory_bytes": "9GB"},
                }
            ],
        }
    )
    greedy = {"memory_bytes": "64GB", "cpu_seconds": 7, "file_bytes": "1MB"}
    values = {"id": "AC1", "name": "big", "kind": "command", "command": "make some"}
    gate = GateSpec.model_validate({**values, "limits": greedy, "timeout_seconds": 900})
    seconds, limits = bounded(gate, config)
    assert seconds == 100
    assert (limits.memory_bytes, limits.cpu_seconds, limits.file_bytes) == (4 * 10**9, 7, 10**6)
    assert bounded(gate.evolve(limits=None, timeout_seconds=5), config) == (5, config.limits)
    own = gate.evolve(command="make all", limits=config.quality[0].limits)
    seconds, limits = bounded(own, config)
    assert (seconds, limits.memory_bytes) == (900, 9 * 10**9)


def test_one_id_is_one_check() -> None:
    gate = GateSpec(id="AC1", name="it works", kind=GateKind.COMMAND, command="pytest")
    easy = gate.evolve(command="true")
    passed = evidence_of(easy, Verdict.PASSED)
    failed = evidence_of(gate, Verdict.FAILED)
    assert verdict_of((passed,), (gate,)) == ("AC1 it works: not run",)
    assert verdict_of((failed, passed), (gate, easy)) == ("AC1 it works: failed (as seen)",)


def evidence_of(gate: GateSpec, verdict: Verdict) -> Evidence:
    return Evidence(
        id=f"E-{gate.id}-{verdict}",
        gate=gate,
        verdict=verdict,
        story="T001",
        task="T001-B01",
        attempt=1,
        commit="c1",
        detail="as seen",
        host="here",
        started_at=NOW,
        duration_seconds=1.0,
    )
