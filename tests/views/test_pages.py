"""Every page: the headings people look for, whole tables, relative links, no empty section."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import pairwise

import pytest
import yaml

from oodatcaa.domain.board import Board
from oodatcaa.domain.negotiation import negotiate
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.report import Report
from oodatcaa.domain.task import Role
from oodatcaa.domain.training import GB
from oodatcaa.views import cards, installation, model_checks, training_docs
from oodatcaa.views.agent_plan import agent_plan
from oodatcaa.views.ending import ending_figures
from oodatcaa.views.framework import CommandRun, Pin, dependency_pins, quality_gates
from oodatcaa.views.report import report
from oodatcaa.views.sprint import negotiation_text, sprint_plan
from oodatcaa.views.sprint_report import sprint_report
from oodatcaa.views.status import show_text, status_rows, status_summary
from oodatcaa.views.test_plan import test_plan as render_test_plan
from views import samples
from views.parsed import Page, parse


def _sprint_plan() -> str:
    found = negotiate(samples.make_board(), Policy(), samples.NOW)
    return sprint_plan(found.board, found.value, samples.NOW, Policy())


def _model_card() -> str:
    return cards.model_card(
        cards.AdapterCard(
            name="Functions from docstrings",
            base_model="SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            adapter_path="models/runs/mlx/2026-01-30_12-00-00/adapters",
            prompt="Write 'it' & go",
            plots=(("Loss and memory", "plots/run.png"),),
            comparisons=(samples.COMPARISON,),
        ),
        samples.make_run(),
        data=samples.DATASET,
        evaluation=samples.EVAL,
    )


class _Profile:
    params = samples.PARAMS
    estimate = samples.ESTIMATE
    limit_bytes = 16 * GB
    probe_params = samples.PARAMS.evolve(iters=2, grad_accumulation_steps=1)
    probe_estimate = samples.ESTIMATE
    probe_peak_bytes = 2_400_000_000
    probe_run = "2026-01-30_11-00-00"


def _report(role: Role) -> str:
    return report(samples.make_report(role))


PAGES: dict[str, Callable[[], str]] = {
    "agent_plan": lambda: agent_plan(samples.make_plan()),
    "adapted_plan": lambda: agent_plan(samples.make_plan(adapted=True)),
    "test_plan": lambda: render_test_plan(samples.make_plan()),
    **{f"report_{role.value}": partial(_report, role) for role in Role},
    "sprint_plan": _sprint_plan,
    "sprint_report": lambda: sprint_report(samples.make_summary()),
    "model_card": _model_card,
    "data_card": lambda: cards.data_card(samples.DATASET),
    "framework": lambda: training_docs.framework_evaluation(
        samples.make_plan(), samples.PROBES, samples.MACHINE
    ),
    "installation": lambda: training_docs.installation_guide(
        samples.make_plan(), samples.PROBES, samples.MACHINE, pins={"mlx": "0.32.0"}
    ),
    "model_loading": lambda: training_docs.model_loading(
        "SmolLM2", samples.SHA, "Apache-2.0", samples.SHAPE, samples.INFERENCE
    ),
    "inference_check": lambda: training_docs.inference_check(samples.INFERENCE),
    "memory_profile": lambda: training_docs.memory_profile(samples.make_plan(), _Profile()),
    "dependency_pins": lambda: training_docs.dependency_pins({"mlx": "0.32.0"}),
    "quality_gates": lambda: training_docs.quality_gates((samples.GATE_LINT, samples.GATE_TESTS)),
    "evaluation": lambda: training_docs.evaluation_report(
        samples.EVAL,
        run_id="2026-01-30_12-00-00",
        prompt="Write it.",
        base=samples.GENERATION,
        tuned=samples.GENERATION,
    ),
    "training": lambda: training_docs.training_report(
        samples.make_plan(),
        samples.make_run(),
        samples.ESTIMATE,
        samples.DATASET,
        plot="plots/run.png",
    ),
    "publication": lambda: training_docs.publication_index("Demo", ("MODEL_CARD.md", "x/y.json")),
}


@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_sound(name: str) -> None:
    text = PAGES[name]()
    found = parse(text)
    assert [depth for depth, _ in found.headings].count(1) == 1
    for rows in found.tables:
        assert len(rows) > 1
        assert {len(row) for row in rows} == {len(rows[0])}
    for target in found.links:
        assert not target.startswith("/")
        if ":" in target:
            assert target.startswith("https://ml-explore.github.io/")
    _no_empty_section(text)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "\n\n\n" not in text
    assert "None" not in text
    # A committed page must not tell where somebody's files lie, nor what the machine is called.
    assert "/home/" not in text
    assert not (name in training_docs.__all__ and samples.MACHINE.host in text)
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert all(line == line.rstrip() for line in outside.split("\n"))


def _no_empty_section(text: str) -> None:
    """A heading is followed by something that is not a heading of its level or above."""
    body = re.sub(r"(?s)(`{3,}).*?\1", "x", text)
    headings = list(re.finditer(r"^(#{1,6}) .+$", body, re.MULTILINE))
    for here, following in pairwise(headings):
        between = body[here.end() : following.start()].strip()
        assert between or len(following[1]) > len(here[1]), here[0]
    assert body[headings[-1].end() :].strip()


def _table(found: Page, first: str) -> list[list[str]]:
    return next(rows for rows in found.tables if rows[0][0] == first)


def test_an_agent_plan_has_every_part() -> None:
    text = agent_plan(samples.make_plan())
    found = parse(text)
    assert found.titles() == [
        "Traceability",
        "Repository inventory",
        "Problem",
        "Constraints",
        "Interfaces",
        "Definition of done",
        "Acceptance criteria",
        "Alternatives",
        "Decision",
        "Fallback",
        "Training parameters",
        "Implementation steps",
        "Size and subtasks",
        "Deliverables",
        "Risks",
        "Sprint impact",
        "Handoff notes",
    ]
    values = {row[0]: row[1] for row in _table(found, "Parameter")}
    assert values["scale"] == "2"
    assert values["effective batch"] == "32"
    assert values["optimizer steps"] == "5"
    assert _table(found, "Fact")[1] == [
        "Usable here",
        "yes, version 0.32.2 (probed)",
        "no: No module named 'axolotl' (probed)",
    ]
    assert _table(found, "Fact")[2] == ["Speed", "125.0 tokens/s (measured)", "not available"]
    assert "1. Estimated from tokens and a planning figure for this machine" in text
    assert _table(found, "Fact")[3][1:] == ["35 min (note 1)", "36 min (note 1)"]
    assert [row[0] for row in _table(found, "Fact")] == ["Fact", "Usable here", "Speed", "Time"]
    assert any(item.startswith("Setting: rank 16, rank 16") for item in found.items)
    assert text.count(samples.make_plan().goal) == 1
    asked = samples.make_plan()
    asked = asked.evolve(goal=asked.problem.statement)
    assert agent_plan(asked).count(asked.goal) == 1
    many = samples.GATE_FILES.evolve(paths=("a", "b", "c"))
    checks = asked.test_plan.evolve(acceptance=(many,))
    gates = parse(render_test_plan(asked.evolve(test_plan=checks)))
    assert gates.tables[-1][1][2] == "3 files in the commit"
    assert {"a", "b", "c"} <= set(gates.items)
    assert _table(found, "Cost (estimate)")[-1] == ["total", "27 min"]
    assert _table(found, "Subtask")[1][3:] == ["1 to 2", "nothing", "9 min"]
    assert {"TEST_PLAN.md", "plan-v1.json"} <= set(found.links)


def test_an_adapted_plan_says_first_what_changed_and_why() -> None:
    found = parse(agent_plan(samples.make_plan(adapted=True)))
    assert found.titles()[0] == "What changed in version 2"
    assert _table(found, "Peak memory")[1:] == [
        ["before", "51.2 GB", "35.2 GB over"],
        ["after, re-estimated", "2.31 GB", "fits, 13.7 GB to spare"],
        ["limit", "16.0 GB", ""],
    ]
    assert "batch 4 x 2048 tokens: 9.80 GB estimated, fits" in found.items


def test_a_test_plan_gives_each_gate_its_exact_command_or_bound() -> None:
    text = render_test_plan(samples.make_plan())
    found = parse(text)
    sections = found.titles(3)
    assert {"G1: Lint", "AC1: Test loss falls"} <= set(sections)
    assert "AC2: Memory stays inside the limit (critical)" in sections
    assert ("bash", samples.GATE_LINT.command + "\n") in found.fences
    assert "`peak_memory <= 16GB`" in text
    assert "[ ] Run the quality gates" in found.items
    assert "acceptance criteria, " not in text
    single = samples.make_plan()
    single = single.evolve(
        test_plan=single.test_plan.evolve(acceptance=(samples.GATE_DROP,), quality_gates=())
    )
    assert "The acceptance criterion is passed" in render_test_plan(single)
    assert "Quality gates" not in parse(render_test_plan(single)).titles()


def test_a_report_shows_what_did_not_pass_first_and_links_its_evidence() -> None:
    found = parse(report(samples.make_report()))
    rows = _table(found, "Gate")
    assert [row[1] for row in rows[1:]] == ["failed", "waived", "passed", "passed"]
    assert rows[1][2] == samples.GATE_LINT.command
    assert "../../evidence/T003/E-T003-T01-a1-001-G1.json" in found.links
    assert "../../plans/T003/AGENT_PLAN.md" in found.links
    assert any("Waived by Ada until 2026-02-01 12:00:00 UTC" in item for item in found.items)
    assert _table(found, "No.")[-1] == ["", "total", "", "5 min 30 s", "9 min"]
    exported = parse(
        report(samples.make_report(), evidence_dir="../evidence.json", plan_dir="../plans")
    )
    assert {"../evidence.json", "../plans/AGENT_PLAN.md"} <= set(exported.links)


def test_a_report_without_details_has_no_empty_parts() -> None:
    full = samples.make_report()
    bare = Report(
        story=full.story,
        task=full.task,
        title=full.title,
        role=full.role,
        agent=full.agent,
        attempt=1,
        started_at=full.started_at,
        finished_at=full.started_at,
        outcome="needs adaptation",
    )
    text = report(bare)
    assert parse(text).titles() == ["Completion summary"]
    assert "0 gates" not in text


def test_a_sprint_plan_says_who_does_what_and_why_others_wait() -> None:
    text = _sprint_plan()
    found = parse(text)
    assert found.titles()[:2] == ["Waiting for a person", "In work"]
    assert _table(found, "Task")[1][:4] == ["T003", "Train with QLoRA", "adapting", "refiner-A"]
    waiting = next(rows for rows in found.tables if rows[0] == ["Task", "Title", "Why"])
    assert waiting[1][2].startswith("waits for T003 (adapting")
    assert "T003 → T004 → T005" in text
    assert "1 of 5 stories integrated, 20 % of the estimated work" in text
    fresh = samples.make_board().evolve(
        stories=tuple(
            story.evolve(status="needs_plan", lease=None, failure=None, reason="")
            for story in samples.make_board().stories[:2]
        ),
        subtasks=(),
    )
    offered = negotiate(fresh, Policy(), samples.NOW)
    rows = _table(parse(sprint_plan(offered.board, offered.value, samples.NOW, Policy())), "Role")
    assert rows[1][:3] == ["planner", "1", "T001"]
    assert "planner  T001 Choose the framework" in negotiation_text(offered.value, offered.board)
    again = negotiate(offered.board, Policy(), samples.NOW)
    assert negotiation_text(again.value, again.board).startswith("Nothing changed")


def test_without_a_sprint_the_next_command_is_named() -> None:
    found = negotiate(Board(), Policy(), samples.NOW)
    assert "oodatcaa sprint new" in sprint_plan(found.board, found.value, samples.NOW, Policy())
    assert "oodatcaa sprint new" in negotiation_text(found.value, found.board)
    assert status_summary(Board(), samples.NOW) == {}
    assert status_rows(Board(), samples.NOW) == ()


def test_a_sprint_report_gives_the_figures_with_their_source() -> None:
    found = parse(sprint_report(samples.make_summary()))
    figures = {row[0]: row[1:] for row in _table(found, "Figure")}
    assert figures["test loss, base model"][0] == "1.898"
    assert figures["drop"] == ["0.840", "95 % interval [0.781, 0.902], paired bootstrap"]
    assert figures["peak memory, predicted"] == ["2.31 GB", "estimate, made before the run"]
    assert figures["peak memory, measured"][0] == "2.41 GB"
    assert figures["speed"][0] == "125.0 tokens/s"
    criteria = {row[0]: row[2] for row in _table(found, "Criterion")[1:]}
    assert criteria == {
        "test_loss_drop >= 0.1": "passed",
        "peak_memory <= 16GB": "passed",
        "tokens_per_second >= 10": "not run",
    }
    story = next(rows for rows in found.tables if rows[0][:2] == ["Story", "Title"])
    assert story[1][3:5] == ["4f2d9c1a", "T001-complete"]
    assert found.titles()[0] == "Open first"
    assert "../../docs/training/plots/run.png" in found.links


def test_what_a_loss_says_nothing_about_stands_beside_it() -> None:
    cut = samples.EVAL.evolve(dropped_examples=2, lost_tokens=90)
    said = "2 examples whose prompt fills max_seq_length; 90 tokens beyond max_seq_length"
    for evaluation, there in ((cut, True), (samples.EVAL, False)):
        summary = samples.make_summary().evolve(evaluation=evaluation)
        for text in (
            training_docs.evaluation_report(evaluation, run_id="r"),
            sprint_report(summary),
            str(ending_figures(summary, 1.0)),
        ):
            assert (said in text.replace("\\", "")) is there


def test_a_value_that_was_not_measured_never_becomes_a_number() -> None:
    lost = samples.EVAL.evolve(adapter_loss=None, drop=None, drop_low=None, drop_high=None)
    run = samples.make_run(peak_memory_bytes=None, tokens_per_second=None, finished_at=None)
    summary = samples.make_summary().evolve(evaluation=lost, run=run)
    figures = {row[0]: row[1] for row in _table(parse(sprint_report(summary)), "Figure")}
    for name in ("test loss, adapter", "drop", "peak memory, measured", "speed"):
        assert figures[name] == "not measured"
    text = training_docs.evaluation_report(lost, run_id="r")
    assert "no comparison is possible" in text
    assert "model-index" not in cards.model_card(
        cards.AdapterCard(name="x", base_model="a/b", adapter_path="p"), run, evaluation=lost
    )


def test_a_model_card_is_readable_by_the_hubs_and_by_a_shell() -> None:
    text = _model_card()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "SmolLM2-135M-Instruct"
    assert front["license"] == "apache-2.0"
    assert {"lora", "mlx"} <= set(front["tags"])
    assert front["datasets"] == ["stdlib-functions"]
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 1.0581
    shell, python = (body for _, body in parse(text).fences[:2])
    assert "mlx_lm.generate" in shell
    assert "--adapter-path models/runs/mlx/2026-01-30_12-00-00/adapters" in shell
    assert shlex.split(shell)[-1] == "Write 'it' & go"
    compile(python, "card", "exec")


def test_the_framework_documents_say_what_was_found() -> None:
    rows = parse(PAGES["framework"]()).tables[0]
    assert rows[1:] == [
        ["MLX-LM", "yes", "0.32.2", "cpu", "yes"],
        ["axolotl", "no", "none", "none", "no"],
    ]
    guide = PAGES["installation"]()
    for command in ("make install", "'mlx[cuda13]'", "'mlx[cpu]'", "pip install mkl"):
        assert command in guide
    failed = CommandRun(command="ruff check", exit_code=1, seconds=2, output="``` bad")
    crashed = failed.evolve(exit_code=None, output="")
    found = parse(quality_gates((samples.GATE_LINT,), runs=(failed, crashed)))
    assert [row[2] for row in found.tables[-1][1:]] == ["failed", "crashed"]
    assert ("", "``` bad\n") in found.fences
    mlx = Pin(name="mlx", required=">=0.32", installed="0.32.0")
    pins = dependency_pins((mlx, Pin(name="mkl")))
    assert _table(parse(pins), "Package")[2] == ["mkl", "not installed", ""]
    assert ("text", "mlx==0.32.0\n") in parse(pins).fences
    assert "Checked" in installation.installation_guide(at=samples.NOW)


def test_a_memory_profile_over_the_limit_says_so_with_its_numbers() -> None:
    text = model_checks.memory_profile(
        samples.ESTIMATE.evolve(total_bytes=51_200_000_000),
        params=samples.PARAMS,
        memory_limit_bytes=16 * GB,
    )
    assert "**does not fit** (estimate: 51.2 GB, 35.2 GB over the limit of 16.0 GB)" in text
    assert "Probe" not in parse(text).titles()
    shown = parse(PAGES["memory_profile"]())
    assert ["measured / estimated", "103.9 %"] in shown.tables[-1]


def test_an_evaluation_shows_the_spread_and_the_worst_examples() -> None:
    found = parse(PAGES["evaluation"]())
    bars = _table(found, "Drop")
    assert sum(int(row[1]) for row in bars[1:]) == samples.EVAL.examples
    assert _table(found, "Line in split")[1] == ["3", "98", "1.700", "1.800", "-0.100"]
    assert found.titles()[-2] == "Side by side"
    assert [info for info, _ in found.fences] == ["text", "text", "text"]
    flat = samples.EVAL.evolve(per_example_base=(1.0, 1.0), per_example_adapter=(1.0, 1.0))
    text = training_docs.evaluation_report(flat, run_id="r")
    assert "better on 0 of 2 examples (0 %)" in text
    assert "worse" in training_docs.evaluation_report(
        flat.evolve(drop=-0.5, drop_low=-0.9, drop_high=-0.1), run_id="r"
    )


def test_status_rows_and_show_name_owner_failure_and_integration() -> None:
    board = samples.make_board()
    rows = {row["id"]: row for row in status_rows(board, samples.NOW + timedelta(seconds=50))}
    assert list(rows) == ["T001", "T002", "T003", "T003-B01", "T004", "T005"]
    assert rows["T003"]["owner"] == "refiner-A"
    assert rows["T003"]["note"] == "attempt 1, last heartbeat 10 s ago"
    assert rows["T001"]["note"] == "merged as 4f2d9c1a, tag T001-complete"
    assert rows["T003-B01"]["note"].startswith("memory_gate: ")
    shown = show_text(board, "T003", samples.NOW, samples.make_plan())
    assert "T003-B01  adapting" in shown
    assert "AC2  Memory stays inside the limit (critical): peak_memory <= 16GB" in shown
    with pytest.raises(KeyError):
        show_text(board, "T999", samples.NOW)
    assert status_summary(board, samples.NOW)["needs a person"].startswith("T002: ")


def test_waived_is_not_counted_as_a_problem_but_failed_is() -> None:
    text = sprint_report(samples.make_summary())
    assert "4 gates: 2 passed, 1 waived and 1 failed." in text
    assert "- T003 G1 Lint: failed" in text
    assert "- T003 G2" not in text
    clean = samples.make_summary().evolve(evidence=(samples.make_evidence(),))
    assert "1 gate: 1 passed." in sprint_report(clean)
