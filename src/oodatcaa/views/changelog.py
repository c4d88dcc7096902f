"""CHANGELOG.md entries that leave what a person wrote exactly as it is."""

from __future__ import annotations

import re

from oodatcaa.domain.task import Integration, Story, StoryKind
from oodatcaa.views.markdown import code, prose

_HEAD = (
    "# Changelog\n\n"
    "All notable changes to this project are documented in this file. The format follows\n"
    "[Keep a Changelog](https://keepachangelog.com/en/1.1.0/).\n\n"
    "## [Unreleased]\n"
)
_UNRELEASED = re.compile(r"^##[ \t]+\[?unreleased\]?.*$", re.IGNORECASE | re.MULTILINE)
_RELEASE = re.compile(r"^##[ \t]+\S.*$", re.MULTILINE)
_GROUP = re.compile(r"^###[ \t]+(?P<name>\S.*?)[ \t]*$", re.MULTILINE)
_LINKS = re.compile(r"^\[[^\]\n]+\]:[ \t]+\S", re.MULTILINE)
_FENCED = re.compile(r"^(?P<mark>`{3,}|~{3,}).*?^(?P=mark)", re.MULTILINE | re.DOTALL)


def changelog_entry(story: Story, integration: Integration, summary: str = "") -> str:
    """One entry: a group heading (`### Added`) and a line about the story."""
    group = "Changed" if story.kind is StoryKind.CUSTOM else "Added"
    what = prose(summary) or prose(story.title)
    return f"### {group}\n\n- {story.id}: {what.rstrip('.')} ({code(integration.tag)})."


def insert_changelog(existing: str, entry: str) -> str:
    """`existing` with `entry` below `## [Unreleased]`, everything else untouched.

    An empty changelog gets the "Keep a Changelog" head; one without an Unreleased section gets
    that section above the newest release. Inserting the same entry twice changes nothing.
    """
    newline = "\r\n" if "\r\n" in existing else "\n"
    text = existing.replace("\r\n", "\n")
    if not text.strip():
        text = _HEAD
    group, line = _split(entry)
    if line in text.split("\n"):
        return existing
    if _search(_UNRELEASED, text) is None:
        text = _with_unreleased(text)
    return _insert(text, group, line).replace("\n", newline)


def _split(entry: str) -> tuple[str, str]:
    head, _, body = entry.strip().partition("\n")
    match = _GROUP.match(head)
    if match is None:
        raise ValueError("a changelog entry starts with a group, for example '### Added'")
    return match["name"], body.strip()


def _search(pattern: re.Pattern[str], text: str, start: int = 0) -> re.Match[str] | None:
    """The first match that is not inside a fenced block, where headings are examples."""
    fences = [(block.start(), block.end()) for block in _FENCED.finditer(text)]
    for found in pattern.finditer(text, start):
        if not any(begin <= found.start() < end for begin, end in fences):
            return found
    return None


def _with_unreleased(text: str) -> str:
    place = _search(_RELEASE, text) or _search(_LINKS, text)
    if place is None:
        return text.rstrip("\n") + "\n\n## [Unreleased]\n"
    return f"{text[: place.start()]}## [Unreleased]\n\n{text[place.start() :]}"


def _insert(text: str, group: str, line: str) -> str:
    head = _search(_UNRELEASED, text)
    if head is None:
        raise ValueError("the changelog has no Unreleased section")
    ends = [_search(pattern, text, head.end()) for pattern in (_RELEASE, _LINKS)]
    end = min([found.start() for found in ends if found], default=len(text))
    found = _search(_GROUP, text, head.end())
    while found is not None and found.start() < end and found["name"].lower() != group.lower():
        found = _search(_GROUP, text, found.end())
    if found is not None and found.start() < end:
        before, after = text[: found.end()], text[found.end() :].lstrip("\n")
        joint = "\n" if after.startswith(("-", "*")) else "\n\n"
        return f"{before}\n\n{line}{joint if after else ''}{after or chr(10)}"
    before, after = text[: head.end()], text[head.end() :].lstrip("\n")
    block = f"{before}\n\n### {group}\n\n{line}\n"
    return f"{block}\n{after}" if after else block
