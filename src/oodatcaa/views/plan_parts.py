"""The pieces that the agent plan and the test plan show in the same way."""

from __future__ import annotations

from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.views.markdown import bullets, code, facts, fence, prose, section, table
from oodatcaa.views.units import count, duration, memory, minutes, moment, number, short


def model_name(model: str) -> str:
    """A local model folder by its own name; a hub name as it is."""
    return model.rstrip("/").rsplit("/", 1)[-1] if model.startswith(("/", "~", "./")) else model


def plan_head(plan: Plan, other: str, other_path: str) -> str:
    """What every plan document says first."""
    return facts(
        [
            ("Story", f"{plan.story} ({plan.kind.value})"),
            ("Plan version", f"{plan.version}, written {moment(plan.created_at)} "
             f"by {prose(plan.author)}"),
            ("Branch", code(plan.branch)),
            ("Starts from commit", code(short(plan.base_commit))),
            ("Size", f"{plan.size.value}, {count(len(plan.steps), 'step')} in "
             f"{count(len(plan.subtasks), 'subtask')}, about {minutes(plan.estimate_minutes)} "
             "(estimate)"),
            (other, f"[{other_path}]({other_path})"),
            ("Record", f"[plan-v{plan.version}.json](plan-v{plan.version}.json); this page is "
             "generated from it"),
        ]
    )  # fmt: skip


def parameters(params: QLoRA) -> str:
    """The training parameters with what each one means."""
    masked = "only the answer's tokens count" if params.mask_prompt else "every token counts"
    layers = "all blocks" if params.num_layers == -1 else "the last blocks of the model"
    of = "rows" if params.packing else "examples"
    keys = ", ".join(map(code, params.keys)) if params.keys else "every linear layer"
    rows = [
        ("rank", number(params.rank), "width of the low-rank update"),
        ("alpha", number(params.alpha), "numerator of the scale"),
        ("scale", number(params.scale), "alpha / rank, the factor on the update"),
        ("dropout", number(params.dropout), "on the adapter's input"),
        ("adapted layers", "all" if params.num_layers == -1 else str(params.num_layers), layers),
        ("adapted modules", keys, "inside each adapted block"),
        ("base quantisation", f"{params.quantize_bits} bits" if params.quantize_bits
         else "as it comes", "of the frozen weights"),
        ("batch size", str(params.batch_size), f"{of} per iteration (micro-step)"),
        ("gradient accumulation", str(params.grad_accumulation_steps),
         "iterations per optimizer step"),
        ("effective batch", str(params.effective_batch), f"{of} per optimizer step"),
        ("packing", "on" if params.packing else "off", "rows filled with whole examples"),
        ("sequence length", f"{number(params.max_seq_length)} tokens", "longer examples are cut"),
        ("iterations", number(params.iters), "micro-steps"),
        ("optimizer steps", number(params.optimizer_steps), "updates of the weights"),
        ("learning rate", number(params.learning_rate), schedule(params)),
        ("weight decay", number(params.weight_decay), "of the optimizer"),
        ("gradient checkpointing", params.checkpointing or "off",
         "recomputes activations instead of keeping them"),
        ("prompt masking", "on" if params.mask_prompt else "off", masked),
        ("seed", str(params.seed), "data order and adapter initialisation"),
    ]  # fmt: skip
    return table(("Parameter", "Value", "Meaning"), rows, "lrl")


def schedule(params: QLoRA) -> str:
    warmup = f" after {count(params.warmup_steps, 'warm-up step')}" if params.warmup_steps else ""
    return f"{params.schedule.value} schedule{warmup}"


def gate_rule(gate: GateSpec) -> str:
    """What decides `gate`, on one line."""
    if gate.kind is GateKind.METRIC and gate.bound is not None:
        return code(str(gate.bound))
    if gate.kind is GateKind.FILES:
        if len(gate.paths) > 2:
            return f"{count(len(gate.paths), 'file')} in the commit"
        return "files: " + ", ".join(code(path) for path in gate.paths)
    if gate.artifact is not None:
        return f"what stands in {code(gate.artifact.path)}"
    if gate.link is not None:
        return f"{code(gate.link.source)} speaks of {code(gate.link.target)}"
    if gate.kind is GateKind.PERSON:
        return "a person"
    return code(gate.command, 80)


