"""A changelog that a person wrote keeps every line; the entry lands below Unreleased."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oodatcaa.views.changelog import changelog_entry, insert_changelog
from views import samples

ENTRY = "### Added\n\n- T001: Choose the framework (`T001-complete`)."
LINE = "- T001: Choose the framework (`T001-complete`)."
HAND = """# Changelog

Words of a person.

## [Unreleased]

### Fixed

- A bug.

### Added

- Something.

## [1.0.0] - 2025-01-01

### Added

- All of it.

[Unreleased]: https://example.org/compare/v1...HEAD
"""


def test_an_empty_changelog_gets_the_usual_head() -> None:
    text = insert_changelog("", ENTRY)
    assert text.startswith("# Changelog\n\nAll notable changes")
    assert text.endswith(f"## [Unreleased]\n\n### Added\n\n{LINE}\n")


def test_an_entry_joins_the_group_that_is_there() -> None:
    text = insert_changelog(HAND, ENTRY)
    assert text == HAND.replace("- Something.", f"{LINE}\n- Something.")


def test_a_missing_group_is_made_at_the_top_of_unreleased() -> None:
    text = insert_changelog(HAND, ENTRY.replace("Added", "Changed"))
    new = f"## [Unreleased]\n\n### Changed\n\n{LINE}\n"
    assert text == HAND.replace("## [Unreleased]\n", new, 1)


def test_a_changelog_without_unreleased_gets_it_above_the_newest_release() -> None:
    start, end = HAND.index("## [Unreleased]"), HAND.index("## [1.0.0]")
    hand = HAND[:start] + HAND[end:]
    text = insert_changelog(hand, ENTRY)
    assert text.index("## [Unreleased]") < text.index(LINE) < text.index("## [1.0.0]")
    assert text.count("- All of it.") == 1


def test_headings_inside_a_fenced_example_are_not_taken_for_real_ones() -> None:
    hand = "# Changelog\n\n```\n## [Unreleased]\n```\n\n## [Unreleased]\n"
    text = insert_changelog(hand, ENTRY)
    assert text.startswith(hand + "\n### Added")


def test_an_entry_without_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match="starts with a group"):
        insert_changelog("", "- only a line")


@given(st.lists(st.sampled_from(HAND.split("\n")), max_size=20), st.booleans())
def test_nothing_that_was_there_is_lost_or_reordered(lines: list[str], crlf: bool) -> None:
    newline = "\r\n" if crlf else "\n"
    existing = newline.join(lines)
    text = insert_changelog(existing, ENTRY)
    left = iter([line for line in text.splitlines() if line.strip()])
    for line in filter(str.strip, lines):
        assert line in left, f"{line!r} is lost or moved"
    assert text.splitlines().count(LINE) == 1
    assert insert_changelog(text, ENTRY) == text
    if newline in existing:
        assert text.count("\n") == text.count(newline)


def test_an_entry_names_story_and_tag_once() -> None:
    story = samples.make_board().stories[0]
    assert story.integration is not None
    entry = changelog_entry(story, story.integration)
    assert entry == (
        "### Added\n\n- T001: Choose the framework and profile memory (`T001-complete`)."
    )
    assert "Better words (" in changelog_entry(story, story.integration, "Better words.")
