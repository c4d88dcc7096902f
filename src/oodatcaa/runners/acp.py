"""Runs an agent that speaks the Agent Client Protocol over its standard input and output."""

from __future__ import annotations

import asyncio
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import acp
from acp import schema

from oodatcaa.domain.agents import AcpSpec, CommandSpec, Ending, Order, Turn
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.memory_bound import MemoryBound
from oodatcaa.kit.process import BoundedSink, Child
from oodatcaa.runners.acp_client import MOST_ASKED, PolicyClient
from oodatcaa.runners.command import (
    GRACE_SECONDS,
    LOG_BYTES,
    environment,
    fill,
    last_words,
    link_config,
)
from oodatcaa.runners.ports import Watch

TICK_SECONDS = 0.25
STREAM_LIMIT = 16_000_000
START_SECONDS = 60.0
NOISE_BYTES = 1_000_000
"""Agents print a stray line now and then; more than this is a flood."""
MESSAGE = b'"jsonrpc"'
"""In every message of the protocol."""


class AcpRunner:
    """One agent described by an AcpSpec."""

    can_resume = True

    def __init__(self, spec: AcpSpec) -> None:
        self._spec = spec

    def run(self, order: Order, watch: Watch) -> Turn:
        """One prompt turn in a new session, or in `order.session` when the agent can load it.

        Every permission that it asks for is answered by the policy and noted through `watch`.
        """
        folder = Path(order.folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "prompt.md", order.prompt)
        link_config(self._as_command(), Path(order.config_dir))
        started = time.monotonic()
        with ExitStack() as stack:
            errors = stack.enter_context(BoundedSink(folder / "stderr.log", LOG_BYTES))
            words = {"cwd": order.cwd, "config_dir": order.config_dir}
            bound = stack.enter_context(MemoryBound(order.memory_bytes))
            child = Child.start(
                [fill(word, words) for word in self._spec.argv],
                cwd=Path(order.cwd),
                env=environment(self._as_command(), order),
                output=subprocess.PIPE,
                stdin=subprocess.PIPE,
                stderr=errors.pipe,
                limits=bound.limits(),
            )
            stack.enter_context(child)
            bound.watch(child)
            errors.started()
            client = PolicyClient(order, watch, self._spec)
            ending, detail = asyncio.run(_converse(child, client, order, watch, started, bound))
            child.terminate(GRACE_SECONDS if ending is not Ending.FINISHED else 1.0)
        if ending is Ending.ERROR:
            why = bound.ran_out(last_words(folder / "stderr.log") + detail)
            ending, detail = (Ending.MEMORY, why) if why else (ending, detail)
        seconds = time.monotonic() - started
        write_atomic(folder / "answer.md", client.text)
        return Turn(
            ending=ending,
            detail=detail,
            text=client.text,
            session=client.session,
            usage=client.usage.as_call(seconds),
            seconds=seconds,
            denied=tuple(client.refused),
        )

    def _as_command(self) -> CommandSpec:
        """The parts that a command-line agent has too."""
        spec = self._spec
        return CommandSpec(
            argv=(*spec.argv, "{prompt}"),
            env=spec.env,
            unset=spec.unset,
            config_links=spec.config_links,
        )


class _Reader(asyncio.StreamReader):
    """Counts what an agent prints that is no message of the protocol, and sees whether a message
    stands in it, which nobody will ever read."""

    def __init__(self) -> None:
        super().__init__(limit=STREAM_LIMIT)
        self.noise, self.lost = 0, False
        self._begins, self._noisy, self._tail = True, False, b""

    def feed_data(self, data: Any) -> None:
        for number, part in enumerate(bytes(data).split(b"\n")):
            if number > 0:
                self._begins, self._tail = True, b""
            if self._begins and part:
                self._begins, self._noisy = False, not part.lstrip().startswith(b"{")
            if self._noisy and not self._begins:
                self.noise += len(part)
                self.lost = self.lost or MESSAGE in self._tail + part
                self._tail = (self._tail + part)[-len(MESSAGE) :]
        super().feed_data(data)

    def unusable(self) -> str:
        """Why nothing more is to be expected of it; empty = all is well."""
        if self.lost or self.noise > NOISE_BYTES:
            return "its messages are lost in what else it prints to its output"
        return ""


