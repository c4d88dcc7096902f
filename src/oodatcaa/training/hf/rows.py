"""Rows of JSONL to tokens as mlx-lm's datasets make them, so that backends see the same data."""

from __future__ import annotations

from typing import Any

from oodatcaa.training.examples import Process, right_mask


def row_tokens(tokenizer: Any, *, mask_prompt: bool) -> Process:
    """For chat (`messages`), `prompt` and `completion`, and `text` rows."""

    def process(row: dict[str, Any]) -> tuple[list[int], int]:
        if "messages" not in row and "text" in row:
            if mask_prompt:
                raise ValueError("text has no prompt that could be masked: mask_prompt = false")
            tokens = list(tokenizer.encode(row["text"]))
            end = tokenizer.eos_token_id
            return (tokens if tokens[-1] == end else [*tokens, end]), 0
        messages = row.get("messages") or [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        tools = row.get("tools")
        return list(tokenizer.apply_chat_template(messages, tools=tools, return_dict=False)), 0

    return right_mask(process, tokenizer) if mask_prompt else process
