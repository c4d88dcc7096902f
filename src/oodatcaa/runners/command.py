"""Runs a command-line agent as a child process that can neither hang, flood nor outlive us."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from oodatcaa.domain.agents import CommandSpec, Ending, Order, Turn, Usage
from oodatcaa.kit.ancestry import MARK
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.memory_bound import MemoryBound
from oodatcaa.kit.process import TAIL_BYTES, BoundedOutput, BoundedSink, Child
from oodatcaa.runners.ports import Watch
from oodatcaa.runners.stream import Lines, Reader

LOG_BYTES = 20_000_000
ARGUMENT_BYTES = 100_000
"""Linux refuses one argument above 128 KiB; a longer prompt is handed over as a file."""
GRACE_SECONDS = 5.0
LINGER_SECONDS = 10.0
"""An agent that said it is done may take this long to leave before it is ended."""
TICK_SECONDS = 0.25


class CommandRunner:
    """One agent described by a CommandSpec."""

    def __init__(self, spec: CommandSpec) -> None:
        self._spec = spec

    @property
    def can_resume(self) -> bool:
        return bool(self._spec.resume_argv)

    def run(self, order: Order, watch: Watch) -> Turn:
        """The call's `prompt.md`, `events.log` and `stderr.log` stay in `order.folder`."""
        folder = Path(order.folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "prompt.md", order.prompt)
        link_config(self._spec, Path(order.config_dir))
        reader = Reader(self._spec)
        started = time.monotonic()
        ending, detail, code = self._attend(order, watch, reader, folder)
        return Turn(
            ending=ending,
            detail=detail,
            text=reader.text,
            session=reader.session or order.session,
            usage=reader.usage.as_call(time.monotonic() - started),
            exit_code=code,
            seconds=time.monotonic() - started,
            denied=tuple(reader.denied),
        )

    def _attend(
        self, order: Order, watch: Watch, reader: Reader, folder: Path
    ) -> tuple[Ending, str, int | None]:
        prompt_file = folder / "prompt.md"
        with ExitStack() as stack:
            errors = stack.enter_context(BoundedSink(folder / "stderr.log", LOG_BYTES))
            stdin: IO[bytes] | int = subprocess.DEVNULL
            if self._spec.prompt == "stdin":
                stdin = stack.enter_context(prompt_file.open("rb"))
            bound = stack.enter_context(MemoryBound(order.memory_bytes))
            child = Child.start(
                arguments(self._spec, order, prompt_file),
                cwd=Path(order.cwd),
                env=environment(self._spec, order),
                output=subprocess.PIPE,
                stdin=stdin,
                stderr=errors.pipe,
                limits=bound.limits(),
            )
            stack.enter_context(child)
            bound.watch(child)
            errors.started()
            log = BoundedOutput(folder / "events.log", LOG_BYTES)
            try:
                talk = _Talk(child, order, watch, reader, log, bound)
                ended = talk.listen()
                if ended is not None:
                    end_group(child, talk)
                code = child.wait()
                log.finish()
            finally:
                log.close()
        ended = ended or _without_memory(bound, reader, code, folder)
        if ended is not None and ended[0] is not Ending.FINISHED:
            return (*ended, None)
        return (*reader.ending(0 if ended is not None else code), code)


def _without_memory(
    bound: MemoryBound, reader: Reader, code: int | None, folder: Path
) -> tuple[Ending, str] | None:
    """How an agent ended that failed for want of memory; None for every other one."""
    if reader.ending(code)[0] is not Ending.ERROR:
        return None
    why = bound.ran_out(last_words(folder / "stderr.log") + reader.last_error)
    return (Ending.MEMORY, why) if why else None


