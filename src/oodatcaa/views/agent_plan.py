"""AGENT_PLAN.md: everything that a builder, a reviewer or the next planner needs of a plan."""

from __future__ import annotations

from oodatcaa.domain.plan import AdaptationNote, Alternative, Fact, Plan, Step, SubtaskPlan
from oodatcaa.domain.task import SubtaskKind
from oodatcaa.views.markdown import (
    bold,
    bullets,
    code,
    facts,
    fence,
    numbered,
    page,
    prose,
    prose_bullets,
    section,
    stop,
    table,
)
from oodatcaa.views.plan_parts import gate_rule, gate_table, model_name, parameters, plan_head
from oodatcaa.views.units import count, memory, minutes, number, sentence, short, words

_SHORT_SOURCE = 30
_LONG_VALUE = 70
NOT_AVAILABLE = "not available"
"""The source of a fact that nobody could find out."""


def agent_plan(plan: Plan) -> str:
    """The plan as Markdown. Links assume that the page lies beside its `plan-vN.json`."""
    return page(
        f"Agent plan for {plan.story}: {plan.title}",
        plan_head(plan, "Verification", "TEST_PLAN.md"),
        prose(plan.goal) if plan.goal != plan.problem.statement else "",
        _adaptation(plan),
        _traceability(plan),
        _inventory(plan),
        _problem(plan),
        section("Constraints", _limits(plan), prose_bullets(plan.constraints)),
        section("Interfaces", prose_bullets(plan.interfaces)),
        section("Definition of done", prose_bullets(plan.definition_of_done)),
        _acceptance(plan),
        _goals(plan),
        alternatives(plan),
        decision(plan),
        fallback(plan),
        section("Training parameters", parameters(plan.params)),
        _steps(plan),
        _size(plan),
        section("Deliverables", bullets(code(path) for path in plan.deliverables)),
        _risks(plan),
        section("Sprint impact", prose_bullets(plan.sprint_impact)),
        section("Handoff notes", prose_bullets(plan.handoff)),
    )


def _adaptation(plan: Plan) -> str:
    note = plan.adaptation
    if note is None:
        return ""
    kept = ", ".join(plan.keeps)
    return section(
        f"What changed in version {plan.version}",
        f"Adaptation round {note.round}. {bold('Why:')} {stop(note.trigger)}",
        prose_bullets(note.rungs),
        _before_after(note),
        section("Options considered", prose_bullets(note.tried), level=3),
        f"Kept from earlier versions: {kept}." if kept else "",
    )


def _before_after(note: AdaptationNote) -> str:
    limit = note.limit_bytes
    rows = [
        (what, memory(amount), _against(amount, limit))
        for what, amount in (
            ("before", note.before_bytes),
            ("after, re-estimated", note.after_bytes),
        )
        if amount is not None
    ]
    if rows and limit is not None:
        rows.append(("limit", memory(limit), ""))
    return table(("Peak memory", "Amount", "Against the limit"), rows, "lrl")


def _against(amount: int, limit: int | None) -> str:
    if limit is None:
        return ""
    if amount > limit:
        return f"{memory(amount - limit)} over"
    return f"fits, {memory(limit - amount)} to spare"


def _traceability(plan: Plan) -> str:
    trace = plan.traceability
    return section(
        "Traceability",
        table(
            ("What", "Where"),
            [
                ("Objective", f"{prose(trace.objective)} ({code('OBJECTIVE.md')}, "
                 f"sha256 {code(short(trace.objective_sha256))})"
                 if trace.objective_sha256 else prose(trace.objective)),
                ("Epic", prose(trace.epic)),
                ("Sprint", str(trace.sprint)),
                ("Depends on", ", ".join(trace.depends_on) or "nothing"),
                ("Unblocks", ", ".join(trace.unblocks) or "nothing"),
            ],
        ),
    )  # fmt: skip


def _inventory(plan: Plan) -> str:
    inventory = plan.inventory
    at = f"At commit {code(short(inventory.commit))}." if inventory.commit else ""
    packages = ", ".join(code(name) for name in inventory.packages)
    return section(
        "Repository inventory",
        at if inventory.rows or inventory.packages or inventory.notes else "",
        table(
            ("Place", "Files", "Lines", "What it holds"),
            [
                (code(row.place), number(row.files), number(row.lines), prose(row.what))
                for row in inventory.rows
            ],
            "lrrl",
        ),
        f"Packages that matter here: {packages}." if packages else "",
        prose_bullets(inventory.notes),
    )


def _problem(plan: Plan) -> str:
    problem = plan.problem
    return section(
        "Problem",
        prose(problem.statement),
        section("Current state", prose_bullets(problem.current_state), level=3),
        section("Impact", prose(problem.impact), level=3),
    )


def _limits(plan: Plan) -> str:
    return facts(
        [
            ("Memory limit", f"{memory(plan.memory_limit_bytes)} for the whole process tree"),
            ("Model", code(model_name(plan.model))),
            ("Backend", code(plan.backend)),
            *((f"Input {name}", code(value)) for name, value in plan.inputs.items()),
        ]
    )


def _acceptance(plan: Plan) -> str:
    return section(
        "Acceptance criteria",
        gate_table(plan.test_plan.acceptance),
        "The framework runs every one of them itself, in a fresh worktree at the submitted commit; "
        "[TEST_PLAN.md](TEST_PLAN.md) has the exact commands.",
    )


def _goals(plan: Plan) -> str:
    goals = plan.goals
    truths = [
        f"{prose(item.statement)} ({code(item.command) if item.command else 'a person decides'})"
        for item in goals.truths
    ]
    artifacts = [
        f"{code(item.path)}" + (f": {prose(item.provides)}" if item.provides else "")
        for item in goals.artifacts
    ]
    links = [
        f"{code(item.source)} to {code(item.target)}" + (f": {prose(item.via)}" if item.via else "")
        for item in goals.key_links
    ]
    return section(
        "Goals",
        section("True in the end", bullets(truths), level=3),
        section("There in the end", bullets(artifacts), level=3),
        section("Connected in the end", bullets(links), level=3),
    )


def alternatives(plan: Plan) -> str:
    """The options with the facts about each, and which was chosen."""
    matrix, notes = _matrix(plan)
    return section(
        "Alternatives",
        "Facts about this machine, each with where it comes from." if matrix else "",
        matrix,
        "Notes on the sources:" if notes else "",
        notes,
        *(_alternative(plan, item) for item in plan.alternatives),
    )


def _matrix(plan: Plan) -> tuple[str, str]:
    """The table of facts, and numbered notes for sources too long for a cell."""
    notes: list[str] = []

    def cell(fact: Fact | None) -> str:
        if fact is None or fact.source == NOT_AVAILABLE:
            return NOT_AVAILABLE
        if len(fact.source) <= _SHORT_SOURCE:
            return f"{prose(fact.value)} ({prose(fact.source)})"
        if fact.source not in notes:
            notes.append(fact.source)
        return f"{prose(fact.value)} (note {notes.index(fact.source) + 1})"

    rows = [
        (
            prose(title),
            *(cell(item.facts.get(key)) for item in plan.alternatives),
        )
        for key, title in _fact_titles(plan).items()
        if not _is_long(plan, key)
    ]
    head = ("Fact", *(prose(item.title) for item in plan.alternatives))
    return table(head, rows), numbered(prose(sentence(note)) for note in notes)


def _fact_titles(plan: Plan) -> dict[str, str]:
    """Key -> title of every fact: the decision's factors first, in their order."""
    titles = {factor.key: factor.title for factor in plan.decision.factors}
    for item in plan.alternatives:
        titles |= {key: sentence(words(key)) for key in item.facts if key not in titles}
    return titles


def _is_long(plan: Plan, key: str) -> bool:
    """Too long for a column: such facts stand below their alternative."""
    found = [item.facts[key] for item in plan.alternatives if key in item.facts]
    return any(len(fact.value) > _LONG_VALUE for fact in found)


def _alternative(plan: Plan, item: Alternative) -> str:
    effort = f"{minutes(item.effort_minutes)} (estimate)" if item.effort_minutes else None
    long = [
        (title, f"{prose(fact.value)} ({prose(fact.source)})")
        for key, title in _fact_titles(plan).items()
        if _is_long(plan, key) and (fact := item.facts.get(key)) and fact.source != NOT_AVAILABLE
    ]
    return section(
        item.title + (" (chosen)" if item.key == plan.decision.chosen else ""),
        facts([("Effort", effort), *long]),
        bullets(f"For: {prose(pro)}" for pro in item.pros),
        bullets(f"Against: {prose(con)}" for con in item.cons),
        level=3,
    )


