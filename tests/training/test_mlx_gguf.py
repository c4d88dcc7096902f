"""The GGUF conversion: the row permutation on made arrays, and the demo model as a whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oodatcaa.errors import OodatcaaError
from oodatcaa.training.mlx.gguf import convert, mlx_name, quantization, unpermute_rows
from oodatcaa.training.models import ModelStore


def llama_cpp_permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """As convert_hf_to_gguf.py of llama.cpp writes it."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@given(heads=st.integers(1, 9), half=st.integers(1, 16), columns=st.integers(1, 5))
def test_unpermuting_undoes_what_llama_cpp_does(heads: int, half: int, columns: int) -> None:
    rows = np.arange(heads * 2 * half * columns, dtype=np.uint32).reshape(-1, columns)

    back = unpermute_rows(mx.array(llama_cpp_permute(rows, heads)), heads)

    assert np.array_equal(np.array(back), rows)


def test_packed_weight_scales_and_biases_stay_together() -> None:
    weight = mx.random.normal((12, 64), key=mx.random.key(1))
    packed: Any = mx.quantize(weight, group_size=32, bits=4)
    moved = [mx.array(llama_cpp_permute(np.array(part), 3)) for part in packed]

    back: Any = [unpermute_rows(part, 3) for part in moved]

    expected = mx.dequantize(packed[0], packed[1], packed[2], group_size=32, bits=4)
    assert mx.array_equal(
        mx.dequantize(back[0], back[1], back[2], group_size=32, bits=4), expected
    ).item()


@given(heads=st.integers(1, 8), rows=st.integers(1, 40))
def test_rows_that_are_no_heads_are_refused(heads: int, rows: int) -> None:
    if rows % (2 * heads) == 0:
        return
    with pytest.raises(ValueError, match="do not split"):
        unpermute_rows(mx.zeros((rows, 2)), heads)


def test_names_follow_mlx_lm() -> None:
    assert mlx_name("blk.12.attn_q.scales") == "model.layers.12.self_attn.q_proj.scales"
    assert mlx_name("token_embd.weight") == "model.embed_tokens.weight"
    with pytest.raises(KeyError):
        mlx_name("blk.0.something_new.weight")


def test_the_layer_with_other_bits_gets_its_own_entry() -> None:
    tensors: dict[str, mx.array] = {}
    for name, bits in (("a", 4), ("b", 4), ("embed", 8)):
        packed, scales, _ = mx.quantize(mx.zeros((4, 64)), group_size=32, bits=bits)
        tensors |= {f"{name}.weight": packed, f"{name}.scales": scales}

    entry = quantization(tensors)

    expected = {"group_size": 32, "bits": 4, "embed": {"group_size": 32, "bits": 8}}
    assert entry == expected


def test_a_file_that_is_no_gguf_is_refused_with_a_hint(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"GGUF but not really")

    with pytest.raises(OodatcaaError) as caught:
        convert(wrong, tmp_path / "out")

    assert caught.value.code == "model.gguf"
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


# Recorded from a conversion that writes sensible Python; float32 on the CPU.
PYTHON = '''def fibonacci(n):
    """Return the n-th Fibonacci number."""
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
'''
PERPLEXITY = 2.2438
PROMPT_IDS = [
    *(1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411),
    *(407, 19712, 8182, 2, 198, 1, 4093, 198, 36218, 33662, 30, 2, 198, 1, 520, 9531, 198),
]
TOP_LOGITS = {19556: 25.7513, 57: 25.3515, 10813: 24.9852, 67: 24.4326, 49: 24.4234}
CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
)
ROUND_TRIPS = [
    "x = 1234567890 + 0x1F",
    "naïve Ünïcödé 你好 🙂 ́combining",
    "\ttabs and  spaces \n\n  newlines\r\n",
    "<|im_start|>user\n<|im_end|>",
]

# In a process of its own, so that a real BLAS can be loaded before mlx.
MEASURE = """
import json, sys
from oodatcaa.training.mlx.blas import preload
preload()
import mlx.core as mx
from oodatcaa.training.mlx.loss import split_head, token_losses
from oodatcaa.training.mlx.setup import load_base
folder, text, trips = json.loads(sys.stdin.read())
model, tokenizer = load_base(folder)
ids = tokenizer.encode(text)
rows = mx.arange(len(ids) - 1)
split = split_head(model)
losses = token_losses(split, model, mx.array([ids[:-1]]), rows, mx.array(ids[1:]))
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Say hello."}], add_generation_prompt=True, return_dict=False)
logits = model(mx.array([prompt]))[0, -1]
top = mx.argsort(-logits)[:5].tolist()
print(json.dumps({
    "perplexity": mx.exp(losses.mean()).item(), "sparse": split.sparse, "prompt": prompt,
    "chat": tokenizer.decode(prompt), "template": tokenizer.chat_template,
    "top": {str(i): logits[i].item() for i in top},
    "digits": [tokenizer.decode([i]) for i in tokenizer.encode("12345")],
    "end": tokenizer.encode("<|im_end|>"), "eos": sorted(tokenizer.eos_token_ids),
    "trips": [tokenizer.decode(tokenizer.encode(t)) for t in trips],
}))
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    folder = ModelStore().resolve("demo").path_or_hub
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        input=json.dumps([folder, PYTHON, ROUND_TRIPS]),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.demo_model
def test_the_demo_model_predicts_as_recorded(measured: dict[str, Any]) -> None:
    assert measured["perplexity"] == pytest.approx(PERPLEXITY, rel=0.01)
    assert measured["prompt"] == PROMPT_IDS
    top = {int(i): value for i, value in measured["top"].items()}
    assert top == pytest.approx(TOP_LOGITS, abs=0.05)
    assert measured["sparse"]


@pytest.mark.demo_model
def test_the_demo_tokenizer_is_the_gguf_files(measured: dict[str, Any]) -> None:
    assert measured["trips"] == ROUND_TRIPS
    assert measured["digits"] == ["1", "2", "3", "4", "5"]
    assert measured["end"] == measured["eos"] == [2]
    assert measured["chat"] == CHAT
    assert measured["template"].startswith("{% for message in messages %}{% if loop.first and")
