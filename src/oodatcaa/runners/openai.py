"""Asks any endpoint that speaks OpenAI's chat completions; for agents that return records.

A conversation is kept in a file beside the call, and its path is the session: what was refused
goes back in the same conversation.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from oodatcaa.domain.agents import Ending, OpenAISpec, Order, Turn, Usage
from oodatcaa.kit.files import write_atomic
from oodatcaa.runners.ports import Watch
from oodatcaa.runners.stream import TEXT_LIMIT, number

CONVERSATION = "conversation.json"
TICK_SECONDS = 0.25
Messages = list[dict[str, str]]


class OpenAIRunner:
    """One endpoint and model."""

    can_resume = True

    def __init__(self, spec: OpenAISpec) -> None:
        self._spec = spec

    def run(self, order: Order, watch: Watch) -> Turn:
        """The conversation stays in `order.folder`; the answer is streamed, so that it can be
        stopped, and so that an endpoint that says nothing is noticed."""
        folder = Path(order.folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "prompt.md", order.prompt)
        messages = [*_earlier(order.session), {"role": "user", "content": order.prompt}]
        started = time.monotonic()
        answer = _Answer(self._spec)
        ending, detail = self._listen(order, watch, messages, answer, started)
        seconds = time.monotonic() - started
        conversation = folder / CONVERSATION
        said: Messages = [{"role": "assistant", "content": answer.text}] if answer.text else []
        write_atomic(conversation, json.dumps([*messages, *said], indent=2) + "\n")
        return Turn(
            ending=ending,
            detail=detail,
            text=answer.text,
            session=str(conversation) if answer.text else order.session,
            usage=answer.usage.as_call(seconds),
            seconds=seconds,
        )

    def _listen(
        self, order: Order, watch: Watch, messages: Messages, answer: _Answer, started: float
    ) -> tuple[Ending, str]:
        lines: queue.Queue[str | Exception | None] = queue.Queue(maxsize=1000)
        client = httpx.Client(timeout=httpx.Timeout(30.0, read=None))
        thread = threading.Thread(target=self._pump, args=(client, order, messages, lines))
        thread.daemon = True
        thread.start()
        heard = started
        try:
            while True:
                now = time.monotonic()
                if watch.should_stop():
                    return Ending.STOPPED, "the crew was stopped"
                why = watch.over_budget(answer.usage.as_call(now - started))
                if why:
                    return Ending.BUDGET, why
                if now - started >= order.seconds:
                    return Ending.TIMEOUT, f"it was not done after {order.seconds / 60:g} min"
                if now - heard >= order.silence_seconds:
                    return Ending.SILENT, f"it said nothing for {order.silence_seconds / 60:g} min"
                with suppress(queue.Empty):
                    found = lines.get(timeout=TICK_SECONDS)
                    heard = time.monotonic()
                    if found is None:
                        return answer.ending()
                    if isinstance(found, Exception):
                        return Ending.ERROR, _why(found)
                    answer.add(found)
        finally:
            client.close()

    def _pump(
        self,
        client: httpx.Client,
        order: Order,
        messages: Messages,
        lines: queue.Queue[str | Exception | None],
    ) -> None:
        try:
            for line in self._request(client, order, messages):
                lines.put(line, timeout=60)
            lines.put(None, timeout=60)
        except (httpx.HTTPError, RuntimeError, OSError, queue.Full) as error:
            # Also what a closed client raises here once nobody listens any more.
            with suppress(queue.Full):
                lines.put(error, timeout=1)

    def _request(self, client: httpx.Client, order: Order, messages: Messages) -> Iterator[str]:
        url = self._spec.base_url.rstrip("/") + "/chat/completions"
        with client.stream(
            "POST", url, json=self._body(order, messages), headers=self._headers()
        ) as response:
            if response.status_code >= 400:
                response.read()
                raise RuntimeError(f"HTTP {response.status_code}: {response.text[:300]}")
            yield from response.iter_lines()

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self._spec.api_key_env, "") if self._spec.api_key_env else ""
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _body(self, order: Order, messages: Messages) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": order.model or self._spec.model,
            "messages": messages,
            "max_tokens": self._spec.max_tokens,
            "temperature": self._spec.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._spec.json_mode:
            body["response_format"] = {"type": "json_object"}
        return body


class _Answer:
    """A streamed completion as far as it came."""

    def __init__(self, spec: OpenAISpec) -> None:
        self._spec = spec
        self.text = ""
        self.usage = Usage()
        self._finish = ""
        self._error = ""

    def add(self, line: str) -> None:
        data = line.removeprefix("data:").strip()
        if not data.startswith("{"):
            return
        try:
            event = json.loads(data)
        except ValueError:
            return
        if event.get("error"):
            self._error = json.dumps(event["error"])[:300]
        self._count(event.get("usage"))
        for choice in event.get("choices") or ():
            said = choice.get("delta") or choice.get("message") or {}
            self.text = (self.text + (said.get("content") or ""))[-TEXT_LIMIT:]
            self._finish = choice.get("finish_reason") or self._finish

    def ending(self) -> tuple[Ending, str]:
        if self._error:
            return Ending.ERROR, f"the endpoint reported an error: {self._error}"
        if self._finish == "content_filter":
            return Ending.ERROR, "the endpoint filtered the answer"
        if not self._finish:
            return Ending.ERROR, "the answer broke off"
        return Ending.FINISHED, ""

    def _count(self, used: Any) -> None:
        if not isinstance(used, dict):
            return
        inputs, outputs = number(used.get("prompt_tokens")), number(used.get("completion_tokens"))
        prices, cost = self._spec.prices, None
        if prices is not None and inputs is not None and outputs is not None:
            cost = (inputs * prices.input + outputs * prices.output) / 1e6
        self.usage = Usage(
            input_tokens=None if inputs is None else round(inputs),
            output_tokens=None if outputs is None else round(outputs),
            cost_usd=cost,
        )


def _earlier(session: str) -> Messages:
    path = Path(session)
    if not session or not path.is_file():
        return []
    found: Messages = json.loads(path.read_text(encoding="utf-8"))
    return found


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if not isinstance(error, RuntimeError) else str(error)
