"""A pytest plugin of the framework's own that watches a test run and says how it ended.

Run inside of the checked project's pytest (see `pytest_runs`), never imported: any Python and
pytest that the project uses, standard library only. It reads a secret from a file, empties it, and
leaves one JSON line there when the session really is over. Code of the commit runs in the same
process: this makes a forged result a work of reverse engineering, not impossible.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from typing import Any

import pytest

VARIABLE = "OODATCAA_WITNESS"
SHOWN = 20


class Witness:
    def __init__(self, place: str) -> None:
        file = open(place, "r+", encoding="ascii")  # noqa: PTH123, SIM115 - kept open on purpose
        nonce = file.read()
        file.truncate(0)

        def tell(said: dict[str, Any]) -> None:
            file.seek(0)
            json.dump({"nonce": nonce, **said}, file)
            file.flush()

        self._tell = tell
        self._raised: dict[str, str] = {}
        self._begun: set[str] = set()
        self._ran = 0
        self._failed = 0
        self._deselected = 0
        self._denied: list[str] = []

    @pytest.hookimpl(hookwrapper=True, trylast=True)
    def pytest_runtest_call(self, item: Any) -> Generator[None, Any, None]:
        outcome = yield
        error = outcome.excinfo
        # Skips and expected failures are exceptions too; their reports are not "passed".
        self._raised[item.nodeid] = error[0].__name__ if error else ""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        self._begun.add(report.nodeid)
        if report.failed:
            self._failed += 1
        if report.when == "call" and report.outcome in ("passed", "failed"):
            self._ran += 1
            if report.passed and self._raised.get(report.nodeid):
                self._denied.append(report.nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_collectreport(self, report: Any) -> None:
        self._failed += bool(report.failed)

    def pytest_deselected(self, items: Any) -> None:
        self._deselected += len(items)

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: Any) -> Generator[None, Any, None]:
        yield
        collected = {item.nodeid for item in getattr(session, "items", ())}
        broke_off = bool(session.shouldstop or session.shouldfail)
        self._tell(
            {
                "ran": self._ran,
                "failed": self._failed,
                "deselected": self._deselected,
                "denied": self._denied[:SHOWN],
                "left": 0 if broke_off else len(collected - self._begun),
            }
        )


# At once, for a conftest.py is loaded before pytest_configure; and nothing of it reaches what the
# tests start themselves.
_place = os.environ.pop(VARIABLE, "")
os.environ.pop("PYTEST_ADDOPTS", None)
_witness = Witness(_place) if _place else None


def pytest_configure(config: Any) -> None:
    if _witness is not None:
        config.pluginmanager.register(_witness, "oodatcaa-witness-of-the-run")
