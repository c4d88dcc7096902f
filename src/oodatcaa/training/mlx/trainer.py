"""One QLoRA run through mlx-lm's own training loop and its three seams."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.tuner.trainer import TrainingArgs, evaluate, grad_checkpoint, train

from oodatcaa.domain.training import FailureKind, QLoRA, RunFailure, RunStatus, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic
from oodatcaa.training import identity as facts
from oodatcaa.training.checkpoints import (
    CheckpointNote,
    RunIdentity,
    adopt,
    checkpoint_name,
    verify,
)
from oodatcaa.training.formulas import at_once
from oodatcaa.training.identity import installed_versions
from oodatcaa.training.mlx import setup, vector
from oodatcaa.training.mlx.batches import Batch, BatchIterator, Examples, read_split, tokenize
from oodatcaa.training.mlx.blas import Blas, accelerator, describe_machine
from oodatcaa.training.mlx.checkpoints import (
    DISK_FULL,
    DiskFullError,
    restore,
    save_tensors,
)
from oodatcaa.training.mlx.cpu import fast_cpu
from oodatcaa.training.mlx.loss import Split, make_loss, split_head
from oodatcaa.training.mlx.monitor import (
    Enough,
    Monitor,
    ProgressWriter,
    Stop,
    disk_full,
    memory_failure,
    not_finite,
)
from oodatcaa.training.mlx.prefix import FrozenPrefix, frozen_prefix
from oodatcaa.training.models import ModelStore
from oodatcaa.training.protocol import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    ADAPTERS_DIR,
    CHECKPOINTS_DIR,
    LORA_CONFIG_FILE,
    METRICS_FILE,
    WorkerResult,
)


class Run:
    """The state of one worker process. `train()` never raises for what a run can end with."""

    def __init__(self, folder: Path, spec: TrainSpec, blas: Blas | None) -> None:
        self.folder, self.spec, self.blas = folder, spec, blas
        self.params = spec.params
        self.progress = ProgressWriter(folder, self.params.iters, spec.memory_limit_bytes)
        self.monitor: Monitor | None = None
        self.examples = Examples((), {}, {})
        self.prefix: FrozenPrefix | None = None
        self.stop_asked = False
        self.stopped_early = ""

    def train(self) -> WorkerResult:
        """Load, train, check, save. Whatever happens, the result says how far it got."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGCONT, self._on_sigcont)
        self.progress.say("loading")
        try:
            digest = self._run()
        except Stop as stop:
            return self._result(stop.failure)
        except OodatcaaError as error:
            return self._result(_bad_input(error))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            last = self.monitor.saved if self.monitor else None
            return self._result(disk_full(DiskFullError(str(error)), last))
        done = self.monitor.iteration if self.monitor else self.params.iters
        self.progress.say("finished", iteration=done)
        return self._result(None, digest)

    def _on_sigterm(self, *_: Any) -> None:
        self.stop_asked = True
        if self.monitor is not None:
            self.monitor.interrupted = True

    def _on_sigcont(self, *_: Any) -> None:
        if self.monitor is not None:
            self.monitor.woken = True

    def _run(self) -> str:
        mx.random.seed(self.params.seed)
        np.random.seed(self.params.seed)
        network, tokenizer = setup.load_base(self.spec.model, self.params.quantize_bits)
        if failure := memory_failure(self.spec.memory_limit_bytes):
            raise Stop(failure)
        self.examples = self._tokenize("train", tokenizer)
        valid = self._tokenize("valid", tokenizer)
        if not self.examples.items:
            raise _no_examples(self.spec, self.examples)
        if self.params.selects and not valid.items:
            raise _nothing_to_select_by(self.spec)
        setup.attach_adapters(network, self.params)
        return self.fit(network, valid, self._identity())

    def fit(self, network: Any, valid: Examples, identity: RunIdentity) -> str:
        """Train `self.examples` into a model that has its trainable layers; the adapter's sha256.

        Raises Stop. The memory probe calls this too: whatever a run does between loading and its
        end, a probe does.
        """
        optimizer = setup.make_optimizer(self.params)
        optimizer.init(network.trainable_parameters())
        split = split_head(network)
        identity = identity.evolve(facts={**identity.facts, "loss path": _loss_path(split)})
        config = self._write_configs()
        resumed = self._restore(network, optimizer, identity)
        if self.params.grad_checkpoint:
            # Before the prefix is split off: a block that is computed again in the backward pass
            # must find the input that it was given, not the one that the prefix replaces.
            grad_checkpoint(network.layers[0])
        self.prefix = frozen_prefix(network) if fast_cpu() else None
        eager = at_once(self.params, accelerator(), fast_cpu())
        loss = make_loss(split, prefix=self.prefix, at_once=eager)
        self.monitor = Monitor(
            self.folder,
            self.spec,
            network,
            optimizer,
            identity,
            self._validator(network, valid, make_loss(split, gradient=False)),
            self.progress,
            config,
            resumed,
        )
        self.monitor.interrupted = self.stop_asked
        if resumed is None:
            self.monitor.validate()
        try:
            self._loop(network, optimizer, loss)
        except Enough as enough:
            self.stopped_early = enough.reason
            print(f"stopped early {enough.reason}", flush=True)
        return self._save_adapter(network, config)

    def _loop(self, network: Any, optimizer: Any, loss: Callable[..., Any]) -> None:
        p, monitor = self.params, self.monitor
        assert monitor is not None
        for first, count, window in _segments(monitor.iteration, p):
            args = TrainingArgs(
                batch_size=p.batch_size,
                iters=count,
                steps_per_report=1,
                # Checkpoints and the final adapter are written by us: atomically and checked.
                steps_per_save=count + 1,
                adapter_file=str(self.folder / ".trainer-output.safetensors"),
                max_seq_length=p.max_seq_length,
                grad_accumulation_steps=window,
                clear_cache_threshold=p.clear_cache_threshold,
            )
            self.progress.say("training", iteration=first)
            monitor.segment(first)
            try:
                train(
                    model=network,
                    optimizer=optimizer,
                    train_dataset=self.examples.items,
                    val_dataset=None,
                    args=args,
                    loss=loss,
                    iterate_batches=BatchIterator(p.seed, first, self._prepare(network), window),
                    training_callback=monitor,
                )
            finally:
                Path(args.adapter_file).unlink(missing_ok=True)

    def _prepare(self, network: Any) -> Callable[[Batch], Batch] | None:
        prefix = self.prefix
        if prefix is None:
            return None
        return lambda batch: batch._replace(hidden=prefix.run(network, batch.inputs))

    def _validator(
        self, network: Any, valid: Examples, loss: Callable[..., Any]
    ) -> Callable[[], float | None]:
        def validate() -> float | None:
            if not valid.items:
                return None
            with vector.at_once():
                value: float = evaluate(
                    model=network,
                    dataset=valid.items,
                    batch_size=self.params.batch_size,
                    num_batches=self.params.val_batches,
                    max_seq_length=self.params.max_seq_length,
                    loss=loss,
                    iterate_batches=BatchIterator(self.params.seed),
                )
            network.train()
            return value

        return validate

    def _tokenize(self, split: str, tokenizer: Any) -> Examples:
        path = Path(self.spec.data_dir) / f"{split}.jsonl"
        if split == "valid" and not path.exists():
            return Examples((), {}, {})
        return tokenize(
            read_split(path),
            tokenizer,
            mask_prompt=self.params.mask_prompt,
            max_seq_length=self.params.max_seq_length,
        )

    def _identity(self) -> RunIdentity:
        model = Path(self.spec.model)
        machine = describe_machine(self.blas)
        return RunIdentity(
            facts={
                **facts.parameter_facts(self.params),
                **facts.data_facts(Path(self.spec.data_dir)),
                **facts.machine_facts(machine.processor, machine.blas),
                **facts.thread_facts(os.environ),
                "model": ModelStore().model_sha256(model) if model.is_dir() else self.spec.model,
                "device": str(mx.default_device()),
            }
        )

    def _restore(
        self, network: Any, optimizer: Any, identity: RunIdentity
    ) -> CheckpointNote | None:
        """Put the checkpoint back and take over its metrics, and the best weights so far."""
        if self.spec.resume_from is None:
            return None
        source = Path(self.spec.resume_from)
        note = restore(source, network, optimizer, identity, self.spec.start_iteration)
        write_atomic(self.folder / METRICS_FILE, (source / METRICS_FILE).read_bytes())
        own = self.folder / CHECKPOINTS_DIR
        # Linked: this run can be resumed from its first moment on, and selects among all weights.
        adopt(source, own)
        if self.params.select_best and note.selection.checkpoint is not None:
            best = source.with_name(checkpoint_name(note.selection.checkpoint))
            verify(best)
            adopt(best, own)
        print(f"resumed after iteration {note.iteration} from {source}", flush=True)
        return note

    def _write_configs(self) -> dict[str, Any]:
        config = setup.lora_config(self.spec, self.folder / ADAPTERS_DIR)
        write_atomic(self.folder / LORA_CONFIG_FILE, setup.lora_yaml(config))
        return config

    def _save_adapter(self, network: Any, config: dict[str, Any]) -> str:
        monitor = self.monitor
        best = monitor.best_checkpoint if monitor else None
        if best is not None:
            verify(best)
            network.load_weights(str(best / ADAPTER_FILE), strict=False)
        tensors = setup.adapter_tensors(network)
        bad = [name for name, t in tensors.items() if not mx.isfinite(t).all().item()]
        if bad:
            raise Stop(not_finite(f"{bad[0]} ({len(bad)} of {len(tensors)} adapter tensors)"))
        self.progress.say("saving")
        folder = self.folder / ADAPTERS_DIR
        try:
            write_atomic(folder / ADAPTER_CONFIG_FILE, json.dumps(config, indent=1) + "\n")
            return save_tensors(folder / ADAPTER_FILE, tensors, {"format": "mlx"})
        except DiskFullError as error:
            last = monitor.saved if monitor else None
            raise Stop(disk_full(error, last)) from error

    def _result(self, failure: RunFailure | None, digest: str | None = None) -> WorkerResult:
        status = RunStatus.FINISHED
        if failure is not None:
            stopped = failure.kind is FailureKind.INTERRUPTED
            status = RunStatus.STOPPED if stopped else RunStatus.FAILED
            self._say_failed()
        m, p = self.monitor, self.params
        done = m.iteration if m else 0
        return WorkerResult(
            status=status,
            failure=failure,
            iterations_done=done,
            optimizer_steps=p.steps_after(done),
            trained_tokens=m.tokens if m else 0,
            tokens_per_second=m.tokens / m.seconds if m and m.seconds else None,
            mlx_peak_bytes=mx.get_peak_memory() or None,
            train_losses=tuple(m.train_losses) if m else (),
            valid_losses=tuple(m.valid_losses) if m else (),
            adapter_sha256=digest,
            adapter_iteration=self._adapter_iteration() if digest else None,
            stopped_early=self.stopped_early,
            versions=installed_versions(),
            machine=describe_machine(self.blas),
            dropped_examples=self.examples.dropped,
            notes=_notes(self.examples),
        )

    def _adapter_iteration(self) -> int | None:
        if self.monitor is None:
            return None
        best = self.monitor.selection.checkpoint if self.params.select_best else None
        return self.monitor.iteration if best is None else best

    def _say_failed(self) -> None:
        try:
            self.progress.say("failed")
        except OSError as error:
            # A full disk must not hide the failure that result.json is about to describe.
            print(f"progress.json could not be written: {error}", flush=True)


