"""T002: build the data, validate every line, write the card."""

from __future__ import annotations

from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.plan import (
    Alternative,
    Fact,
    Factor,
    Fallback,
    Problem,
    Risk,
    Size,
    Step,
    StepKind,
    Trouble,
)
from oodatcaa.roles.planner import gates
from oodatcaa.roles.planner.common import quality_line
from oodatcaa.roles.planner.design import Checks, Design, Forced, Group, step
from oodatcaa.roles.planner.inputs import PlanInputs
from oodatcaa.roles.planner.scoring import NOT_AVAILABLE, decide, with_pros_and_cons
from oodatcaa.roles.planner.wording import data_line, plural

DEMO = "demo"

FACTORS = (
    Factor(key="asked", title="Asked for", weight=5, why="the objective names its data"),
    Factor(key="here", title="On this machine", weight=3, why="nothing is fetched unattended"),
    Factor(
        key="split", title="No leak between splits", weight=3, why="a leaked test proves nothing"
    ),
    Factor(key="licence", title="Licence known", weight=2, why="the model card has to name it"),
)


def design(inputs: PlanInputs, forced: Forced | None = None) -> Design:
    demo = inputs.objective.data == DEMO
    ways = tuple(
        with_pros_and_cons(way, FACTORS) for way in (_stdlib(inputs), _folder(inputs), _hub())
    )
    chosen = "stdlib" if demo else "folder"
    decision = decide(
        ways,
        FACTORS,
        candidates=(chosen,),
        because=(
            f"OBJECTIVE.md says data: {inputs.objective.data}; another source would answer "
            "another question",
            *((f"Adaptation: {forced.reason}",) if forced else ()),
        ),
        trade_offs=_trade_offs(demo),
    )
    steps = _steps(inputs, demo)
    counts = _counts(inputs)
    return Design(
        problem=_problem(inputs),
        constraints=(
            f"Inherited parameters: batch {inputs.params.batch_size}, at most "
            f"{inputs.params.max_seq_length} tokens (from {inputs.params_from})",
            f"Seed {inputs.params.seed}: the same source and seed give the same hash",
        ),
        interfaces=(
            "train.jsonl, valid.jsonl, test.jsonl: chat JSONL, one example a line",
            "models/data/<hash>/: named by content hash; the train story gets this path",
            "docs/training/DATA_CARD.md: counts, token lengths, hash, licence",
        ),
        alternatives=ways,
        decision=decision,
        fallback=_fallback(inputs, demo),
        size=Size.S,
        steps=steps,
        groups=(
            Group(
                "Data, validated, with its card",
                (1, 2, 3),
                (*gates.files_of(steps, (1, 2, 3)), *_clean(), *counts),
            ),
        ),
        checks=_checks(inputs, steps),
        risks=_risks(inputs, demo),
        handoff=(
            f"Source: {inputs.objective.data}; seed {inputs.params.seed}",
            "Every bad line is reported with file and line number, all at once; none is dropped "
            "silently",
            "The longest example decides the sequence length of training: it must be in the card",
        ),
        backend=inputs.backend,
        params=inputs.params,
        inputs={"source": inputs.objective.data},
    )


def _stdlib(inputs: PlanInputs) -> Alternative:
    demo = inputs.objective.data == DEMO
    return Alternative(
        key="stdlib",
        title="Python standard library, extracted",
        facts={
            "asked": _asked(demo, inputs),
            "here": Fact(
                value="the interpreter's own source", source="given by the interpreter", score=1.0
            ),
            "split": Fact(value="split by file", source="given by construction", score=1.0),
            "licence": Fact(value="PSF-2.0", source="given by CPython", score=1.0),
            "examples": _examples(inputs, demo),
        },
        effort_minutes=3,
    )


def _folder(inputs: PlanInputs) -> Alternative:
    demo = inputs.objective.data == DEMO
    missing = Fact(value="no folder is named", source="given in OBJECTIVE.md", score=0.0)
    built = inputs.dataset if not demo else None
    return Alternative(
        key="folder",
        title="The user's data folder" if demo else f"Data folder {inputs.objective.data}",
        facts={
            "asked": _asked(not demo, inputs),
            "here": missing
            if demo
            else Fact(value="read and hashed", source="probed", score=1.0)
            if built
            else NOT_AVAILABLE,
            "split": Fact(value="split by its owner; leaks are counted", source="given", score=0.5),
            "licence": Fact(value=built.licence, source="given by its owner", score=1.0)
            if built
            else NOT_AVAILABLE,
            "examples": _examples(inputs, not demo),
        },
        effort_minutes=2,
    )


def _hub() -> Alternative:
    return Alternative(
        key="hub",
        title="A public data set from a hub",
        facts={
            "asked": Fact(value="none is named", source="given in OBJECTIVE.md", score=0.0),
            "here": Fact(value="no: needs a download", source="given", score=0.0),
            "split": NOT_AVAILABLE,
            "licence": NOT_AVAILABLE,
            "examples": NOT_AVAILABLE,
        },
        cons=("a person has to choose it and accept its licence",),
        effort_minutes=30,
    )


def _asked(yes: bool, inputs: PlanInputs) -> Fact:
    value = f"{'yes' if yes else 'no'}: data is {inputs.objective.data}"
    return Fact(value=value, source="given in OBJECTIVE.md", score=1.0 if yes else 0.0)


def _examples(inputs: PlanInputs, mine: bool) -> Fact:
    if inputs.dataset is None or not mine:
        return NOT_AVAILABLE
    return Fact(value=data_line(inputs.dataset), source="measured")


def _trade_offs(demo: bool) -> tuple[str, ...]:
    if demo:
        return ("Demo data teach one interpreter's style; they are not the user's own task",)
    return ("The owner's split is used as it is: a small test split widens the interval",)


def _problem(inputs: PlanInputs) -> Problem:
    return Problem(
        current_state=(
            f"OBJECTIVE.md names the data {inputs.objective.data!r}",
            f"In the data store: {data_line(inputs.dataset)}",
        ),
        impact="Training on a bad line wastes the run; a leaked test example makes the result "
        "worthless",
        statement=f"Turn {inputs.objective.data!r} into train, valid and test splits that are "
        "valid, disjoint, hashed and described",
    )


def _steps(inputs: PlanInputs, demo: bool) -> tuple[Step, ...]:
    build = (
        "Take (name, docstring → function source) pairs from the standard library with ast, "
        f"deduplicate, split by file with seed {inputs.params.seed}, count tokens with "
        f"{inputs.objective.model}'s tokenizer."
        if demo
        else f"Read {inputs.objective.data}, count tokens with {inputs.objective.model}'s "
        "tokenizer, copy into the data store under its content hash."
    )
    return (
        step(
            1,
            StepKind.BUILD_DATA,
            "Build the data",
            build,
            ("three splits exist in the data store under their content hash",),
            2 if demo else 1,
        ),
        step(
            2,
            StepKind.VALIDATE_DATA,
            "Validate every line",
            "Check form, emptiness and duplicates across splits; report every bad line at once.",
            ("bad_lines == 0", "leaked_examples == 0"),
        ),
        step(
            3,
            StepKind.DOCUMENT,
            "Write the data card",
            "Counts, token lengths, hash, source and licence, from the record.",
            ("the card's numbers are those of the record",),
            document="data_card",
            files=("DATA_CARD.md", "records/dataset.json"),
        ),
    )


def _clean() -> tuple[GateSpec, ...]:
    return (
        gates.metric(
            "Every line is valid",
            "bad_lines == 0",
            "No line of any split is malformed or empty; critical",
            critical=True,
        ),
        gates.metric(
            "No leak",
            "leaked_examples == 0",
            "No example of valid or test is also in train; critical",
            critical=True,
        ),
    )


