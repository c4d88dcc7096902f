"""What the frozen blocks make of an example, computed once and kept on disk.

Nothing below the first trained block changes in a training, so from the second time on an example
costs only the trained blocks. Each example goes through the frozen blocks alone, padded as it would
be in a batch of its own: what is kept depends on the example and on nothing else, so a run that was
killed and begins with an empty cache computes the very same bits. Blocks of language models look
backwards only: what stands behind or beside an example in a batch does not matter.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from oodatcaa.kit.machine import in_memory
from oodatcaa.training.examples import Example, arrange
from oodatcaa.training.mlx.packed import counts_length
from oodatcaa.training.mlx.prefix import FrozenPrefix
from oodatcaa.training.mlx.team import Team
from oodatcaa.training.packing import Row, positions_of, too_far
from oodatcaa.training.progress import DISK_FULL

SHARE = 0.5
"""Of the free disk, that the cache may take: checkpoints need room, too."""

Bits = np.ndarray[Any, np.dtype[Any]]


class FrozenCache:
    """Gives batches the input of the first trained block. Close it; its file has no name, so that
    also a killed process leaves nothing behind."""

    def __init__(
        self,
        folder: Path,
        network: Any,
        prefix: FrozenPrefix,
        team: Team | None,
        max_seq_length: int,
        most_bytes: int | None = None,
    ) -> None:
        """`most_bytes` of the file in `folder`: SHARE of what is free unless given. What does not
        fit is computed anew each time."""
        self.found = self.computed = self.size = 0
        self._network, self._prefix, self._team = network, prefix, team
        self._longest = max_seq_length
        free = round(SHARE * shutil.disk_usage(folder).free)
        self._most = free if most_bytes is None else most_bytes
        self._told = in_memory(folder)
        if self._told:
            print(
                f"cache_frozen: {folder} is in memory, not on a disk: nothing is kept", flush=True
            )
            self._most = 0
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - see `close`
        self._places: dict[tuple[int, ...], tuple[int, int]] = {}
        """By tokens: where in the file, and the checksum."""
        self._dtype = mx.float32
        self._width = 0

    def close(self) -> None:
        """Gives the disk back, with a word on what it was good for."""
        print(
            f"cache_frozen: {len(self._places)} examples in {self.size / 1e6:.1f} MB of disk, "
            f"computed {self.computed} times, found {self.found} times",
            flush=True,
        )
        self._file.close()

    def unfit(self, examples: Sequence[Example]) -> str:
        """Why one of `examples` is not, in a padded batch of them, what it is alone; empty when
        each is. Nothing is assumed of an architecture."""
        tokens = mx.array(arrange(examples, self._longest).inputs)
        if counts_length(self._network, tokens.shape[1]):
            return "its rotary embedding depends on the length of a row"
        together = self._prefix.run(self._network, tokens)
        alone = self.hidden([[one] for one in examples], tokens.shape[1])
        for row, one in enumerate(examples):
            own, other = (a[row, : positions_of(one)].astype(mx.float32) for a in (alone, together))
            size = mx.maximum(mx.linalg.norm(own, axis=-1), 1e-20)
            distance = float((mx.linalg.norm(own - other, axis=-1) / size).max())
            if too_far(distance, half=alone.dtype != mx.float32):
                return f"an example differs by {distance:.1%} beside another one"
        return ""

    def hidden(self, rows: Sequence[Row], length: int) -> mx.array:
        """[rows, length, hidden], evaluated, for rows of one or several examples.

        Positions behind the last example repeat its last one. Raises OSError for a disk that
        fails; a full one only ends the keeping.
        """
        wanted = {example.tokens: example for row in rows for example in row}
        missing = [one for tokens, one in wanted.items() if tokens not in self._places]
        self.computed += len(missing)
        self.found += len(wanted) - len(missing)
        fresh = self._compute(missing)
        for tokens, bits in fresh.items():
            self._keep(tokens, bits)
        found = np.empty((len(rows), length, self._width), self._kind)
        for number, row in enumerate(rows):
            first = 0
            for example in row:
                end = first + positions_of(example)
                new = fresh.get(example.tokens)
                found[number, first:end] = self._read(example) if new is None else new
                first = end
            found[number, first:] = found[number, first - 1]
        result = mx.array(found).view(self._dtype)
        mx.eval(result)
        return result

    def _compute(self, missing: Sequence[Example]) -> dict[tuple[int, ...], Bits]:
        if not missing:
            return {}
        if self._team is None:
            return self._each(self._network, missing)
        # Longest first, each to the part with the least so far: all end at about the same time.
        parts: list[list[Example]] = [[] for _ in range(min(self._team.size, len(missing)))]
        for one in sorted(missing, key=positions_of, reverse=True):
            min(parts, key=lambda part: sum(map(positions_of, part))).append(one)
        trainable = self._network.trainable_parameters()
        # Always the threads of a full team for a product: their number shapes the last bits.
        done = self._team.each(self._each, parts, trainable, divided_by=self._team.size)
        return {tokens: bits for found in done for tokens, bits in found.items()}

    def _each(self, network: Any, examples: Sequence[Example]) -> dict[tuple[int, ...], Bits]:
        return {one.tokens: self._alone(network, one) for one in examples}

    def _alone(self, network: Any, example: Example) -> Bits:
        tokens = mx.array(arrange([example], self._longest).inputs)
        hidden = self._prefix.run(network, tokens)[0, : positions_of(example)]
        self._dtype, self._width = hidden.dtype, hidden.shape[-1]
        return np.array(hidden if hidden.dtype == mx.float32 else hidden.view(mx.uint16))

    @property
    def _kind(self) -> Any:
        # numpy has no bfloat16: its bits are kept.
        return np.float32 if self._dtype == mx.float32 else np.uint16

    def _keep(self, tokens: tuple[int, ...], bits: Bits) -> None:
        if self.size + bits.nbytes > self._most:
            self._say_full()
            return
        data, done = bits.tobytes(), 0
        try:
            while done < len(data):
                done += os.pwrite(self._file.fileno(), data[done:], self.size + done)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            self._most = self.size
            self._say_full()
            return
        self._places[tokens] = self.size, zlib.crc32(data)
        self.size += bits.nbytes

    def _say_full(self) -> None:
        if not self._told:
            self._told = True
            what = f"{len(self._places)} examples in {self.size / 1e6:.1f} MB"
            print(f"cache_frozen: as large as the disk lets it be, {what}", flush=True)

    def _read(self, example: Example) -> Bits:
        shape = (positions_of(example), self._width)
        left = math.prod(shape) * np.dtype(self._kind).itemsize
        place, checksum = self._places[example.tokens]
        parts = []
        while left:
            parts.append(os.pread(self._file.fileno(), left, place))
            if not parts[-1]:
                raise OSError(f"the cache of frozen blocks ends at {place} bytes")
            left, place = left - len(parts[-1]), place + len(parts[-1])
        data = b"".join(parts)
        if zlib.crc32(data) != checksum:
            # What the kernel can not write back later it drops, and tells nobody who reads.
            raise OSError(
                "the cache of frozen blocks: the disk does not give back what was written"
            )
        return np.frombuffer(data, self._kind).reshape(shape)
