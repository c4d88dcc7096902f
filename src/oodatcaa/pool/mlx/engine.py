"""What the pool's child can do: one base model, its adapters, text and losses."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import stream_generate
from mlx_lm.sample_utils import make_sampler

from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.memory import give_back, own_memory
from oodatcaa.pool.mlx.lora import Adapters
from oodatcaa.pool.mlx.prompts import Prompts, value_bytes
from oodatcaa.pool.records import AdapterInfo, Answer, Ask, Piece, Score

WINDOW = 512
"""Tokens per window of a perplexity."""
HEADROOM = 8
"""One part in this many of the limit is left to what reading a prompt computes with."""


class Engine:
    """Everything runs in one thread, one request after the other."""

    def __init__(
        self, network: Any, tokenizer: Any, folder: Path, limit: int, prompt_cache: int
    ) -> None:
        self.network, self.tokenizer, self.limit = network, tokenizer, limit
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        mx.eval(network.parameters())
        mx.clear_cache()
        self.base_bytes = mx.get_active_memory()
        self.prompts = Prompts(network, prompt_cache)
        self.value_bytes = value_bytes(network)
        self._check_memory()
        self.adapters = Adapters(network)

    def add(self, info: AdapterInfo) -> int:
        added = self.adapters.add(info)
        mx.clear_cache()
        self._check_memory()
        return added

    def drop(self, adapter: str) -> None:
        """Forget an adapter, and what it read."""
        self.prompts.drop(adapter)
        self.adapters.drop(adapter)
        give_back()

    def shrink(self, prompt_cache: int) -> None:
        """Forget read prompts until they hold at most this many bytes."""
        self.prompts.shrink(prompt_cache)
        mx.clear_cache()
        give_back()

    def memory(self) -> dict[str, Any]:
        return {
            "active": mx.get_active_memory(),
            "cache": mx.get_cache_memory(),
            "peak": mx.get_peak_memory(),
            "base": self.base_bytes,
            "adapters": dict(self.adapters.bytes),
            "prompts": len(self.prompts),
            "prompt_bytes": self.prompts.bytes,
        }

    def generate(
        self, ask: Ask, adapter: str | None, stopped: Callable[[], bool]
    ) -> Iterator[Piece | Answer]:
        """Pieces as they come, then the whole answer. A stop word is never part of the text.

        Greedy at temperature 0, by the same mlx-lm call that `mlx_lm.generate` makes. Of the
        prompt only what no earlier request of this adapter began with is read.
        """
        tokens = self._tokens(ask)
        self._check_length(len(tokens), ask.max_tokens)
        cache, cached = self.prompts.take(adapter, tokens)
        self.adapters.select(adapter)
        mx.random.seed(time.time_ns() & 0xFFFFFFFF if ask.seed is None else ask.seed)
        started = time.monotonic()
        text, made, reason, first, last = _Text(ask.stop), list[int](), "length", 0.0, started
        replies = stream_generate(
            self.network,
            self.tokenizer,
            tokens[cached:],
            max_tokens=ask.max_tokens,
            sampler=make_sampler(temp=ask.temperature, top_p=ask.top_p if ask.top_p < 1 else 0.0),
            prompt_cache=cache,
        )
        try:
            for reply in replies:
                last = time.monotonic()
                first = first or last - started
                made.append(int(reply.token))
                if reply.finish_reason == "stop":
                    reason = "stop"
                piece = text.take(reply.text, final=reply.finish_reason is not None)
                if piece or not text.ended:
                    yield Piece(text=piece, token=made[-1])
                if text.ended or stopped():
                    reason = "stop"
                    break
                self._check_memory()
            replies.close()
            self.prompts.keep(adapter, tokens + made, cache)
        except MemoryError:
            self.prompts.shrink(0)
            raise
        finally:
            replies.close()
            mx.clear_cache()
        rate = (len(made) - 1) / (last - started - first) if len(made) > 1 else 0.0
        yield Answer(
            text=text.said,
            tokens=tuple(made),
            finish_reason="stop" if reason == "stop" else "length",
            prompt_tokens=len(tokens),
            cached_tokens=cached,
            completion_tokens=len(made),
            first_token_seconds=first,
            tokens_per_second=rate,
            peak_bytes=mx.get_peak_memory(),
        )

    def score(self, texts: list[Any], adapter: str | None, window: int = WINDOW) -> Score:
        """Mean loss over every token after the first of each window; a text is a string or a
        list of chat messages."""
        self.adapters.select(adapter)
        total, count = 0.0, 0
        for text in texts:
            tokens = self._encoded(text)
            for start in range(0, len(tokens) - 1, window):
                part = mx.array(tokens[start : start + window + 1])[None]
                logits = self.network(part[:, :-1]).astype(mx.float32)
                losses = nn.losses.cross_entropy(logits, part[:, 1:])
                total += float(losses.sum())
                count += losses.size
                self._check_memory()
        mx.clear_cache()
        loss = total / count if count and math.isfinite(total) else None
        perplexity = math.exp(loss) if loss is not None and loss < 700 else None
        return Score(loss=loss, perplexity=perplexity, tokens=count, window=window)

    def _encoded(self, text: Any) -> list[int]:
        if isinstance(text, str):
            return list(self.tokenizer.encode(text))
        return self._chat(tuple(text), answer=False)

    def _tokens(self, ask: Ask) -> list[int]:
        if ask.tokens is not None:
            size = int(self.config.get("vocab_size") or 0)
            if size and not all(0 <= token < size for token in ask.tokens):
                raise _bad(f"token ids must be between 0 and {size - 1}")
            tokens = list(ask.tokens)
        elif ask.messages is not None:
            tokens = self._chat(ask.messages, answer=True)
        else:
            tokens = list(self.tokenizer.encode(ask.prompt or ""))
        if not tokens:
            raise _bad("the prompt has no tokens")
        return tokens

    def _chat(self, messages: tuple[dict[str, Any], ...], *, answer: bool) -> list[int]:
        if getattr(self.tokenizer, "chat_template", None) is None:
            text = "\n".join(str(message.get("content", "")) for message in messages)
            return list(self.tokenizer.encode(text))
        try:
            tokens = self.tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=answer, return_dict=False
            )
        except Exception as error:
            # A template is a program of the model's author: it may raise anything.
            raise _bad(f"the model's chat template refuses these messages: {error}") from error
        return list(tokens)

    def _check_length(self, prompt: int, more: int) -> None:
        longest = int(self.config.get("max_position_embeddings") or 0)
        if longest and prompt + more > longest:
            raise OodatcaaError(
                "pool.context",
                f"{prompt} prompt tokens and {more} new ones are more than the model's {longest}",
                hint="shorten the prompt, or lower max_tokens",
            )
        needed = self._cache_bytes(prompt + more)
        held = max(mx.get_active_memory(), own_memory())
        self._make_room(held + needed + self.limit // HEADROOM)
        active = mx.get_active_memory()
        if active + needed > self.limit:
            raise OodatcaaError(
                "pool.memory",
                f"{prompt + more} tokens need a cache of {needed / 1e9:.2f} GB beside "
                f"{active / 1e9:.2f} GB, the limit is {self.limit / 1e9:.2f} GB",
                hint="ask for fewer tokens, or raise the memory limit",
            )

    def _cache_bytes(self, tokens: int) -> int:
        """Keys and values of every block; 0 when the config does not say its sizes."""
        try:
            heads = int(self.config["num_attention_heads"])
            width = int(self.config.get("head_dim") or self.config["hidden_size"] // heads)
            kv = int(self.config.get("num_key_value_heads") or heads)
            return (
                tokens * int(self.config["num_hidden_layers"]) * kv * width * 2 * self.value_bytes
            )
        except (KeyError, TypeError, ValueError):
            return 0

    def _make_room(self, wanted: int) -> None:
        """Kept prompts leave before a request is refused."""
        if wanted > self.limit and len(self.prompts):
            self.shrink(self.prompts.bytes - (wanted - self.limit))

    def _check_memory(self) -> None:
        self._make_room(mx.get_active_memory())
        used = mx.get_active_memory()
        if used > self.limit:
            mx.clear_cache()
            raise OodatcaaError(
                "pool.memory",
                f"MLX holds {used / 1e9:.2f} GB, the limit is {self.limit / 1e9:.2f} GB",
                hint="raise the memory limit, or serve a smaller or more quantised model",
            )


class _Text:
    """The answer so far, held back where it could be the beginning of a stop word."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stop = stop
        self.said = ""
        self.ended = False
        self._held = ""

    def take(self, new: str, *, final: bool) -> str:
        """What may be said now."""
        self._held += new
        places = [at for word in self.stop if (at := self._held.find(word)) >= 0]
        if places:
            self.ended = True
            out, self._held = self._held[: min(places)], ""
        else:
            keep = 0 if final else self._open_end()
            cut = len(self._held) - keep
            out, self._held = self._held[:cut], self._held[cut:]
        self.said += out
        return out

    def _open_end(self) -> int:
        longest = max((len(word) for word in self.stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(word.startswith(self._held[-size:]) for word in self.stop):
                return size
        return 0


def _bad(message: str) -> OodatcaaError:
    return OodatcaaError("pool.request", message, hint="mend the request")