def _counts(inputs: PlanInputs) -> tuple[GateSpec, ...]:
    batch = inputs.params.batch_size
    reason = f"mlx-lm refuses a split with fewer examples than one batch ({batch})"
    return (
        gates.metric("Enough to train", f"train_examples >= {batch}", reason),
        gates.metric("Enough to validate", f"valid_examples >= {batch}", reason),
        gates.metric(
            "Enough to test",
            "test_examples >= 2",
            "A paired bootstrap over a single example has no spread",
        ),
    )


def _checks(inputs: PlanInputs, steps: tuple[Step, ...]) -> Checks:
    return Checks(
        acceptance=(
            *_clean(),
            *_counts(inputs),
            gates.files("Data card", steps[2].deliverables),
        ),
        minutes=1,
        scope=("The three splits in the data store, by their hash", "The data card in git"),
        out_of_scope=(
            "Whether the data teach what is wanted: decided by the evaluate story",
            "The data themselves in git: only card and record are committed",
        ),
        integration=("The train story finds the data by path and hash from this story's record",),
        regression=(quality_line(inputs), "The same source and seed give the same hash again"),
        benchmarks=(f"Data at planning: {data_line(inputs.dataset)}",),
        troubleshooting=(
            Trouble(
                symptom="AC1 fails with file:line entries",
                cause="lines that are not JSON objects with messages",
                remedy="mend or delete the listed lines in the source folder",
            ),
            Trouble(
                symptom="AC2 fails",
                cause="the same example in two splits",
                remedy="deduplicate the source folder; split by origin, not by line",
            ),
            Trouble(
                symptom="AC3 or AC4 fails",
                cause=f"fewer examples than the batch of {inputs.params.batch_size}",
                remedy="add examples, or lower batch_size in OBJECTIVE.md",
            ),
        ),
    )


def _fallback(inputs: PlanInputs, demo: bool) -> Fallback:
    if demo:
        return Fallback(
            trigger="this interpreter ships no usable source files",
            action="Put train.jsonl, valid.jsonl and test.jsonl into a folder and name it in "
            "OBJECTIVE.md",
            costs=(("collect and convert examples", 30), ("build and validate again", 3)),
        )
    return Fallback(
        trigger=f"{inputs.objective.data} has bad lines, leaks or too few examples",
        action="A person mends the listed lines; the demo data prove the rest of the path "
        "meanwhile",
        costs=(("mend the listed lines", 15), ("build and validate again", 3)),
    )


def _risks(inputs: PlanInputs, demo: bool) -> tuple[Risk, ...]:
    length = inputs.params.max_seq_length
    longest = inputs.dataset.longest if inputs.dataset else None
    return (
        Risk(
            risk="Test examples leak into training",
            probability="low" if demo else "medium",
            impact="critical",
            mitigation="split by file, deduplicated" if demo else "leaks are counted over splits",
            contingency="AC2 fails: the data are built again before anything is trained",
        ),
        Risk(
            risk=f"Examples longer than {length} tokens are cut in training"
            + (f" (longest is {longest})" if longest else ""),
            probability="medium" if longest is None else "high" if longest > length else "low",
            impact="medium",
            mitigation="the card lists min, mean, 95th percentile and maximum of tokens",
            contingency="drop the longest examples or raise max_seq_length within the limit",
        ),
        Risk(
            risk="Too few examples for a batch or a meaningful interval",
            probability="low" if demo else "medium",
            impact="medium",
            mitigation=f"AC3 and AC4 ask for {plural(inputs.params.batch_size, 'example')}",
            contingency="smaller batch with accumulation, or more data",
        ),
        Risk(
            risk="Licence or personal data problems",
            probability="low" if demo else "medium",
            impact="high",
            mitigation="data never enter git; the card names source and licence",
            contingency="remove the source from OBJECTIVE.md; the data store folder can be deleted",
        ),
    )
