"""Whatever a record holds, a table stays a table, a fence a fence and a sentence a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oodatcaa.views.markdown import (
    bullets,
    code,
    display_width,
    facts,
    fence,
    link,
    one_line,
    page,
    prose,
    prose_bullets,
    section,
    stack,
    stop,
    table,
)
from views.parsed import parse, plain, tokens_of

NASTY = st.text(
    alphabet=st.one_of(
        st.sampled_from(list("|`\\*_#<>[]()!~&;:=+-.1 \n\r\t")),
        st.characters(codec="utf-8"),
    ),
    max_size=40,
)


@given(st.lists(st.tuples(NASTY, NASTY), min_size=1, max_size=4))
def test_any_text_keeps_the_table_whole(rows: list[tuple[str, str]]) -> None:
    text = table(("One", "Two"), [(prose(a), code(b)) for a, b in rows], "lr")
    found = parse(text).tables
    assert len(found) == 1
    assert [len(row) for row in found[0]] == [2] * (len(rows) + 1)
    assert len({display_width(line) for line in text.split("\n")}) == 1


@given(NASTY.filter(lambda text: "`" not in text and "](" not in text))
def test_prose_shows_exactly_the_text_on_one_line(text: str) -> None:
    tokens = tokens_of(prose(text))
    if not one_line(text):
        assert tokens == []
        return
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert plain(tokens[1]) == one_line(text)
    assert {child.type for child in tokens[1].children or ()} <= {"text", "text_special"}


@pytest.mark.parametrize("text", ["<b>x</b>", "a <!-- b", "&amp; &copy; &#65;", "C #", "# ##", "#"])
def test_markup_that_nobody_meant_is_shown_as_text(text: str) -> None:
    assert plain(tokens_of(prose(text))[1]) == text
    assert "html_inline" not in {child.type for child in tokens_of(prose(text))[1].children or ()}
    assert parse(section(text, "body")).headings == [(2, text)]


@given(NASTY)
def test_prose_stays_one_paragraph_in_a_list_item(text: str) -> None:
    kinds = [token.type for token in tokens_of(bullets([prose(text)]))]
    if one_line(text):
        assert kinds[:3] == ["bullet_list_open", "list_item_open", "paragraph_open"]
        assert kinds.count("inline") == 1


@given(NASTY)
def test_a_heading_is_one_heading(text: str) -> None:
    found = parse(section(text, "body")).headings
    assert len(found) == 1
    if not set(text) & set("`[]"):
        assert found[0] == (2, one_line(text))


@given(NASTY)
def test_a_code_span_holds_its_text(text: str) -> None:
    line = one_line(text)
    if line:
        (inline,) = [token for token in tokens_of(f"x {code(text)} y") if token.type == "inline"]
        assert plain(inline) == f"x {line} y"


@given(NASTY)
def test_a_fence_holds_any_generated_code(text: str) -> None:
    body = f"before\n{text}\n```python\n~~~\nafter"
    found = parse(fence(body, "python") + "\n\n# After")
    assert len(found.fences) == 1
    assert found.fences[0][0] == "python"
    assert found.headings == [(1, "After")]


def test_pipes_in_code_are_shown_as_they_are() -> None:
    row = (code("a | b"), code(r"grep 'a\|b'"), prose(r"a\|b | c"))
    assert r"\|" in table(("A", "B", "C"), [row])
    cells = parse(table(("A", "B", "C"), [row])).tables[0][1]
    assert cells[0] == "a | b"
    assert cells[1] == r"grep 'a\|b'"  # as HTML: a code span could not keep both characters
    assert cells[2] == r"a\|b | c"


def test_names_with_underscores_and_numbers_stay_readable_in_the_source() -> None:
    assert prose("test_loss_drop is 2.41 GB, -5 % of 10") == "test_loss_drop is 2.41 GB, -5 % of 10"
    assert prose("src/__init__.py") == r"src/\_\_init\_\_.py"
    assert prose("1. first") == r"1\. first"
    assert prose("`__init__.py` holds *it*") == r"`__init__.py` holds \*it\*"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells, the head has 2"):
        table(("A", "B"), [("only",)])


def test_wide_characters_still_line_up() -> None:
    lines = table(("Name", "Value"), [("日本", "1"), ("é", "22")], "lr").split("\n")
    assert {display_width(line) for line in lines} == {display_width(lines[0])}


def test_empty_parts_leave_nothing_behind() -> None:
    assert table(("A",), []) == ""
    assert fence(" \n") == ""
    assert section("Nothing", "", bullets([]), prose_bullets([])) == ""
    assert page("Title", "", section("Gone", "")) == "# Title\n"
    assert facts([("Label", None), ("Other", "")]) == ""
    assert stop("") == ""


def test_lists_that_meet_become_one_tight_list() -> None:
    text = stack(facts([("A", "1")]), prose_bullets(["b"]), "Then.", prose_bullets(["c"]))
    assert text == "- **A:** 1\n- b\n\nThen.\n\n- c"


def test_a_link_survives_spaces_and_brackets() -> None:
    found = parse(link("a [b] | c", "some folder/x (1).md"))
    assert found.links == ["some%20folder/x%20%281%29.md"]
