"""Does this folder hold an adapter, whole and sound, that fits this base model? Never loads it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from oodatcaa.errors import OodatcaaError
from oodatcaa.pool.base_shape import BLOCK, BaseShape, read_base
from oodatcaa.pool.dialects import CONFIG, Layout, part_of, read_layout, unsaid, weights_file
from oodatcaa.pool.records import AdapterInfo, AdapterModule
from oodatcaa.pool.tensors import FLOATS, Tensor, look_at, read_tensors, sha256_of

EMBEDDINGS = frozenset({"embed_tokens", "wte", "word_embeddings", "embedding", "embeddings"})
WHOLE = "copy the folder again, or train it again"
BASE = "serve it on the model that it was trained on"
CONFIG_OF_ITS_OWN = f"take the {CONFIG} that was saved with these weights"
FINITE = "train it again with a lower learning rate"


@dataclass
class _Parts:
    a: Tensor | None = None
    b: Tensor | None = None
    m: Tensor | None = None


@dataclass
class _Found:
    """What is known after reading; `problems` and `warnings` in the order they were met."""

    layout: Layout
    weights: Path
    base: BaseShape
    parts: dict[str, _Parts]
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def promised(self, problem: str) -> None:
        """Weights and configuration do not belong together."""
        self.problems.append(f"{problem}; {CONFIG_OF_ITS_OWN}")


def validate_adapter(path: Path, base_folder: Path) -> AdapterInfo:
    """The adapter in `path`, for the base model in `base_folder`.

    Raises OodatcaaError `pool.adapter` with every mismatch at once, and what `read_base` raises.
    """
    folder = path.expanduser().resolve()
    base = read_base(base_folder)
    if not folder.is_dir():
        raise _refused(path, base_folder, [f"{path} is not a folder"])
    layout, problems = read_layout(folder)
    weights = weights_file(folder, layout)
    if isinstance(weights, str):
        raise _refused(path, base_folder, [*problems, weights])
    tensors, wrong = read_tensors(weights)
    problems += wrong
    # Without a configuration the tensors are still held against the base.
    layout = layout or unsaid(weights.name, tensors)
    found = _Found(layout, weights, base, {}, problems)
    _sort(found, tensors)
    modules = tuple(_modules(found))
    _check_places(found)
    _check_values(found)
    if found.problems or not modules:
        raise _refused(path, base_folder, found.problems or [f"{weights.name} adapts no layer"])
    if not _same_model(layout.base_model, base_folder):
        found.warnings.append(f"{CONFIG} says that it was trained on {layout.base_model}")
    return _info(folder, found, modules)


def _same_model(named: str | None, base: Path) -> bool:
    """A moved folder keeps its name; shapes were checked already, so a doubt is a warning."""
    return named is None or Path(named).name == base.name or Path(named).resolve() == base.resolve()


def _refused(path: Path, base: Path, problems: list[str]) -> OodatcaaError:
    count = len(problems)
    return OodatcaaError(
        "pool.adapter",
        f"{path} can not be served on {base.name}: {problems[0]}"
        + (f" (and {count - 1} more)" if count > 1 else ""),
        hint="`oodatcaa models list` shows the adapters of each base model; train one for this "
        "base with `oodatcaa train`",
        details=problems,
    )


def _sort(found: _Found, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        part = part_of(name, found.layout.dialect)
        if part is None:
            if found.layout.dialect == "mlx" and part_of(name, "peft"):
                why = f"has PEFT's form, but {CONFIG} is mlx-lm's; take PEFT's own {CONFIG}"
            else:
                why = "is not an adapter tensor"
            found.problems.append(f"{name} {why}")
            continue
        parts = found.parts.setdefault(part[0], _Parts())
        if getattr(parts, part[1]) is not None:
            found.problems.append(f"{name} is there twice under different names; keep one of them")
        setattr(parts, part[1], tensor)


def _modules(found: _Found) -> Iterator[AdapterModule]:
    """Every adapted layer that fits; the problems of the others are noted."""
    for name, parts in sorted(found.parts.items()):
        before = len(found.problems)
        if parts.a is None:
            found.problems.append(f"{name} has a lora_b but no lora_a; {WHOLE}")
        if parts.b is None:
            found.problems.append(f"{name} has a lora_a but no lora_b; {WHOLE}")
        if parts.m is not None and not found.layout.dora:
            found.promised(f"{name} has a DoRA magnitude, but {CONFIG} says LoRA")
        if found.layout.dora and parts.m is None:
            found.promised(f"{name} has no magnitude, but {CONFIG} says DoRA")
        shape = found.base.find(name)
        if shape is None and not found.base.stacked_when_loaded(name):
            found.problems.append(f"the base model has no layer {name}; {BASE}")
        if parts.a is None or parts.b is None:
            continue
        rank = _check_shapes(found, name, parts.a, parts.b, parts.m, shape)
        scale = found.layout.scale_of(name)
        if len(found.problems) == before and rank and scale is not None:
            yield AdapterModule(
                name=name,
                a=parts.a.name,
                b=parts.b.name,
                magnitude=parts.m.name if parts.m else None,
                rank=rank,
                scale=scale,
                transposed=found.layout.dialect == "peft",
            )


def _check_shapes(
    found: _Found,
    name: str,
    a: Tensor,
    b: Tensor,
    m: Tensor | None,
    shape: tuple[int, ...] | None,
) -> int | None:
    """The rank of a layer's pair; mismatches are noted with what was expected."""
    experts = len(a.shape) == 3
    if len(a.shape) not in (2, 3) or len(b.shape) != len(a.shape):
        found.problems.append(f"{name}: lora_a {a.shape} and lora_b {b.shape} are no pair; {WHOLE}")
        return None
    # An embedding looks rows up: its "inputs" are the rows, and A is never transposed by mlx-lm.
    embedding = name.rpartition(".")[2] in EMBEDDINGS
    plain = found.layout.dialect == "mlx" and not experts
    (inputs, rank_a) = (a.shape[-2], a.shape[-1]) if plain else (a.shape[-1], a.shape[-2])
    (rank_b, outputs) = (b.shape[-2], b.shape[-1]) if plain else (b.shape[-1], b.shape[-2])
    if rank_a != rank_b:
        found.problems.append(
            f"{name}: lora_a has rank {rank_a}, lora_b has rank {rank_b}; {WHOLE}"
        )
    expected = found.layout.rank_of(name)
    if expected is not None and rank_a != expected:
        found.promised(f"{name}: its rank is {rank_a}, {CONFIG} says {expected}")
    if shape is not None:
        wanted = (shape[-2], shape[-1]) if not embedding else (shape[-1], shape[-2])
        if (outputs, inputs) != wanted or (experts and a.shape[0] != shape[0]):
            found.problems.append(
                f"{name}: it maps {inputs} to {outputs}, the base model's maps "
                f"{wanted[1]} to {wanted[0]}; {BASE}"
            )
        if m is not None and m.shape[-1:] != (wanted[0],):
            found.problems.append(f"{name}: its magnitude is {m.shape}, not ({wanted[0]},); {BASE}")
    return rank_a


