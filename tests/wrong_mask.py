"""A model whose chat template writes a prompt differently once an answer follows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

OPENED = "assistant\n' }}{% endif %}"
"""The end of the tiny model's template: what it writes when an answer is to be generated."""


def wrong_mask(model: Path, folder: Path) -> Path:
    """A copy of the tiny model that opens an answer with a thought and keeps none."""
    shutil.copytree(model, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    assert OPENED in config["chat_template"]
    config["chat_template"] = config["chat_template"].replace(
        OPENED, "assistant\n<think>' }}{% endif %}"
    )
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder
