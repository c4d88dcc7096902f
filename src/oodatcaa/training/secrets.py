"""Passwords and keys in training data, found by detect-secrets. A model repeats what it learns."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oodatcaa.training.data_checks import parse_lines

MISSING = "not scanned for secrets: pip install 'oodatcaa[data]'"

ENTROPY = ("Base64 High Entropy String", "Hex High Entropy String")
"""Left out: asked about a line of its own, detect-secrets says these of nearly any word."""


def available() -> bool:
    return importlib.util.find_spec("detect_secrets") is not None


def find_secrets(path: Path) -> Iterator[tuple[int, str]]:
    """(line, kind of secret) of a JSONL file, each kind once a line; never the secret itself."""
    from detect_secrets.core.scan import scan_line
    from detect_secrets.settings import default_settings

    with default_settings():
        for number, example, _ in parse_lines(path):
            kinds = {
                found.type
                for text in _texts(example)
                for line in text.splitlines()
                for found in scan_line(line)
                if found.type not in ENTROPY
            }
            for kind in sorted(kinds):
                yield number, kind


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
