"""The pool's child: JSON lines in, JSON lines out, one loaded pair.

`python -m oodatcaa.pool.mlx.server MODULE:FUNCTION`. Requests: {"op": "load", ...options} once,
then {"op": "generate", "prompt", "max_tokens", "temperature"}. Answers: one line each, either the
values or {"error": {code, message, hint, details}}. Ends when its input ends.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

from oodatcaa.domain.training import InferenceProbe
from oodatcaa.errors import OodatcaaError


class Engine(Protocol):
    """What the entry point returns: a loaded pair."""

    load_seconds: float

    def answer(self, prompt: str, max_tokens: int, temperature: float = ...) -> InferenceProbe: ...


Open = Callable[[str, str | None, int], Engine]


class Server:
    """Holds at most one pair; a request is a dict, so is the answer."""

    def __init__(self, open_engine: Open) -> None:
        self.open_engine = open_engine
        self.engine: Engine | None = None

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises OodatcaaError for a request that can not be answered."""
        match request.get("op"):
            case "load":
                self.engine = self.open_engine(
                    request["model"], request["adapter_dir"], request["memory_limit_bytes"]
                )
                return {"load_seconds": self.engine.load_seconds}
            case "generate" if self.engine is not None:
                probe = self.engine.answer(
                    request["prompt"], request["max_tokens"], request["temperature"]
                )
                return {"probe": probe.model_dump(mode="json")}
            case op:
                raise OodatcaaError("pool.request", f"{op!r} is not possible now")


def main() -> int:
    # Libraries print; the protocol's pipe must stay clean, so it moves away from file number 1.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, _, function = sys.argv[1].partition(":")
    server = Server(getattr(importlib.import_module(module), function))
    for line in sys.stdin:
        try:
            answer = server.handle(json.loads(line))
        except OodatcaaError as error:
            described = {"code": error.code, "message": error.message, "hint": error.hint}
            answer = {"error": {**described, "details": error.details}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
