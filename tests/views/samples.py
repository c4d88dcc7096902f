"""Full sample records: a plan, a board, reports and runs as a real sprint leaves them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from oodatcaa.domain.board import Board, Sprint
from oodatcaa.domain.evidence import Bound, Evidence, GateKind, GateSpec, Verdict, Waiver
from oodatcaa.domain.memory import MemoryEstimate, MemoryPart, ModelShape
from oodatcaa.domain.plan import (
    AdaptationNote,
    Alternative,
    Fact,
    Factor,
    Fallback,
    Inventory,
    InventoryRow,
    Plan,
    PlanDecision,
    Problem,
    Risk,
    Size,
    Step,
    StepKind,
    SubtaskPlan,
    TestPlan,
    Traceability,
    Trouble,
)
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.report import Action, Challenge, Deliverable, Metric, Report
from oodatcaa.domain.task import (
    Failure,
    Integration,
    ProcessLease,
    Role,
    Story,
    StoryKind,
    StoryStatus,
    Subtask,
    SubtaskKind,
    SubtaskStatus,
)
from oodatcaa.domain.training import (
    GB,
    BackendProbe,
    DatasetRecord,
    EvalResult,
    Generation,
    InferenceProbe,
    LossPoint,
    Machine,
    RunRecord,
    RunStatus,
    SplitStats,
)
from oodatcaa.views.evaluation import Comparison
from oodatcaa.views.sprint_report import SprintSummary, StoryAdaptation

NOW = datetime(2026, 1, 30, 12, 0, tzinfo=UTC)
SHA = "0123456789abcdef" * 4
COMMIT = "4f2d9c1ab3e57788990011223344556677889900"

GATE_MEMORY = GateSpec(
    id="AC2",
    name="Memory stays inside the limit",
    kind=GateKind.METRIC,
    bound=Bound.parse("peak_memory <= 16GB critical"),
    critical=True,
    statement="The measured peak of the training process tree is at most 16 GB.",
)
GATE_DROP = GateSpec(
    id="AC1",
    name="Test loss falls",
    kind=GateKind.METRIC,
    bound=Bound.parse("test_loss_drop >= 0.1"),
    statement="The adapter's mean test loss is at least 0.1 nats per token below the base model's.",
)
GATE_FILES = GateSpec(
    id="AC3",
    name="Records are committed",
    kind=GateKind.FILES,
    paths=("docs/training/training.md", "docs/training/records/run.json"),
    statement="The run's record and report are in the submitted commit.",
)
GATE_LINT = GateSpec(
    id="G1",
    name="Lint",
    kind=GateKind.COMMAND,
    command="ruff check . | tee lint.txt && test ${PIPESTATUS[0]} -eq 0",
    timeout_seconds=120,
)
GATE_TESTS = GateSpec(
    id="G2",
    name="Tests",
    kind=GateKind.COMMAND,
    command="python -m pytest -q --adapter {adapter}",
    timeout_seconds=900,
)

LONG_SOURCE = "estimated from tokens and a planning figure for this machine"

PARAMS = QLoRA(
    rank=16,
    alpha=32,
    num_layers=8,
    batch_size=4,
    grad_accumulation_steps=8,
    max_seq_length=384,
    iters=40,
)

SHAPE = ModelShape(
    model_type="llama",
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    tied_embeddings=True,
    weight_bytes=96_700_000,
    parameters=134_515_008,
    bits=4,
    group_size=32,
)

MACHINE = Machine(
    host="build-host",
    system="Linux 6.8",
    processor="x86_64",
    cpu_count=2,
    memory_bytes=24 * GB,
    accelerator="cpu",
    blas="mkl 2024.2",
)

MLX = BackendProbe(
    name="mlx",
    title="MLX-LM",
    importable=True,
    version="0.32.2",
    accelerator="cpu",
    notes=("computes in float32 on the CPU device",),
)
AXOLOTL = BackendProbe(
    name="axolotl", title="axolotl", importable=False, problem="No module named 'axolotl'"
)
PROBES = (MLX, AXOLOTL)

ESTIMATE = MemoryEstimate(
    total_bytes=2_310_000_000,
    parts=(
        MemoryPart(name="weights", bytes=96_700_000, formula="sum of all tensors"),
        MemoryPart(name="logits", bytes=1_812_000_000, formula="6 * batch * length * vocab * 4"),
        MemoryPart(name="activations", bytes=401_300_000, formula="layers * (a | b)"),
    ),
    device="cpu",
    method="model config, tensor headers and measured factors",
)

GENERATION = Generation(
    prompt="Write a function `larger(a, b)`.",
    text="Sure:\n```python\ndef larger(a, b):\n    return a | b\n```\n",
    tokens=24,
    tokens_per_second=31.46,
)
INFERENCE = InferenceProbe(
    model="/home/someone/.cache/oodatcaa/models/SmolLM2-135M-Instruct-4bit",
    load_seconds=1.27,
    prompt_tokens=18,
    generation=GENERATION,
    peak_memory_bytes=512_000_000,
    device="cpu",
)


def make_plan(*, adapted: bool = False) -> Plan:
    """The training story's plan; `adapted` is version 2, after a memory failure."""
    note = AdaptationNote(
        round=1,
        trigger="memory gate (before): an estimated 51.20 GB are needed, the limit is 16.00 GB",
        rungs=("batch 32 -> 4, accumulation 1 -> 8", "sequence length 2048 -> 384"),
        tried=(
            "batch 4 x 2048 tokens: 9.80 GB estimated, fits",
            "batch 4 x 384 tokens: 2.31 GB estimated, fits; no example is longer than 380 tokens",
        ),
        before_bytes=51_200_000_000,
        after_bytes=2_310_000_000,
        limit_bytes=16 * GB,
    )
    return Plan(
        story="T003",
        kind=StoryKind.TRAIN,
        version=2 if adapted else 1,
        title="Train with QLoRA",
        created_at=NOW,
        author="planner-A",
        goal="Train an adapter that lowers the test loss by at least 0.1 nats per token.",
        adaptation=note if adapted else None,
        base_commit=COMMIT,
        branch="feat/T003-train-with-qlora",
        traceability=Traceability(
            objective="docstring-to-code",
            objective_sha256=SHA,
            epic="Fine-tune a small coder",
            sprint=1,
            depends_on=("T001", "T002"),
            unblocks=("T004",),
        ),
        inventory=Inventory(
            commit=COMMIT,
            rows=(
                InventoryRow(place="src/", files=12, lines=1840, what="the project's code"),
                InventoryRow(place="tests/", files=7, lines=960, what="its tests"),
            ),
            packages=("mlx-lm", "mkl"),
            notes=("`src/app/__init__.py` holds the version",),
        ),
        problem=Problem(
            current_state=("The base model is not tuned.", "Test loss of the base: not measured."),
            impact="Evaluation and publication wait for an adapter.",
            statement="Which adapter lowers the test loss inside the memory limit?",
        ),
        constraints=("Nothing may need more than 16 GB.", "The test split is not for selection."),
        interfaces=("`models/runs/mlx/<run>/` holds run, adapter and plots",),
        definition_of_done=("An adapter exists.", "All acceptance criteria pass."),
        alternatives=_alternatives(),
        decision=PlanDecision(
            chosen="mlx",
            factors=(
                Factor(key="usable", title="Usable here", weight=3, why="nothing runs without it"),
                Factor(key="speed", title="Speed", weight=1.5, why="the budget is 60 min"),
            ),
            totals={"mlx": 0.87, "axolotl": 0.0},
            rationale=("MLX-LM is the only one that is importable here.",),
            trade_offs=("The CPU build is slower than Metal; the budget allows it.",),
        ),
        fallback=Fallback(
            trigger="MLX-LM cannot load the model",
            action="Install axolotl and plan the story again.",
            costs=(("install and configure", 25), ("plan again", 2)),
        ),
        steps=_steps(),
        size=Size.M,
        subtasks=(
            SubtaskPlan(
                id="T003-B01",
                kind=SubtaskKind.BUILD,
                title="Train and record",
                steps=(1, 2),
                estimate_minutes=9,
            ),
            SubtaskPlan(
                id="T003-T01",
                kind=SubtaskKind.TEST,
                title="Verify the adapter",
                depends_on=("T003-B01",),
                estimate_minutes=3,
            ),
        ),
        exit_gates={"T003-B01": (GATE_FILES.evolve(id="X1"),)},
        test_plan=_test_plan(),
        deliverables=("docs/training/training.md", "docs/training/records/run.json"),
        risks=(
            Risk(
                risk="The run needs more memory than estimated",
                probability="medium",
                impact="critical",
                mitigation="a watcher kills it at the limit",
                contingency="the refiner takes the next rung",
            ),
        ),
        sprint_impact=("T004 starts when this is integrated.",),
        handoff=("Read `docs/training/memory-profile.md` first.",),
        model="SmolLM2-135M-Instruct",
        params=PARAMS,
        memory_limit_bytes=16 * GB,
        inputs={"data": "models/data/0123456789abcdef"},
    )


