"""A Markdown file as a flat list of blocks with their lines, read by a CommonMark parser.

What stands inside a code fence is code, whatever it looks like. Inline markup is left as it is
written: a plan's text is data, and nothing here renders it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from markdown_it import MarkdownIt


@dataclass(frozen=True, slots=True)
class Block:
    kind: str
    """heading, text, code or html"""
    text: str
    line: int
    level: int = 0
    """Of a heading: 1..6; of anything else: how deep it is nested."""
    info: str = ""
    item: bool = False
    """The first text of a list item."""


@lru_cache(maxsize=1)
def blocks(text: str) -> tuple[Block, ...]:
    """Never raises; the parser bounds its own nesting. Whoever looks what a file is and then reads
    it asks twice for the same text."""
    parser = MarkdownIt("commonmark", {"maxNesting": 30})
    parser.core.ruler.enableOnly(["normalize", "block"])
    return tuple(_flat(parser.parse(text)))


def _flat(tokens: list) -> Iterator[Block]:  # type: ignore[type-arg]
    heading = 0
    fresh = False
    for token in tokens:
        line = token.map[0] + 1 if token.map else 1
        if token.type == "heading_open":
            heading = int(token.tag[1]) if token.level == 0 else 7
        elif token.type == "heading_close":
            heading = 0
        elif token.type == "list_item_open":
            fresh = True
        elif token.type == "inline":
            if heading:
                kind, level = ("heading", heading) if heading < 7 else ("text", token.level)
                yield Block(kind, token.content.strip(), line, level)
            else:
                yield Block("text", token.content, line, token.level, item=fresh)
            fresh = False
        elif token.type in ("fence", "code_block"):
            yield Block("code", token.content, line, token.level, info=token.info.strip())
            fresh = False
        elif token.type == "html_block":
            yield Block("html", token.content, line, token.level)