async def _converse(
    child: Child,
    client: PolicyClient,
    order: Order,
    watch: Watch,
    started: float,
    bound: MemoryBound,
) -> tuple[Ending, str]:
    reader, writer = await _streams(child)
    connection = acp.connect_to_agent(cast(acp.Client, client), writer, reader)
    turn = asyncio.ensure_future(_turn(connection, client, order))
    try:
        while True:
            done, _ = await asyncio.wait({turn}, timeout=TICK_SECONDS)
            if done:
                return _ended(turn, child)
            why = _reason_to_end(child, client, order, watch, started)
            if over := bound.over():
                why = Ending.MEMORY, over
            elif client.asked > MOST_ASKED:
                why = Ending.ERROR, f"it asked for more than {MOST_ASKED} permissions and files"
            elif lost := reader.unusable():
                why = Ending.ERROR, lost
            if why is not None:
                if client.session and child.poll() is None:
                    with suppress(Exception):
                        await asyncio.wait_for(connection.cancel(session_id=client.session), 1.0)
                return why
    finally:
        turn.cancel()
        with suppress(BaseException):
            await turn
        with suppress(Exception):
            await asyncio.wait_for(connection.close(), 2.0)
        writer.close()


async def _streams(child: Child) -> tuple[_Reader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = _Reader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), child.stdout)
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop), child.stdin
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _turn(connection: Any, client: PolicyClient, order: Order) -> str:
    """The stop reason of one prompt turn."""
    files = schema.FileSystemCapabilities(read_text_file=True, write_text_file=True)
    hello = await asyncio.wait_for(
        connection.initialize(
            protocol_version=acp.PROTOCOL_VERSION,
            client_capabilities=schema.ClientCapabilities(fs=files, terminal=False),
        ),
        START_SECONDS,
    )
    can_load = bool(hello.agent_capabilities and hello.agent_capabilities.load_session)
    if order.session and can_load:
        await connection.load_session(cwd=order.cwd, session_id=order.session, mcp_servers=[])
        client.session = order.session
    else:
        made = await connection.new_session(cwd=order.cwd, mcp_servers=[])
        client.session = made.session_id
    client.text = ""  # a loaded session replays its history first
    response = await connection.prompt(
        session_id=client.session, prompt=[acp.text_block(order.prompt)]
    )
    client.count(response.usage)
    return str(response.stop_reason)


def _reason_to_end(
    child: Child, client: PolicyClient, order: Order, watch: Watch, started: float
) -> tuple[Ending, str] | None:
    now = time.monotonic()
    if watch.should_stop():
        return Ending.STOPPED, "the crew was stopped"
    why = watch.over_budget(client.usage.as_call(now - started))
    if why:
        return Ending.BUDGET, why
    if now - started >= order.seconds:
        return Ending.TIMEOUT, f"it was not done after {order.seconds / 60:g} min"
    if now - client.heard >= order.silence_seconds:
        return Ending.SILENT, f"it said nothing for {order.silence_seconds / 60:g} min"
    code = child.poll()
    if code is not None:
        return _gone(code)
    return None


def _gone(code: int | None) -> tuple[Ending, str]:
    if code == 127:
        return Ending.MISSING, "its program was not found (exit code 127)"
    return Ending.ERROR, f"it ended (exit code {code}) in the middle of its turn"


def _ended(turn: asyncio.Future[str], child: Child) -> tuple[Ending, str]:
    error = turn.exception()
    if error is not None:
        code = child.wait(1.0)
        if code is not None:
            return _gone(code)
        return Ending.ERROR, f"{type(error).__name__}: {str(error)[:300]}"
    reason = turn.result()
    if reason == "end_turn":
        return Ending.FINISHED, ""
    return Ending.ERROR, f"it stopped with {reason}"
