"""Recompute every metric that a gate names from the artefacts, never from a builder's numbers."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal

from oodatcaa.domain.plan import Plan
from oodatcaa.domain.task import StoryKind
from oodatcaa.domain.training import EvalResult, InferenceProbe, RunRecord, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.gates.ports import GateRequest, MetricValue
from oodatcaa.kit.memory import read_samples
from oodatcaa.roles.builder import records
from oodatcaa.roles.builder.evaluate import judgement
from oodatcaa.roles.builder.framework import PROBE_PROMPT, PROBE_TOKENS
from oodatcaa.roles.desk import Desk
from oodatcaa.training.datasets import find_all
from oodatcaa.training.hashes import file_sha256
from oodatcaa.training.metrics import read_metrics
from oodatcaa.training.protocol import MEMORY_FILE, METRICS_FILE, adapter_weights
from oodatcaa.training.runs import RunStore

VALID_EXAMPLES = 16


class ArtefactMetrics:
    """`gates.ports.MetricSource` for one story and one plan version.

    A child process that loads the model is started at most once per question and object.
    """

    def __init__(
        self,
        desk: Desk,
        plan: Plan,
        read_file: Callable[[str, str], bytes | None],
        probes: RunStore,
    ) -> None:
        """`probes`: where runs made for measuring are kept."""
        self._desk = desk
        self._probes = probes
        self._plan = plan
        self._read_file = read_file

    def measure(self, metric: str, request: GateRequest) -> MetricValue | None:
        """See the port. None = this project knows no such metric."""
        method = getattr(self, f"_{metric}", None)
        if method is None:
            return None
        value = method(request)
        assert isinstance(value, MetricValue)
        return value

    # -- what earlier steps left, as places to look at

    def _story(self, kind: StoryKind) -> str:
        for story in self._desk.read_board().stories:
            if story.kind is kind:
                return story.id
        raise OodatcaaError("sprint.no_story", f"the sprint has no {kind.value} story")

    @cached_property
    def _training(self) -> records.TrainingFacts:
        story = self._story(StoryKind.TRAIN)
        facts = self._desk.facts.get(story, records.TRAINING, records.TrainingFacts)
        if facts is None:
            raise OodatcaaError("facts.missing", f"{story} left no training record")
        return facts

    @cached_property
    def _data_path(self) -> Path:
        story = self._story(StoryKind.DATA)
        facts = self._desk.facts.get(story, records.DATASET, records.DatasetFacts)
        if facts is None:
            raise OodatcaaError("facts.missing", f"{story} left no data record")
        return Path(facts.dataset.path)

    @cached_property
    def _run(self) -> RunRecord:
        return self._desk.runs.read(self._training.run_id)

    @cached_property
    def _run_dir(self) -> Path:
        return self._desk.runs.folder(self._training.run_id)

    # -- framework

    def _predicted_peak_memory(self, _: GateRequest) -> MetricValue:
        model = self._desk.models.place(self._plan.model)
        spec = TrainSpec(
            backend=self._plan.backend,
            model=model.path,
            data_dir="-",
            params=self._plan.params,
            memory_limit_bytes=self._plan.memory_limit_bytes,
        )
        estimate = self._desk.backends[self._plan.backend].estimate(spec)
        return MetricValue(
            value=estimate.total_bytes, detail="estimated again from config and headers"
        )

    def _probe_peak_memory(self, request: GateRequest) -> MetricValue:
        facts = self._desk.facts.get(request.story, records.PROFILE, records.ProfileFacts)
        if facts is None or not facts.probe_run:
            return MetricValue(value=None, detail="no probe run is recorded")
        run = self._probes.read(self._plan.backend, facts.probe_run)
        return _peak_in(self._probes.folder(run))

    @cached_property
    def _inference(self) -> InferenceProbe:
        model = self._desk.models.place(self._plan.model)
        return self._reply(model.path, None, PROBE_TOKENS)

    def _reply(self, model: str, adapter: str | None, tokens: int) -> InferenceProbe:
        backend = self._desk.backends[self._plan.backend]
        (probe,) = backend.infer(
            model, adapter, (PROBE_PROMPT,), tokens, should_stop=self._desk.should_stop
        )
        return probe

    def _model_load_seconds(self, _: GateRequest) -> MetricValue:
        return MetricValue(value=self._inference.load_seconds, detail="loaded again in a child")

    def _inference_tokens_per_second(self, _: GateRequest) -> MetricValue:
        speed = self._inference.generation.tokens_per_second
        return MetricValue(value=speed, detail="generated again in a child")

    def _pin_mismatches(self, request: GateRequest) -> MetricValue:
        text = self._committed(request, "docs/training/requirements-training.txt")
        wrong = []
        for line in text.split():
            name, _, version = line.partition("==")
            try:
                installed = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                installed = "nothing"
            if installed != version:
                wrong.append(f"{name} {version} (installed: {installed})")
        if not text.split():
            return MetricValue(value=None, detail="no package is pinned")
        return MetricValue(value=len(wrong), detail=", ".join(wrong) or "all pins are installed")

    # -- data

    def _bad_lines(self, _: GateRequest) -> MetricValue:
        problems = find_all(
            self._data_path,
            Path(self._desk.models.place(self._plan.model).path),
            self._plan.params,
            scanned=0,
        ).problems
        return MetricValue(
            value=len(problems), detail=problems[0] if problems else "all lines read"
        )

    def _leaked_examples(self, _: GateRequest) -> MetricValue:
        seen: dict[str, str] = {}
        leaked = 0
        for split in ("train", "valid", "test"):
            for line in set(self._lines(split)):
                leaked += seen.setdefault(line, split) != split
        return MetricValue(value=leaked, detail="identical lines in two splits")

    def _lines(self, split: str) -> list[str]:
        text = (self._data_path / f"{split}.jsonl").read_text(encoding="utf-8")
        return [line for line in text.split("\n") if line.strip()]

    def _train_examples(self, _: GateRequest) -> MetricValue:
        return MetricValue(value=len(self._lines("train")), detail="lines counted")

    def _valid_examples(self, _: GateRequest) -> MetricValue:
        return MetricValue(value=len(self._lines("valid")), detail="lines counted")

    def _test_examples(self, _: GateRequest) -> MetricValue:
        return MetricValue(value=len(self._lines("test")), detail="lines counted")

    # -- training

    def _peak_memory(self, _: GateRequest) -> MetricValue:
        """Of the whole training: a run that went on from another one's checkpoint is its end."""
        found = _peak_in(self._run_dir)
        run = self._run
        while run.resumed_from is not None and found.value is not None:
            try:
                run = self._desk.runs.read(run.resumed_from)
            except OodatcaaError:
                gone = f"{found.detail}; run {run.resumed_from}, which it went on from, is gone"
                return found.evolve(detail=gone)
            earlier = _peak_in(self._desk.runs.folder(run.run_id)).value
            if earlier is not None and earlier > found.value:
                detail = f"of run {run.run_id}; {self._run.run_id} went on from it"
                found = found.evolve(value=earlier, detail=detail)
        return found

    def _nonfinite_tensors(self, _: GateRequest) -> MetricValue:
        import numpy
        from safetensors.numpy import load_file

        tensors = load_file(adapter_weights(self._run_dir / "adapters"))
        wrong = sum(not bool(numpy.isfinite(tensor).all()) for tensor in tensors.values())
        if not tensors:
            return MetricValue(value=None, detail="the adapter holds no tensor")
        return MetricValue(value=wrong, detail=f"of {len(tensors)} adapter tensors")

    def _run_hash_mismatches(self, request: GateRequest) -> MetricValue:
        committed = json.loads(self._committed(request, "docs/training/records/run.json"))
        found = file_sha256(adapter_weights(self._run_dir / "adapters"))
        wrong = int(committed.get("adapter_sha256") != found)
        wrong += int(committed.get("run_id") != self._run.run_id)
        return MetricValue(value=wrong, detail=f"adapter {found[:12]} of run {self._run.run_id}")

    def _valid_loss_drop(self, _: GateRequest) -> MetricValue:
        return _drop(self._evaluate("valid", VALID_EXAMPLES))

    def _tokens_per_second(self, _: GateRequest) -> MetricValue:
        lines = read_metrics(self._run_dir / METRICS_FILE).train
        seconds = sum(
            line.tokens / line.tokens_per_second for line in lines if line.tokens_per_second
        )
        tokens = sum(line.tokens for line in lines)
        value = tokens / seconds if seconds else None
        return MetricValue(value=value, detail="target tokens over the time of the steps")

    def _train_minutes(self, _: GateRequest) -> MetricValue:
        run = self._run
        if run.finished_at is None:
            return MetricValue(value=None, detail="the run did not finish")
        seconds = (run.finished_at - run.started_at).total_seconds()
        return MetricValue(value=seconds, detail="wall time of the run in seconds")

    # -- evaluation

    def _evaluate(self, split: Literal["valid", "test"], examples: int | None) -> EvalResult:
        request = judgement(
            self._plan.params,
            model=self._desk.models.place(self._plan.model).path,
            adapter_dir=str(self._run_dir / "adapters"),
            data_dir=str(self._data_path),
            split=split,
            examples=examples,
            memory_limit_bytes=self._plan.memory_limit_bytes,
        )
        return self._desk.backends[self._plan.backend].evaluate(
            request, should_stop=self._desk.should_stop
        )

    @cached_property
    def _test_result(self) -> EvalResult:
        return self._evaluate("test", self._desk.objective.eval_examples)

    def _test_loss_drop(self, _: GateRequest) -> MetricValue:
        return _drop(self._test_result)

    def _test_loss(self, _: GateRequest) -> MetricValue:
        return MetricValue(value=self._test_result.adapter_loss, detail="adapter on the test split")

    def _evaluation_mismatch(self, request: GateRequest) -> MetricValue:
        text = self._committed(request, "docs/training/records/evaluation.json")
        committed = EvalResult.model_validate_json(text)
        pairs = (
            (committed.base_loss, self._test_result.base_loss),
            (committed.adapter_loss, self._test_result.adapter_loss),
        )
        gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
        if len(gaps) < len(pairs):
            return MetricValue(value=None, detail="a loss is missing")
        return MetricValue(value=max(gaps), detail="committed against recomputed losses")

    # -- publication

    def _adapter_loads(self, _: GateRequest) -> MetricValue:
        model = self._desk.models.place(self._plan.model)
        probe = self._reply(model.path, str(self._run_dir / "adapters"), 4)
        return MetricValue(
            value=int(probe.generation.tokens > 0),
            detail=f"{probe.generation.tokens} tokens generated with the adapter",
        )

    def _adapter_hash_mismatches(self, request: GateRequest) -> MetricValue:
        committed = json.loads(self._committed(request, "docs/training/records/adapter.json"))
        found = file_sha256(adapter_weights(self._run_dir / "adapters"))
        return MetricValue(
            value=int(committed.get("adapter_sha256") != found), detail=f"adapter {found[:12]}"
        )

    def _committed(self, request: GateRequest, path: str) -> str:
        data = self._read_file(request.commit, path)
        if data is None:
            raise OodatcaaError("gate.no_file", f"{path} is not at commit {request.commit[:12]}")
        return data.decode("utf-8")


def _peak_in(folder: Path) -> MetricValue:
    """The peak of the run in `folder`, from the watcher's samples and MLX's own counter."""
    samples = read_samples(folder / MEMORY_FILE)
    metrics = read_metrics(folder / METRICS_FILE)
    tree = max((sample.tree_bytes for sample in samples), default=None)
    inner = max((line.mlx_peak_bytes for line in metrics.train), default=None)
    if tree is None or inner is None:
        return MetricValue(value=None, detail="the run left no memory samples")
    return MetricValue(
        value=max(tree, inner),
        detail=f"largest of {len(samples)} kept samples and mlx's own peak",
    )


def _drop(result: EvalResult) -> MetricValue:
    low, high = result.drop_low, result.drop_high
    if result.drop is None or low is None or high is None or math.isnan(result.drop):
        return MetricValue(value=None, detail="a loss is not finite")
    return MetricValue(
        value=result.drop,
        interval=(low, high),
        detail=(
            f"{result.base_loss:.4f} -> {result.adapter_loss:.4f} on {result.examples} "
            f"{result.split} examples{f'; not in it: {result.unseen}' if result.unseen else ''}"
        ),
    )