def last_words(path: Path) -> str:
    """The end of a log that is complete; empty when there is none."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace")
    return ""


def end_group(child: Child, talk: _Talk) -> None:
    """SIGTERM to the whole group, a grace in which its pipe is still drained, SIGKILL."""
    child.ask_to_stop()
    talk.drain(GRACE_SECONDS)
    child.kill()
    talk.drain(1.0)


class _Talk:
    """Reads an agent's output until it ends or must be ended."""

    def __init__(
        self,
        child: Child,
        order: Order,
        watch: Watch,
        reader: Reader,
        log: BoundedOutput,
        bound: MemoryBound,
    ) -> None:
        self._child, self._order, self._watch = child, order, watch
        self._reader, self._log, self._bound = reader, log, bound
        self._lines = Lines()
        self._open = True
        self._heard = time.monotonic()
        self._said_done = 0.0

    def listen(self) -> tuple[Ending, str] | None:
        """None when the agent ended by itself, else why it has to be ended. FINISHED means that
        it said it is done and then did not leave."""
        started = self._heard
        asked = 0.0
        counted = Usage()
        while True:
            if self._watch.should_stop():
                return Ending.STOPPED, "the crew was stopped"
            now = time.monotonic()
            used = self._reader.usage
            if used != counted or now - asked >= 1.0:
                asked, counted = now, used
                why = self._watch.over_budget(used.as_call(now - started))
                if why:
                    return Ending.BUDGET, why
            late = self._late(now, started)
            if late is not None:
                return late
            if not self._read(TICK_SECONDS) and self._child.wait(TICK_SECONDS) is not None:
                return None

    def _late(self, now: float, started: float) -> tuple[Ending, str] | None:
        if why := self._bound.over():
            return Ending.MEMORY, why
        if now - started >= self._order.seconds:
            return Ending.TIMEOUT, f"it was not done after {self._order.seconds / 60:g} min"
        if self._reader.succeeded:
            self._said_done = self._said_done or now
            if now - self._said_done >= LINGER_SECONDS:
                return Ending.FINISHED, ""
        elif now - self._heard >= self._order.silence_seconds:
            return Ending.SILENT, f"it said nothing for {self._order.silence_seconds / 60:g} min"
        return None

    def drain(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._read(0.1):
            pass

    def _read(self, pause: float) -> bool:
        """Take what is there; False once the output is closed."""
        if not self._open:
            return False
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            if not selector.select(pause):
                return True
        chunk = os.read(self._child.stdout.fileno(), 1 << 16)
        if not chunk:
            self._open = False
            for line in self._lines.last():
                self._reader.add(line)
            return False
        self._heard = time.monotonic()
        self._log.add(chunk)
        for line in self._lines.add(chunk):
            self._reader.add(line)
        return True


def arguments(spec: CommandSpec, order: Order, prompt_file: Path) -> list[str]:
    """The words of the command line for this order."""
    prompt = order.prompt
    if spec.prompt == "argument" and len(prompt.encode()) > ARGUMENT_BYTES:
        prompt = f"Read your whole task from the file {prompt_file} and do it."
    words = {
        "prompt": prompt,
        "prompt_file": str(prompt_file),
        "cwd": order.cwd,
        "session": order.session,
        "config_dir": order.config_dir,
        "model": order.model,
        "tools": ",".join(order.tools),
    }
    template = spec.resume_argv if order.session and spec.resume_argv else spec.argv
    argv = [*template]
    extra = [*(spec.model_argv if order.model else ()), *(spec.tools_argv if order.tools else ())]
    return [fill(word, words) for word in _with(argv, extra)]


def _with(argv: list[str], extra: list[str]) -> list[str]:
    """Options go before a prompt that is the last word, for some commands read no more behind."""
    if argv[-1] == "{prompt}" and len(argv) > 1 and not argv[-2].startswith("-"):
        return [*argv[:-1], *extra, argv[-1]]
    return [*argv, *extra]


def fill(word: str, values: dict[str, str]) -> str:
    """{name} replaced by its value, once: braces inside a value stay as they are."""
    out, rest = "", word
    while rest:
        head, brace, tail = rest.partition("{")
        name, close, after = tail.partition("}")
        if brace and close and name in values:
            out, rest = out + head + values[name], after
        else:
            out, rest = out + head + brace, tail
    return out


def environment(spec: CommandSpec, order: Order) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in spec.unset}
    values = {"config_dir": order.config_dir, "cwd": order.cwd}
    own = {name: fill(value, values) for name, value in spec.env.items()}
    return {**env, **own, **order.env, MARK: order.folder}


def link_config(spec: CommandSpec, folder: Path) -> None:
    """Give the agent its own configuration folder with links to the person's login."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in spec.config_links.items():
        target, place = Path(source).expanduser(), folder / name
        if target.exists() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                place.symlink_to(target)
