"""Find the pages, splice the generated blocks into them, and say which page is stale."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from docs_pages import commands, errors, records, rooms, states

ROOT = Path(__file__).parents[2]
BLOCKS: Mapping[str, Callable[[], str]] = {
    "commands": commands.reference,
    "configuration": records.configuration,
    "objective keys": records.objective_keys,
    "metrics": records.metrics,
    "bounds": records.bounds,
    "units": records.units,
    "plan record": records.plan_record,
    "run record": records.run_record,
    "gate variables": records.gate_variables,
    "gate presets": records.gate_presets,
    "exit codes": errors.exit_codes,
    "error codes": errors.error_codes,
    "findings": errors.findings,
    "runner kinds": records.runner_kinds,
    "agent definition": records.agent_definition,
    "story states": states.story_diagram,
    "story transitions": states.story_transitions,
    "subtask states": states.subtask_diagram,
    "subtask transitions": states.subtask_transitions,
    "rooms": rooms.table_of_rooms,
    "import graph": rooms.graph,
}
"""Every block by the name that pages use."""
_BLOCK = re.compile(
    r"<!-- generated: (?P<name>[^>]+?) -->\n(?P<body>.*?)<!-- end of (?P=name) -->", re.DOTALL
)
_MARK = re.compile(r"<!-- (?:generated: |end of )(?P<name>[^>]+?) -->")


def pages() -> tuple[Path, ...]:
    """README.md and every page below docs/."""
    return (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def names_in(text: str) -> tuple[str, ...]:
    """The blocks that a page asks for."""
    return tuple(match["name"] for match in _BLOCK.finditer(text))


def spliced(text: str) -> str:
    """`text` with every block made anew. Raises ValueError for an unknown or unclosed block."""
    whole = _BLOCK.sub("", text)
    if odd := _MARK.search(whole):
        raise ValueError(f"the block {odd['name']!r} is not a pair of marks")

    def fresh(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in BLOCKS:
            raise ValueError(f"unknown block {name!r}; known are {', '.join(BLOCKS)}")
        return f"<!-- generated: {name} -->\n\n{BLOCKS[name]().strip()}\n\n<!-- end of {name} -->"

    return _BLOCK.sub(fresh, text)


def write() -> tuple[Path, ...]:
    """Bring every page up to date; the pages that changed."""
    changed = []
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = spliced(old)
        if new != old:
            page.write_text(new, encoding="utf-8")
            changed.append(page)
    return tuple(changed)
