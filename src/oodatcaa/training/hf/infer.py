"""Load a model (with or without an adapter) and answer prompts, measured.

`python -m oodatcaa.training.hf.infer FOLDER` (InferRequest -> InferResult).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from oodatcaa.domain.base import Record
from oodatcaa.domain.training import Generation, InferenceProbe
from oodatcaa.training.protocol import InferRequest, InferResult
from oodatcaa.training.serving import read_request, serve


def infer(request: InferRequest) -> InferResult:
    """Every prompt answered on its own, in order; the model is loaded once."""
    from oodatcaa.training.hf import setup

    started = time.monotonic()
    network, tokenizer = setup.load_base(request.model)
    if request.adapter_dir is not None:
        network = setup.put_on_adapter(network, Path(request.adapter_dir))
    seconds = time.monotonic() - started
    probes = [_reply(request, prompt, network, tokenizer, seconds) for prompt in request.prompts]
    return InferResult(probes=tuple(probes))


def _reply(
    request: InferRequest, prompt: str, network: Any, tokenizer: Any, load_seconds: float
) -> InferenceProbe:
    import torch

    from oodatcaa.training.hf.counters import COUNTERS, accelerator, device

    torch.manual_seed(request.seed)
    tokens = _tokens(tokenizer, prompt)
    inputs = torch.tensor([tokens], device=device())
    sampling: dict[str, Any] = {"do_sample": request.temperature > 0}
    if request.temperature > 0:
        sampling["temperature"] = request.temperature
    started = time.monotonic()
    with torch.inference_mode():
        found = network.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=request.max_tokens,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            use_cache=True,
            **sampling,
        )
    seconds = time.monotonic() - started
    new = found[0, len(tokens) :].tolist()
    return InferenceProbe(
        model=request.model,
        load_seconds=load_seconds,
        prompt_tokens=len(tokens),
        generation=Generation(
            prompt=prompt,
            text=tokenizer.decode(new, skip_special_tokens=True),
            tokens=len(new),
            tokens_per_second=len(new) / seconds if seconds else 0.0,
        ),
        peak_memory_bytes=COUNTERS.peak(),
        device=accelerator(),
    )


def _tokens(tokenizer: Any, prompt: str) -> list[int]:
    if getattr(tokenizer, "chat_template", None) is None:
        return list(tokenizer.encode(prompt))
    messages = [{"role": "user", "content": prompt}]
    return list(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    )


def _answer(folder: Path) -> Record:
    request = read_request(folder, InferRequest)
    from oodatcaa.training.hf.counters import COUNTERS
    from oodatcaa.training.wall import walled

    with walled(folder, request.memory_limit_bytes, COUNTERS):
        return infer(request)


if __name__ == "__main__":
    sys.exit(serve(_answer))
