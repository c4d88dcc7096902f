"""Passwords and keys in training data, found by detect-secrets. A model repeats what it learns."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from oodatcaa.training.data_checks import parse_lines

MISSING = "not scanned for secrets: pip install 'oodatcaa[data]'"

ENTROPY = ("Base64 High Entropy String", "Hex High Entropy String")
"""Left out: asked about a line of its own, detect-secrets says these of nearly any word."""


def available() -> bool:
    return importlib.util.find_spec("detect_secrets") is not None


class Search:
    """(line, kind of secret) of a JSONL file, each kind once a line; never the secret itself.

    Ends after `most` characters of text; `ended_at` is then the last line that was looked at.
    """

    def __init__(self, path: Path, most: int | None = None) -> None:
        self._path = path
        self._most = most
        self.ended_at: int | None = None

    def __iter__(self) -> Iterator[tuple[int, str]]:
        from detect_secrets.settings import default_settings

        with default_settings():
            last = seen = 0
            for number, example, _ in parse_lines(self._path):
                if self._most is not None and seen >= self._most:
                    self.ended_at = last
                    return
                texts = list(_texts(example))
                for kind in sorted(_kinds(texts)):
                    yield number, kind
                last, seen = number, seen + sum(map(len, texts))


def _kinds(texts: Sequence[str]) -> set[str]:
    from detect_secrets.core.scan import scan_line

    return {
        found.type
        for text in texts
        for line in text.splitlines()
        for found in scan_line(line)
        if found.type not in ENTROPY
    }


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
