"""The forecast: analytic terms scaled to what was measured, cached, and measured for real."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from oodatcaa.domain.memory import ModelShape
from oodatcaa.domain.qlora import FineTune, Optimizer, QLoRA
from oodatcaa.domain.training import TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.estimate import estimate_training, read_shape, step_terms
from oodatcaa.training.forecast import (
    MARGIN,
    SPREAD,
    SPREAD_BEYOND,
    ProbeCache,
    Probed,
    Step,
    answers,
    calibrate,
    family,
    forecast,
    probe_sizes,
)
from oodatcaa.training.formulas import Size, block_of
from oodatcaa.training.probing import (
    ENOUGH_SECONDS,
    MOST_STEPS,
    QUICK_SECONDS,
    STEPS,
    enough_steps,
    probe_params,
)
from oodatcaa.training.protocol import ProbePoint, ProbeRequest, ProbeSize
from oodatcaa.training.question import Question
from tiny_model import make_tiny_model

FEATURE = st.floats(1e6, 1e10)
FACTOR = st.floats(0.5, 2.0)
RUNTIME = 150_000_000
SAME = family("0" * 64, {"mlx": "1"}, "cpu", QLoRA())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@settings(deadline=None)
@given(st.lists(st.tuples(FEATURE, FEATURE), min_size=1, max_size=4), FACTOR)
def test_measurements_that_are_all_off_by_one_factor_are_met(
    rows: list[tuple[float, float]], factor: float
) -> None:
    peaks = [round(sum(row) * factor) for row in rows]
    scales = calibrate([Step(row, peak) for row, peak in zip(rows, peaks, strict=True)])
    assert all(scale >= 0 for scale in scales)
    for row, peak in zip(rows, peaks, strict=True):
        found = sum(f * s for f, s in zip(row, scales, strict=True))
        assert found == pytest.approx(peak, rel=0.02)


def test_small_steps_say_less_about_a_large_one() -> None:
    """They peak at another moment: in what a large step has freed when it comes to its own."""
    large, odd = Step((100e6, 900e6), 1_000_000_000), 300_000_000
    equal, less = (
        calibrate([large, Step((100e6, 100e6), odd, noise)]) for noise in (large.noise, 0.2)
    )
    assert abs(large.off(less)) < abs(large.off(equal))
    assert less[1] > equal[1]


def test_a_probe_on_fewer_cores_does_not_answer_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part of a batch has dense matrices and gradients of its own."""
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    one = family("0" * 64, {"mlx": "1"}, "cpu", QLoRA())
    monkeypatch.setenv("MKL_NUM_THREADS", "8")
    assert family("0" * 64, {"mlx": "1"}, "cpu", QLoRA()) != one


@given(st.integers(1, 64), st.integers(32, 8192), st.floats(0.05, 1), st.integers(64, 8192))
def test_probe_sizes_stay_within_target_and_budget(
    batch: int, length: int, share: float, budget: int
) -> None:
    target = Size(batch, length, max(1, round(batch * length * share)))
    sizes = probe_sizes(target, budget)
    assert 1 <= len(sizes) <= 4
    for size in sizes:
        assert size.batch <= target.batch
        assert size.length <= target.length
        assert size.targets <= target.targets + 1
    largest = max(size.batch * size.length for size in sizes)
    assert largest <= max(budget, 64)
    if target.tokens <= budget:
        assert largest == target.tokens


def point(batch: int, length: int, process: int, counted: int | None = None) -> ProbePoint:
    size = ProbeSize(batch=batch, length=length, targets=batch * length)
    mlx = process // 2 if counted is None else counted
    return ProbePoint(size=size, mlx_bytes=mlx, process_bytes=process, step_seconds=0.1)


def in_megabytes(measured: Sequence[tuple[int, int, int, int]]) -> tuple[ProbePoint, ...]:
    """Points of (batch, length, process, counted by MLX)."""
    return tuple(point(rows, length, a * 10**6, b * 10**6) for rows, length, a, b in measured)


