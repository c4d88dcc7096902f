"""Where an answer starts among the tokens of its conversation: one rule for all who mask prompts.

The length of the rendered prompt is not it. Some templates open an answer that is to be generated
with what the finished conversation does not hold (a thought), others write what comes before an
answer differently once the answer is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

WRONG_MASK = (
    "the template writes the prompt differently before an answer, so that masking would cut at the "
    "wrong place; set mask_prompt to false, or give the model another chat template"
)


class Rendered(NamedTuple):
    """Tokens, and the text that they are of, which is asked for only where tokens do not tell."""

    tokens: Sequence[int]
    text: Callable[[], str]

    def begins(self, whole: Rendered) -> bool:
        # Where text goes on, its last token may become another one.
        same = common(self.tokens, whole.tokens) == len(self.tokens)
        return same or whole.text().startswith(self.text())


def answer_start(whole: Rendered, prompt: Rendered, before: Callable[[], Rendered]) -> int | None:
    """The position of the last answer's first token in `whole`.

    `prompt` is the conversation without it and with the generation prompt, `before` without either.
    None when neither is what `whole` begins with: no position is right then.
    """
    shared = common(prompt.tokens, whole.tokens)
    if prompt.begins(whole):
        return shared
    bare = before()
    return max(shared, common(bare.tokens, whole.tokens)) if bare.begins(whole) else None


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((at for at, (x, y) in pairs if x != y), min(len(a), len(b)))
