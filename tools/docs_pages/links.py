"""Whether the links of a page lead somewhere: files, folders, and headings by GitHub's anchors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

_FENCED = re.compile(r"^( *)(```+|~~~+).*?^\1\2[`~]*\s*$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*\s*$", re.MULTILINE)
_POINTER = re.compile(r"\bdocs/(?!training)[\w./-]+\.md\b")


def links(text: str) -> tuple[str, ...]:
    """Targets of every inline link and image outside of code."""
    prose = _SPAN.sub("", _FENCED.sub("", text))
    return tuple(match[1] for match in _LINK.finditer(prose))


def anchors(text: str) -> frozenset[str]:
    """The anchors that GitHub gives to the headings of a page."""
    seen: dict[str, int] = {}
    found = set()
    for match in _HEADING.finditer(_FENCED.sub("", text)):
        label = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[2])
        kept = re.sub(r"[^\w\- ]", "", label.lower()).replace(" ", "-")
        count = seen.get(kept, 0)
        seen[kept] = count + 1
        found.add(f"{kept}-{count}" if count else kept)
    return frozenset(found)


def broken(page: Path, root: Path) -> tuple[str, ...]:
    """Every relative link of `page` that leads nowhere or out of `root`, with the reason."""
    text = page.read_text(encoding="utf-8")
    problems = []
    for target in links(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_relative_to(root):
            problems.append(f"{target}: leaves the repository")
        elif not file.exists():
            problems.append(f"{target}: there is no such file")
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text("utf-8"))):
            problems.append(f"{target}: there is no such heading")
    return tuple(problems)


def pointers(folders: Iterator[Path] | tuple[Path, ...]) -> dict[str, str]:
    """`docs/….md` as named in sources, templates and settings -> one file that names it."""
    found: dict[str, str] = {}
    for path in folders:
        for name in _POINTER.findall(path.read_text(encoding="utf-8")):
            found.setdefault(name, str(path))
    return found
