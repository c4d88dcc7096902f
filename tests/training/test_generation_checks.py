"""Code that a model wrote is run, bounded, and only passes when its test ran to the end."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from oodatcaa.training import generation_checks
from oodatcaa.training.generation_checks import (
    CodeLimits,
    Outcome,
    code_of,
    exact_match,
    pass_at_1,
    run_code,
)

TEST = "assert clamp(5, 0, 3) == 3"
GOOD = "Here it is:\n```python\ndef clamp(v, low, high):\n    return max(low, min(v, high))\n```\n"
FAST = CodeLimits(seconds=20, memory_bytes=300_000_000, file_bytes=100_000)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (GOOD, Outcome.PASSED),
        ("def clamp(v, low, high):\n    return low", Outcome.WRONG),
        ("def clamp(v, low, high)\n    return", Outcome.CRASHED),
        ("import sys\nsys.exit(0)", Outcome.CRASHED),
        ("import os\nos._exit(0)", Outcome.CRASHED),
        ("x = bytearray(10 ** 10)", Outcome.LIMIT),
        ("open('big', 'wb').write(b'x' * 10 ** 6)", Outcome.LIMIT),
    ],
    ids=["good", "wrong", "syntax", "leaves", "hard-exit", "memory", "file"],
)
def test_what_becomes_of_an_answer(answer: str, outcome: Outcome) -> None:
    found = run_code(answer, TEST, FAST)
    assert found.outcome is outcome, found.tail


def test_an_endless_loop_ends() -> None:
    assert run_code("while True: pass", TEST, CodeLimits(seconds=1.5)).outcome is Outcome.TIMEOUT


@pytest.mark.parametrize("isolated", [True, False], ids=["as-it-is", "without-a-namespace"])
def test_there_is_no_network(isolated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not isolated:
        monkeypatch.setattr(generation_checks, "_namespace", tuple)
    with socket.create_server(("127.0.0.1", 0)) as server:
        came: list[object] = []
        server.settimeout(30)

        def wait() -> None:
            try:
                came.append(server.accept())
            except OSError:
                return

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)"
        found = run_code(code, "assert True", FAST)
        assert found.outcome is Outcome.CRASHED
        assert not came


def test_an_answer_sees_nothing_of_this_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    answer = "import os\nfound = dict(os.environ)\nopen('left', 'w').write('x')"
    assert run_code(answer, "assert 'TOKEN' not in found", FAST).outcome is Outcome.PASSED
    assert not list(tmp_path.iterdir())


def test_pass_at_1_counts_tasks() -> None:
    score = pass_at_1([(GOOD, TEST), ("def clamp(*a): return 0", TEST)], FAST)
    assert (score.passed, score.total, score.share) == (1, 2, 0.5)
    assert pass_at_1([]).share is None


def test_a_match_is_exact_but_for_white_space_around() -> None:
    assert exact_match("a  \nb\n", "\na\nb")
    assert not exact_match("a\n b", "a\nb")
    assert code_of("no fence") == "no fence"
    assert code_of("x\n```\na = 1\n```\n```\nb\n```") == "a = 1\n"
