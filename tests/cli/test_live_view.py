"""The panel on a terminal: never wider or higher than the window, and gone when the crew is."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.screen import Screen

from oodatcaa.app.activity import Activity
from oodatcaa.cli.scene import Scene, Training
from oodatcaa.cli.screen import Frame
from oodatcaa.domain.progress import Progress
from oodatcaa.domain.task import Role
from oodatcaa.domain.training import TrainProgress
from typing_in import SCRIPT, environment, git, new_project, type_in

NOW = datetime(2026, 1, 30, 12, 0, tzinfo=UTC)
HOSTILE = st.text(max_size=200) | st.sampled_from(
    ["[bold]x[/]", "[/nothing]", "\x1b[2J\x1b[31mred", "a\nb\r\nc\td", "\u200b\u202e語" * 40]
)


def scene(text: str, agents: int = 3, runs: int = 1, news: int = 5) -> Scene:
    progress = TrainProgress(
        run_id="r", phase="training", iteration=12, iters=40, loss=1.234, tokens_per_second=125.0,
        memory_bytes=2_410_000_000, memory_limit_bytes=16_000_000_000, updated_at=NOW,
    )  # fmt: skip
    return Scene(
        at=NOW,
        title=text or "t",
        state="running",
        progress=Progress(
            stories={}, subtasks={}, objective_percent=41.0, stories_done=2, stories_total=5,
            subtasks_done=1, subtasks_total=4, remaining_minutes=9, blocked=(), needs_human=(),
        ),
        stories=tuple((f"T00{n}", "planning_complete") for n in range(1, 8)),
        running_seconds=192.0,
        limit_bytes=16_000_000_000,
        agents=tuple(
            Activity(
                agent=f"builder-{n}", role=Role.BUILDER, task="T003-B01" if n % 2 else "",
                text=text, since=NOW - timedelta(seconds=61 * n), at=NOW,
            )
            for n in range(agents)
        ),
        training=tuple(
            Training("builder-A", f"T00{n}-B01", progress, 2_500_000_000, 61.0) for n in range(runs)
        ),
        news=tuple((NOW, "negotiator", text) for _ in range(news)),
    )  # fmt: skip


def painted(shown: Scene, width: int, height: int) -> list[str]:
    console = Console(
        width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None,
        _environ={},
    )  # fmt: skip
    lines = console.render_lines(Screen(Frame(shown)), console.options)
    return ["".join(part.text for part in line) for line in lines]


@settings(max_examples=60, deadline=None)
@given(HOSTILE, st.integers(20, 200), st.integers(4, 60), st.integers(0, 12), st.integers(0, 3))
def test_a_frame_is_exactly_as_large_as_the_window(
    text: str, width: int, height: int, agents: int, runs: int
) -> None:
    lines = painted(scene(text, agents, runs), width, height)
    assert len(lines) == height
    for line in lines:
        assert cell_len(line) == width, line
        assert not re.search(r"[\x00-\x1f\x7f\x1b]", line), line


def test_it_says_who_does_what_and_how_training_goes() -> None:
    text = "\n".join(painted(scene("T003-B01 step 2/3: Train with QLoRA"), 80, 24))
    for expected in (
        "2 of 5 stories integrated", "41 %", "T003-B01  step 2/3: Train with QLoRA", "1 min",
        "12 of 40 iterations, about 1 min left", "loss 1.234", "125 tokens/s",
        "memory 2.41 of 16.0 GB, most 2.50", "12:00:00Z negotiator",
    ):  # fmt: skip
        assert expected in text, text


def test_training_is_shown_also_in_a_very_low_window() -> None:
    text = "\n".join(painted(scene("x", agents=6), 60, 14))
    assert "12 of 40 iterations" in text
    assert "waiting: builder-0" in text


def on_a_terminal(folder: Path, *words: str) -> tuple[int, str]:
    """Type a command on a pseudo terminal whose window shrinks meanwhile: (exit code, bytes)."""
    leader, follower = pty.openpty()

    def resize(columns: int, lines: int) -> None:
        fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    resize(100, 30)
    env = environment(folder, TERM="xterm-256color")
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        env.pop(name, None)
    child = subprocess.Popen(
        [str(SCRIPT), *words], cwd=folder, env=env, stdin=follower, stdout=follower,
        stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    seen = b""
    deadline = time.monotonic() + 200
    try:
        waiting = select.poll()
        waiting.register(leader, select.POLLIN)
        while time.monotonic() < deadline:
            if waiting.poll(200):
                try:
                    seen += os.read(leader, 65536)
                except OSError:  # Linux says so when the last writer is gone
                    break
            if b"?1049h" in seen:
                resize(60, 20)
        return child.wait(30), seen.decode("utf-8", errors="replace")
    finally:
        if child.poll() is None:
            child.kill()
        os.close(leader)


def test_the_last_state_stays_on_a_real_terminal(tmp_path: Path) -> None:
    """What T003 needs was cancelled: the crew starts, and at once needs a person."""
    root = new_project(tmp_path / "project", model="demo", data="demo")
    git(root, "commit", "-q", "--allow-empty", "-m", "more")
    assert type_in(root, "sprint", "new").code == 0
    for number in (1, 2):
        assert type_in(root, "cancel", f"T00{number}", "--why", "not needed here").code == 0
    code, text = on_a_terminal(root, "run")
    assert code == 5, text
    before, left, after = text.rpartition("\x1b[?1049l")
    assert left, text
    assert "\x1b[?1049h" in before
    assert "oodatcaa" in before
    assert "T003  needs human" in after
    assert "open first:" in after
    assert "[sprint.needs_human]" in after
    assert "\x1b[?25h" in text  # the cursor is back


def test_without_a_terminal_there_are_plain_lines(tmp_path: Path) -> None:
    root = new_project(tmp_path / "project")
    assert type_in(root, "sprint", "new").code == 0
    assert type_in(root, "cancel", "T001", "--why", "not needed here").code == 0
    assert type_in(root, "cancel", "T002", "--why", "not needed here").code == 0
    answer = type_in(root, "run", TERM="xterm-256color")
    assert answer.code == 5
    assert "\x1b" not in answer.text
    assert "T003" in answer.out
    assert "wall time" in answer.out
