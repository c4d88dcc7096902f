"""External agents as data: who fills a role, how a command is called and read, what it used."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.evidence import Bytes
from oodatcaa.domain.task import Role, StoryId, TaskId

BUILTIN = "builtin"
Scalar = str | int | float | bool | None


class Limits(Record):
    """What one agent, subtask, story or sprint may use; None = no limit of this kind."""

    minutes: PositiveFloat | None = Field(
        default=None, description="minutes in which agents ran, added up"
    )
    tokens: PositiveInt | None = Field(default=None, description="input and output together")
    cost_usd: PositiveFloat | None = Field(default=None, description="US dollars")


class AgentLimits(Limits):
    """The limits of one call of an agent."""

    silence_minutes: PositiveFloat | None = Field(
        default=None, description="it may print nothing for this long"
    )
    memory_bytes: Bytes | None = Field(
        default=None, description="its whole process tree; 4GB or 512MiB may be written"
    )


class AgentDefinition(Record):
    """`agents/<name>.md`: the front matter says who fills the role, the prose is its prompt."""

    name: NonEmpty
    description: NonEmpty
    role: Role
    runner: NonEmpty = BUILTIN
    model: str = Field(default="", description="empty = the runner's own choice")
    tools: tuple[NonEmpty, ...] = ()
    limits: AgentLimits = AgentLimits()
    prompt: str = ""
    source: str = Field(default="", description="the file it was read from")

    @property
    def builtin(self) -> bool:
        return self.runner == BUILTIN


class Match(Record):
    """One kind of event in an agent's stream: every path in `when` has the value given there."""

    when: dict[str, Scalar] = Field(default_factory=dict)
    path: str = Field(default="", description="where the text, message or list stands; empty = -")


class UsageAt(Record):
    """Where usage stands in an event. `each` events are added up (per distinct `key`, when one is
    named, the last one counts); a `total` event says everything at once and replaces the sum."""

    when: dict[str, Scalar] = Field(default_factory=dict)
    input: tuple[NonEmpty, ...] = ()
    output: tuple[NonEmpty, ...] = ()
    cost: str = ""
    mode: Literal["each", "total"] = "each"
    key: str = ""


class StreamSpec(Record):
    """How the standard output of a command is understood.

    `text`: no events; the exit code decides and the whole output is the answer. `jsonl`: one JSON
    object a line, and only an event that matches `success` makes a run a success, whatever the
    exit code says; an event that matches `error` makes it a failure, and the last of these counts.
    `denied` events are refused permissions: the paths in them must be there and not empty.
    """

    format: Literal["text", "jsonl"] = "text"
    session: tuple[NonEmpty, ...] = ()
    text: tuple[Match, ...] = ()
    success: tuple[Match, ...] = ()
    error: tuple[Match, ...] = ()
    denied: tuple[Match, ...] = ()
    usage: tuple[UsageAt, ...] = ()
    error_text: tuple[NonEmpty, ...] = Field(
        default=(), description="text format only: an output line that starts so is a failure"
    )


