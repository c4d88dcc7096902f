"""Cross entropy over the positions that carry loss, and only those.

With masked prompts and a vocabulary of 49152, the logits of all positions are most of a training
step's memory and time. The batch names the rows that matter (see batches.py), so the output layer
is applied to them alone. The result equals mlx-lm's `default_loss` within float tolerance, except
that its mask also counts one padding token behind every example, which this one does not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from oodatcaa.training.mlx import randomness, vector
from oodatcaa.training.mlx.cpu import fast_cpu
from oodatcaa.training.mlx.head import FrozenHead, frozen_head, total_of_logits
from oodatcaa.training.mlx.packed import packed
from oodatcaa.training.mlx.prefix import FrozenPrefix
from oodatcaa.training.shapes import BODIES, EMBEDDINGS, HEADS

Apply = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class Split:
    """A model as `head(body(tokens))`; `body` is called on the model given to the loss."""

    body: Callable[[Any, mx.array], mx.array]
    head: Callable[[Any, mx.array], mx.array]
    sparse: bool
    frozen: FrozenHead | None = None


def _text(model: Any) -> Any:
    """The language model alone, of one that is wrapped for pictures or sound as well."""
    return model.language_model if "language_model" in model else model


def _inner(model: Any, tokens: mx.array) -> mx.array:
    hidden: mx.array = _body(_text(model))(tokens)
    return hidden


def _body(text: Any) -> Any:
    """What the output layer comes after; None where nothing has a name that is known."""
    return next((text[name] for name in BODIES if name in text), None)


def _layer(model: Any, name: str) -> Any:
    """The output layer of that name, or the embedding."""
    text = _text(model)
    return text[name] if name in HEADS else _body(text)[name]


def _head(name: str) -> Callable[[Any, mx.array], mx.array]:
    def head(model: Any, hidden: mx.array) -> mx.array:
        layer = _layer(model, name)
        logits: mx.array = layer(hidden) if name in HEADS else layer.as_linear(hidden)
        return logits

    return head


WHOLE = Split(body=lambda model, tokens: model(tokens), head=lambda _, logits: logits, sparse=False)
"""Any model at all: the logits of every position are computed, then the rows are picked."""


def split_head(model: Any) -> Split:
    """The sparse split if this model provably has one, else WHOLE.

    Architectures add soft caps and logit scales behind the output layer, so nothing is assumed:
    the split is used only when it reproduces the model's own logits on a few tokens. Leaves the
    model in eval mode.
    """
    name = _head_name(model)
    if name is None:
        return WHOLE
    head = _head(name)
    tokens = mx.arange(8)[None]
    # Fresh adapter layers are in training mode: dropout would spoil the comparison, and move the
    # random state that a resumed run has just restored.
    model.eval()
    # In a graph MLX would allocate a hundred operations ahead: the whole model's matrices at once.
    with vector.at_once(traced=False) if fast_cpu() else nullcontext():
        try:
            ours = head(model, _inner(model, tokens))
        except (AttributeError, TypeError, ValueError):
            return WHOLE
        theirs = model(tokens)
    if ours.shape != theirs.shape or not mx.allclose(ours, theirs, rtol=1e-3, atol=1e-3).item():
        return WHOLE
    frozen = frozen_head(_layer(model, name), dense=fast_cpu())
    return Split(body=_inner, head=head, sparse=True, frozen=frozen)


def _head_name(model: Any) -> str | None:
    """Of what could be the output layer: one of its own before a tied embedding."""
    text = _text(model)
    body = _body(text)
    if body is None:
        return None
    own = (name for name in HEADS if name in text)
    tied = (name for name in EMBEDDINGS if name in body)
    return next(iter((*own, *tied)), None)


def token_losses(
    split: Split, model: Any, inputs: mx.array, rows: mx.array, targets: mx.array
) -> mx.array:
    """Negative log likelihood in nats of each target, float32, in the order of `rows`."""
    picked = _picked(split, model, inputs, rows)
    if split.frozen is not None:
        return split.frozen.losses(picked, targets)
    losses: mx.array = nn.losses.cross_entropy(
        split.head(model, picked).astype(mx.float32), targets
    )
    return losses


def _picked(split: Split, model: Any, inputs: mx.array, rows: mx.array) -> mx.array:
    hidden = split.body(model, inputs)
    return hidden.reshape(-1, hidden.shape[-1])[rows]


def make_loss(
    split: Split,
    *,
    prefix: FrozenPrefix | None = None,
    at_once: bool = False,
    gradient: bool = True,
    random: bool = False,
) -> Callable[..., tuple[mx.array, mx.array]]:
    """mlx-lm's `loss` seam: (mean loss over the batch's targets, number of targets).

    With `prefix` the model starts at its first trained block when the batch brings that block's
    input. `at_once`: the CPU layers evaluate as they go, which is faster.
    `gradient=False` for a validation, where the gradient of the output layer would be wasted.
    `random`: the model draws numbers (dropout).
    """

    if random:
        randomness.route()

    def loss(
        model: Any,
        inputs: mx.array,
        rows: mx.array,
        targets: mx.array,
        weights: mx.array,
        hidden: mx.array | None = None,
        share: mx.array | None = None,
        owners: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        if at_once:
            # mlx-lm traces every array that it passes on, also those without a gradient.
            inputs, rows, targets, weights = map(vector.cut, (inputs, rows, targets, weights))
            hidden = None if hidden is None else vector.cut(hidden)
            share = None if share is None else vector.cut(share)
            owners = None if owners is None else vector.cut(owners)
        count = weights.sum()
        start: AbstractContextManager[None] = prefix.given(hidden) if prefix else nullcontext()
        numbers = randomness.step(at_once=at_once) if random else nullcontext()
        with start, vector.at_once() if at_once else nullcontext(), packed(owners), numbers:
            if split.frozen is not None and gradient:
                picked = _picked(split, model, inputs, rows)
                total = split.frozen.total(picked, targets, weights)
            elif gradient and at_once and not split.sparse:
                logits = split.body(model, inputs).astype(mx.float32)
                total = total_of_logits(logits, rows, targets, weights)
            else:
                total = (token_losses(split, model, inputs, rows, targets) * weights).sum()
            return _shared(total / count, share), count

    return loss


def _shared(mean: mx.array, share: mx.array | None) -> mx.array:
    """The value of `mean`, but `share` times its gradient."""
    if share is None:
        return mean
    scaled = mean * share
    return scaled + mx.stop_gradient(mean - scaled)
