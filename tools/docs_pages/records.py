"""Tables of keys from the pydantic records: name, type, default, meaning."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs_pages.tables import table
from oodatcaa.domain.agents import AcpSpec, AgentDefinition, CommandSpec, OpenAISpec
from oodatcaa.domain.evidence import OPERATORS, UNITS
from oodatcaa.domain.gate_presets import PRESETS
from oodatcaa.domain.objective import METRICS, Objective
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.training import RunRecord
from oodatcaa.gates.variables import EXPORTED
from oodatcaa.kit.config import Config
from oodatcaa.views.markdown import code, prose

MADE_BY_THE_PARSER = ("memory_limit_bytes", "memory_limit_text", "body", "sha256")
"""Fields of Objective that are no keys of the front matter."""
NOT_EMPTY = "not empty"
_MARKS: dict[Any, str] = {tuple: "[].", dict: ".NAME."}
PLAIN = {Any: "any", str: "text", int: "integer", float: "number", bool: "true or false"}


@dataclass(frozen=True)
class Key:
    """One documented key. `path` is dotted; a list of tables is written `quality[].name`."""

    path: str
    kind: str
    default: str
    about: str
    record: type[BaseModel] | None = None


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Every key of a record, those of nested records after the key that holds them."""
    for name, field in model.model_fields.items():
        nested = _record_in(field.annotation)
        path = f"{prefix}{name}"
        yield Key(path, _type(field), _default(field, nested), field.description or "", nested)
        if nested is not None:
            mark = _MARKS.get(typing.get_origin(field.annotation) or object, ".")
            yield from keys(nested, f"{path}{mark}")


