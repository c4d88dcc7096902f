"""Shapes are read without loading; the estimate follows its formulas and refuses in time."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oodatcaa.domain.memory import MemoryEstimate, MemoryLayer, ModelShape
from oodatcaa.domain.qlora import FineTune, QLoRA
from oodatcaa.domain.training import GB, FailureKind
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.estimate import (
    check_before,
    estimate_evaluation,
    estimate_loading,
    estimate_training,
    read_shape,
    step_terms,
    worst_size,
)
from oodatcaa.training.formulas import Size, trained_parameters
from tiny_model import HIDDEN, INTERMEDIATE, VOCABULARY, make_tiny_model

SMOL = ModelShape(
    model_type="llama", hidden_size=576, intermediate_size=1536, num_layers=30, num_heads=9,
    num_kv_heads=3, head_dim=64, vocab_size=49152, tied_embeddings=True,
    weight_bytes=98_200_000, parameters=134_515_008, bits=4, group_size=32,
    tokenizer_bytes=3_522_656,
)  # fmt: skip
MEASURED = (
    ({"batch_size": 1, "max_seq_length": 64, "num_layers": 1}, 461_611_008),
    ({"batch_size": 1, "max_seq_length": 256, "num_layers": 8}, 597_004_288),
    ({"batch_size": 2, "max_seq_length": 256, "num_layers": 8}, 750_120_960),
    (
        {"batch_size": 2, "max_seq_length": 256, "num_layers": 8, "grad_checkpoint": True},
        534_507_520,
    ),
    ({"batch_size": 2, "max_seq_length": 256, "num_layers": 8, "dropout": 0.1}, 770_486_272),
    (
        {"batch_size": 2, "max_seq_length": 256, "num_layers": 8, "dropout": 0.1,
         "grad_checkpoint": True},
        546_619_392,
    ),
    (
        {"batch_size": 2, "max_seq_length": 256, "num_layers": 8, "fine_tune_type": "dora"},
        768_319_488,
    ),
    ({"batch_size": 2, "max_seq_length": 256, "num_layers": 30}, 1_583_345_664),
    ({"batch_size": 1, "max_seq_length": 768, "num_layers": 4}, 732_704_768),
    (
        {"batch_size": 4, "max_seq_length": 256, "num_layers": 8, "grad_accumulation_steps": 2},
        1_005_072_384,
    ),
    (
        {"batch_size": 1, "max_seq_length": 512, "num_layers": 30, "grad_checkpoint": True},
        631_578_624,
    ),
    (
        {"batch_size": 1, "max_seq_length": 256, "num_layers": 8, "rank": 64,
         "keys": ("self_attn.q_proj", "self_attn.v_proj")},
        593_383_424,
    ),
)  # fmt: skip
"""Peaks of 10 iterations of a 135M model, every position a target, on Linux, CPU device, MKL."""

PLAIN = ModelShape(
    model_type="llama", hidden_size=320, intermediate_size=1024, num_layers=4, num_heads=5,
    num_kv_heads=1, head_dim=64, vocab_size=10000, tied_embeddings=True,
    weight_bytes=16_236_160, parameters=8_118_080, bits=None, group_size=None, tokenizer_bytes=7600,
)  # fmt: skip
PLAIN_MEASURED = (
    ({"batch_size": 4, "max_seq_length": 192, "num_layers": 3}, 315_899_904),
    ({"batch_size": 2, "max_seq_length": 448, "grad_checkpoint": True}, 288_702_464),
    ({"batch_size": 2, "max_seq_length": 256, "fine_tune_type": "full"}, 344_576_000),
    ({"batch_size": 1, "max_seq_length": 64, "fine_tune_type": "full"}, 262_438_912),
    (
        {"batch_size": 2, "max_seq_length": 256, "fine_tune_type": "full", "grad_checkpoint": True},
        314_142_720,
    ),
    (
        {"batch_size": 2, "max_seq_length": 256, "fine_tune_type": "dora", "dropout": 0.2},
        320_221_184,
    ),
)
"""The same of a model stored as float16."""


def part(estimate: MemoryEstimate, name: str) -> int:
    return next(p.bytes for p in estimate.parts if p.name == name)


WIDE = PLAIN.evolve(
    hidden_size=512, intermediate_size=1408, num_layers=8, num_heads=8, num_kv_heads=4,
    vocab_size=32000, weight_bytes=79_971_328, parameters=39_985_664,
)  # fmt: skip
SMALL: dict[str, Any] = {"batch_size": 1, "max_seq_length": 32, "fine_tune_type": "full"}
WIDE_MEASURED = (
    (SMALL, 606_302_208),
    (SMALL | {"optimizer": "adafactor"}, 488_259_584),
    (SMALL | {"optimizer": "muon", "grad_checkpoint": True}, 609_906_688),
    (SMALL | {"grad_accumulation_steps": 2}, 859_455_488),
    (SMALL | {"grad_accumulation_steps": 2, "grad_checkpoint": True}, 846_884_864),
    (SMALL | {"batch_size": 4, "max_seq_length": 128}, 783_331_328),
)
"""The same: what all weights take, beside small batches."""
SCALED = ModelShape(
    model_type="granite", hidden_size=256, intermediate_size=768, num_layers=4, num_heads=4,
    num_kv_heads=2, head_dim=64, vocab_size=12000, tied_embeddings=True, weight_bytes=3_502_080,
    parameters=6_220_032, bits=4, group_size=64, dense_logits=True, tokenizer_bytes=7600,
)  # fmt: skip
SCALED_MEASURED = (
    ({"batch_size": 1, "max_seq_length": 640}, 404_459_520),
    ({"batch_size": 2, "max_seq_length": 256, "grad_checkpoint": True}, 421_244_928),
    ({"batch_size": 1, "max_seq_length": 640, "grad_checkpoint": True}, 427_278_336),
)
"""The same of a model that scales its logits."""


@pytest.mark.parametrize(
    ("shape", "params", "measured"),
    [(SMOL, *case) for case in MEASURED]
    + [(PLAIN, *case) for case in PLAIN_MEASURED]
    + [(WIDE, *case) for case in WIDE_MEASURED]
    + [(SCALED, *case) for case in SCALED_MEASURED],
)
def test_the_estimate_is_within_15_percent_of_what_was_measured(
    shape: ModelShape, params: dict[str, Any], measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    predicted = estimate_training(shape, QLoRA(**params)).total_bytes
    assert 0.85 <= predicted / measured <= 1.15


def test_stock_cross_entropy_of_32_times_2048_is_about_50_gb() -> None:
    # A model whose logits are changed behind the output layer takes mlx-lm's cross entropy.
    shape = SMOL.evolve(dense_logits=True)
    params = QLoRA(batch_size=32, max_seq_length=2048)
    estimate = estimate_training(shape, params, fast_cpu=False)
    assert 48 * GB < part(estimate, "logits and cross entropy") < 54 * GB
    refused = check_before(estimate, 16 * GB)
    assert refused is not None
    assert (refused.kind, refused.layer) == (FailureKind.MEMORY_GATE, MemoryLayer.BEFORE)
    assert refused.needed_bytes == estimate.total_bytes == sum(p.bytes for p in estimate.parts)
    assert "grad_accumulation_steps" in refused.hint


def test_the_fused_cross_entropy_needs_a_chunk_of_logits_and_32_times_2048_still_too_much() -> None:
    estimate = estimate_training(SMOL, QLoRA(batch_size=32, max_seq_length=2048))
    size = Size(32, 2048, 32 * 2048)
    assert step_terms(SMOL, QLoRA(), size, device="cpu").loss < 100_000_000
    refused = check_before(estimate, 16 * GB)
    assert refused is not None
    assert "activations" in refused.message
    assert "grad_accumulation_steps" in refused.hint


def test_exactly_the_limit_fits_and_one_byte_less_does_not() -> None:
    estimate = estimate_training(SMOL, QLoRA())
    assert check_before(estimate, estimate.total_bytes) is None
    assert check_before(estimate, estimate.total_bytes - 1) is not None


def test_the_hint_names_what_can_be_made_smaller_by_as_much_as_is_missing() -> None:
    """Nobody can do anything about the runtime, and little about the weights."""
    small = SMOL.evolve(weight_bytes=20_000_000, parameters=30_000_000, vocab_size=8192)
    estimate = estimate_training(small, QLoRA(batch_size=4, max_seq_length=64, num_layers=2))
    largest = sorted(estimate.parts, key=lambda part: -part.bytes)
    assert largest[0].name == "runtime"
    slightly = check_before(estimate, estimate.total_bytes - 1_000_000)
    assert slightly is not None
    assert "batch_size" in slightly.hint
    assert "quantize_bits" not in slightly.hint

    heavy = estimate_training(SMOL, QLoRA(batch_size=1, max_seq_length=32, num_layers=1))
    weights, step = part(heavy, "weights"), part(heavy, "activations")
    assert weights > step
    assert "num_layers" in _hint(heavy, heavy.total_bytes - step // 2)
    much = _hint(heavy, heavy.total_bytes - weights // 2)
    assert "quantised model" in much
    assert "memory_limit" in much

    ranked = estimate_training(SMOL, QLoRA(batch_size=1, max_seq_length=32, rank=256))
    assert "smaller rank" in _hint(ranked, ranked.total_bytes - weights // 2)


def _hint(estimate: MemoryEstimate, limit: int) -> str:
    refused = check_before(estimate, limit)
    assert refused is not None
    return refused.hint


SIZES = st.integers(1, 64)


@given(
    batch=SIZES, length=st.integers(32, 4096), layers=st.integers(1, 30), rank=SIZES,
    checkpoint=st.booleans(),
)  # fmt: skip
def test_more_of_anything_never_needs_less(
    batch: int, length: int, layers: int, rank: int, checkpoint: bool
) -> None:
    params = QLoRA(
        batch_size=batch, max_seq_length=length, num_layers=layers, rank=rank,
        grad_checkpoint=checkpoint,
    )  # fmt: skip
    base = estimate_training(SMOL, params).total_bytes
    for name in ("batch_size", "max_seq_length", "num_layers", "rank"):
        more = params.evolve(**{name: getattr(params, name) + 1})
        assert estimate_training(SMOL, more).total_bytes >= base
    shorter = estimate_training(SMOL, params, seq_length=length // 2).total_bytes
    fewer = estimate_training(SMOL, params, batch_targets=batch).total_bytes
    assert shorter <= base
    assert fewer <= base
    assert estimate_loading(SMOL).total_bytes < base
    assert estimate_evaluation(SMOL, max_seq_length=length).total_bytes > SMOL.weight_bytes


def test_an_evaluation_counts_its_rows_and_on_a_cpu_no_logits_as_a_whole() -> None:
    def total(rows: int, device: str = "cpu", *, fast: bool = True) -> int:
        return estimate_evaluation(
            SMOL, max_seq_length=512, batch_size=rows, device=device, fast_cpu=fast
        ).total_bytes

    logits = 4 * 512 * SMOL.vocab_size * 4
    assert total(1) < total(4) < total(4, fast=False) - logits
    assert total(4, "metal") > 2 * logits
    large = SMOL.evolve(vocab_size=10 * SMOL.vocab_size)
    more = estimate_evaluation(large, max_seq_length=512, batch_size=4).total_bytes - total(4)
    assert more < logits, "above what is held no output layer is dense as a whole"


def test_packed_rows_are_as_long_as_asked_however_short_the_data_and_have_a_mask() -> None:
    params = QLoRA(max_seq_length=1024, packing=True)
    assert worst_size(params, 40, 100) == Size(4, 1024, 100)
    packed = estimate_training(SMOL, params, seq_length=40)
    padded = estimate_training(SMOL, params.evolve(packing=False))
    assert 0 < packed.total_bytes - padded.total_bytes <= 16 * 4 * 1024**2


def test_max_seq_length_bounds_longer_data() -> None:
    params = QLoRA(max_seq_length=256)
    assert estimate_training(SMOL, params, seq_length=9999) == estimate_training(SMOL, params)


def test_dense_weights_are_four_bytes_for_each_weight_of_the_blocks_on_a_cpu_and_nothing_else() -> (
    None
):
    params = QLoRA(batch_size=1, max_seq_length=256)
    dense = params.evolve(dense_weights=True)
    matrices = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert part(estimate_training(SMOL, dense), "dense weights") == 4 * matrices
    refused = check_before(estimate_training(SMOL, dense), 500_000_000)
    assert refused is not None
    assert "without dense_weights" in refused.hint
    dora = dense.evolve(fine_tune_type=FineTune.DORA)
    assert part(estimate_training(SMOL, dora), "dense weights") == 4 * matrices
    for elsewhere in ({"device": "metal"}, {"device": "torch-cpu"}, {"fast_cpu": False}):
        options: dict[str, Any] = elsewhere
        assert estimate_training(SMOL, dense, **options) == estimate_training(
            SMOL, params, **options
        )


def test_every_checkpointed_block_takes_less_memory() -> None:
    params = QLoRA(batch_size=8, max_seq_length=512, num_layers=8, grad_checkpoint=True)
    found = [
        estimate_training(SMOL, params.evolve(grad_checkpoint_layers=count)).total_bytes
        for count in range(1, 9)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > 1.5 * found[-1]
    assert found[-1] == estimate_training(SMOL, params).total_bytes
    some = estimate_training(SMOL, params.evolve(grad_checkpoint_layers=3))
    assert "inputs of 3 checkpointed blocks" in next(
        part.formula for part in some.parts if part.name == "activations"
    )
    with pytest.raises(ValueError, match="needs grad_checkpoint"):
        QLoRA(grad_checkpoint_layers=3)


def test_checkpointing_accumulation_and_fewer_bits_help() -> None:
    params = QLoRA(batch_size=8, max_seq_length=1024, num_layers=-1)
    base = estimate_training(SMOL, params).total_bytes
    halved = params.evolve(batch_size=4, grad_accumulation_steps=2)
    assert estimate_training(SMOL, params.evolve(grad_checkpoint=True)).total_bytes < base
    assert estimate_training(SMOL, halved).total_bytes < base
    three = estimate_loading(SMOL, quantize_bits=3)
    two = estimate_loading(SMOL, quantize_bits=2)
    assert part(two, "weights") < part(three, "weights") < part(estimate_loading(SMOL), "weights")


def test_the_cpu_holds_plain_weights_in_float32() -> None:
    plain = SMOL.evolve(bits=None, group_size=None, weight_bytes=2 * SMOL.parameters)
    assert part(estimate_loading(plain, device="cpu"), "weights") == 4 * SMOL.parameters
    assert part(estimate_loading(plain, device="metal"), "weights") == 2 * SMOL.parameters


def test_every_core_that_takes_rows_adds_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    params = QLoRA(batch_size=4, max_seq_length=256, num_layers=8)
    alone = params.evolve(batch_size=1)

    def found(cores: int, params: QLoRA) -> int:
        monkeypatch.setenv("MKL_NUM_THREADS", str(cores))
        return estimate_training(SMOL, params, device="cpu").total_bytes

    gradient = 4 * trained_parameters(SMOL, params)
    assert found(8, params) == found(4, params)
    assert found(4, params) - found(1, params) >= 3 * gradient
    assert found(4, alone) == found(1, alone)


# Shapes.


def layer_parameters(bias: bool = True) -> int:
    keys = HIDDEN // 2
    attention = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * keys + (HIDDEN + 2 * keys if bias else 0)
    return attention + 3 * HIDDEN * INTERMEDIATE + 2 * HIDDEN


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_count_by_what_packed_weights_stand_for(
    tmp_path: Path, quantized: bool, tied: bool
) -> None:
    folder = make_tiny_model(tmp_path, quantized=quantized, layers=2, tied=tied)
    shape = read_shape(folder)
    embeddings = VOCABULARY * HIDDEN * (1 if tied else 2)
    assert shape.parameters == embeddings + 2 * layer_parameters() + HIDDEN
    assert shape.tied_embeddings is tied
    assert (shape.bits, shape.group_size) == ((4, 32) if quantized else (None, None))
    assert shape.head_dim == 16
    size = (folder / "model.safetensors").stat().st_size
    assert size - 20_000 < shape.weight_bytes < size


CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": 10,
}  # fmt: skip


def write_shard(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    header, offset = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(offset))


def test_several_shards_add_up(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_shard(tmp_path / "model-00001-of-00002.safetensors", {"a.weight": ("BF16", [10, 8], 160)})
    write_shard(
        tmp_path / "model-00002-of-00002.safetensors", {"lm_head.weight": ("F32", [10, 8], 320)}
    )
    shape = read_shape(tmp_path)
    assert (shape.parameters, shape.weight_bytes) == (160, 480)
    assert not shape.tied_embeddings
    assert shape.num_kv_heads == 2


def test_every_problem_of_a_folder_is_listed(tmp_path: Path) -> None:
    config = {**CONFIG, "hidden_size": "8"}
    del config["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_shard(tmp_path / "model-1.safetensors", {"a.weight": ("F32", [2], 8)})
    whole = (tmp_path / "model-1.safetensors").read_bytes()
    (tmp_path / "model-1.safetensors").write_bytes(whole[:-3])
    (tmp_path / "model-2.safetensors").write_bytes(b"oops")
    index = {"weight_map": {"a.weight": "model-1.safetensors", "b": "model-3.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OodatcaaError) as caught:
        read_shape(tmp_path)
    text = "\n".join(caught.value.details)
    for expected in (
        "model-3.safetensors is named",
        "model-1.safetensors is cut off: 3 bytes",
        "model-2.safetensors is not a whole",
        "hidden_size is '8'",
        "vocab_size is missing",
    ):
        assert expected in text


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_type": 3}'])
def test_a_malformed_config_is_one_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(OodatcaaError, match=r"model\.unreadable"):
        read_shape(tmp_path)


@given(raw=st.binary(max_size=200))
def test_no_bytes_make_the_header_reader_crash(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(OodatcaaError, match=r"model\.unreadable"):
        read_shape(folder)


@given(header=st.recursive(
    st.none() | st.integers(-5, 2**70) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a.weight"]), inner),
    max_leaves=8,
))  # fmt: skip
def test_no_header_makes_the_reader_crash(
    tmp_path_factory: pytest.TempPathFactory, header: object
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    raw = json.dumps(header).encode()
    data = struct.pack("<Q", len(raw)) + raw + bytes(64)
    (folder / "model.safetensors").write_bytes(data)
    with contextlib.suppress(OodatcaaError):
        assert read_shape(folder).parameters > 0
