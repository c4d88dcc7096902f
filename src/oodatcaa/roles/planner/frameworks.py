"""The three frameworks as facts probed here, the decision between them, and the way back."""

from __future__ import annotations

from oodatcaa.domain.plan import Alternative, Fact, Factor, Fallback, PlanDecision
from oodatcaa.domain.training import BackendProbe, BackendTrial
from oodatcaa.roles.planner.design import Forced
from oodatcaa.roles.planner.inputs import PlanInputs
from oodatcaa.roles.planner.parameters import estimate_for, loading_minutes
from oodatcaa.roles.planner.scoring import NOT_AVAILABLE, decide, memory_fact

TITLES = {"mlx": "MLX-LM", "axolotl": "axolotl", "hf": "Direct Hugging Face"}
IMPORTS = {"mlx": "mlx_lm", "axolotl": "axolotl", "hf": "transformers, peft"}
PACKAGES = {"mlx": "mlx-lm", "axolotl": "axolotl", "hf": "transformers peft"}
INSTALL_MINUTES = {"mlx": 5, "axolotl": 30, "hf": 20}
WRITE_MINUTES = {"mlx": 0, "axolotl": 15, "hf": 60}
"""Planning estimates: axolotl needs its own configuration, Hugging Face a training script."""

ACCELERATOR_SCORE = {"metal": 1.0, "cuda": 1.0, "mps": 0.75, "cpu": 0.3}

FACTORS = (
    Factor(
        key="importable",
        title="Importable here",
        weight=5,
        why="what can not be imported can not train",
    ),
    Factor(
        key="memory",
        title="Memory for the asked parameters",
        weight=4,
        why="the memory limit is hard: what does not fit is refused",
    ),
    Factor(key="loads", title="Loads the model", weight=3, why="some formats load nowhere else"),
    Factor(
        key="accelerator",
        title="Accelerator it computes on",
        weight=2,
        why="decides the order of magnitude of the training time",
    ),
    Factor(
        key="speed",
        title="Measured tokens/s",
        weight=2,
        why="the only speed that counts is the one on this machine",
    ),
    Factor(
        key="preference",
        title="Order in OBJECTIVE.md",
        weight=1,
        why="a person's preference decides between equals",
    ),
)

LOADERS = {"mlx": "stock mlx-lm"}
"""What loads an adapter of a backend without this project; the others write PEFT's format."""


def loader(inputs: PlanInputs) -> str:
    """Of the run's adapter, or of the one that the planned run will write."""
    return LOADERS.get(trained_by(inputs), "PEFT")


def trained_by(inputs: PlanInputs) -> str:
    return inputs.run.backend if inputs.run else inputs.backend


def names(inputs: PlanInputs) -> tuple[str, ...]:
    """The three frameworks and whatever else was probed; the objective's order first."""
    listed = [*inputs.objective.backends, *TITLES, *(probe.name for probe in inputs.probes)]
    return tuple(dict.fromkeys([*listed, inputs.backend]))


def probe_of(inputs: PlanInputs, name: str) -> BackendProbe | None:
    return next((probe for probe in inputs.probes if probe.name == name), None)


def trial_of(inputs: PlanInputs, name: str) -> BackendTrial | None:
    return next((trial for trial in inputs.trials if trial.name == name), None)


def usable(probe: BackendProbe | None) -> bool:
    return probe is not None and probe.usable


def title_of(inputs: PlanInputs, name: str) -> str:
    probe = probe_of(inputs, name)
    return probe.title if probe else TITLES.get(name, name)


def alternative(inputs: PlanInputs, name: str) -> Alternative:
    probe = probe_of(inputs, name)
    here = name == (inputs.measured_with or inputs.backend)
    facts = {
        "importable": _importable(probe),
        "version": Fact(value=probe.version, source="probed")
        if probe and probe.version
        else NOT_AVAILABLE,
        "accelerator": _accelerator(probe),
        "memory": _memory(inputs, name, here),
        "loads": _loads(inputs, name, here),
        "speed": _speed(inputs, name, here),
        "preference": _preference(inputs, name),
    }
    cons = (probe.problem,) if probe and probe.problem else ()
    return Alternative(
        key=name,
        title=title_of(inputs, name),
        facts=facts,
        pros=probe.notes if probe and usable(probe) else (),
        cons=cons if facts["importable"].score != 0 else (),
        effort_minutes=sum(minutes for _, minutes in _costs(inputs, name)),
    )


def _importable(probe: BackendProbe | None) -> Fact:
    if probe is None:
        return NOT_AVAILABLE
    if not probe.importable:
        reason = f": {probe.problem}" if probe.problem else ""
        return Fact(value=f"no{reason}", source="probed", score=0.0)
    if probe.problem:
        return Fact(value=f"yes, but {probe.problem}", source="probed", score=0.0)
    version = f", version {probe.version}" if probe.version else ""
    return Fact(value=f"yes{version}", source="probed", score=1.0)


def _accelerator(probe: BackendProbe | None) -> Fact:
    if probe is None or not probe.importable or probe.accelerator is None:
        return NOT_AVAILABLE
    score = ACCELERATOR_SCORE.get(probe.accelerator)
    return Fact(value=probe.accelerator, source="probed", score=score)


