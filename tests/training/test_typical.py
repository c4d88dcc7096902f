"""The batch that a step is timed with is what an epoch's batches are on average."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.training.examples import Example, arrange, training_batches
from oodatcaa.training.packing import arrange_rows, packed_batches
from oodatcaa.training.tokens import Lengths
from oodatcaa.training.typical import filling, typical_size

shapes = st.lists(
    st.integers(2, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
    min_size=1,
    max_size=40,
)


@given(shapes, st.integers(1, 4), st.booleans())
def test_it_is_the_mean_of_the_first_epoch(
    found: list[tuple[int, int]], batch: int, packing: bool
) -> None:
    lengths = [Lengths(total, target) for total, target in found]
    data = [Example((0,) * total, total - target) for total, target in found]
    params = QLoRA(batch_size=batch, max_seq_length=224, packing=packing, seed=3)
    widths, rows, targets, seen = [], 0, 0, 0
    if packing:
        for packed, _ in packed_batches(data, 224, batch, 3):
            widths.append(arrange_rows(packed, 224).arrays.inputs.shape[1])
            rows += len(packed)
            targets += sum(e.targets for row in packed for e in row)
            seen += sum(map(len, packed))
            if seen == len(data):
                break
    else:
        for examples, _ in training_batches(data, batch, 3):
            widths.append(arrange(examples, 224).inputs.shape[1])
            rows += batch
            if rows >= len(data):
                break
    size = typical_size(params, lengths)
    assert abs(size.batch - rows / len(widths)) <= 0.5
    assert 0 <= size.length - round(sum(widths) / len(widths)) < 32
    if packing:
        assert abs(size.targets - targets / len(widths)) <= 1


def test_how_well_rows_are_filled_decides_what_packing_saves() -> None:
    assert filling(QLoRA(), []) is None
    short = [Lengths(n, 5) for n in (40, 41, 42, 43) * 10]
    found = filling(QLoRA(max_seq_length=256, batch_size=4), short)
    assert found is not None
    assert found.packed > 0.9
    assert 5.5 < found.examples_per_row < 6.5