def _alternatives() -> tuple[Alternative, ...]:
    return (
        Alternative(
            key="mlx",
            title="MLX-LM",
            facts={
                "usable": Fact(value="yes, version 0.32.2", source="probed", score=1.0),
                "speed": Fact(value="125.0 tokens/s", source="measured", score=0.6),
                "time": Fact(value="35 min", source=LONG_SOURCE),
                "setting": Fact(value="rank 16, " * 9 + "and so on", source="given"),
            },
            pros=("installed", "built-in LoRA"),
            cons=("no GPU here",),
            effort_minutes=3,
        ),
        Alternative(
            key="axolotl",
            title="axolotl",
            facts={
                "usable": Fact(value="no: No module named 'axolotl'", source="probed", score=0.0),
                "speed": Fact(value="unknown", source="not available"),
                "time": Fact(value="36 min", source=LONG_SOURCE),
            },
            effort_minutes=27,
        ),
    )


def _steps() -> tuple[Step, ...]:
    return (
        Step(
            number=1,
            title="Train",
            kind=StepKind.TRAIN,
            what="Train in a child process under the memory gate.",
            exit_gates=("the run is finished", "the peak is at most 16 GB"),
            estimate_minutes=8,
            critical=True,
        ),
        Step(
            number=2,
            title="Write the report",
            kind=StepKind.DOCUMENT,
            what="Write what the run measured.",
            exit_gates=("the report exists",),
            estimate_minutes=1,
            document="training",
            deliverables=("docs/training/training.md",),
        ),
    )


