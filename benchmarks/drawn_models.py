"""Models and trainings drawn at random: configurations that nobody can have tuned a forecast to.

A seed gives the same cases every time. Whoever changed the forecast after a look at one seed's
cases takes another.
"""

from __future__ import annotations

import random
from typing import Any

from random_model import config

Case = tuple[str, dict[str, Any], dict[str, Any]]
"""Name, config.json of the model, what the training's parameters differ in."""


def drawn(seed: int, count: int) -> list[Case]:
    """`count` cases; the first ones of a longer list are those of a shorter."""
    dice = random.Random(seed)
    return [_case(dice) for _ in range(count)]


def _case(dice: random.Random) -> Case:
    tokens = round(2 ** dice.uniform(8, 12))
    long = tokens > 1024  # narrower and less deep, for the time that 40 iterations take
    kind = dice.choice(("qwen2", "llama", "gemma"))
    head_dim = dice.choice((32, 64, 128))
    heads = dice.randint(max(2, 192 // head_dim), (320 if long else 640) // head_dim)
    if heads * head_dim % 64:
        heads += 1  # whole groups of 64 quantised weights
    kv_heads = dice.choice([one for one in range(1, heads + 1) if heads % one == 0])
    # Gemma's heads together are wider or narrower than the model.
    hidden = 64 * dice.randint(3, 5 if long else 9) if kind == "gemma" else heads * head_dim
    wide = 64 * round(hidden * dice.uniform(2, 5) / 64)
    vocabulary = 64 * dice.randint(50, 500)
    layers = dice.randint(3, 6 if long else 14)
    tied = dice.random() < 0.5 or kind == "gemma"  # mlx-lm's has no head of its own
    bits = dice.choice((4, 4, 4, 8, 2, None, None))
    model = config(
        kind,
        hidden,
        layers,
        heads,
        kv_heads,
        wide,
        vocabulary,
        tied=tied,
        head_dim=head_dim,
        bits=bits,
    )
    name = (
        f"{kind} {hidden} x {layers}, {heads} heads of {head_dim}, {kv_heads} of keys, MLP {wide}, "
        f"vocabulary {vocabulary}{' tied' if tied else ''}, {f'{bits} bit' if bits else 'f16'}"
    )
    return name, model, _training(dice, tokens, layers, quantised=bits is not None)


def _training(dice: random.Random, tokens: int, layers: int, *, quantised: bool) -> dict[str, Any]:
    batch = dice.randint(1, 8)
    made: dict[str, Any] = {
        "batch_size": batch,
        "max_seq_length": max(64, tokens // batch),
        "num_layers": dice.choice((-1, dice.randint(1, layers))),
        "rank": dice.choice((4, 8, 16, 16, 32, 64)),
        "optimizer": dice.choice(("adamw", "adamw", "adam", "sgd", "adafactor", "muon")),
    }
    types = ("lora", "lora", "lora", "dora") if quantised else ("lora", "lora", "dora", "full")
    made["fine_tune_type"] = dice.choice(types)
    if dice.random() < 0.4:
        made["grad_checkpoint"] = True
        if dice.random() < 0.3:
            made["grad_checkpoint_layers"] = dice.randint(1, layers)
    if dice.random() < 0.2 and made["fine_tune_type"] != "full":
        made["dropout"] = 0.1
    if dice.random() < 0.2:
        made["grad_accumulation_steps"] = dice.randint(2, 3)
    if dice.random() < 0.15 and quantised:
        made["dense_weights"] = True
    return made