def _memory(inputs: PlanInputs, name: str, here: bool) -> Fact:
    trial = trial_of(inputs, name)
    if trial is not None and trial.needed is not None:
        source = f"estimated from {trial.needed.method}"
        return memory_fact(trial.needed.total_bytes, inputs.ceiling_bytes, source)
    if not here:
        return NOT_AVAILABLE
    estimate, source = estimate_for(inputs, inputs.params)
    return memory_fact(estimate.total_bytes if estimate else None, inputs.ceiling_bytes, source)


def _loads(inputs: PlanInputs, name: str, here: bool) -> Fact:
    trial = trial_of(inputs, name)
    if trial is not None and trial.tokens_per_second is not None:
        return Fact(value="yes, trained a few steps", source="measured", score=1.0)
    if trial is not None and trial.problem is not None:
        return Fact(value=f"no: {trial.problem}", source="measured", score=0.0)
    if not here:
        return NOT_AVAILABLE
    if inputs.inference is not None:
        seconds = inputs.inference.load_seconds
        return Fact(value=f"yes, in {seconds:.1f} s", source="measured", score=1.0)
    if inputs.model_error is not None:
        return Fact(value=f"no: {inputs.model_error}", source="probed", score=0.0)
    if inputs.shape is not None:
        return Fact(
            value="config and tensor headers are readable",
            source="estimated from config.json and tensor headers",
            score=0.5,
        )
    return NOT_AVAILABLE


def _speed(inputs: PlanInputs, name: str, here: bool) -> Fact:
    best = max((trial.tokens_per_second or 0.0 for trial in inputs.trials), default=0.0)
    trial = trial_of(inputs, name)
    if trial is not None and best:
        rate = trial.tokens_per_second or 0.0
        batches = f"batches of {trial.batch} x {trial.length}"
        value = f"{rate:.0f} tokens/s trained on {batches}" if rate else "no step was made"
        return Fact(value=value, source="measured", score=round(rate / best, 4))
    if best:
        return NOT_AVAILABLE
    if not here or inputs.inference is None:
        return NOT_AVAILABLE
    rate = inputs.inference.generation.tokens_per_second
    return Fact(
        value=f"{rate:.1f} tokens/s generated on {inputs.inference.device}",
        source="measured",
        score=1.0 if rate > 0 else 0.0,
    )


def _preference(inputs: PlanInputs, name: str) -> Fact:
    backends = inputs.objective.backends
    if name not in backends:
        return Fact(value="not listed", source="given in OBJECTIVE.md", score=0.0)
    place = backends.index(name) + 1
    return Fact(
        value=f"place {place} of {len(backends)}",
        source="given in OBJECTIVE.md",
        score=round(1 / place, 4),
    )


def decision_of(
    inputs: PlanInputs, alternatives: tuple[Alternative, ...], forced: Forced | None
) -> PlanDecision:
    listed = inputs.objective.backends
    works = [name for name in listed if usable(probe_of(inputs, name))]
    fits = [name for name in works if _may(alternatives, name)]
    because = []
    if forced:
        because.append(f"Decided by the adaptation: {forced.reason}")
    elif not works:
        because.append(
            "No listed backend is known to work here: the first listed is planned, and step 2 "
            "fails unless it was installed by then"
        )
    skipped = [name for name in listed if works and name not in works]
    if skipped:
        titles = ", ".join(title_of(inputs, name) for name in skipped)
        because.append(f"Not usable on this machine as it is: {titles}")
    if fits and fits != works:
        titles = ", ".join(title_of(inputs, name) for name in works if name not in fits)
        because.append(f"Does not fit, or did not train in its trial: {titles}")
    return decide(
        alternatives,
        FACTORS,
        candidates=fits or works or listed[:1],
        forced=inputs.backend if forced else None,
        because=because,
        trade_offs=(
            "Only what is installed here is measured; another framework may be faster once "
            "installed, and no figure for it is invented",
        ),
    )


def _may(alternatives: tuple[Alternative, ...], name: str) -> bool:
    """Nothing that is known of it speaks against training the asked parameters with it."""
    facts = next(one.facts for one in alternatives if one.key == name)
    return 0 not in (facts["memory"].score, facts["loads"].score)


def _costs(inputs: PlanInputs, name: str) -> tuple[tuple[str, int], ...]:
    costs = []
    if not usable(probe_of(inputs, name)):
        costs.append((f"install {title_of(inputs, name)}", INSTALL_MINUTES.get(name, 30)))
    if WRITE_MINUTES.get(name, 30):
        costs.append(("write its training configuration", WRITE_MINUTES.get(name, 30)))
    costs.append(("load the model and check inference", 1 + loading_minutes(inputs.shape)))
    costs.append(("profile memory", 2))
    return tuple(costs)


def fallback(inputs: PlanInputs, chosen: str) -> Fallback:
    others = [name for name in inputs.objective.backends if name != chosen]
    ready = [name for name in others if usable(probe_of(inputs, name))]
    trigger = f"{title_of(inputs, chosen)} can not load the model, or no rung of memory fits"
    if not others:
        return Fallback(
            trigger=trigger,
            action="OBJECTIVE.md lists no other backend: a person decides",
            costs=(("add a backend to OBJECTIVE.md and plan again", 10),),
        )
    following = (ready or others)[0]
    state = "installed here" if ready else "to be installed first"
    return Fallback(
        trigger=trigger,
        action=f"Switch to {title_of(inputs, following)} ({state}); costs are estimates",
        costs=(("decide and write the next plan version", 2), *_costs(inputs, following)),
    )
