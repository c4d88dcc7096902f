"""Small pieces of Markdown that fit together, and nothing that can break a page.

Two kinds of text: *raw* text (whatever a record holds) goes through `prose` or `code` and comes
out as *inline Markdown*; the block functions take inline Markdown. An empty block is "", and
`section` and `page` leave it out together with its heading.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from urllib.parse import quote

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
_BLOCK_START = re.compile(
    r"^(?:#(?=#{0,5}(?:\s|$))|>|[+-](?=\s|$)|[-=](?=[-= ]*$)"
    r"|\d{1,9}(?=[.)](?:\s|$))|\[(?=[^\]]*\]:))"
)
_ENTITY = re.compile(r"&(?=#?\w+;)")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ESCAPABLE = re.compile(r"\\(?=[!-/:-@\[-`{-~]|$)")


def one_line(text: str) -> str:
    """`text` on one line: control characters dropped, all white space collapsed."""
    return " ".join(_CONTROL.sub(" ", text).split())


def prose(text: str) -> str:
    """Raw text as inline Markdown on one line.

    Balanced `code spans` and [links](x) are kept, because people write them into plans; what
    would start a block, an HTML tag or an emphasis nobody meant (`__init__.py`) is escaped.
    """
    line = one_line(text)
    parts: list[str] = []
    end = 0
    for span in _SPAN.finditer(line):
        parts += [_escape(line[end : span.start()], at_start=end == 0), span[0]]
        end = span.end()
    parts.append(_escape(line[end:], at_start=end == 0))
    return "".join(parts)


def _escape(text: str, *, at_start: bool) -> str:
    text = _ESCAPABLE.sub(r"\\\\", text)
    text = _ENTITY.sub("&amp;", text)
    text = _TAG.sub("&lt;", text)
    text = text.replace("`", "\\`").replace("~~", "\\~\\~").replace("*", "\\*")
    # An underscore inside a word is never an emphasis, and snake_case stays readable.
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    if at_start and (start := _BLOCK_START.match(text)):
        mark = start[0]
        text = (mark if mark.isdigit() else "") + "\\" + text[len(mark) if mark.isdigit() else 0 :]
    return text


def code(text: str, limit: int | None = None) -> str:
    """Raw text as a code span on one line, cut to `limit` characters; "" stays ""."""
    line = one_line(text)
    if limit is not None and len(line) > limit:
        line = line[: limit - 1].rstrip() + "…"
    if not line:
        return ""
    ticks = "`" * (_longest_run(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)


def bold(text: str) -> str:
    """Raw text in bold."""
    escaped = prose(text)
    return f"**{escaped}**" if escaped else ""


def link(text: str, target: str) -> str:
    """A link; `target` is a path or address as it is, and is quoted where it must be."""
    label = prose(text).replace("[", "\\[").replace("]", "\\]")
    return f"[{label}]({quote(target, safe='/:#?&=.,+@~%-_')})"


def image(alt: str, target: str) -> str:
    return "!" + link(alt, target)


def fence(text: str, language: str = "") -> str:
    """A fenced block that holds `text` whatever fences are in it; "" for empty text."""
    body = _CONTROL.sub("\ufffd", text.replace("\r\n", "\n")).strip("\n")
    if not body.strip():
        return ""
    ticks = "`" * max(3, _longest_run(body) + 1)
    return f"{ticks}{language}\n{body}\n{ticks}"


def bullets(items: Iterable[str], mark: str = "-") -> str:
    """A list of inline Markdown; "" when there is nothing to list."""
    return "\n".join(f"{mark} {item}" for item in items if item)


def prose_bullets(items: Iterable[str]) -> str:
    """A list of raw texts."""
    return bullets(prose(item) for item in items)


def numbered(items: Iterable[str]) -> str:
    return "\n".join(f"{place}. {item}" for place, item in enumerate(filter(None, items), 1))


def checklist(items: Iterable[str], *, done: bool = False) -> str:
    return bullets(items, "- [x]" if done else "- [ ]")


def facts(pairs: Iterable[tuple[str, str | None]]) -> str:
    """`- **Label:** value`, leaving out what has no value. Values are inline Markdown."""
    return "\n".join(f"- **{name}:** {value}" for name, value in pairs if value)


def quoted(text: str) -> str:
    """Raw text as a block quote; used for the line under a title."""
    line = prose(text)
    return f"> {line}" if line else ""


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A table whose columns line up in the source; "" when there are no rows.

    Cells are inline Markdown on one line; pipes are escaped here. `align` is one letter a
    column: l, r or c. Raises ValueError when a row has another number of cells than the head.
    """
    body = [[_cell(cell) for cell in row] for row in rows]
    if not body:
        return ""
    head = [_cell(cell) for cell in headers]
    for row in body:
        if len(row) != len(head):
            raise ValueError(f"a row has {len(row)} cells, the head has {len(head)}: {row}")
    marks = align.ljust(len(head), "l")[: len(head)]
    widths = [
        max(3, *(display_width(row[column]) for row in [head, *body]))
        for column in range(len(head))
    ]
    rule = [_rule(mark, width) for mark, width in zip(marks, widths, strict=True)]
    return "\n".join(
        "| " + " | ".join(_pad(*part) for part in zip(row, widths, marks, strict=True)) + " |"
        for row in [head, rule, *body]
    )


