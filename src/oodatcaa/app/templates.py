"""The files that `oodatcaa init` writes: a working example, to be edited by a person."""

from __future__ import annotations

OBJECTIVE = """\
---
id: {id}
title: {title}
model: {model}            # demo | a local mlx-lm folder | a hub name such as mlx-community/…-4bit
data: {data}             # demo | a folder with train.jsonl, valid.jsonl and test.jsonl
memory_limit: {memory_limit}     # decimal bytes: 16GB = 16 000 000 000
backends: [mlx, axolotl, hf]
qlora:
  rank: 16
  alpha: 32              # the update is scaled by alpha / rank
  num_layers: 8          # the last N transformer blocks; -1 = all
  batch_size: {batch_size}
  max_seq_length: {max_seq_length}
  iters: {iters}              # micro-steps; the Refiner multiplies them when it divides the batch
  save_every: {save_every}          # a checkpoint; multiplied like iters
  learning_rate: {learning_rate}
  mask_prompt: true
  seed: 7
acceptance:
  - test_loss_drop >= 0.1
  - peak_memory <= {memory_limit} critical
budget:
  minutes: {minutes}
  adapt_rounds: 3
{eval_examples}
prompt: |
{prompt}
---

# {title}

{body}
"""

EVERY_EXAMPLE = (
    "# eval_examples: 100     # the first so many of the test split; left out = all of it"
)

BODY = """\
Fine-tune a small language model so that it writes the body of a Python function from its name and
docstring. The adapter must lower the loss on functions from files that it has never seen, and the
training must never need more memory than the limit above: the crew refuses, adapts and says so.

Edit the front matter, then type `oodatcaa sprint new` and `oodatcaa run`.
"""

PROMPT = """\
Write the Python function described below. Answer with the code only.

def clamp(value, low, high):
    \"\"\"Return value limited to the closed interval from low to high.\"\"\"
"""

CONFIG = """\
# How the crew works in this repository. Every key has a default; docs/reference/config.md has all.

heartbeat_seconds = 15
# approval = "plan"   # or "merge": where every story waits for a person; default "none"

[wip]                 # how many tasks of one role may be in work at once, enforced in the claim
planner = 1
builder = 3
tester = 2
refiner = 1
integrator = 1

[lease_minutes]       # a lease that is not renewed for this long runs out
planner = 30
builder = 90
tester = 45
refiner = 45
integrator = 30

[git]
target = ""           # branch to integrate into; empty = the branch checked out at `sprint new`
sign = false          # the crew's commits; a passphrase prompt would hang the night
hooks = false         # your hooks still run for your own commits

[gates]
python = ""           # interpreter for the gates; empty = the one that runs the crew
setup = []            # commands run in each fresh worktree before its gates
{quality}
[crew]                # agents that `oodatcaa run` starts
planner = 1
builder = 2
tester = 1
refiner = 1
integrator = 1

# [budgets.story]     # hard limits for external agents; also [budgets.subtask], [budgets.sprint]
# minutes = 120
# tokens = 2000000
# cost_usd = 10.0

# [notify]            # pip install 'oodatcaa[notify]'; any URL that apprise knows
# urls = ["ntfy://$NTFY_TOPIC"]

[training]
fast_cpu = true       # Linux CPU only: a real BLAS, float32 and dequantised products; same losses
"""

QUALITY = """
[[gates.quality]]     # every gate runs in a fresh worktree at the submitted commit
name = "{name}"
command = "{command}"
"""

ROLE = """\
---
name: {role}
description: "{description}"
role: {role}
runner: builtin
model: none
---

# {title}

{body}
"""

ROLES: dict[str, tuple[str, str]] = {
    "planner": (
        "Observes, orients, decides: turns one story into a validated, versioned plan.",
        "You hold one story in `planning`. Probe this machine, read what earlier stories made,\n"
        "and hand in one plan record: alternatives as facts with their source, numbered steps\n"
        "with exit gates, 2-4 subtasks, acceptance criteria that a command or a metric decides.\n"
        "Never write a number that was not measured, derived, or labelled as an estimate.",
    ),
    "builder": (
        "Acts: runs a plan's steps in the story's worktree and commits what they make.",
        "You hold one build subtask in `in_progress`. Work only in the story's worktree on its\n"
        "branch, run the steps in order, commit with a label such as [impl] or [docs], submit.\n"
        "The framework runs the exit gates itself at your commit; what you say about them does\n"
        "not count.",
    ),
    "tester": (
        "Tests and checks: the framework recomputes every criterion; you may add or veto.",
        "You hold one test subtask in `testing`. The framework runs every acceptance criterion\n"
        "and gate in a fresh worktree and recomputes metrics from the artefacts. You may add\n"
        "checks or veto with a reason; you can not pass anything.",
    ),
    "refiner": (
        "Adapts: decides what changes after a failure and writes the next plan version.",
        "You hold one story in `adapting`. Read the failure and its evidence, choose the next\n"
        "rung of the ladder (or a start-over), and hand in plan version n+1 with the reason. At\n"
        "most three rounds; then a person decides.",
    ),
    "integrator": (
        "Archives: merges, re-runs the gates on the merge, tags, exports the records, proves it.",
        "You hold one story in `integrating`. Merge with --no-ff, let the framework run the gates\n"
        "on the merge, advance the target only when they are green, tag it, export the records.\n"
        "A dirty target is a person's business.",
    ),
}

GITIGNORE = (
    "# oodatcaa: live state and artefacts, never in git",
    ".oodatcaa/work/",
    ".oodatcaa/worktrees/",
    "/models/",
)


def objective_text(
    *,
    id: str = "O-001",
    title: str = "Teach a small model to complete Python functions",
    model: str = "demo",
    data: str = "demo",
    memory_limit: str = "16GB",
    batch_size: int = 4,
    max_seq_length: int = 512,
    iters: int = 40,
    learning_rate: str = "3e-4",
    minutes: int = 60,
    eval_examples: int | None = None,
    save_every: int = 10,
    prompt: str = PROMPT,
    body: str = BODY,
) -> str:
    """OBJECTIVE.md with these values; without `eval_examples` the whole test split is evaluated."""
    indented = "\n".join(f"  {line}" if line else "" for line in prompt.rstrip().splitlines())
    return OBJECTIVE.format(
        id=id,
        title=title,
        model=model,
        data=data,
        memory_limit=memory_limit,
        batch_size=batch_size,
        max_seq_length=max_seq_length,
        iters=iters,
        learning_rate=learning_rate,
        minutes=minutes,
        eval_examples=EVERY_EXAMPLE if eval_examples is None else f"eval_examples: {eval_examples}",
        save_every=save_every,
        prompt=indented,
        body=body.rstrip(),
    )


def config_text(quality: tuple[tuple[str, str], ...]) -> str:
    """config.toml with the project's quality gates: (name, command) pairs."""
    blocks = "".join(
        QUALITY.format(name=name, command=command.replace("\\", "\\\\").replace('"', '\\"'))
        for name, command in quality
    )
    return CONFIG.format(quality=blocks)


def role_text(role: str) -> str:
    """agents/<role>.md."""
    description, body = ROLES[role]
    return ROLE.format(role=role, description=description, title=role.title(), body=body)
