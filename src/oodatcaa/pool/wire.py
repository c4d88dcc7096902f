"""OpenAI's wire format: the requests that are understood, the answers, and the form of errors."""

from __future__ import annotations

import json
import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from oodatcaa.errors import OodatcaaError
from oodatcaa.pool.records import Answer, Ask

MAX_BODY = 8_000_000
DEFAULT_TOKENS = 256
STATUS = {
    "model.unknown_id": 404,
    "pool.request": 400,
    "pool.context": 400,
    "pool.not_text": 400,
    "pool.adapter": 422,
    "adapter.checksum": 422,
    "adapter.base_changed": 422,
    "pool.memory": 503,
    "pool.busy": 503,
    "pool.adapter_changed": 503,
    "pool.timeout": 504,
}
"""Of errors by code; `model.*` is 422, everything else 500."""
CODES = {"model.unknown_id": "model_not_found", "pool.context": "context_length_exceeded"}


class _Body(BaseModel):
    """Unknown keys are refused, those without effect here may only have their neutral value."""

    model_config = ConfigDict(extra="forbid", strict=False)

    model: Annotated[str, Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: dict[str, bool] | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _stop_words(self) -> _Body:
        words = self.stop_words
        if len(words) > 4 or not all(words):
            raise ValueError("stop: up to 4 words, none of them empty")
        return self

    @property
    def stop_words(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))

    def _common(self) -> dict[str, Any]:
        return {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": self.top_p or 1.0,
            "seed": self.seed,
            "stop": self.stop_words,
        }


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        text = self.content
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatBody(_Body):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    max_completion_tokens: Annotated[int, Field(gt=0)] | None = None
    logprobs: Literal[False] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    store: Literal[False] | None = None

    def asks(self) -> list[Ask]:
        return [
            Ask(
                messages=tuple(message.plain() for message in self.messages),
                max_tokens=self.max_completion_tokens or self.max_tokens or DEFAULT_TOKENS,
                **self._common(),
            )
        ]


class TextBody(_Body):
    prompt: str | list[int] | list[str]
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    logprobs: None = None
    suffix: None = None

    @model_validator(mode="after")
    def _has_a_prompt(self) -> TextBody:
        if not self.prompt or (isinstance(self.prompt, list) and len(self.prompt) > 100_000):
            raise ValueError("prompt: a text, token ids, or a list of texts; not empty")
        several = isinstance(self.prompt, list) and isinstance(self.prompt[0], str)
        if self.stream and several and len(self.prompt) > 1:
            raise ValueError("prompt: only one at a time can be streamed")
        return self

    def asks(self) -> list[Ask]:
        rest = {"max_tokens": self.max_tokens or 16, **self._common()}
        if isinstance(self.prompt, str):
            return [Ask(prompt=self.prompt, **rest)]
        if isinstance(self.prompt[0], int):
            return [Ask(tokens=tuple(int(token) for token in self.prompt), **rest)]
        return [Ask(prompt=str(prompt), **rest) for prompt in self.prompt]


Body = ChatBody | TextBody


def read_body(kind: type[Body], raw: bytes) -> Body:
    """Raises OodatcaaError `pool.request` with every problem."""
    try:
        return kind.model_validate(json.loads(raw))
    except (ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise OodatcaaError("pool.request", f"the body is not JSON: {error}") from error
        problems = [_problem(item) for item in error.errors()]
        raise OodatcaaError("pool.request", "; ".join(problems), details=problems) from error


def _problem(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"])
    known = {"extra_forbidden": "is not supported", "missing": "is required"}
    why = known.get(item["type"], str(item["msg"]).removeprefix("Value error, "))
    return f"{place}: {why}" if place else why


def error_body(error: OodatcaaError) -> tuple[int, dict[str, Any]]:
    """(status, OpenAI's error object). The hint is part of the message."""
    status = STATUS.get(error.code, 422 if error.code.startswith("model.") else 500)
    message = error.message + (f" ({error.hint})" if error.hint else "")
    kind = "invalid_request_error" if status < 500 else "server_error"
    param = "model" if status == 404 else None
    code = CODES.get(error.code, error.code)
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Reply:
    """The JSON of one answer, whole or in chunks."""

    def __init__(self, body: Body) -> None:
        self.chat = isinstance(body, ChatBody)
        self.head = {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": body.model,
        }

    def whole(self, answers: list[Answer]) -> dict[str, Any]:
        kind = "chat.completion" if self.chat else "text_completion"
        choices = [
            {"index": number, **self._said(answer.text), **_end(answer.finish_reason)}
            for number, answer in enumerate(answers)
        ]
        return {**self.head, "object": kind, "choices": choices, "usage": usage(answers)}

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}

    def chunk(self, text: str | None, finish: str | None = None, *, first: bool = False) -> bytes:
        """One server-sent event."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        if self.chat:
            delta: dict[str, Any] = {"role": "assistant"} if first else {}
            said: dict[str, Any] = {"delta": delta | ({"content": text} if text else {})}
        else:
            said = {"text": text or ""}
        choice = {"index": 0, **said, **_end(finish)}
        return event({**self.head, "object": kind, "choices": [choice]})

    def last(self, answer: Answer) -> bytes:
        """What `stream_options.include_usage` asks for."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return event({**self.head, "object": kind, "choices": [], "usage": usage([answer])})


def _end(reason: str | None) -> dict[str, Any]:
    return {"finish_reason": reason, "logprobs": None}


def usage(answers: list[Answer]) -> dict[str, Any]:
    prompt = sum(answer.prompt_tokens for answer in answers)
    made = sum(answer.completion_tokens for answer in answers)
    cached = sum(answer.cached_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
