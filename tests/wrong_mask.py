"""Models whose chat templates do something about the prompt that a mask has to know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

OPENED = "assistant\n' }}{% endif %}"
"""The end of the tiny model's template: what it writes when an answer is to be generated."""


def wrong_mask(model: Path, folder: Path) -> Path:
    """A copy of the tiny model that writes a prompt differently once an answer follows."""
    return _changed(model, folder, "{% for", "{{ messages | length }} turns\n{% for")


def opens_a_thought(model: Path, folder: Path) -> Path:
    """A copy of the tiny model that opens an answer with a thought and keeps none."""
    return _changed(model, folder, OPENED, "assistant\n<think>\n' }}{% endif %}")


def _changed(model: Path, folder: Path, old: str, new: str) -> Path:
    shutil.copytree(model, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    assert config["chat_template"].count(old) == 1
    config["chat_template"] = config["chat_template"].replace(old, new)
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder
