"""Token lengths of examples as the trainer will see them, from tokenizer files alone.

The files are taken at their word: transformers replaces the splitting rules of a tokenizer.json
that differs from its model type's own, and may then count a few tokens more.

`tokenizers` and the chat template are enough; transformers takes seconds to import and is not.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import SplitStats
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.hashes import file_sha256
from oodatcaa.training.masks import Rendered, answer_start

SPLITS = ("train", "valid", "test")
CHUNK = 512
UNREADABLE = (OodatcaaError, ValueError, KeyError, TypeError, AttributeError)
"""What a line that is no example raises, or a chat template that can not render one."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
LARGEST = 1024
"""Examples that are remembered by size; a batch larger than this is bounded less tightly."""
Example = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a whole example, and those of its last assistant turn (what a masked prompt
    leaves as targets; for plain text all of them)."""

    total: int
    target: int


@dataclass(frozen=True, slots=True)
class Measured(Lengths):
    """With what masking has to know: whether it can be done. `plain` text has no prompt."""

    maskable: bool
    plain: bool


class NoTemplateError(OodatcaaError):
    """Chats can not be counted here; what trains may know a template all the same."""

    def __init__(self) -> None:
        super().__init__(
            "tokenizer.no_template",
            "the model has no chat template that can be read without loading it",
            hint="use an instruct model, or data with a `text` key",
        )


class ChatTokenizer:
    """Counts tokens with a model's tokenizer.json and chat template.

    Raises OodatcaaError `tokenizer.missing` when the folder has no tokenizer.json.
    """

    def __init__(self, model_path: Path) -> None:
        from tokenizers import Tokenizer

        path = model_path / "tokenizer.json"
        if not path.is_file():
            raise OodatcaaError(
                "tokenizer.missing",
                f"{model_path} has no tokenizer.json",
                hint="convert the model with mlx_lm.convert, or use the model 'demo'",
            )
        self._tokenizer = Tokenizer.from_file(str(path))
        self._template = _template(model_path)

    def lengths(self, examples: Sequence[Example]) -> list[Lengths]:
        """For chat, prompt-completion and text examples, in order."""
        return [Lengths(one.total, one.target) for one in self.measure(examples)]

    def measure(self, examples: Sequence[Example]) -> list[Measured]:
        """The same, and whether their prompts can be masked."""
        texts = [text for example in examples for text in self._render(example)]
        # Templates write their own special tokens; plain text gets the tokenizer's, and an end.
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        rendered = [
            Rendered(one.ids, functools.partial(str, text))
            for one, text in zip(encoded, texts, strict=True)
        ]
        return [
            self._measure(example, *pair)
            for example, *pair in zip(examples, rendered[::2], rendered[1::2], strict=True)
        ]

    def _measure(self, example: Example, whole: Rendered, prompt: Rendered) -> Measured:
        total = len(whole.tokens)
        if "text" in example:
            total += 2 if example["text"] else 0
            return Measured(total, total, maskable=True, plain=True)
        start = answer_start(whole, prompt, lambda: self._before(example))
        known = len(prompt.tokens) if start is None else start
        return Measured(total, total - known, maskable=start is not None, plain=False)

    def _before(self, example: Example) -> Rendered:
        text = self._template(_messages(example)[:-1], example.get("tools"), False)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return Rendered(ids, lambda: text)

    def _render(self, example: Example) -> tuple[str, str]:
        if "text" in example:
            return example["text"], ""
        messages, tools = _messages(example), example.get("tools")
        return self._template(messages, tools, False), self._template(messages[:-1], tools, True)


def _messages(example: Example) -> Any:
    return example.get("messages") or [
        {"role": "user", "content": example["prompt"]},
        {"role": "assistant", "content": example["completion"]},
    ]


class _Template:
    """A Hugging Face chat template, rendered as transformers renders it."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: (
            datetime.now().astimezone().strftime(form)
        )
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        try:
            self._template = environment.from_string(_without_generation(source))
        except TemplateError as error:
            raise OodatcaaError(
                "tokenizer.template", f"the model's chat template can not be read: {error}"
            ) from error
        self._special = special

    def __call__(self, messages: Sequence[Any], tools: Any, generate: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self._template.render(
                messages=list(messages),
                tools=tools,
                add_generation_prompt=generate,
                **self._special,
            )
        except TemplateError as error:
            raise OodatcaaError(
                "tokenizer.template", f"the model's chat template fails on an example: {error}"
            ) from error


def _without_generation(source: str) -> str:
    """transformers' own block, which marks an answer's text and writes nothing, as plain jinja."""
    return GENERATION.sub(lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", source)


def _refuse(message: str) -> str:
    raise OodatcaaError("tokenizer.template", f"the chat template refuses: {message}")


def _template(model_path: Path) -> Any:
    config: dict[str, Any] = {}
    path = model_path / "tokenizer_config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
    source = config.get("chat_template")
    own = model_path / "chat_template.jinja"
    if own.is_file():
        source = own.read_text(encoding="utf-8")
    if isinstance(source, list):  # several named templates
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default", next(iter(named.values()), None))
    # mlx-lm then takes a template of its own, in Python, whatever else there is.
    if not isinstance(source, str) or config.get("chat_template_type"):
        return _no_template
    special = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            special[name] = value
    return _Template(source, special)


def _no_template(messages: Sequence[Any], tools: Any, generate: bool) -> str:  # noqa: ARG001
    raise NoTemplateError


def read_examples(path: Path) -> Iterator[Example]:
    """The examples of a valid JSONL file, one at a time."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


@dataclass(frozen=True)
class _Source:
    """Equal when its content is, wherever it lies: a copy is not measured again."""

    content: str
    path: Path = field(compare=False)


def measured(path: Path, model_path: Path) -> tuple[Measured, ...]:
    """Every example of a valid JSONL file, in order; remembered for this file and its copies.

    Raises one of UNREADABLE for a line that is no example, and OodatcaaError `tokenizer.missing`.
    """
    tokenizer = f"{model_path.resolve()} {_stamp(model_path, TOKENIZER_FILES)}"
    return _measured(_Source(file_sha256(path), path), _Source(tokenizer, model_path))


@functools.lru_cache(maxsize=12)
def _measured(data: _Source, model: _Source) -> tuple[Measured, ...]:
    tokenizer = ChatTokenizer(model.path)
    return tuple(itertools.chain.from_iterable(map(tokenizer.measure, _chunks(data.path))))


def example_lengths(data_dir: Path, model_path: Path) -> dict[str, tuple[Measured, ...]]:
    """The lengths of every example of every split that exists."""
    return {
        split: measured(path, model_path)
        for split in SPLITS
        if (path := data_dir / f"{split}.jsonl").is_file()
    }


def _chunks(path: Path) -> Iterator[list[Example]]:
    examples: Iterable[Example] = read_examples(path)
    iterator = iter(examples)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk


def with_lengths(stats: SplitStats, lengths: Sequence[Lengths]) -> SplitStats:
    """The same split with its token columns filled."""
    totals = sorted(length.total for length in lengths)
    if not totals:
        return stats
    return stats.evolve(
        tokens_min=totals[0],
        tokens_mean=round(sum(totals) / len(totals), 1),
        tokens_p95=totals[math.ceil(0.95 * len(totals)) - 1],
        tokens_max=totals[-1],
    )


@dataclass(frozen=True)
class Known:
    """What bounds a batch. `longest` is None where nothing could be counted."""

    longest: int | None = None
    targets: tuple[int, ...] = ()
    """Target tokens of the examples that have most, in descending order."""
    lengths: tuple[Lengths, ...] = ()
    train: tuple[Lengths, ...] = ()
    """Those of `lengths` that are trained on."""

    def most_targets(self, params: QLoRA) -> int | None:
        """The most target tokens that a batch can have; None where every position counts."""
        if not params.mask_prompt:
            return None
        if params.packing:
            return self.packed_targets(params.batch_size, params.max_seq_length)
        return self.batch_targets(params.batch_size)

    def batch_targets(self, batch_size: int) -> int | None:
        """The most target tokens a batch can have: those of the largest examples together."""
        if self.longest is None:
            return None
        whole, rest = divmod(batch_size, max(1, len(self.targets)))
        # A batch larger than the split is filled up with the same examples again.
        return whole * sum(self.targets) + sum(self.targets[:rest])

    def packed_targets(self, rows: int, length: int) -> int | None:
        """The most that fit into so many rows: a bound that no way of packing is over."""
        if self.longest is None:
            return None
        # What is cut off at the row's length may be prompt or targets.
        sizes = [max(1, min(one.total - 1, length)) for one in self.lengths]
        items = [(size, min(e.target, size)) for size, e in zip(sizes, self.lengths, strict=True)]
        room, found = float(rows * length), 0.0
        for size, target in sorted(items, key=lambda item: -item[1] / item[0]):
            part = min(1.0, room / size)
            room, found = room - part * size, found + part * target
            if room <= 0:
                break
        return math.ceil(found)


def known_lengths(data_dir: Path, model_path: Path) -> Known:
    """Over train and valid, the splits that training reads. Nothing known without a tokenizer."""
    files = [f"{split}.jsonl" for split in SPLITS]
    stamp = (_stamp(model_path, TOKENIZER_FILES), _stamp(data_dir, files))
    return _known(data_dir, model_path, stamp)


def _stamp(folder: Path, names: Sequence[str]) -> tuple[tuple[int, int] | None, ...]:
    paths = [folder / name for name in names]
    return tuple(
        (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None for path in paths
    )


@functools.lru_cache(maxsize=32)
def _known(data_dir: Path, model_path: Path, stamp: object) -> Known:  # noqa: ARG001 - cache key
    try:
        lengths = example_lengths(data_dir, model_path)
    except UNREADABLE:
        return Known()  # unreadable data is the validator's business; the estimate stays worst-case
    return known_of(lengths.get("train", ()), lengths.get("valid", ()))


def known_of(train: Sequence[Lengths], valid: Sequence[Lengths] = ()) -> Known:
    """What examples of these lengths bound."""
    lengths = (*train, *valid)
    if not lengths:
        return Known()
    targets = sorted((one.target for one in lengths), reverse=True)[:LARGEST]
    return Known(max(one.total for one in lengths), tuple(targets), lengths, tuple(train))
