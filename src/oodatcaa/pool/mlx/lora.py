"""Many adapters on one copy of base weights: their layers are swapped in and out of the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

from oodatcaa.errors import OodatcaaError
from oodatcaa.pool.records import AdapterInfo, AdapterModule

_KINDS: tuple[tuple[tuple[type, ...], Any, Any], ...] = (
    ((nn.Linear, nn.QuantizedLinear), LoRALinear, DoRALinear),
    ((SwitchLinear, QuantizedSwitchLinear), LoRASwitchLinear, None),
    ((nn.Embedding, nn.QuantizedEmbedding), LoRAEmbedding, DoRAEmbedding),
)


class Adapters:
    """The adapters of one network, by content hash. At most one is on it at a time.

    An adapted layer refers to the base's own layer, so `add` costs the adapter's tensors and
    nothing else, and `select` exchanges references.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.bytes: dict[str, int] = {}
        self._layers: dict[str, dict[str, Any]] = {}
        self._base: dict[str, Any] = {}
        self._on: str | None = None
        self._plain = dict(network.named_modules())

    def add(self, info: AdapterInfo) -> int:
        """Bring an adapter into memory; bytes by which MLX's active memory grew.

        Raises OodatcaaError `pool.adapter` when a layer is not where the adapter expects it.
        """
        if info.content_hash in self._layers:
            return self.bytes[info.content_hash]
        before = mx.get_active_memory()
        weights: Any = mx.load(str(Path(info.adapter_path) / info.weights_file))
        missing = [m.name for m in info.modules if m.name not in self._plain]
        if missing:
            raise OodatcaaError(
                "pool.adapter",
                f"the loaded base model has no layer {missing[0]}",
                hint="serve it on the base model it was trained on",
                details=missing,
            )
        dora = info.fine_tune_type == "dora"
        layers = {m.name: _adapted(self._plain[m.name], m, weights, dora) for m in info.modules}
        mx.eval([_own(layer) for layer in layers.values()])
        self._layers[info.content_hash] = layers
        self.bytes[info.content_hash] = mx.get_active_memory() - before
        return self.bytes[info.content_hash]

    def select(self, content_hash: str | None) -> None:
        """Put this adapter on (None: the bare base), whatever was on before."""
        if content_hash == self._on:
            return
        if self._on is not None:
            plain = [(name, self._plain[name]) for name in self._layers[self._on]]
            self.network.update_modules(tree_unflatten(plain))
            self._on = None
        if content_hash is not None:
            layers = self._layers[content_hash]
            self.network.update_modules(tree_unflatten(list(layers.items())))
            self._on = content_hash

    def drop(self, content_hash: str) -> None:
        if self._on == content_hash:
            self.select(None)
        self._layers.pop(content_hash, None)
        self.bytes.pop(content_hash, None)
        mx.clear_cache()


def _adapted(layer: Any, module: AdapterModule, weights: dict[str, Any], dora: bool) -> Any:
    """The layer that mlx-lm's own loader would put there, with this adapter's tensors in it."""
    made = _wrap(layer, module, dora)
    a, b = weights[module.a], weights[module.b]
    if module.transposed:
        # A copy: a transposed view of the stored tensor would keep both in memory.
        a, b = mx.contiguous(a.swapaxes(-1, -2)), mx.contiguous(b.swapaxes(-1, -2))
    for name, value in (("lora_a", a), ("lora_b", b)):
        if value.shape != made[name].shape:
            raise OodatcaaError(
                "pool.adapter",
                f"{module.name}: {name} is {value.shape}, the loaded model's is {made[name].shape}",
                hint="serve it on the base model it was trained on",
            )
        made[name] = value
    if module.magnitude is not None:
        made["m"] = weights[module.magnitude].reshape(-1)
    made.freeze()
    made.eval()
    return made


def _wrap(layer: Any, module: AdapterModule, dora: bool) -> Any:
    options = {"r": module.rank, "scale": module.scale, "dropout": 0.0}
    if not dora and hasattr(layer, "to_lora"):
        return layer.to_lora(**options)
    for kinds, lora, with_dora in _KINDS:
        made = with_dora if dora else lora
        if isinstance(layer, kinds) and made is not None:
            return made.from_base(layer, **options)
    raise OodatcaaError(
        "pool.adapter",
        f"{module.name} is a {type(layer).__name__}, which can not be adapted",
        hint="train an adapter without this layer: `keys` in OBJECTIVE.md",
    )


def _own(layer: Any) -> dict[str, Any]:
    return {name: layer[name] for name in ("lora_a", "lora_b", "m") if name in layer}
