"""Notifications through the real apprise to a real local server."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from crew_projects import crew
from oodatcaa.app.crew import Crew
from oodatcaa.app.notify import Notifier
from oodatcaa.app.people import approve_story, cancel_task
from oodatcaa.app.project import Project
from oodatcaa.domain.notices import sprint_done
from oodatcaa.errors import OodatcaaError


def test_people_are_told_once_and_only_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MY_PORT", str(server.server_port))
    urls = ["json://127.0.0.1:$MY_PORT/"]
    root = crew(tmp_path, [], config={"notify": {"urls": urls}}, objective=TWO)
    project = Project(root)
    cancel_task(project, "T002", "ada", "not now")
    notifier = Notifier(project)
    notifier.look()
    cancel_task(project, "T003", "ada", "nor this")
    notifier.look()
    notifier.look()
    notifier.tell(sprint_done(1, "Greet", 60))
    notifier.close()
    server.shutdown()
    server.server_close()
    assert [item["title"] for item in got] == ["T004 needs a person", "Sprint 1 is done"]
    assert "T003, which was cancelled: nor this" in got[0]["message"]
    assert notifier.problems == []
    assert approve_story(project, "T004", "ada", "alone").status.value == "needs_plan"


TWO = """\
---
id: O-F1
title: Stories that wait for each other
stories:
  - {title: One, goal: one}
  - {title: Two, goal: two}
  - {title: Three, goal: three}
  - {title: Four, goal: four, depends_on: [T003]}
---
"""


def test_a_crew_that_could_not_call_for_help_does_not_start(tmp_path: Path) -> None:
    root = crew(tmp_path, [], config={"notify": {"urls": ["nonsense://x"]}})
    for _ in range(2):  # the crew's lock is free again
        with pytest.raises(OodatcaaError) as caught:
            Crew(Project(root)).run()
        assert caught.value.code == "notify.bad_url"