def _test_plan() -> TestPlan:
    return TestPlan(
        scope=("the adapter and its records",),
        out_of_scope=("the quality of generated code",),
        quality_gates=(GATE_LINT, GATE_TESTS),
        acceptance=(GATE_DROP, GATE_MEMORY, GATE_FILES),
        integration=("Stock `mlx_lm.generate` loads the adapter.",),
        regression=("The project's own tests pass as before.",),
        benchmarks=("Tokens per second are recorded, not judged.",),
        checklist=("Run the quality gates", "Recompute the losses"),
        troubleshooting=(
            Trouble(
                symptom="The loss is not a number",
                cause="a masked prompt fills the whole sequence",
                remedy="raise the sequence length or drop such examples",
            ),
        ),
    )


def make_evidence(
    gate: GateSpec = GATE_DROP, verdict: Verdict = Verdict.PASSED, **changes: object
) -> Evidence:
    base = Evidence(
        id=f"E-T003-T01-a1-001-{gate.id}",
        gate=gate,
        verdict=verdict,
        story="T003",
        task="T003-T01",
        attempt=1,
        commit=COMMIT,
        detail="test_loss_drop = 0.840" if gate is GATE_DROP else "see the output",
        command=gate.command,
        exit_code=0 if gate.kind is GateKind.COMMAND else None,
        host="build-host",
        started_at=NOW,
        duration_seconds=38.2,
        interval=(0.78, 0.90) if gate is GATE_DROP else None,
    )
    return base.evolve(**changes)


EVIDENCE = (
    make_evidence(),
    make_evidence(GATE_MEMORY, detail="peak_memory = 2.41 GB"),
    make_evidence(GATE_LINT, Verdict.FAILED, exit_code=1, detail="exit code 1: `a | b` unused"),
    make_evidence(
        GATE_TESTS,
        Verdict.WAIVED,
        exit_code=1,
        detail="exit code 1",
        waiver=Waiver(
            gate_id="G2",
            by="Ada",
            why="known flaky on this host",
            at=NOW,
            until=NOW + timedelta(days=2),
        ),
    ),
)


