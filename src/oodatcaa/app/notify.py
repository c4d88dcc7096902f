"""Tells people about needs_human, a finished sprint and the memory gate, through apprise."""

from __future__ import annotations

import os
import queue
import threading
from typing import Any

from oodatcaa.app.project import Project
from oodatcaa.domain.notices import Notice, notices
from oodatcaa.errors import OodatcaaError

PATIENCE_SECONDS = 20.0
"""How long the end of a crew waits for messages that are still on their way."""


class Notifier:
    """Sends in a thread of its own: a slow service must not hold up the crew.

    Raises OodatcaaError when [notify] names services and apprise can not be used for them: better
    now than a night without a word.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._settings = project.config.notify
        self._queue: queue.Queue[Notice | None] = queue.Queue()
        self._seen = 0
        self._revision = -1
        self.problems: list[str] = []
        self._thread: threading.Thread | None = None
        if self._settings.urls:
            self._service = _service(self._settings.urls)
            self._seen = max((item.seq for item in project.store.history()), default=0)
            self._thread = threading.Thread(target=self._send_all, name="notify", daemon=True)
            self._thread.start()

    def look(self) -> None:
        """Queue what the history has that was not told yet."""
        if self._thread is None:
            return
        revision = self._project.store.read().revision
        if revision == self._revision:
            return
        self._revision = revision
        fresh = [item for item in self._project.store.history() if item.seq > self._seen]
        self._seen = max((item.seq for item in fresh), default=self._seen)
        for notice in notices(item.event for item in fresh):
            self.tell(notice)

    def tell(self, notice: Notice) -> None:
        if self._thread is not None and notice.kind in self._settings.events:
            self._queue.put(notice)

    def close(self) -> None:
        """Wait a while for what is on its way."""
        if self._thread is None:
            return
        self._queue.put(None)
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self.problems.append("not every notification could be sent in time")

    def _send_all(self) -> None:
        while (notice := self._queue.get()) is not None:
            if not self._service.notify(title=notice.title, body=notice.text):
                self.problems.append(f"a notification was not taken: {notice.title}")


def _service(urls: tuple[str, ...]) -> Any:
    try:
        import apprise
    except ImportError as error:
        raise OodatcaaError(
            "notify.not_installed",
            "config.toml names services to notify, but apprise is not installed",
            hint="pip install 'oodatcaa[notify]', or empty notify.urls",
        ) from error
    service = apprise.Apprise()
    wrong = [url for url in urls if not service.add(os.path.expandvars(url))]
    if wrong:
        raise OodatcaaError(
            "notify.bad_url",
            f"{len(wrong)} of {len(urls)} notify.urls can not be used",
            hint="check them with: apprise -b test URL",
            details=[url.split("://", 1)[0] + "://…" for url in wrong],
        )
    return service