def test_the_cache_keeps_points_and_the_larger_peak_and_survives_a_torn_file(
    tmp_path: Path,
) -> None:
    cache = ProbeCache(tmp_path)
    cache.add(Probed(family=SAME, points=(point(1, 64, 100),)))
    cache.add(Probed(family=SAME, points=(point(1, 64, 90), point(2, 64, 200))))
    assert {(p.size.batch, p.process_bytes) for p in cache.read(SAME).points} == {
        (1, 100),
        (2, 200),
    }
    other = {**SAME, "rank": "64"}
    assert cache.read(other).points == ()
    assert not answers(cache.read(other), Size(1, 64, 64))
    assert answers(cache.read(SAME), Size(8, 64, 64))
    assert not answers(cache.read(SAME), Size(9, 64, 64))
    assert answers(cache.read(SAME), Size(1, 128, 64))
    assert not answers(cache.read(SAME), Size(1, 160, 64)), "scores grow with the square"
    (file,) = tmp_path.glob("*.json")
    file.write_text(file.read_text()[:50])
    assert cache.read(SAME).points == ()


def test_a_run_that_adds_its_peak_leaves_what_is_known_of_loading(tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path)
    cache.add(Probed(family=SAME, points=(point(1, 64, 100),), loaded_process_bytes=90))
    cache.add(Probed(family=SAME, points=(point(2, 64, 120),)))
    assert cache.read(SAME).loaded_process_bytes == 90


@settings(deadline=None, max_examples=60)
@example(constant=1.0, growth=1.3125, batch=3, length=512)
@given(
    constant=st.floats(0.7, 1.4),
    growth=st.floats(0.7, 1.8),
    batch=st.integers(2, 8),
    length=st.sampled_from([128, 256, 512]),
)
def test_a_straight_line_is_found_beyond_what_was_measured(
    constant: float, growth: float, batch: int, length: int, tiny: Path
) -> None:
    shape, params = read_shape(tiny), QLoRA(rank=4, num_layers=4)

    def counted(size: Size | ProbeSize) -> int:
        at = Size(size.batch, size.length, size.targets)
        found = step_terms(shape, params, at, device="cpu")
        fixed = found.weights + found.trained
        return round(constant * fixed + growth * (found.kept + found.block + found.scores))

    def held(size: Size | ProbeSize) -> int:
        at = Size(size.batch, size.length, size.targets)
        return counted(size) + step_terms(shape, params, at, device="cpu").runtime

    target = Size(batch, length, batch * length)
    points = tuple(
        point(size.batch, size.length, held(size), counted(size))
        for size in probe_sizes(target, batch * length // 2)
    )
    found = forecast(Probed(family=SAME, points=points), shape, params, target, "cpu")
    # However far the terms are off.
    most = max(p.size.batch * p.size.length for p in points)
    near = min(p.size.length for p in points if p.size.batch * p.size.length == most)
    doublings = math.log2(max(target.tokens / most, target.length / near))
    known = SPREAD_BEYOND * max(1, doublings)
    margin = known if abs(growth - 1) < 0.1 else max(known, SPREAD + MARGIN * doublings)
    assert 0.98 < found.total_bytes / held(target) < 1 + margin + 0.015


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(30_000_000, 10**9), min_size=1, max_size=3),
    beside=st.lists(st.integers(0, 10**9), min_size=3, max_size=3),
    kind=st.sampled_from(list(FineTune)),
    checkpoint=st.booleans(),
    asked=st.integers(0, 2),
)
def test_what_was_measured_is_met_whatever_the_terms_make_of_it(
    counts: list[int],
    beside: list[int],
    kind: FineTune,
    checkpoint: bool,
    asked: int,
    tiny: Path,
) -> None:
    params = QLoRA(rank=4, num_layers=2, fine_tune_type=kind, grad_checkpoint=checkpoint)
    points = tuple(
        point(1, 64 * (number + 1), count + more, count)
        for number, (count, more) in enumerate(zip(counts, beside, strict=False))
    )
    probed = Probed(family=SAME, points=points, beside_bytes=12_000_000)
    asked = min(asked, len(points) - 1)
    length = points[asked].size.length
    found = forecast(probed, read_shape(tiny), params, Size(1, length, length), "cpu")
    most = max(p.process_bytes for p in points[: asked + 1])
    assert found.total_bytes >= most + probed.beside_bytes
    assert sum(part.bytes for part in found.parts) == found.total_bytes


