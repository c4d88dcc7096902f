"""One QLoRA run through mlx-lm's own training loop and its three seams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.tuner.trainer import TrainingArgs, evaluate, train

from oodatcaa.domain.qlora import FineTune, Optimizer, QLoRA
from oodatcaa.domain.training import Machine, TrainSpec
from oodatcaa.kit.files import write_atomic
from oodatcaa.training.checkpoints import RunIdentity, verify
from oodatcaa.training.engine import TrainingRun
from oodatcaa.training.examples import Examples, segments
from oodatcaa.training.formulas import at_once, parts
from oodatcaa.training.identity import cores
from oodatcaa.training.mlx import randomness, setup, vector
from oodatcaa.training.mlx.ahead import Ahead, Batches
from oodatcaa.training.mlx.batches import Batch, BatchIterator, Prepare, tokenize
from oodatcaa.training.mlx.blas import Blas, accelerator, describe_machine, numpy_kernels
from oodatcaa.training.mlx.checkpoints import State, not_finite, restore, save_tensors
from oodatcaa.training.mlx.cpu import fast_cpu, hold_dense
from oodatcaa.training.mlx.frozen_cache import FrozenCache
from oodatcaa.training.mlx.guard import COUNTERS
from oodatcaa.training.mlx.loss import Split, make_loss, split_head
from oodatcaa.training.mlx.packed import must_pack
from oodatcaa.training.mlx.parallel import Loss, divided_gradient, divided_loss
from oodatcaa.training.mlx.prefix import FrozenPrefix, frozen_prefix
from oodatcaa.training.mlx.recompute import recompute, start_threads_beside
from oodatcaa.training.mlx.team import Team, make_team
from oodatcaa.training.monitor import Monitor
from oodatcaa.training.packing import Row, fullest, positions_of
from oodatcaa.training.progress import DiskFullError, Enough, Stop
from oodatcaa.training.protocol import ADAPTER_FILE, ADAPTERS_DIR, LORA_CONFIG_FILE
from oodatcaa.training.wall import over_limit


class Run(TrainingRun):
    """`training.engine.TrainingRun` through mlx-lm."""

    counters = COUNTERS

    def __init__(self, folder: Path, spec: TrainSpec, blas: Blas | None) -> None:
        super().__init__(folder, spec)
        self.blas = blas
        self.prefix: FrozenPrefix | None = None
        self.cache: FrozenCache | None = None
        self.cache_bytes: int | None = None
        """That the cache may take, of the disk; None = as much as it lets itself."""
        self.team: Team | None = None
        self.ahead: Ahead | None = None
        self.loss_path = ""

    def machine(self) -> Machine:
        return describe_machine(self.blas)

    def run(self) -> str:
        mx.random.seed(self.params.seed)
        np.random.seed(self.params.seed)
        network, tokenizer = setup.load_base(self.spec.model, self.params.quantize_bits)
        if failure := over_limit(COUNTERS, self.spec.memory_limit_bytes):
            raise Stop(failure)
        valid = self.read_examples(tokenizer)
        setup.attach_adapters(network, self.params)
        return self.fit(network, valid, self.identity(str(mx.default_device())))

    def fit(self, network: Any, valid: Examples, identity: RunIdentity) -> str:
        """Train `self.examples` into a model that has its trainable layers; the adapter's sha256.

        Raises Stop. The memory probe calls this too: whatever a run does between loading and its
        end, a probe does.
        """
        if self.params.dense_weights and fast_cpu():
            parts = min(self.params.batch_size, cores())
            # DoRA adds to the matrix for its norms, which is MLX's work.
            dora = self.params.fine_tune_type is FineTune.DORA
            hold_dense(network, by_columns=_numpys_kernels(parts) is not None and not dora)
        self.team = make_team(network, self.params.batch_size)
        try:
            return self._fit(network, valid, identity)
        finally:
            if self.ahead is not None:
                self.ahead.close()
            if self.team is not None:
                self.team.close()
            if self.cache is not None:
                self.cache.close()

    def _fit(self, network: Any, valid: Examples, identity: RunIdentity) -> str:
        optimizer = setup.make_optimizer(self.params)
        optimizer.init(network.trainable_parameters())
        split = split_head(network)
        random = randomness.draws(network)
        self.loss_path = _loss_path(split, self._parts, self._eager, self.params, random=random)
        identity = identity.evolve(facts={**identity.facts, "loss path": self.loss_path})
        config = self._write_configs()
        resumed = self.resume(
            lambda source, start: restore(source, network, optimizer, identity, start)
        )
        if self.params.packing:
            must_pack(
                network,
                lambda tokens: split.body(network, tokens),
                fullest(self.examples.items, self.params),
                self.params.max_seq_length,
            )
        if self.params.grad_checkpoint:
            # Before the prefix is split off: a block that is computed again in the backward pass
            # must find the input that it was given, not the one that the prefix replaces.
            every = [network, *(self.team.networks if self.team else ())]
            recompute(every, self.params, at_once=self._eager)
            if self._eager:
                start_threads_beside(network, self.team)
        wanted = fast_cpu() or self.params.cache_frozen
        self.prefix = frozen_prefix(network) if wanted else None
        if self.team is not None:
            self.team.adopt(self.prefix)
        if self.params.cache_frozen:
            self.cache = self._frozen_cache(network)
        loss, validation = self._losses(network, split, random=random)
        self.monitor = Monitor(
            self.folder,
            self.spec,
            State(network, optimizer),
            COUNTERS,
            identity,
            self._validator(network, valid, validation),
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
            self._loop(network, optimizer, loss)
        except Enough as enough:
            self.stopped_early = enough.reason
            print(f"stopped early {enough.reason}", flush=True)
        return self._save_adapter(network, config)

    @property
    def _eager(self) -> bool:
        return at_once(accelerator(), fast_cpu())

    @property
    def _parts(self) -> int:
        """Of a batch, whose gradients are computed side by side."""
        if self.team is None:
            return 1
        return parts(self.params, self.params.batch_size, accelerator(), fast_cpu())

    def _frozen_cache(self, network: Any) -> FrozenCache | None:
        if self.prefix is None:
            print("cache_frozen: this training has no frozen blocks of their own", flush=True)
            return None
        longest = self.params.max_seq_length
        cache = FrozenCache(self.folder, network, self.prefix, self.team, longest, self.cache_bytes)
        items = self.examples.items
        try:
            why = cache.unfit([min(items, key=positions_of), max(items, key=positions_of)])
        except BaseException:
            cache.close()
            raise
        if not why:
            return cache
        # Not refused: a plan chooses the cache by itself, and without it the training is the same.
        cache.close()
        print(f"cache_frozen: this model trains without it: {why}", flush=True)
        return None

    def _losses(self, network: Any, split: Split, *, random: bool) -> tuple[Loss, Loss]:
        """For the gradient, and for a validation."""
        loss = make_loss(split, prefix=self.prefix, at_once=self._eager, random=random)
        validation = make_loss(split, prefix=self.prefix, gradient=False)
        if self.team is None:
            return loss, validation
        if self._parts > 1:
            # Without a cache the parts run the frozen blocks, each on its own thread.
            inside = self.prefix if self.cache is None else None
            self.prefix = None
            if inside is not None and self._may_begin(network, inside):
                self.ahead = Ahead(self.team, inside)
            loss = divided_gradient(self.team, loss, inside, ahead=self.ahead, random=random)
        return loss, divided_loss(self.team, validation)

    def _may_begin(self, network: Any, prefix: FrozenPrefix) -> bool:
        """Whether the frozen blocks of the next batch may run beside a step. Muon's own products
        between two steps would meet theirs, and what draws numbers belongs into its own step."""
        drawn = any(map(randomness.draws, network.layers[: prefix.first]))
        return self.params.optimizer is not Optimizer.MUON and not drawn

    def _loop(self, network: Any, optimizer: Any, loss: Loss) -> None:
        p, monitor = self.params, self.monitor
        assert monitor is not None
        for first, count, window in segments(monitor.iteration, p):
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
            batches: Batches = BatchIterator(
                p.seed, first, self._prepare(network), window, packing=p.packing
            )
            if self.ahead is not None:
                batches = self.ahead.over(batches, count)
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
                    iterate_batches=batches,
                    training_callback=_Steps(monitor),
                )
            finally:
                Path(args.adapter_file).unlink(missing_ok=True)

    def _prepare(self, network: Any) -> Prepare | None:
        prefix = self.prefix
        if self.cache is not None or prefix is None:
            return self._from_cache

        def prepare(batch: Batch, _: Sequence[Row]) -> Batch:
            return prefix.filled(network, batch)

        return prepare

    @property
    def _from_cache(self) -> Prepare | None:
        cache = self.cache
        if cache is None:
            return None

        def prepare(batch: Batch, rows: Sequence[Row]) -> Batch:
            return batch._replace(hidden=cache.hidden(rows, batch.inputs.shape[1]))

        return prepare

    def _validator(self, network: Any, valid: Examples, loss: Loss) -> Callable[[], float | None]:
        def validate() -> float | None:
            if not valid.items or not self.params.val_batches:
                return None
            with vector.at_once(traced=False):
                value: float = evaluate(
                    model=network,
                    dataset=valid.items,
                    batch_size=self.params.batch_size,
                    num_batches=self.params.val_batches,
                    max_seq_length=self.params.max_seq_length,
                    loss=loss,
                    iterate_batches=BatchIterator(self.params.seed, prepare=self._from_cache),
                    clear_cache_threshold=self.params.clear_cache_threshold,
                )
            network.train()
            return value

        return validate

    def tokenize(self, rows: list[dict[str, Any]], tokenizer: Any) -> Examples:
        return tokenize(
            rows,
            tokenizer,
            mask_prompt=self.params.mask_prompt,
            max_seq_length=self.params.max_seq_length,
        )

    def _write_configs(self) -> dict[str, Any]:
        config = setup.lora_config(self.spec, self.folder / ADAPTERS_DIR)
        write_atomic(
            self.folder / LORA_CONFIG_FILE, setup.lora_yaml(config, packing=self.params.packing)
        )
        return config

    def _save_adapter(self, network: Any, config: dict[str, Any]) -> str:
        monitor = self.monitor
        best = monitor.best_checkpoint if monitor else None
        if best is not None:
            verify(best)
            network.load_weights(str(best / ADAPTER_FILE), strict=False)
        tensors = setup.adapter_tensors(network)
        self.must_be_finite(not_finite(tensors), len(tensors))
        self.progress.say("saving")
        try:
            self.write_adapter_config(config)
            path = self.folder / ADAPTERS_DIR / ADAPTER_FILE
            return save_tensors(path, tensors, {"format": "mlx"})
        except DiskFullError as error:
            raise self.no_space(error) from error


class _Steps:
    """mlx-lm's `training_callback`: it is told to report every single micro-step."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._counted = 0

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
        """Never called: validation is ours, so that its cadence survives a resume."""

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        """One micro-step is done; mlx-lm counts tokens from the beginning of its call."""
        total = int(train_info["trained_tokens"])
        tokens, self._counted = total - self._counted, total
        self._monitor.step_done(
            int(train_info["iteration"]),
            float(train_info["train_loss"]),
            tokens,
            float(train_info["learning_rate"]),
        )


def _numpys_kernels(parts: int) -> str | None:
    """The kernels of numpy's OpenBLAS where it multiplies in a step of so many parts."""
    return numpy_kernels() if fast_cpu() and cores() // parts == 1 else None


def _loss_path(split: Split, parts: int, eager: bool, params: QLoRA, *, random: bool) -> str:
    """Two ways to the same loss differ in the last bits: no switch in mid-run."""
    together = f", the rows in {parts} parts" if parts > 1 else ""
    together += ", packed rows in blocks" if eager and params.packing else ""
    together += ", blocks again one at a time" if eager and params.grad_checkpoint else ""
    together += ", numbers of each step" if random else ""
    if kernels := _numpys_kernels(parts):
        together += f", products of numpy's OpenBLAS ({kernels})"
    rows = "targets only" if split.sparse else "every position"
    head = "plain head"
    if split.frozen is not None:
        head = "fused head in tiles" if eager else "fused head"
    elif eager and not split.sparse:
        head = "plain head, some rows at a time"
    # The number counts the ways that fast products were computed in so far.
    return f"{rows}, {head}, {'fast products 6' if fast_cpu() else 'stock products'}{together}"