def _record_in(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *typing.get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _type(field: FieldInfo) -> str:
    text = _kind(field.annotation)
    limits = [limit for item in field.metadata if (limit := _limit(item))]
    bounds = " ".join(one for one in limits if one != NOT_EMPTY)
    parts = [f"{text} {bounds}".rstrip(), *(one for one in limits if one == NOT_EMPTY)]
    return ", ".join(parts)


def _limit(item: Any) -> str:
    if isinstance(item, annotated_types.Gt):
        return f"> {item.gt}"
    if isinstance(item, annotated_types.Ge):
        return f">= {item.ge}"
    if isinstance(item, annotated_types.Lt):
        return f"< {item.lt}"
    if isinstance(item, annotated_types.Le):
        return f"<= {item.le}"
    if isinstance(item, annotated_types.MinLen):
        return NOT_EMPTY
    return ""


def _kind(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        limits = [limit for item in arguments[1:] if (limit := _limit(item))]
        return " ".join([_kind(arguments[0]), *(one for one in limits if one != NOT_EMPTY)])
    if origin is Literal:
        return " | ".join(code(str(one)) for one in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(one) for one in arguments if one is not type(None))
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"names to {_kind(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " | ".join(code(str(one.value)) for one in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return PLAIN.get(annotation, "time (UTC)" if "datetime" in str(annotation).lower() else "text")


def _default(field: FieldInfo, nested: type[BaseModel] | None) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if nested is not None and value:
        return "as below"
    if value is None:
        return "none"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, (tuple, dict)):
        listed = [getattr(one, "value", one) for one in value]
        return code(str(listed).replace("'", '"')) if value else "empty"
    return code(str(value)) if value != "" else "empty"


def _table(found: typing.Iterable[Key]) -> str:
    rows = [(code(key.path), key.kind, key.default, prose(key.about)) for key in found]
    return table(["Key", "Type", "Default", "Meaning"], rows)


def configuration_keys() -> tuple[Key, ...]:
    return tuple(keys(Config))


def configuration() -> str:
    """One section per table of config.toml."""
    found = configuration_keys()
    top = [key for key in found if "." not in key.path and key.record is None]
    parts = ["### Top level\n\n" + _table(top)]
    for table_key in (key for key in found if "." not in key.path and key.record is not None):
        below = [key for key in found if key.path.startswith(f"{table_key.path}.")]
        about = prose(table_key.about)
        parts.append(f"### `[{table_key.path}]`\n\n{about}\n\n{_table(below)}")
    return "\n\n".join(parts)


def objective_front_matter() -> tuple[Key, ...]:
    """What may stand in the front matter."""
    limit = Key(
        "memory_limit",
        "size",
        code("16GB"),
        "the hard limit for every process of a training run; decimal GB (10^9) or binary GiB",
    )
    found = [key for key in keys(Objective) if key.path.partition(".")[0] not in MADE_BY_THE_PARSER]
    lines = []
    for key in found:
        if key.path.startswith("acceptance["):
            continue
        if key.path == "acceptance":
            text = code('["test_loss_drop >= 0.1", "peak_memory <= 16GB critical"]')
            key = Key(key.path, "list of bounds, not empty", text, key.about)
        lines.append(key)
        if key.path == "data":
            lines.append(limit)
    return tuple(lines)


def objective_keys() -> str:
    return _table(objective_front_matter())


def metrics() -> str:
    return table(["Metric", "Meaning"], [(code(k), prose(v)) for k, v in METRICS.items()])


def bounds() -> str:
    listed = ", ".join(code(operator) for operator in OPERATORS)
    return f"`METRIC OPERATOR NUMBER[UNIT] [critical]`, where the operator is one of {listed}."


def units() -> str:
    rows = [(code(name) if name else "none", _factor(factor)) for name, factor in UNITS.items()]
    return table(["Unit", "Multiplied by"], rows)


def _factor(factor: float) -> str:
    return f"{factor:,.0f}".replace(",", " ") if factor >= 1 else f"{factor:g}"


def plan_record() -> str:
    """The plan and each record inside it, once."""
    return _linked(Plan)


def agent_definition() -> str:
    """The front matter of agents/<name>.md."""
    found = [key for key in keys(AgentDefinition) if key.path not in ("prompt", "source")]
    return _table(found)


def runner_kinds() -> str:
    """What a [runners.NAME] table may hold, by its kind."""
    return _linked(CommandSpec, AcpSpec, OpenAISpec)


def _linked(*models: type[BaseModel]) -> str:
    """One section a record, those inside them after them; each named once and linked."""
    todo: list[type[BaseModel]] = list(models)
    parts = []
    for model in todo:
        own = []
        for name, field in model.model_fields.items():
            below = _records_below(field.annotation)
            todo += [one for one in below if one not in todo]
            shown = _type(field)
            for one in below[:1]:
                shown = shown.replace("table", f"[{one.__name__}](#{one.__name__.lower()})")
            default = _nested_default(field) if below else _default(field, None)
            own.append((code(name), shown, default, prose(field.description or "")))
        about = prose((model.__doc__ or "").partition("\n\n")[0])
        lines = table(["Key", "Type", "Default", "Meaning"], own)
        parts.append("\n\n".join(filter(None, [f"### {model.__name__}", about, lines])))
    return "\n\n".join(parts)


def _records_below(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for part in typing.get_args(annotation) for one in _records_below(part)]


def _nested_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else "empty" if value in ((), {}) else "its defaults"


def run_record() -> str:
    return _table(key for key in keys(RunRecord) if not key.path.startswith("params."))


def gate_presets() -> str:
    """The tools whose exit codes and findings are known."""
    rows = [
        (
            code(name),
            prose(preset.title),
            code(preset.command),
            ", ".join(map(str, preset.findings_codes)) or "none",
            f"{preset.unit}, {preset.better} is better" if preset.counting else "not counted",
            str(preset.timeout_seconds),
        )
        for name, preset in PRESETS.items()
    ]
    headers = ("Preset", "Title", "Command", "Exit codes of findings", "Baseline", "Seconds")
    return table(headers, rows)


def gate_variables() -> str:
    rows = [(code("{" + name + "}"), code(variable)) for name, variable in EXPORTED.items()]
    return table(["In a command", "In its environment"], rows)