class Prices(Record):
    """US dollars for a million tokens, for agents that report tokens but no cost."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class CommandSpec(Record):
    """A command-line agent. Words of `argv` may hold {prompt}, {prompt_file}, {cwd}, {session} and
    {config_dir}; `model_argv` ({model}) and `tools_argv` ({tools}) are appended when there is one.
    """

    argv: tuple[NonEmpty, ...] = Field(min_length=1)
    prompt: Literal["argument", "stdin", "file"] = "argument"
    resume_argv: tuple[NonEmpty, ...] = Field(
        default=(), description="empty = this agent can not go on with a session"
    )
    model_argv: tuple[NonEmpty, ...] = ()
    tools_argv: tuple[NonEmpty, ...] = ()
    env: dict[str, str] = Field(default_factory=dict, description="may hold {config_dir}, {cwd}")
    unset: tuple[NonEmpty, ...] = ()
    config_links: dict[str, str] = Field(
        default_factory=dict,
        description="name in {config_dir} -> file of yours that is linked there, if it exists",
    )
    stream: StreamSpec = StreamSpec()
    prices: Prices | None = None

    @model_validator(mode="after")
    def _has_its_prompt(self) -> CommandSpec:
        for field, words in (("argv", self.argv), ("resume_argv", self.resume_argv)):
            text = " ".join(words)
            wanted = {"argument": "{prompt}", "file": "{prompt_file}"}.get(self.prompt)
            if words and wanted and wanted not in text:
                raise ValueError(f"{field}: prompt = {self.prompt!r} needs {wanted} in it")
        if self.resume_argv and "{session}" not in " ".join(self.resume_argv):
            raise ValueError("resume_argv: needs {session} in it")
        if self.stream.format == "jsonl" and not self.stream.success:
            raise ValueError("stream.success: a jsonl stream needs an event that means success")
        return self

    @property
    def reports_tokens(self) -> bool:
        return any(rule.input or rule.output for rule in self.stream.usage)

    @property
    def reports_cost(self) -> bool:
        return any(rule.cost for rule in self.stream.usage) or (
            self.prices is not None and self.reports_tokens
        )


class AcpSpec(Record):
    """An agent that speaks the Agent Client Protocol over its standard input and output.

    It may write below the story's worktree and run commands that match `allow_commands`
    (patterns such as `python -m pytest*`); everything else that it asks for is refused.
    """

    kind: Literal["acp"]
    argv: tuple[NonEmpty, ...] = Field(min_length=1)
    env: dict[str, str] = Field(default_factory=dict, description="may hold {config_dir}, {cwd}")
    unset: tuple[NonEmpty, ...] = ()
    config_links: dict[str, str] = Field(default_factory=dict)
    allow_commands: tuple[NonEmpty, ...] = ()
    prices: Prices | None = None

    @property
    def reports_tokens(self) -> bool:
        return True

    @property
    def reports_cost(self) -> bool:
        return True


class OpenAISpec(Record):
    """A model behind any endpoint that speaks OpenAI's chat completions. It returns records (a
    plan, a review, an adaptation) and can not build."""

    kind: Literal["openai"]
    base_url: NonEmpty = Field(description="for example http://127.0.0.1:8080/v1")
    model: str = ""
    api_key_env: str = Field(default="", description="the variable that holds the key")
    max_tokens: PositiveInt = 8192
    temperature: float = Field(default=0.0, ge=0)
    json_mode: bool = Field(
        default=False, description="ask for response_format json_object; not every endpoint can"
    )
    prices: Prices | None = None

    @property
    def reports_tokens(self) -> bool:
        return True

    @property
    def reports_cost(self) -> bool:
        return self.prices is not None


RunnerSpec = CommandSpec | AcpSpec | OpenAISpec


class Usage(Record):
    """What calls used. None = not known, which is not the same as nothing.

    Sums add up what is known; `unknown_tokens` and `unknown_cost` count the calls that did not
    say.
    """

    calls: int = 0
    seconds: float = 0.0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    unknown_tokens: int = 0
    unknown_cost: int = 0

    @property
    def tokens(self) -> int | None:
        if self.input_tokens is None and self.output_tokens is None:
            return None
        return (self.input_tokens or 0) + (self.output_tokens or 0)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            seconds=self.seconds + other.seconds,
            input_tokens=_plus(self.input_tokens, other.input_tokens),
            output_tokens=_plus(self.output_tokens, other.output_tokens),
            cost_usd=_plus(self.cost_usd, other.cost_usd),
            unknown_tokens=self.unknown_tokens + other.unknown_tokens,
            unknown_cost=self.unknown_cost + other.unknown_cost,
        )

    def as_call(self, seconds: float) -> Usage:
        """This usage as that of one call that took `seconds`."""
        return self.evolve(
            calls=1,
            seconds=seconds,
            unknown_tokens=int(self.tokens is None),
            unknown_cost=int(self.cost_usd is None),
        )

    def describe(self) -> str:
        """`3 calls, 4.2 min, 12,345 tokens (1 call unknown), cost unknown`"""
        tokens = "tokens unknown" if self.tokens is None else f"{self.tokens:,} tokens"
        cost = "cost unknown" if self.cost_usd is None else f"${self.cost_usd:.4f}"
        if self.tokens is not None and self.unknown_tokens:
            tokens += f" ({_calls(self.unknown_tokens)} unknown)"
        if self.cost_usd is not None and self.unknown_cost:
            cost += f" ({_calls(self.unknown_cost)} unknown)"
        return f"{_calls(self.calls)}, {self.seconds / 60:.1f} min, {tokens}, {cost}"


def _calls(count: int) -> str:
    return f"{count} call" if count == 1 else f"{count} calls"


def _plus(one: Any, other: Any) -> Any:
    return one if other is None else other if one is None else one + other


class Ending(StrEnum):
    """How one call of an agent ended."""

    FINISHED = "finished"
    ERROR = "agent_error"
    DENIED = "denied"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    SILENT = "silent"
    BUDGET = "budget"
    STOPPED = "stopped"
    MISSING = "missing"


class Turn(Record):
    """What one call of an agent came to. Nothing in it counts as proof of anything."""

    ending: Ending
    detail: str = Field(default="", description="why, when it did not finish")
    text: str = Field(default="", description="the agent's last answer, at most its last part")
    session: str = ""
    usage: Usage = Usage()
    exit_code: int | None = None
    seconds: float = 0.0
    circle: str = Field(default="", description="whose budget ended it: call, subtask, story, …")
    denied: tuple[str, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description="for example permissions and answers")

    @property
    def ok(self) -> bool:
        return self.ending is Ending.FINISHED


class Order(Record):
    """One call of an agent: what it is told, where it works, and what it may use."""

    prompt: NonEmpty
    cwd: NonEmpty
    folder: NonEmpty = Field(description="prompt, log and answer of this call are kept here")
    config_dir: NonEmpty = Field(description="this agent's own configuration folder")
    session: str = Field(default="", description="a session to go on with, empty = a new one")
    model: str = ""
    tools: tuple[str, ...] = ()
    seconds: PositiveFloat = 3600.0
    silence_seconds: PositiveFloat = 900.0
    memory_bytes: PositiveInt | None = Field(default=None, description="of its process tree")
    allowed_paths: tuple[str, ...] = Field(default=(), description="acp: below these it may write")
    allowed_commands: tuple[str, ...] = Field(default=(), description="acp: patterns of commands")
    env: dict[str, str] = Field(default_factory=dict, description="set for the agent")


class Call(Record):
    """One line of the ledger: an agent's call, also while it runs and after it died."""

    id: NonEmpty
    agent: NonEmpty
    definition: NonEmpty
    runner: NonEmpty
    role: Role
    story: StoryId
    task: TaskId
    attempt: int
    plan_version: int = 0
    step: int = Field(default=0, description="0 = no step of a plan, for example planning itself")
    started_at: Utc
    finished_at: Utc | None = None
    ending: Ending | None = Field(default=None, description="None = still running, or died")
    detail: str = ""
    session: str = ""
    usage: Usage = Usage()
    log: str = ""