@settings(deadline=None, max_examples=60)
@given(more=st.integers(0, 10**10))
def test_what_a_process_holds_beside_the_count_is_taken_along(more: int, tiny: Path) -> None:
    """Libraries, threads and the heap's holes: none of that tells how fast a step grows."""
    shape, params = read_shape(tiny), QLoRA(rank=4, num_layers=2)
    measured = {64: 60_000_000, 96: 75_000_000, 128: 90_000_000}

    def total(runtime: int) -> int:
        points = tuple(point(1, size, count + runtime, count) for size, count in measured.items())
        probed = Probed(family=SAME, points=points)
        return forecast(probed, shape, params, Size(1, 256, 256), "cpu").total_bytes

    assert total(RUNTIME) > RUNTIME + measured[128]
    # The terms do not fit these, and it is twice what was measured.
    wanted = total(RUNTIME) + (1 + SPREAD + MARGIN) * more
    assert total(RUNTIME + more) == pytest.approx(wanted, abs=10)


def test_what_dora_holds_for_any_batch_does_not_pass_for_growth() -> None:
    """Peaks of mlx-lm's own layers, as measured on 2 cores; a probe of 2 x 256 took 425 MB."""
    shape = ModelShape(
        model_type="gemma", hidden_size=256, intermediate_size=2048, num_layers=3, num_heads=4,
        num_kv_heads=1, head_dim=64, vocab_size=12000, tied_embeddings=True, weight_bytes=4662272,
        parameters=8283904, bits=4, group_size=64, tokenizer_bytes=7600,
    )  # fmt: skip
    params = QLoRA(
        fine_tune_type=FineTune.DORA, optimizer=Optimizer.ADAM, num_layers=3, mask_prompt=False
    )
    measured = [(1, 128, 246, 105), (1, 256, 299, 156), (2, 128, 323, 154)]
    points = in_megabytes(measured)
    probed = Probed(family=SAME, points=points)
    found = forecast(probed, shape, params, Size(2, 256, 512), "cpu", fast_cpu=False)
    assert 0.98 < found.total_bytes / (1 + SPREAD + MARGIN) / 425e6 < 1.05


def test_what_small_steps_hold_besides_is_not_taken_for_constant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Peaks that were measured on 2 cores; a run of 1 x 961 took 543 MB. By MLX's count its tokens
    took 340 KB each beyond 480, and 228 KB below: small steps peak at another moment."""
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    shape = ModelShape(
        model_type="llama", hidden_size=192, intermediate_size=832, num_layers=10, num_heads=3,
        num_kv_heads=3, head_dim=64, vocab_size=30720, tied_embeddings=True,
        weight_bytes=24338304, parameters=12169152, bits=None, tokenizer_bytes=7600,
    )  # fmt: skip
    params = QLoRA(fine_tune_type=FineTune.FULL, num_layers=7, mask_prompt=False, batch_size=1)
    probed = Probed(
        family=SAME,
        points=in_megabytes([(1, 224, 292, 147), (1, 352, 326, 176), (1, 480, 359, 206)]),
        loaded_process_bytes=199 * 10**6,
        loaded_mlx_bytes=73 * 10**6,
        beside_bytes=12 * 10**6,
    )
    found = forecast(probed, shape, params, Size(1, 961, 961), "cpu")
    assert 0.98 < found.total_bytes / 543e6 < 1.05


def test_gradients_of_all_weights_do_not_pass_for_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks that were measured on 2 cores; a run of 4 x 128 took 783 MB."""
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    shape = ModelShape(
        model_type="llama", hidden_size=512, intermediate_size=1408, num_layers=8, num_heads=8,
        num_kv_heads=4, head_dim=64, vocab_size=32000, tied_embeddings=True,
        weight_bytes=79971328, parameters=39985664, bits=None, tokenizer_bytes=7600,
    )  # fmt: skip
    params = QLoRA(fine_tune_type=FineTune.FULL, num_layers=-1, mask_prompt=False, batch_size=4)
    measured = [(1, 32, 582, 428), (1, 64, 584, 433), (2, 32, 601, 434)]
    probed = Probed(
        family=SAME,
        points=in_megabytes(measured),
        loaded_process_bytes=362 * 10**6,
        loaded_mlx_bytes=238 * 10**6,
        beside_bytes=13 * 10**6,
    )
    found = forecast(probed, shape, params, Size(4, 128, 512), "cpu")
    assert 0.98 < found.total_bytes / 783e6 < 1.05


