"""Child process: a model at another bit width, with mlx-lm's own functions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mlx_lm.utils import dequantize_model, load, quantize_model, save

from oodatcaa.domain.base import Record
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.serving import read_request, serve

DEFAULT_GROUP_SIZE = 64
"""mlx-lm's own default for affine quantisation."""


class RequantizeRequest(Record):
    source: str
    target: str
    bits: int


class RequantizeResult(Record):
    target: str


def requantize(source: Path, target: Path, bits: int) -> RequantizeResult:
    """Write `target`, every quantisable layer at `bits`. OodatcaaError `model.requantize`."""
    try:
        loaded: Any = load(str(source), lazy=True, return_config=True)
        model, tokenizer, config = loaded
        before = config.pop("quantization", None)
        if before:
            model = dequantize_model(model)
        group_size = _group_size(config, (before or {}).get("group_size"))
        config.pop("quantization_config", None)
        model, config = quantize_model(model, config, group_size, bits)
        save(target, source, model, tokenizer, config)
    except (ValueError, KeyError, RuntimeError) as error:
        raise OodatcaaError(
            "model.requantize",
            f"{source} can not be quantised to {bits} bits: {str(error).splitlines()[0]}",
            hint="leave quantize_bits out to use the model as it comes",
        ) from error
    return RequantizeResult(target=str(target))


def _group_size(config: dict[str, Any], before: int | None) -> int:
    """64, which costs the fewest bytes, unless this model's rows do not divide by it."""
    widths = [config.get("hidden_size", 0), config.get("intermediate_size", 0)]
    fits = all(width % DEFAULT_GROUP_SIZE == 0 for width in widths)
    return DEFAULT_GROUP_SIZE if fits or before is None else before


def _answer(folder: Path) -> Record:
    request = read_request(folder, RequantizeRequest)
    return requantize(Path(request.source), Path(request.target), request.bits)


if __name__ == "__main__":
    sys.exit(serve(_answer))
