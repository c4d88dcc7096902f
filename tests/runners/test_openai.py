"""The OpenAI runner against a real local HTTP server that speaks the protocol, well and badly."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agent_making import order
from oodatcaa.domain.agents import Ending, OpenAISpec, Turn
from oodatcaa.runners.openai import OpenAIRunner
from oodatcaa.runners.ports import Watch


class Server:
    """Answers every request with what `script` says next; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.script: list[tuple[int, list[str]]] = []
        self.hang = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                outer.asked.append(json.loads(self.rfile.read(length)))
                outer.keys.append(self.headers.get("Authorization"))
                status, lines = outer.script.pop(0)
                self.send_response(status)
                self.end_headers()
                for line in lines:
                    if line == "HANG":
                        self.wfile.flush()
                        outer.hang.wait(30)
                        return
                    self.wfile.write(f"{line}\n\n".encode())

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.hang.set()
    made.http.shutdown()
    made.http.server_close()


def chunks(text: str, *, usage: bool = True) -> list[str]:
    half = len(text) // 2
    events: list[dict[str, Any]] = [
        {"choices": [{"delta": {"content": part}, "finish_reason": None}]}
        for part in (text[:half], text[half:])
    ]
    events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    if usage:
        events.append({"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 10}})
    return [*(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]


def run(server: Server, tmp_path: Path, session: str = "", **spec: Any) -> Turn:
    more = {key: spec.pop(key) for key in ("silence_seconds",) if key in spec}
    values = {"kind": "openai", "base_url": server.url, "model": "tiny", **spec}
    runner = OpenAIRunner(OpenAISpec.model_validate(values))
    return runner.run(order(tmp_path, session=session, **more), Watch())


def test_an_answer_is_streamed_and_counted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "k-1")
    server.script = [(200, chunks('{"a": 1}'))]
    prices = {"input": 1.0, "output": 10.0}
    turn = run(server, tmp_path, api_key_env="MY_KEY", prices=prices, json_mode=True)
    assert (turn.ending, turn.text) == (Ending.FINISHED, '{"a": 1}')
    assert turn.usage.tokens == 60
    assert turn.usage.cost_usd == pytest.approx(150e-6)
    assert server.keys == ["Bearer k-1"]
    assert server.asked[0]["model"] == "tiny"
    assert server.asked[0]["response_format"] == {"type": "json_object"}


def test_what_was_refused_goes_back_in_the_same_conversation(
    server: Server, tmp_path: Path
) -> None:
    server.script = [(200, chunks("no", usage=False)), (200, chunks("yes"))]
    first = run(server, tmp_path)
    assert first.usage.tokens is None
    run(server, tmp_path, session=first.session)
    roles = [item["role"] for item in server.asked[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert server.asked[1]["messages"][1]["content"] == "no"


@pytest.mark.parametrize(
    ("status", "lines", "why"),
    [
        (500, ["overloaded"], "HTTP 500: overloaded"),
        (200, ['data: {"error": {"message": "bad"}}'], "reported an error"),
        (200, ['data: {"choices": [{"delta": {"content": "half"}}]}'], "broke off"),
        (200, ["data: {nonsense", "noise"], "broke off"),
    ],
)
def test_what_goes_wrong_is_an_error_of_the_agent(
    server: Server, tmp_path: Path, status: int, lines: list[str], why: str
) -> None:
    server.script = [(status, lines)]
    turn = run(server, tmp_path)
    assert turn.ending is Ending.ERROR
    assert why in turn.detail


def test_nobody_there_and_nothing_said(server: Server, tmp_path: Path) -> None:
    assert "ConnectError" in run(server, tmp_path, base_url="http://127.0.0.1:9/v1").detail
    server.script = [(200, ["HANG"])]
    assert run(server, tmp_path, silence_seconds=0.6).ending is Ending.SILENT