def test_steps_that_needed_less_than_loading_say_nothing_of_how_fast_they_grow() -> None:
    """Peaks that were measured on 2 cores; a run of 4 x 256 itself took 484 MB."""
    shape = ModelShape(
        model_type="llama", hidden_size=512, intermediate_size=1408, num_layers=8, num_heads=8,
        num_kv_heads=4, head_dim=64, vocab_size=32000, tied_embeddings=True,
        weight_bytes=22504448, parameters=39985664, bits=4, group_size=64, tokenizer_bytes=7600,
    )  # fmt: skip
    params = QLoRA(num_layers=3, mask_prompt=False)

    def probed(*measured: tuple[int, int, int, int]) -> Probed:
        return Probed(
            family=SAME,
            points=in_megabytes(measured),
            loaded_process_bytes=305 * 10**6,
            loaded_mlx_bytes=143 * 10**6,
            beside_bytes=13 * 10**6,
        )

    loading = [(1, 32, 303, 131), (1, 64, 303, 141)]
    steps = [(2, 128, 324, 173), (2, 192, 352, 195), (2, 256, 370, 214)]
    target = Size(4, 256, 1024)
    found = forecast(probed(*loading, *steps), shape, params, target, "cpu")
    assert 484e6 < found.total_bytes < 484e6 * 1.06
    assert found == forecast(probed(*steps), shape, params, target, "cpu").evolve(
        method=found.method
    )
    small = forecast(probed(*loading, *steps), shape, params, Size(1, 32, 32), "cpu")
    assert small.total_bytes >= 305e6, "it is loaded all the same"
    unseen = forecast(probed(*loading), shape, params, target, "cpu")
    assert unseen.total_bytes > 484e6, "better over than under"


SOFT_CAPPED = ModelShape(
    model_type="gemma2", hidden_size=512, intermediate_size=1536, num_layers=6, num_heads=8,
    num_kv_heads=4, head_dim=64, vocab_size=32000, tied_embeddings=True, weight_bytes=22_000_000,
    parameters=39_000_000, bits=4, group_size=64, tokenizer_bytes=7600, dense_logits=True,
)  # fmt: skip


@pytest.mark.parametrize("fast_cpu", [True, False])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_logits_that_a_model_changes_grow_with_the_batch(checkpoint: bool, fast_cpu: bool) -> None:
    """A soft cap or a scale: their loss is not in tiles, and is most of what a step takes."""
    params = QLoRA(num_layers=4, mask_prompt=False, grad_checkpoint=checkpoint)

    def peak(size: Size) -> int:
        terms = step_terms(SOFT_CAPPED, params, size, device="cpu", fast_cpu=fast_cpu)
        return terms.weights + terms.trained + terms.kept + terms.moment

    def probed(*sizes: ProbeSize) -> Probed:
        counts = [peak(Size(size.batch, size.length, size.targets)) for size in sizes]
        points = [
            point(size.batch, size.length, count + RUNTIME, count)
            for size, count in zip(sizes, counts, strict=True)
        ]
        return Probed(family=SAME, points=tuple(points))

    target = Size(1, 1024, 1024)
    known = probed(*probe_sizes(target, 256))
    found = forecast(known, SOFT_CAPPED, params, target, "cpu", fast_cpu=fast_cpu)
    assert 1 <= found.total_bytes / (peak(target) + RUNTIME) < 1.15


