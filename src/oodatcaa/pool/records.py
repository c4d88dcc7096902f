"""What the pool says about adapters, loaded models and answers. Sizes are bytes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from oodatcaa.domain.base import NonEmpty, Record, Sha256


class AdapterModule(Record):
    """One adapted layer of the base model, and where its tensors are in the adapter's file.

    With `transposed` the tensors are stored as PEFT does: A as (rank, inputs), B as
    (outputs, rank).
    """

    name: NonEmpty
    a: NonEmpty
    b: NonEmpty
    magnitude: str | None = None
    rank: PositiveInt
    scale: float
    transposed: bool = False


class AdapterInfo(Record):
    """An adapter folder that was read and fits its base model."""

    adapter_path: NonEmpty = Field(description="absolute, links resolved")
    base_model: str | None = Field(default=None, description="as adapter_config.json names it")
    description: str | None = None
    dialect: Literal["mlx", "peft"] = "mlx"
    fine_tune_type: Literal["lora", "dora"] = "lora"
    rank: PositiveInt = Field(description="the largest, where modules differ")
    scale: float = Field(description="factor on the low-rank update: alpha / rank")
    keys: tuple[NonEmpty, ...] = Field(description="module names inside a block")
    num_layers: NonNegativeInt = Field(description="blocks that have adapted modules")
    size_bytes: NonNegativeInt = Field(description="of the adapter's tensors")
    content_hash: Sha256 = Field(description="over adapter_config.json and the weights")
    weights_sha256: Sha256 = Field(description="of the weights file, as in run.json")
    weights_file: NonEmpty
    modules: tuple[AdapterModule, ...]
    warnings: tuple[str, ...] = ()


class PlacedBase(Record):
    """A base model on this machine: what people call it, its folder, and its fingerprint."""

    name: NonEmpty
    path: NonEmpty
    sha256: NonEmpty


class LoadedModel(Record):
    """A base model in memory, and the adapter that is to be used on it."""

    model_id: NonEmpty
    base_path: NonEmpty
    base_sha256: NonEmpty
    adapter_path: str | None = None
    adapter_info: AdapterInfo | None = None
    pid: int
    load_seconds: float

    @property
    def key(self) -> str:
        """For people: `model_id::adapter_path`, or the bare `model_id`."""
        return pool_key(self.model_id, self.adapter_path)


def pool_key(model_id: str, adapter_path: str | None) -> str:
    return model_id if adapter_path is None else f"{model_id}::{adapter_path}"


class Ask(Record):
    """One request for text. Exactly one of `messages`, `prompt` and `tokens` is given."""

    messages: tuple[dict[str, Any], ...] | None = None
    prompt: str | None = None
    tokens: tuple[int, ...] | None = None
    max_tokens: PositiveInt = 128
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = None
    stop: tuple[NonEmpty, ...] = ()


class Piece(Record):
    """The next bit of an answer; `token` is the id that it came with."""

    text: str
    token: int


class Answer(Record):
    """A whole answer and what it cost. `first_token_seconds` includes reading the prompt."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int = Field(description="of the prompt, read by an earlier request already")
    completion_tokens: int
    first_token_seconds: float
    tokens_per_second: float
    peak_bytes: int = Field(description="MLX's own peak since the model was loaded")


class Score(Record):
    """Mean loss in nats per token over all tokens of some texts, windows of `window` tokens."""

    loss: float | None = Field(description="None when it is not a finite number")
    perplexity: float | None
    tokens: int
    window: int


class AdapterUse(Record):
    key: str
    adapter_path: str
    content_hash: str
    rank: int
    bytes: int = Field(description="MLX's active memory grew by this when it was put on")
    hits: int
    idle_seconds: float


class ModelUse(Record):
    """One base model and the adapters that are on it now, most recently used first."""

    model_id: str
    sha256: str
    pid: int
    bytes: int = Field(description="of its process, or what MLX counts when that is more")
    mlx_bytes: int = Field(description="MLX's active memory: weights of base and adapters")
    prompts: int = Field(description="read prompts whose KV caches are kept")
    prompt_bytes: int = Field(description="of these caches, beside mlx_bytes")
    base_bytes: int = Field(description="of it right after the base was loaded")
    load_seconds: float
    hits: int
    in_use: int
    idle_seconds: float
    adapters: tuple[AdapterUse, ...]


class PoolStatus(Record):
    models: tuple[ModelUse, ...]
    bytes: int
    memory_limit_bytes: int
    prompt_bytes: int = Field(description="KV caches of read prompts, part of bytes")
    prompt_limit_bytes: int
    loads: int
    evicted_models: int
    evicted_adapters: int