def _bad_input(error: OodatcaaError) -> RunFailure:
    lines = [error.message, *(d for d in error.details if d not in error.message)]
    return RunFailure(kind=FailureKind.BAD_INPUT, message="; ".join(lines), hint=error.hint)


def _no_examples(spec: TrainSpec, examples: Examples) -> OodatcaaError:
    why = [f"{reason} ({count})" for reason, count in examples.dropped.items()]
    return OodatcaaError(
        "data.empty",
        f"{spec.data_dir}/train.jsonl has no example that could be trained on",
        hint="raise max_seq_length or shorten the prompts",
        details=why,
    )


def _nothing_to_select_by(spec: TrainSpec) -> OodatcaaError:
    return OodatcaaError(
        "data.empty",
        f"{spec.data_dir}/valid.jsonl has no example that weights could be selected by",
        hint="add validation examples, or leave select_best and early_stopping_patience out",
    )


def _loss_path(split: Split) -> str:
    """Two ways to the same loss differ in the last bits: no switch in mid-run."""
    rows = "targets only" if split.sparse else "every position"
    head = "fused head" if split.frozen is not None else "plain head"
    return f"{rows}, {head}, {'fast' if fast_cpu() else 'stock'} products"


def _segments(start: int, params: QLoRA) -> list[tuple[int, int, int]]:
    """(first iteration, iterations, accumulated into one update) of each call of the trainer.

    mlx-lm drops an accumulation that is not full at the end; here it is one of its own.
    """
    full = params.iters - params.iters % params.grad_accumulation_steps
    parts = [(start, full - start, params.grad_accumulation_steps)]
    tail = params.iters - max(start, full)
    parts.append((max(start, full), tail, tail))
    return [part for part in parts if part[1] > 0]


def _notes(examples: Examples) -> tuple[str, ...]:
    return tuple(f"{count} training examples: {reason}" for reason, count in examples.notes.items())