def decision(plan: Plan) -> str:
    """The weighted decision with its reasons and what it costs."""
    decision = plan.decision
    options = plan.alternatives
    title = next(item.title for item in options if item.key == decision.chosen)
    rows = [
        (
            prose(factor.title),
            number(factor.weight),
            *(_score(item.facts[factor.key].score if factor.key in item.facts else None)
              for item in options),
            prose(factor.why),
        )
        for factor in decision.factors
    ]  # fmt: skip
    if rows and decision.totals:
        totals = (_score(decision.totals.get(item.key)) for item in options)
        rows.append((bold("weighted total"), "", *totals, "0 to 1; higher is better"))
    return section(
        "Decision",
        f"{bold('Chosen:')} {prose(title)}",
        table(
            ("Factor", "Weight", *(prose(item.title) for item in options), "Why it counts"),
            rows,
            "lr" + "r" * len(options) + "l",
        ),
        section("Rationale", numbered(prose(line) for line in decision.rationale), level=3),
        section("Trade-offs accepted", prose_bullets(decision.trade_offs), level=3),
    )


def _score(score: float | None) -> str:
    return "no score" if score is None else f"{score:.2f}"


def fallback(plan: Plan) -> str:
    """What happens when the chosen way fails, and what that costs."""
    fallback = plan.fallback
    rows = [(prose(what), minutes(cost)) for what, cost in fallback.costs]
    if len(rows) > 1:
        rows.append((bold("total"), minutes(fallback.total_minutes)))
    return section(
        "Fallback",
        facts([("When", prose(fallback.trigger)), ("Then", prose(fallback.action))]),
        table(("Cost (estimate)", "Time"), rows, "lr"),
    )


def _steps(plan: Plan) -> str:
    holder = {number: part.id for part in plan.subtasks for number in part.steps}
    overview = table(
        ("Step", "What", "Subtask", "Estimate"),
        [
            (str(step.number), prose(step.title) + (" (critical)" if step.critical else ""),
             holder.get(step.number, "kept"), minutes(step.estimate_minutes))
            for step in plan.steps
        ],
        "rllr",
    )  # fmt: skip
    return section("Implementation steps", overview, *(_step(step) for step in plan.steps))


def _step(step: Step) -> str:
    return section(
        f"Step {step.number}: {step.title}" + (" (critical)" if step.critical else ""),
        prose(step.what),
        facts([("Kind", code(step.kind.value)), ("Estimate", minutes(step.estimate_minutes)),
               ("Document", code(step.document) or None)]),
        fence(step.command, "bash"),
        "Exit gates:",
        prose_bullets(step.exit_gates),
        "Leaves behind:" if step.deliverables else "",
        bullets(code(path) for path in step.deliverables),
        level=3,
    )  # fmt: skip


def _size(plan: Plan) -> str:
    return section(
        "Size and subtasks",
        f"Size {plan.size.value}: {count(len(plan.steps), 'step')}, "
        f"about {minutes(plan.estimate_minutes)} in all (estimate).",
        table(
            ("Subtask", "Kind", "What", "Steps", "Waits for", "Estimate"),
            [
                (part.id, part.kind.value, prose(part.title), _step_range(part),
                 _waits(part), minutes(part.estimate_minutes))
                for part in plan.subtasks
            ],
            "lllllr",
        ),
        *(_exit_gates(plan, part) for part in plan.subtasks if part.kind is SubtaskKind.BUILD),
    )  # fmt: skip


def _waits(part: SubtaskPlan) -> str:
    people = [f"a person ({prose(question.title)})" for question in part.asks]
    return ", ".join([*part.depends_on, *people]) or "nothing"


def _step_range(part: SubtaskPlan) -> str:
    numbers = part.steps
    if not numbers:
        return "verification"
    if len(numbers) > 1 and numbers == tuple(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(str(item) for item in numbers)


def _exit_gates(plan: Plan, part: SubtaskPlan) -> str:
    gates = plan.exit_gates.get(part.id, ())
    return section(
        f"Exit gates of {part.id}",
        bullets(f"{gate.id} {prose(gate.name)}: {gate_rule(gate)}" for gate in gates),
        level=3,
    )


def _risks(plan: Plan) -> str:
    table_of_risks = table(
        ("Risk", "What may happen", "Probability", "Impact"),
        [
            (f"R{place}", prose(risk.risk), risk.probability, risk.impact)
            for place, risk in enumerate(plan.risks, 1)
        ],
    )
    answers = bullets(
        f"{bold(f'R{place}')}: {stop(risk.mitigation)} "
        f"If it happens all the same: {stop(risk.contingency)}"
        for place, risk in enumerate(plan.risks, 1)
    )
    return section(
        "Risks",
        table_of_risks,
        section("Mitigation and contingency", answers, level=3),
    )
