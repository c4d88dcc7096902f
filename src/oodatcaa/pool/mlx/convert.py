"""Child process: write an adapter of PEFT's dialect as one that mlx-lm's own tools load.

`python -m oodatcaa.pool.mlx.convert ADAPTER_INFO_JSON FOLDER`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx

from oodatcaa.pool.records import AdapterInfo


def convert(info: AdapterInfo, target: Path) -> None:
    """mlx-lm has one rank and one scale for all: smaller ranks are padded with zeros, other
    scales go into B."""
    source: Any = mx.load(str(Path(info.adapter_path) / info.weights_file))
    tensors: dict[str, Any] = {}
    for module in info.modules:
        a, b = source[module.a], source[module.b] * (module.scale / info.scale)
        if module.transposed:
            a, b = a.T, b.T
        pad = info.rank - module.rank
        tensors[f"{module.name}.lora_a"] = mx.pad(a, [(0, 0), (0, pad)])
        tensors[f"{module.name}.lora_b"] = mx.pad(b, [(0, pad), (0, 0)])
        if module.magnitude is not None:
            tensors[f"{module.name}.m"] = source[module.magnitude].reshape(-1)
    config = {
        "model": info.base_model,
        "fine_tune_type": info.fine_tune_type,
        # All blocks: those without tensors in the file keep updates of zero.
        "num_layers": -1,
        "lora_parameters": {
            "rank": info.rank,
            "scale": info.scale,
            "dropout": 0.0,
            "keys": list(info.keys),
        },
    }
    target.mkdir(parents=True)
    mx.save_safetensors(str(target / "adapters.safetensors"), tensors)
    (target / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


if __name__ == "__main__":
    convert(AdapterInfo.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
