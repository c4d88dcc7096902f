"""The live view on a terminal. Imported only there: rich costs start-up time.

While the crew works the view owns the terminal's alternate screen and paints it whole, so neither
a resize nor a narrow window can garble it; what stays afterwards is printed on the normal screen.
"""

from __future__ import annotations

from rich.box import ROUNDED
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from oodatcaa.app.activity import Activity
from oodatcaa.cli.scene import Scene, Training
from oodatcaa.domain.training import GB
from oodatcaa.views.units import count, duration, percent, words

MOST_NEWS = 12
BESIDE = 100
"""From this width on a training run's two bars stand on the lines of their figures."""
COLOURS = {
    "done": "green",
    "blocked": "dim",
    "needs_plan": "dim",
    "cancelled": "dim",
    "needs_human": "bold red",
    "needs_adapt": "magenta",
    "adapting": "magenta",
}


class Terminal:
    """Shows scenes until it is closed; then the last one stays on the screen."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._live = Live(
            console=self.console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def show(self, scene: Scene) -> None:
        if not self._live.is_started:
            self._live.start()
        self._live.update(Frame(scene), refresh=True)

    def close(self, scene: Scene | None) -> None:
        """Give the terminal back, also after an error; `scene` is what stays on it."""
        if self._live.is_started:
            # Some terminals keep lines of the alternate screen after a resize: leave it empty.
            self.console.control(Control.home(), Control.clear())
        self._live.stop()
        if scene is not None:
            self.console.print(Panel(Group(*_head(scene), Text(), *_stories(scene)), box=ROUNDED))


class Frame:
    """One scene, drawn to fill whatever room the terminal has when it is painted."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or console.size.height
        width = options.max_width - 4
        scene = self.scene
        body: list[RenderableType] = [*_head(scene)]
        room = height - 2 - len(body)
        for run in scene.training:
            lines = _training(run, width)
            if room >= len(lines) + 2:
                body += [Text(), *lines]
                room -= len(lines) + 1
        agents = _agents(scene, max(1, room - 1))
        body += [Text(), *agents]
        room -= len(agents) + 1
        if room >= 2:
            body += [Text(), *_news(scene, min(MOST_NEWS, room - 1))]
        yield Panel(
            Group(*body),
            box=ROUNDED,
            height=height,
            title=_line(f" oodatcaa {scene.state} "),
            title_align="left",
            subtitle=_line(" Ctrl-C stops cleanly "),
            subtitle_align="right",
        )


def plain(text: str) -> str:
    """One line without control codes or invisible marks, whatever an agent wrote."""
    return "".join(c if c.isprintable() else " " for c in text)


def _line(text: str, style: str = "") -> Text:
    return Text(plain(text), style=style, no_wrap=True, overflow="ellipsis")


def _head(scene: Scene) -> list[RenderableType]:
    state = scene.progress
    figures = (
        f"{state.stories_done} of {count(state.stories_total, 'story', 'stories')} integrated, "
        f"{percent(state.objective_percent / 100)} of the work, {_short(scene.running_seconds)}"
    )
    return [
        _line(scene.title, "bold"),
        _beside(figures, ProgressBar(100.0, max(0.0, state.objective_percent)), share=1),
        _story_line(scene),
    ]


def _story_line(scene: Scene) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for number, (name, status) in enumerate(scene.stories):
        line.append("  " if number else "")
        line.append(f"{name} {words(status)}", style=COLOURS.get(status, "cyan"))
    return line


def _stories(scene: Scene) -> list[RenderableType]:
    return [
        _line(f"{name}  {words(status)}", COLOURS.get(status, "cyan"))
        for name, status in scene.stories
    ]


def _beside(text: str, bar: RenderableType, *, share: int = 2) -> Table:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
    grid.add_column(ratio=share)
    grid.add_row(_line(text), bar)
    return grid


def _alone(bar: RenderableType) -> Table:
    """A bar does not end its line by itself."""
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_row(bar)
    return grid


def _training(run: Training, width: int) -> list[RenderableType]:
    now = run.now
    left = f", about {_short(run.left_seconds)} left" if run.left_seconds is not None else ""
    what = f"{now.phase} {run.task}  {now.iteration} of {now.iters} iterations{left}"
    figures = []
    if now.loss is not None:
        figures.append(f"loss {now.loss:.3f}")
    if now.valid_loss is not None:
        figures.append(f"valid {now.valid_loss:.3f}")
    if now.tokens_per_second is not None:
        figures.append(f"{now.tokens_per_second:.0f} tokens/s")
    used, limit = now.memory_bytes or 0, now.memory_limit_bytes
    memory = f"memory {used / GB:.2f} of {limit / GB:.1f} GB, most {run.peak_bytes / GB:.2f}"
    share = used / limit if limit else 0.0
    colour = "red" if share > 0.9 else "yellow" if share > 0.75 else "green"
    bars = (
        ProgressBar(max(1, now.iters), now.iteration),
        ProgressBar(1.0, min(1.0, share), complete_style=colour, finished_style="red"),
    )
    if width < BESIDE:
        return [
            _line(what, "bold"),
            _alone(bars[0]),
            _line("  ".join(figures) or "no figures yet"),
            _beside(memory, bars[1]),
        ]
    first = "  ".join([what, *figures])
    return [_beside(first, bars[0]), _beside(memory, bars[1])]


def _agents(scene: Scene, room: int) -> list[RenderableType]:
    """A line for each agent at work; those that wait share one line when room is short."""
    busy = [item for item in scene.agents if item.task]
    idle = [item for item in scene.agents if not item.task]
    if not scene.agents:
        return [_line("the agents are starting" if scene.state == "running" else "no agent works")]
    if len(scene.agents) <= room:
        return [_agent(item, scene) for item in (*busy, *idle)]
    lines = [_agent(item, scene) for item in busy[: max(1, room - bool(idle))]]
    if idle and len(lines) < room:
        lines.append(_line("waiting: " + ", ".join(item.agent for item in idle), "dim"))
    return lines


def _agent(item: Activity, scene: Scene) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(width=13, no_wrap=True, overflow="ellipsis")
    grid.add_column(width=9, no_wrap=True, overflow="ellipsis")
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_column(width=8, no_wrap=True, justify="right")
    since = _short((scene.at - item.since).total_seconds())
    text = item.text.removeprefix(item.task or f"nothing for the {item.role} yet;").strip()
    style = "" if item.task else "dim"
    grid.add_row(
        _line(item.agent, style),
        _line(item.task or "waits", style or "cyan"),
        _line(text, style),
        _line(since, "dim"),
    )
    return grid


def _news(scene: Scene, room: int) -> list[RenderableType]:
    return [_line(f"{at:%H:%M:%S}Z {who} {text}", "dim") for at, who, text in scene.news[-room:]]


def _short(seconds: float) -> str:
    """`42 s`, `3 min`, `1 h 05 min`: whole units, for a clock that is looked at all the time."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else duration(whole)