def _cell(text: str) -> str:
    line = one_line(text)
    # `\|` inside a code span loses its backslash in every dialect; HTML keeps both characters.
    line = _SPAN.sub(
        lambda span: f"<code>{_entities(span[2])}</code>" if "\\|" in span[2] else span[0], line
    )
    return re.sub(r"(\\?)\|", lambda hit: "\\&#124;" if hit[1] else "\\|", line)


def _entities(text: str) -> str:
    escaped = html.escape(text.strip(), quote=False)
    return re.sub(r"[|`*_\\\[\]~]", lambda hit: f"&#{ord(hit[0])};", escaped)


def _rule(mark: str, width: int) -> str:
    left = ":" if mark == "c" else "-"
    right = ":" if mark in "cr" else "-"
    return left + "-" * (width - 2) + right


def _pad(text: str, width: int, mark: str) -> str:
    space = " " * (width - display_width(text))
    return space + text if mark == "r" else text + space


def display_width(text: str) -> int:
    """Columns that `text` takes in a terminal: wide characters two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def section(title: str, *blocks: str, level: int = 2) -> str:
    """A heading (raw text) with its blocks, or "" when all of them are empty."""
    body = [block for block in blocks if block]
    if not body:
        return ""
    return f"{'#' * level} {_heading(title)}\n\n{stack(*body)}"


def page(title: str, *blocks: str) -> str:
    """A whole document; `title` is raw text. Ends with one newline."""
    return stack(f"# {_heading(title)}", *blocks) + "\n"


def stack(*blocks: str) -> str:
    """Blocks below each other, empty ones left out.

    Two lists that meet become one without a gap: to Markdown they are one list anyway, and a
    blank line inside it would make every item a paragraph.
    """
    text = ""
    for block in filter(None, blocks):
        meets = block.startswith("- ") and text.rpartition("\n")[2].startswith("- ")
        text += ("\n" if meets else "\n\n") + block if text else block
    return text


def _heading(title: str) -> str:
    """A heading's own `#` mark comes first, so nothing in it can start a block; a trailing run
    of `#` would be taken for its end."""
    line = one_line(title)
    text = prose(f"x {line}")[2:]
    return text[:-1] + "\\#" if text.endswith("#") else text


def stop(text: str) -> str:
    """Raw text as inline Markdown that ends like a sentence; "" stays ""."""
    line = prose(text)
    return line if not line or line.endswith((".", "!", "?", "…", ":", "`")) else line + "."