@pytest.mark.parametrize("device", ["cpu", "metal"])
@pytest.mark.parametrize("growth", [1, 2, 4])
def test_blocks_that_the_estimate_does_not_know_may_grow_as_they_like(
    growth: int, device: str
) -> None:
    """Experts, say: what a token takes there is not in the terms."""
    known = SOFT_CAPPED.evolve(dense_logits=False, weight_bytes=2 * 10**9)
    block = block_of(known).evolve(unknown=("mlp.experts",))
    shape = known.evolve(blocks=(block,) * known.num_layers)
    params = QLoRA(num_layers=4, mask_prompt=False)

    def count(size: Size) -> int:
        terms = step_terms(shape, params, size, device=device)
        return terms.weights + terms.trained + growth * terms.kept + terms.moment

    target = Size(4, 1024, 4096)
    points = []
    for one in probe_sizes(target, 2048):
        counted = count(Size(one.batch, one.length, one.targets))
        points.append(point(one.batch, one.length, counted + RUNTIME, counted))
    found = forecast(Probed(family=SAME, points=tuple(points)), shape, params, target, device)
    margin = SPREAD + MARGIN
    assert 0.98 < found.total_bytes / (count(target) + RUNTIME) / (1 + margin) < 1.01


def test_rows_that_are_longer_have_a_margin_though_the_tokens_are_as_many(tiny: Path) -> None:
    shape, params = read_shape(tiny), QLoRA(rank=4, num_layers=2)
    probed = Probed(family=SAME, points=(point(4, 64, 10**9),))

    def margin(target: Size, *, fast_cpu: bool) -> float:
        found = forecast(probed, shape, params, target, "cpu", fast_cpu=fast_cpu)
        runtime = found.parts[-1].formula
        return float(runtime.split(" x ")[1].split()[0]) - 1

    same, longer = Size(2, 128, 256), Size(1, 256, 256)
    for fast_cpu in (True, False):
        assert margin(same, fast_cpu=fast_cpu) < margin(longer, fast_cpu=fast_cpu)
    assert margin(same, fast_cpu=False) >= margin(same, fast_cpu=True)


def test_what_was_counted_is_not_forecast_lower(tiny: Path) -> None:
    shape, params = read_shape(tiny), QLoRA(rank=4, num_layers=2)
    counts = {64: 6_000_000, 96: 9_500_000, 128: 9_000_000}
    points = tuple(point(1, size, count + RUNTIME, count) for size, count in counts.items())
    for size in counts:
        found = forecast(
            Probed(family=SAME, points=points), shape, params, Size(1, size, size), "cpu"
        )
        assert (found.mlx_peak_bytes or 0) >= counts[size]


def test_a_forecast_is_never_under_a_smaller_size_that_was_measured(tiny: Path) -> None:
    shape, params = read_shape(tiny), QLoRA(rank=4, num_layers=2)
    probed = Probed(family=SAME, points=(point(1, 64, 10**9), point(1, 128, 2 * 10**9)))
    small = forecast(probed, shape, params, Size(1, 64, 64), "cpu")
    large = forecast(probed, shape, params, Size(2, 128, 256), "cpu")
    assert 10**9 <= small.total_bytes < 1.05 * 10**9, "the nearest peak counts, not the largest"
    assert large.total_bytes >= 2 * 10**9
    assert large.source == "probe"
    assert sum(part.bytes for part in large.parts) == large.total_bytes


@pytest.mark.parametrize("kind", list(FineTune))
@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_every_kind_and_optimizer_has_an_estimate(
    tiny: Path, kind: FineTune, optimizer: Optimizer
) -> None:
    found = estimate_training(read_shape(tiny), QLoRA(fine_tune_type=kind, optimizer=optimizer))
    assert found.total_bytes == sum(part.bytes for part in found.parts)
    assert found.unknown == ()


def test_a_probe_of_slow_steps_ends_with_the_second_update() -> None:
    why = enough_steps(QLoRA(grad_accumulation_steps=2))
    assert [bool(why(iteration, ENOUGH_SECONDS)) for iteration in range(1, 6)] == [
        False, False, False, True, False,
    ]  # fmt: skip
    assert not why(4, ENOUGH_SECONDS - 1)


