"""Facts for the planner's tests: a machine, a model, data and a sprint, rich or poor."""

from __future__ import annotations

from datetime import UTC, datetime

from oodatcaa.domain.board import Board, Sprint
from oodatcaa.domain.evidence import Bound, GateKind, GateSpec
from oodatcaa.domain.memory import MemoryEstimate, MemoryPart, ModelShape
from oodatcaa.domain.objective import Objective
from oodatcaa.domain.plan import Inventory, InventoryRow
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.task import Story, StoryKind, StoryStatus
from oodatcaa.domain.training import (
    GB,
    BackendProbe,
    DatasetRecord,
    Generation,
    InferenceProbe,
    LossPoint,
    Machine,
    RunRecord,
    RunStatus,
    SplitStats,
)
from oodatcaa.roles.planner import PlanInputs

NOW = datetime(2026, 1, 30, 12, tzinfo=UTC)
KINDS = tuple(StoryKind)
TITLES = {
    StoryKind.FRAMEWORK: "Choose the framework",
    StoryKind.DATA: "Build the data",
    StoryKind.TRAIN: "Train with QLoRA",
    StoryKind.EVALUATE: "Evaluate against the base",
    StoryKind.PUBLISH: "Publish the adapter",
    StoryKind.CUSTOM: "Say hello",
}


def stories() -> tuple[Story, ...]:
    return tuple(
        Story(
            id=f"T{number:03d}",
            slug=kind.value,
            kind=kind,
            title=TITLES[kind],
            goal="# greet\n$ echo hello\n\n- echo bye" if kind is StoryKind.CUSTOM else "",
            status=StoryStatus.NEEDS_PLAN if number == 1 else StoryStatus.BLOCKED,
            estimate_minutes=10 * number,
            depends_on=(f"T{number - 1:03d}",) if 1 < number < 6 else (),
            status_since=NOW,
            created_at=NOW,
        )
        for number, kind in enumerate(KINDS, 1)
    )


def board() -> Board:
    sprint = Sprint(
        number=4,
        objective_id="tune",
        objective_sha256="0" * 64,
        title="Tune",
        target_branch="main",
        memory_limit_bytes=16 * GB,
        created_at=NOW,
    )
    return Board(sprint=sprint, stories=stories())


def objective(*acceptance: str, **changes: object) -> Objective:
    lines = acceptance or ("test_loss_drop >= 0.1", "peak_memory <= 16GB critical")
    values: dict[str, object] = {
        "id": "tune",
        "title": "Tune the demo model",
        "memory_limit_bytes": 16 * GB,
        "memory_limit_text": "16GB",
        "acceptance": tuple(Bound.parse(line) for line in lines),
        "eval_examples": 64,
        "prompt": "Write a function that adds two numbers.",
    }
    return Objective.model_validate(values | changes)


def machine(**changes: object) -> Machine:
    values: dict[str, object] = {
        "host": "box",
        "system": "Linux",
        "processor": "Xeon",
        "cpu_count": 2,
        "memory_bytes": 24 * GB,
        "accelerator": "cpu",
        "blas": "mkl",
    }
    return Machine.model_validate(values | changes)


def estimate(total: int) -> MemoryEstimate:
    return MemoryEstimate(
        total_bytes=total,
        parts=(MemoryPart(name="weights", bytes=total, formula="as stored"),),
        device="cpu",
        method="config.json and tensor headers",
    )


def shape() -> ModelShape:
    return ModelShape(
        model_type="llama",
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        vocab_size=49152,
        tied_embeddings=True,
        weight_bytes=90_000_000,
        parameters=134_515_008,
        bits=4,
        group_size=32,
    )


def dataset(longest: int = 370) -> DatasetRecord:
    def split(examples: int, letter: str) -> SplitStats:
        return SplitStats(
            examples=examples,
            files=9,
            tokens_min=20,
            tokens_mean=180.0,
            tokens_p95=300,
            tokens_max=longest,
            sha256=letter * 64,
        )

    return DatasetRecord(
        name="demo",
        path="models/data/abcd",
        sha256="a" * 64,
        source="CPython",
        licence="PSF-2.0",
        splits={"train": split(900, "b"), "valid": split(90, "c"), "test": split(95, "d")},
    )


def run() -> RunRecord:
    return RunRecord(
        started_at=NOW,
        git_sha="f" * 40,
        data_dir="models/data/abcd",
        model="demo",
        lora_rank=16,
        lora_alpha=32,
        iters=40,
        batch_size=4,
        learning_rate=3e-4,
        run_id="2026-01-30_12-00-00",
        backend="mlx",
        status=RunStatus.FINISHED,
        params=QLoRA(),
        memory_limit_bytes=16 * GB,
        peak_memory_bytes=2_400_000_000,
        tokens_per_second=120.0,
        iterations_done=40,
        valid_losses=(LossPoint(iteration=1, loss=1.9), LossPoint(iteration=40, loss=1.1)),
        adapter_sha256="e" * 64,
    )


def probe(name: str, *, importable: bool, **changes: object) -> BackendProbe:
    values: dict[str, object] = {"name": name, "title": name.upper(), "importable": importable}
    if importable:
        values |= {"version": "1.2.3", "accelerator": "cpu"}
    else:
        values |= {"problem": f"no module named {name}"}
    return BackendProbe.model_validate(values | changes)


def quality_gates() -> tuple[GateSpec, ...]:
    return (
        GateSpec(id="lint", name="Lint", kind=GateKind.COMMAND, command="{python} -m ruff check"),
        GateSpec(id="tests", name="Tests", kind=GateKind.COMMAND, command="{python} -m pytest"),
    )


def poor(kind: StoryKind, **changes: object) -> PlanInputs:
    """No probe, no shape, no estimate, an offline hub model."""
    values: dict[str, object] = {
        "story": next(s for s in stories() if s.kind is kind),
        "board": Board(),
        "objective": objective(model="Qwen/Qwen2.5-Coder-7B-Instruct"),
        "now": NOW,
        "author": "planner-A",
        "inventory": Inventory(commit="", rows=()),
        "machine": machine(blas=""),
        "model_error": "the hub can not be reached",
        "params": QLoRA(),
    }
    return PlanInputs.model_validate(values | changes)


def rich(kind: StoryKind, **changes: object) -> PlanInputs:
    values: dict[str, object] = {
        "board": board(),
        "objective": objective(),
        "quality_gates": quality_gates(),
        "inventory": Inventory(
            commit="c" * 40, rows=(InventoryRow(place="src", files=3, lines=90),)
        ),
        "probes": (
            probe("mlx", importable=True),
            probe("axolotl", importable=False),
            probe("hf", importable=False),
        ),
        "machine": machine(),
        "shape": shape(),
        "model_error": None,
        "estimate": estimate(3 * GB),
        "inference": InferenceProbe(
            model="demo",
            load_seconds=1.5,
            prompt_tokens=9,
            generation=Generation(prompt="p", text="t", tokens=24, tokens_per_second=31.0),
            peak_memory_bytes=600_000_000,
            device="cpu",
        ),
        "params_from": "T001 plan v2",
        "dataset": None if kind is StoryKind.FRAMEWORK else dataset(),
        "run": run() if kind in (StoryKind.EVALUATE, StoryKind.PUBLISH) else None,
        "run_dir": "models/runs/mlx/2026-01-30_12-00-00",
    }
    return poor(kind, **(values | changes))