def gate_table(gates: tuple[GateSpec, ...]) -> str:
    """One line a gate: what decides it, whether it is critical, how long it may take."""
    return table(
        ("Gate", "Name", "Decided by", "Critical", "Time limit"),
        [
            (gate.id, prose(gate.name), gate_rule(gate), "yes" if gate.critical else "no",
             "" if gate.kind is GateKind.PERSON else duration(gate.timeout_seconds))
            for gate in gates
        ],
        "llllr",
    )  # fmt: skip


def gate_section(gate: GateSpec, memory_limit_bytes: int | None = None, level: int = 3) -> str:
    """A gate with its statement and the exact command, bound or files that decide it."""
    title = f"{gate.id}: {gate.name}" + (" (critical)" if gate.critical else "")
    blocks = [prose(gate.statement) if gate.statement != gate.name else ""]
    if gate.kind is GateKind.COMMAND:
        how = "ends with exit code 0" + (
            ", or finds no more than the same command on the target branch" if gate.baseline else ""
        )
        blocks += [f"Passes when this command {how}:", fence(gate.command, "bash")]
    elif gate.artifact is not None or gate.link is not None:
        blocks += ["Passes when this holds in the commit itself:", bullets(goal_lines(gate))]
    elif gate.kind is GateKind.PERSON:
        blocks.append(
            "No command decides this. The story waits for a person before the target moves: "
            f"{code(f'oodatcaa waive STORY {gate.id} --why … --hours …')}, then "
            f"{code('oodatcaa approve STORY --why …')}."
        )
    elif gate.kind is GateKind.FILES:
        blocks += [
            "Passes when every one of these files is in the submitted commit and not empty:",
            bullets(code(path) for path in gate.paths),
        ]
    elif gate.bound is not None:
        blocks += [
            f"Passes when the recomputed metric satisfies {code(str(gate.bound))}"
            + (f" (that is {memory(int(gate.bound.value))})." if _is_other_size(gate) else "."),
        ]
        limit = memory_limit_bytes
        if gate.bound.metric == "peak_memory" and limit is not None and gate.bound.value > limit:
            blocks.append(f"The run itself is stopped at {memory(limit)}, the objective's limit.")
    if gate.kind is not GateKind.PERSON:
        blocks.append(f"Time limit: {duration(gate.timeout_seconds)}.")
    return section(title, *blocks, level=level)


def goal_lines(gate: GateSpec) -> list[str]:
    """What an artifact or key link gate looks for, one line each."""
    if gate.artifact is not None:
        item = gate.artifact
        lines = [
            f"{code(item.path)} exists and is not empty",
            f"at least {count(item.min_lines, 'line')} that are not blank"
            if item.min_lines
            else "",
            *(f"it contains {code(text)}" for text in item.contains),
            f"it defines {', '.join(map(code, item.exports))}" if item.exports else "",
        ]
        return [line for line in lines if line]
    if gate.link is None:
        return []
    link = gate.link
    how = f"something that matches {code(link.pattern)}" if link.pattern else code(link.target)
    return [f"{code(link.source)} contains {how}" + (f" ({prose(link.via)})" if link.via else "")]


def _is_other_size(gate: GateSpec) -> bool:
    """True when the bound was written in a binary unit, which people misread."""
    return gate.bound is not None and gate.bound.text.lower().endswith("ib")


def placeholders(gates: tuple[GateSpec, ...]) -> str:
    """Explains {run} and its like, when a command uses one."""
    used = any("{" in gate.command for gate in gates)
    return (
        "Words in braces, such as `{run}` or `{adapter}`, are filled in by the framework with the "
        "paths of this story's artefacts."
        if used
        else ""
    )
