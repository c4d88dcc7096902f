"""A random Qwen2-shaped model and chat data, small enough for every room's tests.

The model is a real mlx-lm folder: `mlx_lm.load` takes it, its tokenizer has a chat template, and a
few training steps lower its loss on `make_tiny_data`. It is written by a child process, so a test
process that uses it never imports mlx.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

VOCABULARY = 384
HIDDEN = 64
INTERMEDIATE = 128
HEADS = 4
KV_HEADS = 2
GROUP_SIZE = 32
BITS = 4
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tiny_model(
    folder: Path, *, quantized: bool = True, layers: int = 3, tied: bool = True, seed: int = 0
) -> Path:
    """Write the model into `folder` (made when missing) and return its absolute path.

    Made once on a machine by this very source and this mlx, and copied from there: many tests want
    the same one, and each making is a process that imports mlx.
    """
    options = {"quantized": quantized, "layers": layers, "tied": tied, "seed": seed}
    made = hashlib.sha256(Path(__file__).read_bytes())
    made.update(json.dumps([options, version("mlx"), version("tokenizers")]).encode())
    kept = Path(tempfile.gettempdir()) / f"oodatcaa-tiny-{os.getuid()}" / made.hexdigest()[:16]
    if not kept.is_dir():
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=kept.parent))
        _write(fresh, options)
        fresh.chmod(0o755)
        try:
            fresh.rename(kept)
        except OSError:  # another process was faster
            shutil.rmtree(fresh)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    return folder.resolve()


def _write(folder: Path, options: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(folder), json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the tiny model could not be made:\n{done.stdout}{done.stderr}")


def make_tiny_data(folder: Path, n: int = 24) -> Path:
    """`n` training examples and about a third as many for valid and test, no example twice."""
    folder.mkdir(parents=True, exist_ok=True)
    rest = max(4, n // 3)
    first = 0
    for split, count in (("train", n), ("valid", rest), ("test", rest)):
        lines = [json.dumps(_example(i)) for i in range(first, first + count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        first += count
    return folder.resolve()


def _example(number: int) -> dict[str, Any]:
    operator, word = (("+", "add"), ("-", "take"), ("*", "times"))[number % 3]
    name = f"{word}_{number}"
    return {
        "messages": [
            {"role": "user", "content": f"Write {name}(x)."},
            {
                "role": "assistant",
                "content": f"def {name}(x):\n    return x {operator} {number}\n",
            },
        ]
    }


def _config(options: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "num_hidden_layers": options["layers"],
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 1024,
        "rope_theta": 10000.0,
        "tie_word_embeddings": options["tied"],
        "eos_token_id": SPECIAL.index("<|im_end|>"),
        "bos_token_id": SPECIAL.index("<|im_start|>"),
        "pad_token_id": 0,
    }
    if options["quantized"]:
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": BITS}
    return config


def _write_weights(folder: Path, options: dict[str, Any]) -> None:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    mx.random.seed(options["seed"])
    weights: dict[str, mx.array] = {}

    def linear(name: str, rows: int, columns: int, *, bias: bool = False) -> None:
        weight = mx.random.normal((rows, columns)) * columns**-0.5
        if options["quantized"]:
            packed, scales, biases = mx.quantize(weight, group_size=GROUP_SIZE, bits=BITS)
            weights[f"{name}.weight"] = packed
            weights[f"{name}.scales"] = scales
            weights[f"{name}.biases"] = biases
        else:
            weights[f"{name}.weight"] = weight
        if bias:
            weights[f"{name}.bias"] = mx.random.normal((rows,)) * 0.1

    keys = HIDDEN // HEADS * KV_HEADS
    linear("model.embed_tokens", VOCABULARY, HIDDEN)
    if not options["tied"]:
        linear("lm_head", VOCABULARY, HIDDEN)
    weights["model.norm.weight"] = mx.ones((HIDDEN,))
    for layer in range(options["layers"]):
        block = f"model.layers.{layer}"
        linear(f"{block}.self_attn.q_proj", HIDDEN, HIDDEN, bias=True)
        linear(f"{block}.self_attn.k_proj", keys, HIDDEN, bias=True)
        linear(f"{block}.self_attn.v_proj", keys, HIDDEN, bias=True)
        linear(f"{block}.self_attn.o_proj", HIDDEN, HIDDEN)
        linear(f"{block}.mlp.gate_proj", INTERMEDIATE, HIDDEN)
        linear(f"{block}.mlp.up_proj", INTERMEDIATE, HIDDEN)
        linear(f"{block}.mlp.down_proj", HIDDEN, INTERMEDIATE)
        weights[f"{block}.input_layernorm.weight"] = mx.ones((HIDDEN,))
        weights[f"{block}.post_attention_layernorm.weight"] = mx.ones((HIDDEN,))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [message["content"] for i in range(3) for message in _example(i)["messages"]]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


if __name__ == "__main__":
    _target, _options = Path(sys.argv[1]), json.loads(sys.argv[2])
    _write_weights(_target, _options)
    write_tokenizer(_target)
    (_target / "config.json").write_text(json.dumps(_config(_options), indent=1), encoding="utf-8")
