"""The documentation says what the code does: nothing stale, no dead link, no unknown command."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from docs_pages import commands, errors, links, records, rooms
from docs_pages.pages import BLOCKS, ROOT, names_in, pages, spliced
from oodatcaa.domain.objective import parse_objective
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.config import Config

PAGES = pages()


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_generated_parts_are_fresh(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == spliced(text), f"{named(page)} is stale: make docs"


def test_every_block_is_used() -> None:
    used = {name for page in PAGES for name in names_in(page.read_text(encoding="utf-8"))}
    assert used == set(BLOCKS)
    assert len(PAGES) > 15


def test_a_stale_block_is_noticed() -> None:
    text = "<!-- generated: units -->\nold\n<!-- end of units -->\n"
    assert spliced(text) != text
    assert "old" not in spliced(text)
    assert spliced(spliced(text)) == spliced(text)
    with pytest.raises(ValueError, match="unknown block"):
        spliced(text.replace("units", "nonsense"))
    with pytest.raises(ValueError, match="not a pair"):
        spliced("<!-- generated: units -->\n")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    assert links.broken(page, ROOT) == ()


def test_a_dead_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# A `code` heading\n# A code heading\n", encoding="utf-8")
    page = tmp_path / "a.md"
    page.write_text(
        "[1](b.md#a-code-heading-1) [2](b.md#nowhere) [3](c.md) ![4](x.png) `[5](d.md)`\n"
        "```text\n[6](e.md)\n```\n[7](https://example.org) [8](../../f.md)\n",
        encoding="utf-8",
    )
    assert [line.partition(":")[0] for line in links.broken(page, tmp_path)] == [
        "b.md#nowhere",
        "c.md",
        "x.png",
        "../../f.md",
    ]


def test_every_page_that_the_code_names_exists() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    kinds = (".py", ".toml", ".md", ".yml", ".yaml")
    places = ("src/", "agents/", ".oodatcaa/", "OBJECTIVE.md", "pyproject.toml", "CHANGELOG.md")
    files = tuple(ROOT / one for one in listed if one.startswith(places) and one.endswith(kinds))
    found = links.pointers(tuple(path for path in files if path.is_file()))
    assert "docs/reference/config.md" in found
    assert [f"{found[one]} names {one}" for one in found if not (ROOT / one).is_file()] == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    todo = list(reached)
    while todo:
        page = todo.pop()
        for target in links.links(page.read_text(encoding="utf-8")):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.is_file() and file not in reached:
                reached.add(file)
                todo.append(file)
    assert [named(page) for page in PAGES if page not in reached] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "OBJECTIVE.md"], ids=named)
def test_quoted_commands_parse(page: Path) -> None:
    quoted = commands.quoted(page.read_text(encoding="utf-8"))
    found = [
        f"{named(page)}:{line.line}: {why}" for line in quoted if (why := commands.problem(line))
    ]
    assert found == []


def test_a_command_that_does_not_exist_is_noticed() -> None:
    text = (
        "Type `oodatcaa frobnicate`, `oodatcaa submit` or `oodatcaa log --nonsense`.\n"
        "```console\n$ cd x && oodatcaa show\nnext: oodatcaa nothing\n"
        "$ oodatcaa show T001 # ok\n```\n"
        "```console\noodatcaa agent gardener\n```\n"
    )
    problems = [why for line in commands.quoted(text) if (why := commands.problem(line))]
    assert len(commands.quoted(text)) == 6
    assert len(problems) == 4
    assert ["frobnicate" in problems[0], "--nonsense" in problems[1]] == [True, True]


def test_commands_that_hints_name_exist() -> None:
    """Hints and `next:` lines of the source, word by word: prose may follow a command."""
    known = dict(commands.commands())
    wrong = []
    looked_at = 0
    for path in sorted((ROOT / "src").rglob("*.py")):
        for text in errors.strings_of(path):
            for match in re.finditer(r"\boodatcaa ((?:[a-z]+ ?){1,2})((?:[^`,;\n]*))", text):
                words = match[1].split()
                name = next((n for n in (" ".join(words[:2]), words[0]) if n in known), None)
                if name is None:
                    continue
                looked_at += 1
                options = {one for p in known[name].params for one in (*p.opts, *p.secondary_opts)}
                used = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", match[0].partition(" or ")[0]))
                wrong += [
                    f"{path.name}: {match[0]!r}: {name} has no {one}"
                    for one in sorted(used - options - set(commands.GLOBAL))
                ]
    assert wrong == []
    assert looked_at > 80


def test_hints_that_are_a_command_parse() -> None:
    """A hint that starts with `oodatcaa` starts with a command that exists."""
    names = {name.split()[0] for name, _ in commands.commands()} | {"import"}
    wrong = [
        f"{item.place}: {item.hint}"
        for item in errors.raised()
        if (match := re.match(r"oodatcaa ([a-z-]+)", item.hint)) and match[1] not in names
    ]
    assert wrong == []


def test_no_error_code_is_left_out() -> None:
    """Codes are read from calls; this looks for the same codes as plain text."""
    found = {item.code for item in errors.raised()}
    assert len(found) > 150
    written = set()
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        written |= set(re.findall(r'Error\(\s*"([a-z_]+\.[a-z0-9_]+)"', text))
    assert written <= found
    assert {"run.memory_gate", "lease.lost", "queue.locked", "git.target_dirty"} <= found


def test_error_codes_are_spelt_alike() -> None:
    wrong = [
        c.code
        for c in errors.raised()
        if not re.fullmatch(r"[a-z_]+(\.([a-z0-9_]+|‹[a-z ]+›))?", c.code)
    ]
    assert wrong == []


def test_every_key_is_described() -> None:
    found = (*records.configuration_keys(), *records.objective_front_matter())
    assert [key.path for key in found if not key.about] == []
    assert len(found) > 60


def test_documented_defaults_are_the_real_ones() -> None:
    by_path = {key.path: key for key in records.configuration_keys()}
    assert by_path["lease_minutes.builder"].default == f"`{Config().lease_minutes.builder}`"
    assert by_path["gates.quality[].baseline"].default == "`false`"


def test_documented_objective_keys_are_accepted() -> None:
    """Each key at its documented default makes a valid objective; another key does not."""
    lines = ["id: O-1", "title: A title"]
    nested: dict[str, list[str]] = {}
    for key in records.objective_front_matter():
        plain = key.default.strip("`")
        if (
            key.path in ("id", "title")
            or "[]" in key.path
            or plain in ("empty", "none", "as below", "required")
        ):
            continue
        head, _, tail = key.path.partition(".")
        if tail:
            nested.setdefault(head, []).append(f"  {tail}: {plain}")
        else:
            lines.append(f"{key.path}: {plain}")
    lines += [line for head, below in nested.items() for line in (f"{head}:", *below)]
    text = "---\n" + "\n".join(lines) + "\n---\n"
    assert parse_objective(text).memory_limit_bytes == 16 * 10**9
    with pytest.raises(OodatcaaError, match="1 problem"):
        parse_objective(text.replace("title:", "headline: x\ntitle:"))


def test_the_import_graph_shows_real_imports() -> None:
    edges = rooms.edges()
    assert "app" in edges["cli"]
    assert "vcs" in edges["app"]
    assert "    app --> vcs" in rooms.graph()


def test_every_command_and_option_is_explained() -> None:
    found = dict(commands.commands())
    assert len(found) > 20
    assert [name for name, command in found.items() if not command.help] == []
    silent = [
        f"{name}: {param.name}"
        for name, command in found.items()
        for param in command.params
        if not getattr(param, "help", None)
    ]
    assert silent == []


def test_every_configuration_key_is_read_somewhere() -> None:
    """A key that nobody reads would be an option that silently never arrives."""
    sources = [
        path.read_text(encoding="utf-8")
        for path in (ROOT / "src").rglob("*.py")
        if path.name not in ("config.py", "policy.py")
    ]
    text = "\n".join(sources)
    by_name = ("planner", "builder", "tester", "refiner", "integrator")
    unread = [
        key.path
        for key in records.configuration_keys()
        if (name := key.path.rpartition(".")[2].removesuffix("[]")) not in by_name
        and not re.search(rf"\.{name}\b", text)
    ]
    assert unread == []
