"""A page as a Markdown reader sees it: headings, tables, links, fences and list items."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from markdown_it import MarkdownIt
from markdown_it.token import Token


@dataclass
class Page:
    headings: list[tuple[int, str]] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    fences: list[tuple[str, str]] = field(default_factory=list)
    items: list[str] = field(default_factory=list)

    def titles(self, level: int = 2) -> list[str]:
        return [text for depth, text in self.headings if depth == level]


def tokens_of(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def plain(token: Token) -> str:
    """What a reader sees of an inline token."""
    parts = [
        " " if child.type == "softbreak" else child.content
        for child in token.children or ()
        if child.type in ("text", "code_inline", "softbreak", "text_special")
    ]
    return "".join(parts)


def parse(text: str) -> Page:
    """Without the front matter, which is YAML and not Markdown."""
    found = Page()
    tokens = tokens_of(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL))
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            found.headings.append((int(token.tag[1]), plain(tokens[place + 1])))
        elif token.type == "table_open":
            found.tables.append([])
        elif token.type == "tr_open":
            found.tables[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found.tables[-1][-1].append(plain(tokens[place + 1]))
        elif token.type == "list_item_open" and tokens[place + 2].type == "inline":
            found.items.append(plain(tokens[place + 2]))
        elif token.type == "fence":
            found.fences.append((token.info, token.content))
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                found.links.append(str(target))
    return found