def make_report(role: Role = Role.BUILDER) -> Report:
    return Report(
        story="T003",
        task="T003" if role in (Role.PLANNER, Role.REFINER, Role.INTEGRATOR) else "T003-B01",
        title="Train with QLoRA",
        role=role,
        agent=f"{role.value}-A",
        attempt=2,
        started_at=NOW,
        finished_at=NOW + timedelta(minutes=6, seconds=12),
        outcome="complete",
        objective="Train an adapter inside the memory limit.",
        summary=("One run finished.", "Every exit gate passed."),
        actions=(
            Action(
                title="Train",
                outcome="done",
                minutes=5.4,
                estimate_minutes=8,
                facts=("40 iterations, 5 optimizer steps", "train loss 1.912 -> 1.037"),
            ),
            Action(title="Write the report", outcome="done", minutes=0.1, estimate_minutes=1),
        ),
        deliverables=(
            Deliverable(path="docs/training/training.md", what="the run", size_bytes=4210),
            Deliverable(path="docs/training/records/run.json", what="its record"),
        ),
        metrics=(Metric(name="peak memory", value="2.41 GB", source="measured"),),
        evidence=EVIDENCE,
        challenges=(
            Challenge(
                what="attempt 1 lost its lease: no heartbeat since 11:20:00 UTC",
                solution="attempt 2 went on from the checkpoint",
                at=NOW - timedelta(minutes=30),
            ),
        ),
        decisions=("Went on from iteration 20.",),
        handoff=("The adapter lies in the run store.",),
        sprint_impact=("T003-T01 can start.",),
        lessons=("Training took 5.4 min, 68 % of the estimate.",),
        next_steps=("A tester claims T003-T01.", "Then the integrator merges."),
        commit=COMMIT,
    )


def make_run(**changes: object) -> RunRecord:
    base = RunRecord(
        started_at=NOW,
        git_sha=COMMIT,
        data_dir="models/data/0123456789abcdef",
        model="/home/someone/.cache/oodatcaa/models/SmolLM2-135M-Instruct-4bit",
        lora_rank=16,
        lora_alpha=32,
        iters=40,
        batch_size=4,
        learning_rate=3e-4,
        run_id="2026-01-30_12-00-00",
        backend="mlx",
        status=RunStatus.FINISHED,
        finished_at=NOW + timedelta(minutes=4, seconds=25),
        data_sha256=SHA,
        model_sha256=SHA,
        params=PARAMS,
        optimizer_steps=5,
        versions={"mlx": "0.32.0", "mlx-lm": "0.32.2"},
        machine=MACHINE,
        memory_limit_bytes=16 * GB,
        estimated_peak_bytes=2_310_000_000,
        peak_memory_bytes=2_412_000_000,
        mlx_peak_bytes=2_190_000_000,
        process_peak_bytes=2_412_000_000,
        trained_tokens=31_200,
        tokens_per_second=124.96,
        iterations_done=40,
        train_losses=tuple(LossPoint(iteration=i, loss=1.9 - i * 0.02) for i in range(1, 41)),
        valid_losses=(LossPoint(iteration=20, loss=1.31), LossPoint(iteration=40, loss=1.12)),
        adapter_sha256=SHA,
        story="T003",
        task="T003-B01",
        attempt=1,
    )
    return base.evolve(**changes)


DATASET = DatasetRecord(
    name="stdlib-functions",
    path="models/data/0123456789abcdef",
    sha256=SHA,
    source="Python 3.11 standard library",
    licence="PSF-2.0",
    seed=7,
    splits={
        name: SplitStats(
            examples=examples,
            files=files,
            tokens_min=31,
            tokens_mean=142.37,
            tokens_p95=301,
            tokens_max=380,
            sha256=SHA,
        )
        for name, examples, files in (("train", 1204, 96), ("valid", 151, 12), ("test", 1, 1))
    },
    dropped={"too_long": 212, "duplicate": 31},
    tokenizer="SmolLM2-135M-Instruct",
)

EVAL = EvalResult(
    split="test",
    examples=8,
    target_tokens=1102,
    base_loss=1.8981,
    adapter_loss=1.0581,
    drop=0.84,
    drop_low=0.781,
    drop_high=0.902,
    per_example_base=(1.9, 2.0, 1.7, 1.8, 2.2, 1.6, 1.9, 2.1),
    per_example_adapter=(1.0, 1.1, 1.8, 0.9, 1.2, 1.0, 1.0, 1.1),
    per_example_tokens=(120, 140, 98, 77, 201, 160, 150, 156),
    evaluator_sha256=SHA,
    data_sha256=SHA,
    adapter_sha256=SHA,
    peak_memory_bytes=1_400_000_000,
    seconds=41.3,
)