def test_a_probe_of_quick_steps_goes_on_for_a_moment() -> None:
    """Where rows are side by side the largest moments of both meet only now and then."""
    why = enough_steps(QLoRA())
    assert not why(STEPS, QUICK_SECONDS / 2)
    assert not why(STEPS - 1, QUICK_SECONDS)
    assert why(STEPS, QUICK_SECONDS)
    request = ProbeRequest(
        spec=TrainSpec(model="-", data_dir="-", params=QLoRA()),
        size=ProbeSize(batch=1, length=64, targets=64),
        vocab_size=300,
    )
    assert probe_params(request).iters == MOST_STEPS > STEPS


def test_a_probe_measures_the_real_thing_once_and_then_answers(tiny: Path, tmp_path: Path) -> None:
    params = QLoRA(
        rank=4, num_layers=2, batch_size=2, max_seq_length=128, mask_prompt=False,
        grad_checkpoint=True, fine_tune_type=FineTune.DORA, optimizer=Optimizer.ADAFACTOR,
    )  # fmt: skip
    spec = TrainSpec(model=str(tiny), data_dir="-", params=params)
    asked = Question(spec, tiny, ProbeCache(tmp_path / "probes"))
    found = asked.measure(128)
    assert {(p.size.batch, p.size.length) for p in asked.probed.points} == {
        (1, 128),
        (1, 64),
        (2, 64),
    }
    assert asked.probed.loss.startswith("targets only")
    assert found.source == "probe"
    assert 100e6 < found.total_bytes < 400e6
    again = Question(spec, tiny, ProbeCache(tmp_path / "probes"))
    assert again.known
    assert again.answer() == found
    assert again.largest_batch(128) > 2


@pytest.mark.slow
def test_what_is_made_before_the_first_step_counts_as_loading(tiny: Path, tmp_path: Path) -> None:
    """The output layer in float32, above all."""
    wide = tmp_path / "wide"
    shutil.copytree(tiny, wide)
    config = json.loads((wide / "config.json").read_text())
    rows = 200 * config["vocab_size"]
    (wide / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    tensors = load_file(wide / "model.safetensors")
    for name in tensors:
        if "embed_tokens" in name:
            tensors[name] = np.tile(tensors[name], (200, 1))
    save_file(tensors, wide / "model.safetensors", metadata={"format": "mlx"})
    params = QLoRA(num_layers=3, batch_size=1, max_seq_length=128, mask_prompt=False)
    spec = TrainSpec(model=str(wide), data_dir="-", params=params)
    asked = Question(spec, wide, ProbeCache(tmp_path / "probes"))
    asked.measure(128)
    assert asked.probed.loaded_mlx_bytes > 4 * rows * config["hidden_size"]
    assert asked.probed.beside_bytes < 4 * rows * config["hidden_size"], "nor what is done after it"


def test_full_fine_tuning_of_quantised_weights_is_refused(tiny: Path, tmp_path: Path) -> None:
    params = QLoRA(num_layers=2, fine_tune_type=FineTune.FULL)
    spec = TrainSpec(model=str(tiny), data_dir="-", params=params)
    with pytest.raises(OodatcaaError) as caught:
        Question(spec, tiny, ProbeCache(tmp_path)).measure(64)
    assert caught.value.code == "train.bad_params"
    assert "quantised" in caught.value.message


def test_two_that_measure_at_once_keep_each_others_points(tmp_path: Path) -> None:
    same = {"model": "m"}

    def measure(worker: int) -> None:
        cache = ProbeCache(tmp_path / "probes")
        for turn in range(15):
            size = ProbeSize(batch=worker + 1, length=32 * (turn + 1), targets=1)
            point = ProbePoint(size=size, mlx_bytes=1, process_bytes=1, step_seconds=0.0)
            cache.add(Probed(family=same, points=(point,)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(measure, range(4)))
    assert len(ProbeCache(tmp_path / "probes").read(same).points) == 60
