"""oodatcaa import and export on a real repository: what is taken, what is refused, what blocks."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from oodatcaa.app.allowing import is_allowed
from oodatcaa.app.import_checks import outside
from oodatcaa.app.importing import import_plans, parse_maps
from oodatcaa.app.init import init_project
from oodatcaa.app.people import approve_story, cancel_task, claim_task
from oodatcaa.app.plan_export import export_stories
from oodatcaa.app.project import Project, open_project
from oodatcaa.app.sprints import carried_stories, new_sprint
from oodatcaa.cli.main import app
from oodatcaa.domain.adopting import Outcome
from oodatcaa.domain.formats import ExportKind, ImportKind
from oodatcaa.domain.negotiation import negotiate, sprint_outcome
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.task import Role, StoryStatus
from oodatcaa.errors import OodatcaaError, RefusedError, StateError
from oodatcaa.views.imported import report_lines, source_lines

PLANS = Path(__file__).parents[1] / "importers" / "fixtures" / "plans"
POOL = PLANS / "adapter_pool.gsd.md"
RUNS = PLANS / "run_storage.superpowers.md"
HOME = "/Users/atomasini/Development/mlx-manager/backend"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
MAPS = {HOME: "backend"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for key in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{key}_NAME", "Ada")
        monkeypatch.setenv(f"GIT_{key}_EMAIL", "ada@example.org")
    root = tmp_path / "repo"
    root.mkdir()
    subprocess.run(["git", "init", "-qb", "main"], cwd=root, check=True)
    init_project(root, commit=True)
    return open_project(root)


def plan_of(text: str, tmp_path: Path, name: str = "plan.md") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_loose_ends_are_reported_and_block_until_they_are_settled(project: Project) -> None:
    new_sprint(project)
    report = import_plans(project, [POOL])
    story = report.stories[0]
    assert story.id == "T006"
    assert story.status is StoryStatus.BLOCKED
    assert "needs 14-01" in story.reason
    assert HOME in story.reason
    before = project.board().revision
    assert not import_plans(project, [POOL]).changed
    assert project.board().revision == before

    mapped = import_plans(project, [POOL], maps=MAPS, assume_done=["14-01"])
    assert [item.outcome for item in mapped.adopted] == [Outcome.UPDATED]
    story = project.board().story_by_id["T006"]
    assert story.source is not None
    assert story.source.assumed == ("14-01",)
    assert story.status is StoryStatus.NEEDS_HUMAN
    assert "3 commands of adapter_pool.gsd.md wait" in story.reason
    assert "cd backend" in project.drafts.get(story.source).commands[0]

    approve_story(project, "T006", "ada", "read them")
    story = project.board().story_by_id["T006"]
    assert story.status is StoryStatus.NEEDS_PLAN
    assert story.source is not None
    assert story.source.approved is not None
    assert story.source.approved.by == "ada"


def test_assume_done_alone_settles_a_dependency(project: Project) -> None:
    new_sprint(project)
    import_plans(project, [POOL], maps=MAPS)
    import_plans(project, [POOL], maps=MAPS, assume_done=["14-01"])
    story = project.board().story_by_id["T006"]
    assert story.source is not None
    assert story.source.unsettled == ()


def test_a_dry_run_shows_everything_and_writes_nothing(project: Project) -> None:
    def files() -> set[Path]:
        return {path for path in project.root.rglob("*") if ".git" not in path.parts}

    before = files()
    report = import_plans(project, [POOL, RUNS], dry_run=True)
    assert files() == before
    text = "\n".join(report_lines(report))
    assert "adapter_pool.gsd.md:79: " + HOME in text
    assert "would create\nT001" in text
    assert "must FAIL: pytest tests/test_run_storage.py" in text
    assert "link       backend/mlx_manager/mlx_server/models/pool.py" in text


def test_without_a_sprint_the_next_one_begins_with_them(project: Project) -> None:
    assert import_plans(project, [RUNS]).changed
    assert not import_plans(project, [RUNS]).changed
    assert [story.id for story in carried_stories(project)] == ["T001", "T002", "T003", "T004"]
    board = new_sprint(project)
    assert [story.depends_on for story in board.stories] == [(), ("T001",), ("T002",), ("T003",)]
    assert board.stories[0].status is StoryStatus.NEEDS_HUMAN
    assert sprint_outcome(board) == "needs_human"
    # A story that still waits for others can be approved in the evening, too.
    approve_story(project, "T002", "ada", "read them")
    assert project.board().story_by_id["T002"].status is StoryStatus.BLOCKED


def test_an_edited_plan_replaces_the_story_until_it_was_begun(
    project: Project, tmp_path: Path
) -> None:
    text = RUNS.read_text(encoding="utf-8")
    path = plan_of(text, tmp_path)
    new_sprint(project)
    import_plans(project, [path])
    approve_story(project, "T006", "ada", "read them")
    plan_of(text.replace("run_dir.name", "run_dir.is_dir()").replace("-v", "-q", 2), tmp_path)
    report = import_plans(project, [path])
    assert [item.outcome.value for item in report.adopted] == ["updated", *["unchanged"] * 3]
    story = project.board().story_by_id["T006"]
    assert story.source is not None
    assert story.source.wants_approval  # the approval was for the commands of before


def test_what_is_kept_word_for_word_is_shown(project: Project) -> None:
    import_plans(project, [POOL])
    source = carried_stories(project)[0].source
    assert source is not None
    text = "\n".join(source_lines(source, project.drafts.get(source)))
    assert "14-05-SUMMARY.md" in text
    assert "ruff check mlx_manager/mlx_server/models/pool.py" in text
    assert "3 commands WAIT FOR APPROVAL" in text


# -- security


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../other/x.py",
        "a/../../x.py",
        "~/x",
        ".git/hooks/pre-commit",
        "C:\\x.py",
        "link/x.py",
    ],
)
def test_a_path_that_leaves_the_repository_is_refused(
    project: Project, tmp_path: Path, path: str
) -> None:
    (project.root / "link").symlink_to(tmp_path)
    text = RUNS.read_text(encoding="utf-8").replace("`src/training/run_storage.py`", f"`{path}`")
    with pytest.raises(RefusedError) as caught:
        import_plans(project, [plan_of(text, tmp_path)])
    assert caught.value.code == "import.outside"
    assert carried_stories(project) == ()


def test_a_new_path_of_a_map_stays_in_the_repository(project: Project) -> None:
    with pytest.raises(RefusedError, match="leaves this repository"):
        import_plans(project, [POOL], maps={HOME: "../elsewhere"})
    with pytest.raises(OodatcaaError, match="is not OLD=NEW"):
        parse_maps(["nothing"])
    assert outside(project.root, "backend/new/file.py") == ""


def test_importing_runs_nothing_and_shows_no_control_characters(
    project: Project, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    text = RUNS.read_text(encoding="utf-8").replace(
        "pytest tests", f"touch {mark}; \x1b[2Jpytest x"
    )
    report = import_plans(project, [plan_of(text, tmp_path)])
    assert not mark.exists()
    shown = "\n".join(report_lines(report))
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown


def test_a_check_that_can_not_fail_is_named(project: Project, tmp_path: Path) -> None:
    text = RUNS.read_text(encoding="utf-8").replace("pytest tests", "true || pytest tests")
    report = import_plans(project, [plan_of(text, tmp_path)], dry_run=True)
    found = [item.message for item in report.findings if item.code == "check.trivial"]
    assert found
    assert "would pass whatever was built" in found[0]


def test_a_draft_that_was_changed_after_its_approval_is_refused(project: Project) -> None:
    import_plans(project, [RUNS])
    source = carried_stories(project)[0].source
    assert source is not None
    path = project.work / "imports" / f"{source.draft_sha256}.json"
    path.write_text(path.read_text(encoding="utf-8").replace("pytest", "rm -rf"), encoding="utf-8")
    with pytest.raises(StateError) as caught:
        project.drafts.get(source)
    assert caught.value.code == "import.draft_changed"


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        ("pytest tests/x.py -q", True),
        ("pytest", True),
        ("pytest x; rm -rf /", False),
        ("pytest $(rm -rf /)", False),
        ("pytest x\nrm -rf /", False),
        ("pytest > /etc/passwd", False),
        ("pytestx", False),
        ("ruff check .", True),
        ("ruff format .", False),
        ("make a | make b", True),
    ],
)
def test_the_projects_own_list(command: str, allowed: bool) -> None:
    assert is_allowed(command, ("pytest", "ruff check", "make a | make b")) is allowed


def test_allowed_commands_need_no_approval(project: Project) -> None:
    config = project.root / ".oodatcaa" / "config.toml"
    text = config.read_text(encoding="utf-8") if config.exists() else ""
    config.write_text(text + '\n[imports]\nallow = ["pytest"]\n', encoding="utf-8")
    fresh = open_project(project.root)
    report = import_plans(fresh, [RUNS])
    assert not any(story.source and story.source.wants_approval for story in report.stories)


def test_large_and_binary_files_give_one_error(project: Project, tmp_path: Path) -> None:
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.write(b'{"tasks": [\n')
        file.truncate(50_000_000)
    text = tmp_path / "large.md"
    text.write_bytes(b"# a\n" * 12_500_000)
    image = tmp_path / "image.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    for path, code in ((large, "binary"), (text, "too_large"), (image, "binary")):
        with pytest.raises(OodatcaaError) as caught:
            import_plans(project, [path])
        assert caught.value.code == f"import.{code}"


def test_a_wrong_format_is_a_clear_error(project: Project) -> None:
    with pytest.raises(OodatcaaError) as caught:
        import_plans(project, [POOL], kind=ImportKind.BEADS)
    assert caught.value.code == "import.wrong_format"
    assert "it looks like gsd" in caught.value.message
    with pytest.raises(SystemExit):
        app(["import", str(POOL), "--from", "jira"], prog_name="oodatcaa")


# -- files owned by one story at a time


GSD = """---
phase: 1-x
plan: {plan}
files_modified: [a/{file}.py]
---
<objective>Change {file}, part {plan}.</objective>
<tasks>
<task type="auto"><name>Do</name>
<action>x</action>
</task>
</tasks>
"""


def test_two_stories_that_change_one_file_never_run_side_by_side(
    project: Project, tmp_path: Path
) -> None:
    plans = [("01", "one"), ("02", "one"), ("03", "two")]
    paths = [plan_of(GSD.format(plan=p, file=f), tmp_path, f"{p}.md") for p, f in plans]
    import_plans(project, paths)
    board = new_sprint(project)
    first, second, third = board.stories
    assert (first.status, third.status) == (StoryStatus.NEEDS_PLAN, StoryStatus.NEEDS_PLAN)
    assert second.status is StoryStatus.BLOCKED
    assert "both change a/one.py" in second.reason
    again = negotiate(board, Policy(), NOW)
    assert again.board is board


# -- the way back


@pytest.mark.parametrize("kind", list(ExportKind))
def test_what_is_exported_can_be_imported(
    project: Project, tmp_path: Path, kind: ExportKind
) -> None:
    import_plans(project, [RUNS, PLANS / "issues.beads.jsonl"], assume_done=["bd-404"])
    text = export_stories(project, kind)
    path = plan_of(text, tmp_path, "export")
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["git", "init", "-qb", "main"], cwd=other, check=True)
    init_project(other, commit=True)
    back = import_plans(open_project(other), [path])
    here = carried_stories(project)
    assert [s.title for s in back.stories] == [s.title for s in here]
    assert [s.depends_on for s in back.stories] == [s.depends_on for s in here]
    again = export_stories(open_project(other), kind)
    if kind is ExportKind.JSON:
        assert again == text
        assert not import_plans(project, [path]).changed  # the same plans, home again
    if kind is ExportKind.BEADS:
        urgent = next(json.loads(line) for line in text.splitlines() if '"bd-1.1"' in line)
        assert urgent["priority"] == 0


def test_stories_of_the_sprint_can_be_exported(project: Project, tmp_path: Path) -> None:
    new_sprint(project)
    path = plan_of(export_stories(project, ExportKind.JSON), tmp_path, "export")
    report = import_plans(project, [path])
    assert not report.changed
    assert len(report.adopted) == 5


def test_work_done_elsewhere_is_told_and_never_counted(project: Project) -> None:
    new_sprint(project)
    queue = PLANS.parent / "flat.json"
    dry = import_plans(project, [queue], dry_run=True)
    told = [line for line in report_lines(dry) if "not proven here" in line]
    assert len(told) == len(dry.files[0].done) > 0
    title = next(s.title for s in dry.files[0].stories if s.id in dry.files[0].done)
    assert any(title in line for line in told)
    report = import_plans(project, [queue])
    assert not [s for s in project.board().stories if s.status is StoryStatus.DONE]
    noted = [
        line for e in project.store.history() for line in e.event.details if "not proven" in line
    ]
    assert [line.strip() for line in told] == noted
    assert import_plans(project, [queue]).changed is False
    assert sum("not proven" in d for e in project.store.history() for d in e.event.details) == len(
        noted
    )
    assert report.changed


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_file_that_gives_nothing_is_a_failure(
    project: Project, tmp_path: Path, dry_run: bool
) -> None:
    scrap = plan_of('{"tasks": [{"name": }, 7]}', tmp_path, "scrap.json")
    with pytest.raises(OodatcaaError) as caught:
        import_plans(project, [POOL, scrap], kind=None, dry_run=dry_run)
    assert caught.value.code == "import.nothing"
    assert caught.value.exit_code != 0
    assert "scrap.json" in caught.value.message
    assert any("no task was found" in line for line in caught.value.details)
    assert "--from" in (caught.value.hint or "")
    assert not carried_stories(project)


# -- the second import of a plan that was begun, edited, moved or given up


def test_a_begun_story_is_kept_and_what_changed_is_told(project: Project, tmp_path: Path) -> None:
    text = RUNS.read_text(encoding="utf-8")
    path = plan_of(text, tmp_path)
    new_sprint(project)
    import_plans(project, [path])
    claim(project, "T006")
    before = project.board().revision
    assert not import_plans(project, [path]).changed  # progress is no reason to do anything
    assert project.board().revision == before

    edited = text.replace("**Step 5: Commit**", "**Step 5: Think**\n\nThink.\n\n**Step 6: Commit**")
    edited = edited.replace("structure -v", "structure -q").replace("RunPaths(run", "Paths(run")
    plan_of(edited, tmp_path)
    dry = import_plans(project, [path], dry_run=True)
    report = import_plans(project, [path])
    assert [item.outcome.value for item in report.adopted] == [
        "kept",
        "updated",
        "updated",
        "unchanged",
    ]
    assert project.board().story_by_id["T006"].status is StoryStatus.PLANNING
    for shown in (dry, report):
        told = "\n".join(report_lines(shown))
        assert "keep as it is: T006" in told or "kept as it is: T006" in told
        assert "T006 was begun from an earlier version and is planning" in told
        assert "changed    new step: Think" in told
        assert "changed    new command: pytest tests/test_run_storage.py" in told
        assert "changed    step changed: Write minimal implementation" in told
    assert not import_plans(project, [path]).changed


def claim(project: Project, story: str) -> None:
    approve_story(project, story, "ada", "read them")
    claim_task(project, story, Role.PLANNER, "ada")


def test_a_cancelled_story_comes_anew_only_when_its_plan_was_edited(
    project: Project, tmp_path: Path
) -> None:
    text = RUNS.read_text(encoding="utf-8")
    path = plan_of(text, tmp_path)
    new_sprint(project)
    import_plans(project, [path])
    cancel_task(project, "T009", "ada", "not like this")
    assert not import_plans(project, [path]).changed
    plan_of(text.replace("docs/SETUP.md", "docs/HOW.md"), tmp_path)
    report = import_plans(project, [path])
    assert [item.outcome.value for item in report.adopted] == [*["unchanged"] * 3, "created"]
    assert report.adopted[3].story == "T010"
    assert project.board().story_by_id["T010"].depends_on == ("T008",)


def test_two_files_with_one_key_are_refused_and_a_moved_file_is_named(
    project: Project, tmp_path: Path
) -> None:
    text = RUNS.read_text(encoding="utf-8")
    first = plan_of(text, tmp_path, "a.md")
    second = plan_of(text.replace("run_dir.name", "run_dir.is_dir()"), tmp_path, "b.md")
    with pytest.raises(OodatcaaError, match=r"a\.md and b\.md both hold mlx-run-storage") as caught:
        import_plans(project, [first, second])
    assert caught.value.code == "import.same_key"
    import_plans(project, [first, first])
    report = import_plans(project, [second])
    assert report.adopted[0].why == "it came from a.md before"


def test_what_was_assumed_to_be_done_stays_so_in_a_new_version(
    project: Project, tmp_path: Path
) -> None:
    text = POOL.read_text(encoding="utf-8").replace(HOME, "backend")
    path = plan_of(text, tmp_path)
    import_plans(project, [path], assume_done=["14-01"])
    plan_of(text.replace("Run Quality Checks", "Check it"), tmp_path)
    import_plans(project, [path])
    source = carried_stories(project)[0].source
    assert source is not None
    assert (source.assumed, source.unsettled) == (("14-01",), ())


WAVE = "---\nphase: 2-y\nplan: {plan}\nwave: {wave}\n---\n<objective>Part {plan}.</objective>\n"


def test_a_wave_waits_for_the_wave_before_it(project: Project, tmp_path: Path) -> None:
    plans = [("01", 1), ("02", 1), ("03", 2), ("04", 4)]
    paths = [
        plan_of(WAVE.format(plan=p, wave=w) + "<tasks>\n</tasks>\n", tmp_path, f"{p}.md")
        for p, w in plans
    ]
    import_plans(project, paths[2:])
    assert [s.depends_on for s in carried_stories(project)] == [(), ("T001",)]
    import_plans(project, paths)
    waits = {s.source.key: s.depends_on for s in carried_stories(project) if s.source}
    assert waits["2-03"] == ("T003", "T004")
    assert waits["2-04"] == ("T001",)
    assert not import_plans(project, paths).changed


def test_a_circle_of_plans_is_cut_where_it_closes(project: Project, tmp_path: Path) -> None:
    plans = [("01", "03"), ("02", "01"), ("03", "02")]
    text = GSD.replace("plan: {plan}\n", "plan: {plan}\ndepends_on: ['{needs}']\n")
    paths = [
        plan_of(text.format(plan=plan, file=plan, needs=needs), tmp_path, f"{plan}.md")
        for plan, needs in plans
    ]
    import_plans(project, paths)
    stories = carried_stories(project)
    assert [story.depends_on for story in stories] == [("T003",), ("T001",), ()]
    assert [s.source.unsettled for s in stories if s.source] == [(), (), ("1-02",)]


def test_files_to_read_outside_of_the_repository_are_told_to_nobody(
    project: Project, tmp_path: Path
) -> None:
    context = "<context>\n@~/.ssh/id_rsa\n@../other.md\n@docs/no.md\n@OBJECTIVE.md\n</context>\n"
    path = plan_of(GSD.format(plan="01", file="x") + context, tmp_path)
    report = import_plans(project, [path])
    assert report.drafts[0].references == ("docs/no.md", "OBJECTIVE.md")
    found = {(item.code, item.severity.value) for item in report.findings}
    assert {("plan.reference_outside", "warning"), ("plan.reference", "info")} <= found
    source = report.stories[0].source
    assert source is not None
    assert "~/.ssh/id_rsa" in [item.text for item in source.leftovers]


def test_the_next_command_of_a_dry_run_settles_the_loose_ends(project: Project) -> None:
    report = import_plans(project, [POOL], dry_run=True)
    assert report.next_command == f"oodatcaa import {POOL} --map {HOME}=PATH --assume-done 14-01"
    settled = import_plans(project, [POOL], maps=MAPS, assume_done=["14-01"], dry_run=True)
    assert settled.next_command == (
        f"oodatcaa import {POOL} --map {HOME}=backend --assume-done 14-01"
    )


def test_show_has_the_whole_plan(project: Project) -> None:
    import_plans(project, [PLANS / "tdd.gsd.md"], assume_done=["07-02"])
    story = carried_stories(project)[0]
    assert story.source is not None
    text = "\n".join(source_lines(story.source, project.drafts.get(story.source)))
    plan = (PLANS / "tdd.gsd.md").read_text(encoding="utf-8")
    words = set(re.findall(r"[a-z]{4,}", re.sub(r"</?[a-z_-]+|^[a-z_-]+:", "", plan, flags=re.M)))
    keys = {"true", "auto", "artifacts", "truths", "links", "gate", "blocking"}
    goal = {"orget", "entries"}  # show has it above
    assert {word for word in words - keys if word not in text.lower()} <= goal
