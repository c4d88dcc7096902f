"""One LoRA run on PyTorch: the loop that transformers' Trainer would run, with our seams in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import yaml

from oodatcaa.domain.training import Machine
from oodatcaa.kit.files import write_atomic
from oodatcaa.training.checkpoints import RunIdentity, verify
from oodatcaa.training.engine import TrainingRun
from oodatcaa.training.examples import (
    Examples,
    segments,
    tokenize_rows,
    training_batches,
    validation_batches,
)
from oodatcaa.training.hf import setup
from oodatcaa.training.hf.checkpoints import (
    State,
    adapter_tensors,
    not_finite,
    restore,
    save_tensors,
)
from oodatcaa.training.hf.counters import COUNTERS, device, machine
from oodatcaa.training.hf.loss import (
    Batch,
    make_batch,
    make_packed,
    must_pack,
    token_losses,
)
from oodatcaa.training.hf.rows import row_tokens
from oodatcaa.training.monitor import Monitor
from oodatcaa.training.packing import fullest, packed_batches
from oodatcaa.training.progress import DiskFullError, Enough, Stop
from oodatcaa.training.protocol import ADAPTERS_DIR, LORA_CONFIG_FILE, PEFT_ADAPTER_FILE
from oodatcaa.training.wall import over_limit

LOSS_PATH = "columns with targets, float32"


class Run(TrainingRun):
    """`training.engine.TrainingRun` through PyTorch."""

    counters = COUNTERS

    def machine(self) -> Machine:
        return machine()

    def tokenize(self, rows: list[dict[str, Any]], tokenizer: Any) -> Examples:
        process = row_tokens(tokenizer, mask_prompt=self.params.mask_prompt)
        return tokenize_rows(rows, process, self.params.max_seq_length)

    def run(self) -> str:
        torch.manual_seed(self.params.seed)
        np.random.seed(self.params.seed)
        network, tokenizer = setup.load_base(self.spec.model, self.params.quantize_bits)
        if failure := over_limit(COUNTERS, self.spec.memory_limit_bytes):
            raise Stop(failure)
        valid = self.read_examples(tokenizer)
        network = setup.attach_adapters(network, self.params)
        return self.fit(network, valid, self.identity(str(device())))

    def fit(self, network: Any, valid: Examples, identity: RunIdentity) -> str:
        """Train `self.examples` into a model that has its adapters; the adapter's sha256.

        Raises Stop. The memory probe calls this too: whatever a run does between loading and its
        end, a probe does.
        """
        optimizer = setup.make_optimizer(network, self.params)
        identity = identity.evolve(facts={**identity.facts, "loss path": LOSS_PATH})
        config = self._write_configs(network)
        resumed = self.resume(
            lambda source, start: restore(source, network, optimizer, identity, start)
        )
        if self.params.packing:
            rows = fullest(self.examples.items, self.params)
            must_pack(network, rows, self.params.max_seq_length)
        if self.params.grad_checkpoint:
            setup.checkpoint_blocks(network, self.params)
        state = State(network, optimizer, resumed.optimizer_step if resumed else 0)
        self.monitor = Monitor(
            self.folder,
            self.spec,
            state,
            COUNTERS,
            identity,
            lambda: self._validate(network, valid),
            self.progress,
            config,
            resumed,
        )
        self.monitor.interrupted = self.stop_asked
        self.monitor.enough = self.enough
        self.ready()
        if resumed is None:
            self.monitor.validate()
        try:
            self._loop(state, self.monitor)
        except Enough as enough:
            self.stopped_early = enough.reason
            print(f"stopped early {enough.reason}", flush=True)
        return self._save_adapter(network, config)

    def _loop(self, state: State, monitor: Monitor) -> None:
        p = self.params
        for first, count, window in segments(monitor.iteration, p):
            self.progress.say("training", iteration=first)
            monitor.segment(first)
            state.network.train()
            batches = self._batches(first, window)
            for done in range(1, count + 1):
                batch, share = next(batches)
                losses = token_losses(state.network, batch)
                loss = losses.mean()
                (loss * (share / window)).backward()
                rate = setup.learning_rate(p, state.optimizer_step)
                if done % window == 0:
                    self._update(state, rate)
                monitor.step_done(done, float(loss.detach()), losses.numel(), rate)

    def _batches(self, first: int, window: int) -> Iterator[tuple[Batch, float]]:
        items, p = self.examples.items, self.params
        where = (p.batch_size, p.seed, first, window)
        if p.packing:
            for rows, share in packed_batches(items, p.max_seq_length, *where):
                yield make_packed(rows, p.max_seq_length), share
        else:
            for examples, share in training_batches(items, *where):
                yield make_batch(examples, p.max_seq_length), share

    def _update(self, state: State, rate: float) -> None:
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.optimizer_step += 1

    def _validate(self, network: Any, valid: Examples) -> float | None:
        if not valid.items:
            return None
        p = self.params
        network.eval()
        total, count = 0.0, 0
        with torch.inference_mode():
            for number, examples in enumerate(
                validation_batches(valid.items, p.batch_size, p.seed)
            ):
                if number == p.val_batches:
                    break
                losses = token_losses(network, make_batch(examples, p.max_seq_length))
                total += float(losses.double().sum())
                count += losses.numel()
        network.train()
        return total / count if count else None

    def _write_configs(self, network: Any) -> dict[str, Any]:
        text = yaml.safe_dump(setup.described(self.spec), sort_keys=False)
        header = "# The options of this run under the names of transformers and PEFT\n"
        write_atomic(self.folder / LORA_CONFIG_FILE, header + text)
        return setup.adapter_config(network, self.spec)

    def _save_adapter(self, network: Any, config: dict[str, Any]) -> str:
        best = self.monitor.best_checkpoint if self.monitor else None
        if best is not None:
            verify(best)
            setup.load_adapter(network, best)
        tensors = adapter_tensors(network)
        self.must_be_finite(not_finite(tensors), len(tensors))
        self.progress.say("saving")
        try:
            self.write_adapter_config(config)
            return save_tensors(self.folder / ADAPTERS_DIR / PEFT_ADAPTER_FILE, tensors)
        except DiskFullError as error:
            raise self.no_space(error) from error