def _check_places(found: _Found) -> None:
    """Blocks and keys: as the config says, none too many and none missing."""
    layout, total = found.layout, found.base.blocks
    keys = {m[2]: set[int]() for m in map(BLOCK.search, found.parts) if m}
    for match in filter(None, map(BLOCK.search, found.parts)):
        keys[match[2]].add(int(match[1]))
    present = set[int]().union(*keys.values())
    expected = set(layout.layers) if layout.layers is not None else None
    if layout.num_layers is not None:
        count = total if layout.num_layers <= 0 else layout.num_layers
        if count > total:
            found.problems.append(
                f"{CONFIG}: num_layers is {count}, the base has {total} blocks; {BASE}"
            )
        expected = set(range(max(0, total - count), total))
    if expected is not None and found.parts:
        if strange := sorted(present - expected):
            found.promised(f"blocks {_list(strange)} are adapted, {CONFIG} names others")
        if absent := sorted(expected - present):
            found.promised(f"blocks {_list(absent)} are not adapted, {CONFIG} says they are")
    for key in layout.keys or ():
        hits = {k: b for k, b in keys.items() if _is_key(k, key, layout.dialect)}
        outside = any(_is_key(name, key, layout.dialect) for name in found.parts)
        if not hits and not outside:
            found.promised(f"{CONFIG} names {key!r}, no tensor belongs to it")
        elif hits and layout.dialect == "mlx":
            absent = sorted((expected or present) & present - set[int]().union(*hits.values()))
            if absent:
                found.promised(f"{key} is missing in blocks {_list(absent)}")
    for key in sorted(keys) if layout.keys else ():
        if not any(_is_key(key, name, layout.dialect) for name in layout.keys or ()):
            found.promised(f"{key} is adapted, but {CONFIG} does not name it")


def _is_key(name: str, key: str, dialect: str) -> bool:
    return name == key or (dialect == "peft" and name.endswith(f".{key}"))


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:12])) + (", …" if len(numbers) > 12 else "")


def _check_values(found: _Found) -> None:
    zeros: list[bool] = []
    size = found.weights.stat().st_size
    for name, parts in sorted(found.parts.items()):
        for leaf, tensor in (("lora_a", parts.a), ("lora_b", parts.b), ("magnitude", parts.m)):
            if tensor is None:
                continue
            if tensor.dtype not in FLOATS:
                found.problems.append(
                    f"{name}: {leaf} is {tensor.dtype}, not floating point; {WHOLE}"
                )
            elif 0 <= tensor.start <= tensor.end <= size:
                values = look_at(found.weights, tensor)
                if not values.finite:
                    found.problems.append(
                        f"{name}: {leaf} has values that are not finite; {FINITE}"
                    )
                if leaf == "lora_b":
                    zeros.append(values.zero)
    if zeros and all(zeros):
        found.warnings.append("all lora_b are zero: it answers exactly as the base model does")


def _info(folder: Path, found: _Found, modules: tuple[AdapterModule, ...]) -> AdapterInfo:
    weights = sha256_of(found.weights)
    config = sha256_of(folder / CONFIG)
    places = [match for match in map(BLOCK.search, found.parts) if match]
    outside = {name for name in found.parts if not BLOCK.search(name)}
    largest = max(modules, key=lambda module: module.rank)
    return AdapterInfo(
        adapter_path=str(folder),
        base_model=found.layout.base_model,
        description=found.layout.description,
        dialect=found.layout.dialect,
        fine_tune_type="dora" if found.layout.dora else "lora",
        rank=largest.rank,
        scale=largest.scale,
        keys=tuple(sorted({match[2] for match in places} | outside)),
        num_layers=len({match[1] for match in places}),
        size_bytes=sum(
            t.bytes for p in found.parts.values() for t in (p.a, p.b, p.m) if t is not None
        ),
        content_hash=hashlib.sha256(f"{config} {weights}".encode()).hexdigest(),
        weights_sha256=weights,
        weights_file=found.weights.name,
        modules=modules,
        warnings=tuple(found.warnings),
    )
