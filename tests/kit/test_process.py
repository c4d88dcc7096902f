"""Bounded commands and children that never outlive whoever started them."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.process import Child, is_alive, process_identity, run_command


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def identity_from(path: Path) -> tuple[int, float]:
    wait_until(lambda: path.exists() and path.read_text().strip())
    return process_identity(int(path.read_text()))


def test_a_command_reports_its_code_and_both_streams_in_order(tmp_path: Path) -> None:
    log = tmp_path / "out.txt"
    result = run_command("echo one; echo two >&2; echo three; exit 3", output_path=log)
    assert result.exit_code == 3
    assert not result.ok
    assert result.tail == "one\ntwo\nthree\n" == log.read_text()
    assert result.output_sha256 == hashlib.sha256(log.read_bytes()).hexdigest()


def test_cwd_env_and_argv_arrive(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ['WORD'], sys.argv[1])"
    result = run_command(
        [sys.executable, "-c", code, "a b"], cwd=tmp_path, env={**os.environ, "WORD": "x"}
    )
    assert result.tail == f"{tmp_path} x a b\n"


def test_an_unknown_program_is_127_and_a_signal_is_negative() -> None:
    assert run_command(["no-such-program-anywhere"]).exit_code == 127
    assert run_command("kill -KILL $$").exit_code == -signal.SIGKILL


def test_an_unknown_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OodatcaaError, match="no such folder"):
        run_command("true", cwd=tmp_path / "absent")


def test_a_timeout_ends_the_whole_tree_even_one_that_ignores_sigterm(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = f"trap '' TERM; (trap '' TERM; sh -c 'echo $$ > {file}; exec sleep 100') & wait"
    found: list[tuple[int, float]] = []
    looker = threading.Thread(target=lambda: found.append(identity_from(file)))
    looker.start()
    result = run_command(script, timeout=1.5, grace=0.2)
    looker.join()
    assert result.timed_out
    assert result.exit_code is None
    wait_until(lambda: not is_alive(*found[0]))


def test_a_command_that_closes_its_output_is_still_bounded() -> None:
    assert run_command("exec >&- 2>&-; sleep 100", timeout=0.5, grace=0.2).timed_out


def test_a_command_can_be_stopped_from_outside() -> None:
    result = run_command("sleep 100", should_stop=lambda: True, grace=1)
    assert result.stopped
    assert result.exit_code is None
    assert not result.timed_out


def test_what_a_command_leaves_behind_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    result = run_command(
        f"(setsid sh -c 'echo $$ > {file}; exec sleep 100' >/dev/null 2>&1 &); "
        f"while ! test -s {file}; do sleep 0.05; done"
    )
    assert result.ok
    with pytest.raises(OodatcaaError):
        process_identity(int(file.read_text()))


def test_a_long_output_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    log = tmp_path / "out.txt"
    result = run_command(
        "echo first; yes middle | head -c 3000000; echo last", output_path=log, max_output=100_000
    )
    text = log.read_text()
    assert result.truncated
    assert result.output_bytes == 3_000_011
    assert text.startswith("first\n")
    assert text.endswith("last\n")
    assert "bytes left out" in text
    assert len(text) < 110_000
    assert result.output_sha256 == hashlib.sha256(log.read_bytes()).hexdigest()


def test_an_output_just_under_the_bound_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "out.txt"
    result = run_command("head -c 99999 /dev/zero", output_path=log, max_output=100_000)
    assert not result.truncated
    assert log.stat().st_size == 99_999


def test_identity_survives_comparison_and_refuses_another_start() -> None:
    pid, start = process_identity()
    assert is_alive(pid, start)
    assert not is_alive(pid, start + 1)
    assert not is_alive(pid, start - 1)


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen(["sleep", "100"])
    pid, start = process_identity(process.pid)
    process.kill()
    wait_until(lambda: not is_alive(pid, start))  # not waited for yet: a zombie
    process.wait()


def test_terminate_lets_a_child_say_goodbye(tmp_path: Path) -> None:
    ready, done = tmp_path / "ready", tmp_path / "done"
    code = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(done)!r}).touch(), "
        "sys.exit(7)))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(100)\n"
    )
    with Child.start([sys.executable, "-c", code]) as child:
        wait_until(ready.exists)
        assert child.poll() is None
        assert child.terminate(grace=20) == 7
    assert done.exists()


def test_kill_takes_grandchildren_too(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with Child.start(["sh", "-c", f"sh -c 'echo $$ > {file}; exec sleep 100' & wait"]) as child:
        grandchild = identity_from(file)
        child.kill()
        assert child.poll() is not None
    wait_until(lambda: not is_alive(*grandchild))


def test_a_child_outlives_the_thread_that_started_it() -> None:
    started: list[Child] = []
    thread = threading.Thread(target=lambda: started.append(Child.start(["sleep", "100"])))
    thread.start()
    thread.join()
    time.sleep(0.3)
    with started[0] as child:
        assert child.poll() is None


def test_the_log_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    with Child.start(["sh", "-c", "echo after; echo err >&2"], log_path=log) as child:
        assert child.wait(20) == 0
    assert log.read_text() == "before\nafter\nerr\n"


PARENT = """
import sys, time
from oodatcaa.kit.process import Child
child = Child.start(["sh", "-c", "trap '' TERM; echo $$ > %(file)s; sleep 100 & wait; sleep 100"])
time.sleep(100)
"""


def test_kill_9_of_the_starter_ends_the_whole_tree(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT % {"file": file}])
    try:
        child = identity_from(file)
        assert is_alive(*child)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not is_alive(*child))


def test_a_starter_that_holds_many_files_can_start_children(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        argv = [sys.executable, "-c", "print('here')"]
        log = tmp_path / "log"
        with Child.start(argv, cwd=tmp_path, env=dict(os.environ), log_path=log) as child:
            assert child.wait(60) == 0
        assert log.read_text() == "here\n"
    finally:
        for one in held:
            os.close(one)
