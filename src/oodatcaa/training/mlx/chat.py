"""A loaded model that answers chat messages and measures itself doing so."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import stream_generate
from mlx_lm.sample_utils import make_sampler

from oodatcaa.domain.training import Generation, InferenceProbe
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.mlx import setup
from oodatcaa.training.mlx.blas import accelerator
from oodatcaa.training.wall import check_peak


class Chat:
    """Base model plus optional adapter. Raises OodatcaaError `model.*`, `adapter.unreadable`,
    `memory_gate.during`; `load_seconds` includes the adapter."""

    def __init__(self, model: str, adapter_dir: str | None, memory_limit_bytes: int) -> None:
        started = time.monotonic()
        self.model, self.limit = model, memory_limit_bytes
        self.network, self.tokenizer = setup.load_base(model)
        if adapter_dir is not None:
            setup.put_on_adapter(self.network, Path(adapter_dir))
        mx.eval(self.network.parameters())
        self.load_seconds = time.monotonic() - started
        check_peak("MLX", mx.get_peak_memory(), self.limit)

    def answer(
        self, prompt: str, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> InferenceProbe:
        """One reply to one user message; tokens per second exclude reading the prompt."""
        mx.random.seed(seed)
        tokens = self._tokens(prompt)
        text, count, rate = "", 0, 0.0
        replies: Any = stream_generate(
            self.network,
            self.tokenizer,
            tokens,
            max_tokens=max_tokens,
            sampler=make_sampler(temp=temperature),
        )
        for reply in replies:
            text += reply.text
            count, rate = reply.generation_tokens, reply.generation_tps
            check_peak("MLX", mx.get_peak_memory(), self.limit)
        return InferenceProbe(
            model=self.model,
            load_seconds=self.load_seconds,
            prompt_tokens=len(tokens),
            generation=Generation(
                prompt=prompt, text=text, tokens=count, tokens_per_second=float(rate)
            ),
            peak_memory_bytes=mx.get_peak_memory(),
            device=accelerator(),
        )

    def _tokens(self, prompt: str) -> list[int]:
        if getattr(self.tokenizer, "chat_template", None) is None:
            return list(self.tokenizer.encode(prompt))
        try:
            tokens = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                return_dict=False,
            )
        except ValueError as error:
            raise OodatcaaError(
                "model.chat_template",
                f"the chat template of {self.model} can not be applied: {error}",
                hint="use a model whose tokenizer has a working chat template",
            ) from error
        return list(tokens)