COMPARISON = Comparison(
    prompt="Write a function `clamp(x, low, high)`.",
    base="```python\ndef clamp(x):\n    pass\n```\n# not | a | table\n",
    tuned="def clamp(x, low, high):\n    return max(low, min(x, high))\n",
    base_tokens_per_second=30.0,
)


def make_board() -> Board:
    """A sprint in the middle: one story merged, one adapting, two that wait, one for a person."""
    common = {"estimate_minutes": 12, "created_at": NOW, "status_since": NOW}
    lease = ProcessLease(
        kind="process",
        owner="refiner-A",
        role=Role.REFINER,
        host="build-host",
        attempt=1,
        ttl_seconds=2700,
        claimed_at=NOW,
        heartbeat_at=NOW + timedelta(seconds=40),
        pid=4242,
        process_started_at=1.0,
    )
    failure = Failure(
        kind="memory_gate",
        task="T003-B01",
        layer="before",
        summary="an estimated 51.20 GB are needed | limit 16.00 GB",
        needed_bytes=51_200_000_000,
        limit_bytes=16 * GB,
        at=NOW,
    )
    titles = {
        "T001": "Choose the framework and profile memory",
        "T002": "Build and validate the data",
        "T003": "Train with QLoRA",
        "T004": "Evaluate against the base model",
        "T005": "Publish the adapter",
    }
    kinds = dict(zip(titles, list(StoryKind)[:5], strict=True))

    def story(story_id: str, status: StoryStatus, **more: object) -> Story:
        return Story.model_validate(
            {
                **common,
                "id": story_id,
                "title": titles[story_id],
                "slug": f"story-{story_id.lower()}",
                "kind": kinds[story_id],
                "status": status,
                **more,
            }
        )

    merged = Integration(
        target="main",
        merge_commit=COMMIT,
        tag="T001-complete",
        evidence=("T001-merge-G1", "T001-merge-G2"),
        artefacts=("docs/training/framework-evaluation.md",),
        at=NOW,
    )
    stories = (
        story("T001", StoryStatus.DONE, plan_version=1, integration=merged, commit=COMMIT),
        story(
            "T002",
            StoryStatus.NEEDS_HUMAN,
            depends_on=("T001",),
            reason="3 leases in a row were lost",
        ),
        story(
            "T003",
            StoryStatus.ADAPTING,
            depends_on=("T001",),
            plan_version=1,
            lease=lease,
            attempt=1,
            failure=failure,
            goal="Train an adapter.",
        ),
        story("T004", StoryStatus.BLOCKED, depends_on=("T003",)),
        story("T005", StoryStatus.BLOCKED, depends_on=("T004",)),
    )
    subtask = Subtask(
        id="T003-B01",
        story="T003",
        kind=SubtaskKind.BUILD,
        status=SubtaskStatus.ADAPTING,
        title="Train and record",
        estimate_minutes=9,
        status_since=NOW,
        created_at=NOW,
        plan_version=1,
        steps=(1, 2),
        failure=failure,
    )
    sprint = Sprint(
        number=1,
        objective_id="docstring-to-code",
        objective_sha256=SHA,
        title="Functions from docstrings",
        target_branch="main",
        memory_limit_bytes=16 * GB,
        created_at=NOW - timedelta(minutes=9),
    )
    return Board(revision=17, sprint=sprint, stories=stories, subtasks=(subtask,))


def make_summary() -> SprintSummary:
    plan = make_plan(adapted=True)
    assert plan.adaptation is not None
    return SprintSummary(
        board=make_board(),
        outcome="needs a person",
        finished_at=NOW,
        goal="A small model that writes functions from docstrings.",
        acceptance=(
            Bound.parse("test_loss_drop >= 0.1"),
            Bound.parse("peak_memory <= 16GB critical"),
            Bound.parse("tokens_per_second >= 10"),
        ),
        run=make_run(),
        evaluation=EVAL,
        evidence=EVIDENCE,
        adaptations=(StoryAdaptation(story="T003", plan_version=2, note=plan.adaptation),),
        comparisons=(COMPARISON,),
        plots=(("Loss and memory", "../../docs/training/plots/run.png"),),
        open_first=(("Model card", "../../docs/training/MODEL_CARD.md"),),
        links=(("Log", "AGENT_LOG.md"), ("Plan of T003", "plans/T003/AGENT_PLAN.md")),
        lessons=("Training took 68 % of its estimate.",),
    )
