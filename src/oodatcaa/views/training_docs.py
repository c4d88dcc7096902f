"""The documents below `docs/training/`, each called with what a builder's step holds in its hands.

The pages themselves are made in `framework`, `installation`, `model_checks`, `evaluation` and
`cards`; this module turns plans, probes and run records into their input. Paths in the pages are
relative to the project, links relative to `docs/training/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.memory import MemoryEstimate, ModelShape
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import (
    BackendProbe,
    DatasetRecord,
    EvalResult,
    Generation,
    InferenceProbe,
    Machine,
    RunRecord,
)
from oodatcaa.views import cards, evaluation, framework, installation, model_checks
from oodatcaa.views.cards import data_card
from oodatcaa.views.markdown import bullets, code, link, page, section
from oodatcaa.views.training_report import training_report
from oodatcaa.views.units import words

__all__ = [
    "MeasuredProfile",
    "data_card",
    "dependency_pins",
    "evaluation_report",
    "framework_evaluation",
    "inference_check",
    "installation_guide",
    "memory_profile",
    "model_card",
    "model_loading",
    "publication_index",
    "quality_gates",
    "training_report",
]


class MeasuredProfile(Protocol):
    """An estimate for the plan's parameters, and a probe measured beside its own estimate."""

    @property
    def params(self) -> QLoRA: ...
    @property
    def estimate(self) -> MemoryEstimate: ...
    @property
    def limit_bytes(self) -> int: ...
    @property
    def probe_params(self) -> QLoRA | None: ...
    @property
    def probe_estimate(self) -> MemoryEstimate | None: ...
    @property
    def probe_peak_bytes(self) -> int | None: ...
    @property
    def probe_run(self) -> str: ...


def framework_evaluation(plan: Plan, probes: tuple[BackendProbe, ...], machine: Machine) -> str:
    return framework.framework_evaluation(probes, plan=plan, machine=machine)


def model_loading(
    name: str, sha256: str, licence: str, shape: ModelShape, probe: InferenceProbe
) -> str:
    """`probe` is the child process that loaded the model."""
    return model_checks.model_loading(
        model_checks.ModelLoad(
            model=name,
            sha256=sha256,
            licence=licence,
            shape=shape,
            load_seconds=probe.load_seconds,
            peak_memory_bytes=probe.peak_memory_bytes,
            peak_covers="loading the model and a short answer",
            device=probe.device,
        )
    )


def inference_check(probe: InferenceProbe) -> str:
    return model_checks.inference_check((probe,))


def memory_profile(plan: Plan, facts: MeasuredProfile) -> str:
    """The estimate part by part, and the probe when one was measured."""
    probe = None
    if facts.probe_params is not None:
        estimate = facts.probe_estimate
        probe = model_checks.MemoryProbe(
            params=facts.probe_params,
            iterations=facts.probe_params.iters,
            estimated_bytes=estimate.total_bytes if estimate else None,
            peak_bytes=facts.probe_peak_bytes,
            device=facts.estimate.device,
            run_id=facts.probe_run,
        )
    return model_checks.memory_profile(
        facts.estimate,
        params=facts.params,
        memory_limit_bytes=facts.limit_bytes,
        model=plan.model,
        probe=probe,
    )


def installation_guide(
    plan: Plan,
    probes: tuple[BackendProbe, ...],
    machine: Machine,
    *,
    pins: Mapping[str, str] | None = None,
) -> str:
    """The guide, with what was found on `machine` for the backend that `plan` chose."""
    notes = tuple(
        f"{probe.title}{' (chosen)' if probe.name == plan.backend else ''}: "
        + (probe.problem or f"usable, version {probe.version or 'unknown'}")
        for probe in probes
    )
    return installation.installation_guide(
        machine=machine, versions=dict(sorted((pins or {}).items())), notes=notes
    )


def dependency_pins(pins: Mapping[str, str]) -> str:
    return framework.dependency_pins(
        tuple(framework.Pin(name=name, installed=version) for name, version in sorted(pins.items()))
    )


def quality_gates(gates: tuple[GateSpec, ...]) -> str:
    return framework.quality_gates(gates)


def evaluation_report(
    result: EvalResult,
    *,
    run_id: str,
    model: str = "the base model",
    prompt: str | None = None,
    base: Generation | None = None,
    tuned: Generation | None = None,
) -> str:
    """Side by side appears when prompt and both answers are given."""
    comparisons: tuple[evaluation.Comparison, ...] = ()
    if prompt and base and tuned:
        comparisons = (
            evaluation.Comparison(
                prompt=prompt,
                base=base.text,
                tuned=tuned.text,
                base_tokens_per_second=base.tokens_per_second,
                tuned_tokens_per_second=tuned.tokens_per_second,
            ),
        )
    return evaluation.evaluation_report(
        result, model=model, adapter=f"run {run_id}", comparisons=comparisons
    )


def model_card(
    *,
    title: str,
    model_name: str,
    model_licence: str = "",
    mlx_quantised: bool = False,
    run: RunRecord,
    dataset: DatasetRecord,
    evaluation: EvalResult | None = None,
    prompt: str = "",
    plot: str | None = None,
) -> str:
    """The card of the adapter that `run` made; the weights stay in the run store."""
    card = cards.AdapterCard(
        name=title,
        base_model=model_name,
        mlx_quantised=mlx_quantised,
        licence=model_licence,
        adapter_path=f"models/runs/{run.backend}/{run.run_id}/adapters",
        prompt=prompt,
        plots=(("Training loss and memory", plot),) if plot else (),
    )
    return cards.model_card(card, run, data=dataset, evaluation=evaluation)


def publication_index(title: str, files: tuple[str, ...]) -> str:
    """README.md of the folder; `files` are paths below it. The page does not list itself."""
    listed = [path for path in files if path != "README.md"]
    pages = [path for path in listed if path.endswith(".md")]
    others = [path for path in listed if not path.endswith(".md")]
    return page(
        f"Training documents: {title}",
        "Everything here was written from what was run. Start with the model card or the "
        "evaluation, where they are listed."
        if listed
        else "Nothing was written yet.",
        section("Documents", bullets(link(_page_title(path), path) for path in _ordered(pages))),
        section("Records and plots", bullets(link(path, path) for path in others)),
        section(
            "Where the weights are",
            f"Adapters and data are not in git: they lie in {code('models/')} beside the main "
            "checkout, and the records name them by hash.",
        ),
    )


_FIRST = ("MODEL_CARD.md", "evaluation.md", "training.md", "DATA_CARD.md", "memory-profile.md")


def _ordered(pages: list[str]) -> list[str]:
    rank = {name: place for place, name in enumerate(_FIRST)}
    return sorted(pages, key=lambda path: (rank.get(path, len(rank)), path))


def _page_title(path: str) -> str:
    """`memory-profile.md` -> `Memory profile`."""
    name = words(path.removesuffix(".md").replace("-", "_")).lower()
    return name[:1].upper() + name[1:]
