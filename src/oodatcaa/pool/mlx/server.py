"""The pool's child: JSON lines in, JSON lines out, one base model.

`python -m oodatcaa.pool.mlx.server MODULE:FUNCTION`. Requests, each with an `op`:
load {model, memory_limit_bytes, prompt_cache_bytes, folder} once, then adapter {info},
drop {hash}, shrink {prompt_cache_bytes}, generate {ask, adapter}, score {texts, adapter},
memory {}. Answers, one line each: for generate {"piece"} lines first; always one last line,
{"done": …} or {"error": {code, message, hint, details}}. {"op": "cancel"} ends a generation
early. It ends when its input ends.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodatcaa.errors import OodatcaaError

if TYPE_CHECKING:
    from oodatcaa.pool.mlx.engine import Engine

Open = Callable[[str, int, Path], tuple[Any, Any]]
"""(model folder, memory limit, scratch folder) -> (network, tokenizer)."""


class Server:
    def __init__(self, open_base: Open, write: Callable[[dict[str, Any]], None]) -> None:
        self.open_base = open_base
        self.write = write
        self.requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.cancelled = threading.Event()
        self._engine: Engine | None = None

    def listen(self) -> None:
        """Read requests until the input ends; a cancel takes effect at once."""
        for line in sys.stdin:
            request = json.loads(line)
            if request["op"] == "cancel":
                self.cancelled.set()
            else:
                self.requests.put(request)
        self.cancelled.set()
        self.requests.put(None)

    def serve(self) -> None:
        while (request := self.requests.get()) is not None:
            try:
                self.write({"done": self.handle(request)})
            except OodatcaaError as error:
                self.write({"error": _described(error)})
            except MemoryError:
                # The kernel refuses memory beyond the limit, see the wall of the one who opens.
                known = OodatcaaError(
                    "pool.memory",
                    "the memory limit is reached",
                    hint="raise the memory limit, or ask for fewer tokens",
                )
                self.write({"error": _described(known)})
            except (ValueError, RuntimeError, OSError, KeyError) as error:
                text = (str(error).strip().splitlines() or [""])[0]
                known = OodatcaaError(
                    "pool.failed",
                    f"{type(error).__name__}: {text}",
                    hint="the pool's log has more",
                )
                self.write({"error": _described(known)})

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises OodatcaaError for a request that can not be answered."""
        op = request["op"]
        if op == "load":
            return self._load(request)
        engine = self._engine
        if engine is None:
            raise OodatcaaError("pool.request", f"{op!r} before a model is loaded")
        match op:
            case "adapter":
                from oodatcaa.pool.records import AdapterInfo

                return {"bytes": engine.add(AdapterInfo.model_validate(request["info"]))}
            case "drop":
                engine.drop(request["hash"])
                return engine.memory()
            case "shrink":
                engine.shrink(request["prompt_cache_bytes"])
                return engine.memory()
            case "generate":
                return self._generate(engine, request)
            case "score":
                return engine.score(request["texts"], request["adapter"]).model_dump()
            case "memory":
                return engine.memory()
        raise OodatcaaError("pool.request", f"there is no operation {op!r}")

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        limit, scratch = request["memory_limit_bytes"], Path(request["folder"])
        network, tokenizer = self.open_base(request["model"], limit, scratch)
        from oodatcaa.pool.mlx.engine import Engine

        self._engine = Engine(
            network, tokenizer, Path(request["model"]), limit, request["prompt_cache_bytes"]
        )
        return {**self._engine.memory(), "load_seconds": time.monotonic() - started}

    def _generate(self, engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
        from oodatcaa.pool.records import Ask, Piece

        self.cancelled.clear()
        ask = Ask.model_validate(request["ask"])
        answer: dict[str, Any] = {}
        for part in engine.generate(ask, request["adapter"], self.cancelled.is_set):
            if isinstance(part, Piece):
                self.write({"piece": part.model_dump()})
            else:
                answer = part.model_dump(mode="json")
        return answer


def _described(error: OodatcaaError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "details": list(error.details),
    }


def main() -> int:
    # Libraries print; the protocol's pipe must stay clean, so it moves away from file number 1.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def write(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    module, _, function = sys.argv[1].partition(":")
    server = Server(getattr(importlib.import_module(module), function), write)
    threading.Thread(target=server.listen, name="requests", daemon=True).start()
    server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
