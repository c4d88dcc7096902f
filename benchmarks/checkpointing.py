"""`make bench-checkpointing`: peak and step time by how many blocks are computed again.

Each point is a probe of the mlx backend: real steps of a random model in a child under the watch.
The table goes into docs/benchmarks.md with `--write`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from memory import write_data
from page import measured_with, write_section
from random_model import config, write_model

from oodatcaa.domain.checkpointing import with_recomputed
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import GB, TrainSpec
from oodatcaa.training.forecast import ProbeCache
from oodatcaa.training.protocol import ProbePoint
from oodatcaa.training.question import Question

BLOCKS = 8
MODEL = config("llama", 256, BLOCKS, 4, 4, 704, 4000, tied=True)
PARAMS = QLoRA(num_layers=-1, batch_size=4, max_seq_length=256, mask_prompt=False)
COUNTS = (0, 1, BLOCKS // 2, BLOCKS - 1, BLOCKS)
ROUNDS = 3


def measure(work: Path, model: Path, data: Path, count: int, turn: int) -> tuple[ProbePoint, int]:
    """A point of the very batch, measured anew, and the analytic estimate of the process tree."""
    spec = TrainSpec(
        model=str(model),
        data_dir=str(data),
        params=with_recomputed(PARAMS, count, BLOCKS),
        memory_limit_bytes=4 * GB,
    )
    asked = Question(spec, model, ProbeCache(work / f"probes-{turn}"))
    asked.measure(asked.size.tokens)
    (point,) = asked.probed.points
    return point, asked.analytic.total_bytes


def table(found: dict[int, list[tuple[ProbePoint, int]]]) -> str:
    lines = [
        "## Checkpointing some of the blocks",
        "",
        measured_with("make bench-checkpointing", ("mlx", "mlx-lm")),
        "",
        f"A random 4-bit Llama, {BLOCKS} blocks of hidden size 256, all trained with LoRA of rank "
        f"{PARAMS.rank}, batches of {PARAMS.batch_size} x {PARAMS.max_seq_length} tokens on the "
        f"CPU. Largest peak and fastest step of {ROUNDS} interleaved probes. Peaks repeat within "
        "2%; step times on a busy machine do not, and then the order "
        "of the last column says nothing.",
        "",
        "| blocks computed again | MLX's counter, MB | process, MB | estimate, MB | s a step |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for count, points in found.items():
        mlx = max(point.mlx_bytes for point, _ in points) / 1e6
        process = max(point.process_bytes for point, _ in points) / 1e6
        seconds = min(point.step_seconds for point, _ in points)
        shown = f"{count} of {BLOCKS}"
        lines.append(
            f"| {shown} | {mlx:.0f} | {process:.0f} | {points[0][1] / 1e6:.0f} | {seconds:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    given = parser.parse_args()
    found: dict[int, list[tuple[ProbePoint, int]]] = {count: [] for count in COUNTS}
    with tempfile.TemporaryDirectory(prefix="bench-checkpointing-") as name:
        work = Path(name)
        model = write_model(work / "model", MODEL)
        data = write_data(work / "data", PARAMS.max_seq_length, PARAMS.batch_size)
        for turn in range(ROUNDS):
            for count in COUNTS:
                found[count].append(measure(work, model, data, count, turn))
                point = found[count][-1][0]
                print(count, point.mlx_bytes, f"{point.step_seconds:.2f} s", flush=True)
    print(table(found))
    if given.write:
        write_section("bench-checkpointing", table(found))


if __name__ == "__main__":
    main()
