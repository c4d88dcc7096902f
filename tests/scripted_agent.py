"""A coding agent that does what a script says: a real child process for the tests.

`python scripted_agent.py SCRIPT [PROMPT]` prints a JSONL stream like a coding agent's. SCRIPT is a
JSON file: {"turns": [[action, …], …], "state": FILE}; call n plays turn n, the last one for ever.
Every call's prompt, arguments and working folder are appended to STATE + ".calls.jsonl".

Actions: {"write": path, "text": …} · {"append": path, "text": …} · {"say": text} · {"event": {…}}
· {"usage": [input, output, cost]} · {"sleep": seconds} · {"silent": seconds} · {"flood": bytes}
· {"grandchild": pid file} · {"error": message} · {"denied": [..]} · {"done": text} · {"exit": code}
· {"die": signal} · {"ignore_term": true} · {"run": command} · {"linger": seconds}
· {"commit": message} · {"wait_for": path} · {"eat": bytes}
· {"print": text}
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def emit(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def usage(values: list[float]) -> None:
    keys = ("input", "output", "cost")
    emit({"type": "usage", **dict(zip(keys, values, strict=False))})


def flood(size: int) -> None:
    chunk = b"x" * 65_536
    for _ in range(size // len(chunk)):
        os.write(1, chunk)
    os.write(1, b"\n")


def grandchild(path: str) -> None:
    """A process that ignores SIGTERM and would outlive us."""
    code = (
        "import signal, time; [signal.signal(s, signal.SIG_IGN) for s in (signal.SIGTERM, "
        "signal.SIGHUP)]; time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    Path(path).write_text(str(child.pid), encoding="ascii")


def write(path: str, text: str, mode: str = "w") -> None:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open(mode, encoding="utf-8") as file:
        file.write(text)


def wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.05)


def commit(message: str) -> None:
    who = ["-c", "user.name=agent", "-c", "user.email=agent@example.org"]
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", *who, "commit", "-q", "-m", message], check=True)


def eat(size: int) -> None:
    """Fill this much memory, and hold it for a while."""
    held = bytearray(os.urandom(1 << 20) * (size >> 20))
    slow(20)
    del held


def play(action: dict[str, Any]) -> None:
    (name, value), *_ = action.items()
    plain: dict[str, Callable[[], object]] = {
        "write": lambda: write(value, action["text"]),
        "append": lambda: write(value, action["text"], "a"),
        "say": lambda: emit({"type": "text", "text": value}),
        "event": lambda: emit(value),
        "usage": lambda: usage(value),
        "sleep": lambda: slow(value),
        "silent": lambda: time.sleep(value),
        "flood": lambda: flood(value),
        "grandchild": lambda: grandchild(value),
        "error": lambda: emit({"type": "error", "message": value}),
        "denied": lambda: emit({"type": "done", "denied": value, "text": ""}),
        "done": lambda: emit({"type": "done", "text": value}),
        "exit": lambda: sys.exit(value),
        "die": lambda: os.kill(os.getpid(), value),
        "ignore_term": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        "run": lambda: subprocess.run(value, shell=True, check=False, stdout=2),
        "linger": lambda: time.sleep(value),
        "commit": lambda: commit(value),
        "wait_for": lambda: wait_for(value),
        "eat": lambda: eat(value),
        "print": lambda: os.write(1, value.encode()),
    }
    plain[name]()


def slow(seconds: float) -> None:
    """Busy, but not silent."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        emit({"type": "tick"})
        time.sleep(0.1)


def next_turn(script: Path, data: dict[str, Any]) -> list[dict[str, Any]]:
    counter = script.with_suffix(".count")
    number = int(counter.read_text(encoding="ascii")) if counter.exists() else 0
    counter.write_text(str(number + 1), encoding="ascii")
    turns: list[list[dict[str, Any]]] = data["turns"]
    return turns[min(number, len(turns) - 1)]


def main() -> None:
    script = Path(sys.argv[1])
    data = json.loads(script.read_text(encoding="utf-8"))
    stdin = "" if sys.stdin is None else sys.stdin.read()
    call = {
        "argv": sys.argv[2:],
        "stdin": stdin,
        "cwd": str(Path.cwd()),
        "config_dir": os.environ.get("SCRIPTED_CONFIG", ""),
        "pid": os.getpid(),
    }
    with script.with_suffix(".calls.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(call) + "\n")
    emit({"type": "start", "session": data.get("session", "session-1")})
    for action in next_turn(script, data):
        play(action)


if __name__ == "__main__":
    main()
