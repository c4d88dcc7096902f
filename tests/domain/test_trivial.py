"""Checks that can not fail are told from those that can."""

from __future__ import annotations

import pytest

from oodatcaa.domain.trivial import ends_badly_anyway, ends_well_anyway


@pytest.mark.parametrize(
    "command",
    [
        "",
        "  ",
        "true",
        "/bin/true",
        ":",
        "exit 0",
        "exit",
        "echo all tests pass",
        "# pytest",
        "pytest || true",
        "pytest || :",
        "pytest; true",
        "pytest\nexit 0",
        "pytest &",
        "pytest | tail -5",
        "pytest 2>&1 | tee log.txt",
        "true && true",
        "FOO=1 true",
        "sh -c true",
        "bash -c 'pytest || true'",
        "{python} -c pass",
        "{python} -c ''",
        "[ 1 = 1 ]",
        "test 1",
        "! false",
        "true;",
    ],
)
def test_what_ends_well_anyway(command: str) -> None:
    assert ends_well_anyway(command)


@pytest.mark.parametrize(
    "command",
    [
        "pytest",
        "{python} -m pytest -q && echo fine",
        "true && pytest",
        "echo start; pytest",
        "pytest || exit 1",
        "test -f README.md",
        "grep -q wings notes/shoes.txt",
        '[ "$(wc -l < a.txt)" -eq 3 ]',
        "{python} -c \"import greeter; assert greeter.greet('Ada')\"",
        "cat a.txt | grep -q x",
        "pytest 'unclosed",
        "! grep -rn TODO src",
        "sh check.sh",
        "diff <(a) <(b)",
    ],
)
def test_what_can_fail(command: str) -> None:
    assert not ends_well_anyway(command)


def test_what_has_to_fail_and_always_does() -> None:
    assert ends_badly_anyway("false")
    assert ends_badly_anyway("exit 1")
    assert not ends_badly_anyway("pytest tests/test_new.py")
    assert not ends_badly_anyway("false || pytest")
