"""The blocks of a model as its tensors show them: by shapes and numbering, not by known names.

A block is whatever repeats under a number (`model.layers.7.…`, `transformer.h.7.…`): the numbered
family with as many members as the configuration has layers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Protocol

from oodatcaa.domain.memory import BlockShape, Matrix

NUMBERED = re.compile(r"^(.*?\.)(\d+)\.(.+)$")


class Tensor(Protocol):
    @property
    def shape(self) -> list[int]: ...
    @property
    def elements(self) -> int: ...


def read_blocks(
    tensors: Mapping[str, Tensor], layers: int, group_of: Mapping[str, int]
) -> tuple[BlockShape, ...]:
    """Every block, first to last; () when the tensors show no family of `layers` blocks.

    `group_of` is the quantisation group of every packed weight by its name without `.weight`.
    """
    families: dict[str, dict[int, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for name in tensors:
        if match := NUMBERED.match(name):
            families[match[1]][int(match[2])].append((match[3], name))
    matching = [family for family in families.values() if len(family) == layers]
    if not matching:
        return ()
    family = max(matching, key=lambda family: sum(len(names) for names in family.values()))
    return tuple(_block(tensors, family[number], group_of) for number in sorted(family))


def _block(
    tensors: Mapping[str, Tensor], names: list[tuple[str, str]], group_of: Mapping[str, int]
) -> BlockShape:
    matrices, parameters, odd = [], 0, []
    for short, name in names:
        base, _, kind = name.rpartition(".")
        if kind in ("scales", "biases") and f"{base}.weight" in tensors:
            continue
        shape = list(tensors[name].shape)
        if kind == "weight" and base in group_of:
            shape[-1] = tensors[f"{base}.scales"].shape[-1] * group_of[base]
        count = 1
        for size in shape:
            count *= size
        parameters += count
        if len(shape) == 2:
            short = short.removesuffix(".weight")
            matrices.append(Matrix(name=short, rows=shape[0], columns=shape[1]))
        elif len(shape) > 2:
            odd.append(f"{short.removesuffix('.weight')} is {' x '.join(map(str, shape))}")
    return BlockShape(matrices=tuple(matrices), parameters=parameters, unknown=tuple(odd))
