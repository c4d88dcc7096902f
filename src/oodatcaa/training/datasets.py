"""The data store: `<root>/<first 16 hex digits of the content's sha256>/`, written once.

    train.jsonl  valid.jsonl  test.jsonl  card.json (DatasetRecord)  DATA_CARD.md

A data set appears complete or not at all, and its files are read-only from then on.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import DataFindings, DatasetRecord, SplitStats
from oodatcaa.errors import OodatcaaError, StateError
from oodatcaa.kit.files import sync_folder, write_atomic
from oodatcaa.training.data_checks import check_folder
from oodatcaa.training.data_report import SCANNED, examine
from oodatcaa.training.hashes import file_sha256
from oodatcaa.training.stdlib_pairs import Pair, collect, split_by_file, stdlib_root
from oodatcaa.training.tokens import (
    SPLITS,
    ChatTokenizer,
    NoTemplateError,
    example_lengths,
    known_lengths,
    with_lengths,
)
from oodatcaa.views.cards import data_card

CARD_FILE = "card.json"
CARD_PAGE = "DATA_CARD.md"
STDLIB = ("demo", "stdlib")
"""Names that mean the standard library's pairs rather than a folder."""
STDLIB_NAME = "Python standard library functions"
DEMO_TOKENS = 384
"""What the demo's sequences hold; longer pairs are left out when a tokenizer can count them."""
DEFAULTS = QLoRA()
Say = Callable[[str], None]


class DataStore:
    """All data sets of a project. Safe for several processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def build(
        self,
        source: str,
        *,
        model_path: str,
        params: QLoRA = DEFAULTS,
        say: Say = lambda _: None,
    ) -> DatasetRecord:
        """`demo` (the standard library's pairs) or a user's folder, fit to be trained on with
        these parameters, in the store. Says what there is to look at.

        Raises OodatcaaError `data.invalid` whose details are every problem.
        """
        model = Path(model_path) if model_path else None
        if source not in STDLIB:
            folder = Path(source).expanduser()
            return load_user_data(folder, self.root, model_path=model, params=params, say=say)
        record = build_stdlib(self.root, seed=params.seed, model_path=model)
        _must_be_fit(source, find_all(Path(record.path), model, params))
        return record

    def problems(self, path: str) -> tuple[str, ...]:
        """Every bad line of a data folder; for a folder of the store also a changed file."""
        return find_problems(Path(path))

    def examine(
        self, path: str, *, model_path: str, params: QLoRA, scanned: int | None = SCANNED
    ) -> DataFindings:
        """`findings` of a user's folder, `find_all` of one of the store.

        An empty `model_path` stands for a model that is not here.
        """
        folder, model = Path(path), Path(model_path) if model_path else None
        stored = folder.resolve().parent == self.root.resolve()
        return (find_all if stored else findings)(folder, model, params, scanned=scanned)

    def longest(self, source: str, model_path: str) -> int | None:
        """Tokens of the longest training or validation example, None when nothing can tell."""
        if source in STDLIB:
            return DEMO_TOKENS
        folder = Path(source).expanduser()
        return known_lengths(folder, Path(model_path)).longest if folder.is_dir() else None

    def write_probe(self, folder: Path, examples: int, tokens: int) -> str:
        """Made-up chat examples of at least `tokens` tokens each in all three splits."""
        return str(write_probe_data(folder, examples=examples, tokens=tokens))


def find_problems(folder: Path) -> tuple[str, ...]:
    """Every bad line of a data folder as `file:line: reason`; for a folder of the store also files
    that changed since their card was written. Empty = valid."""
    return check_folder(folder) or _changed(folder)


def _changed(folder: Path) -> tuple[str, ...]:
    if not (folder / CARD_FILE).is_file():
        return ()
    return tuple(
        f"{split}.jsonl: changed since the data card was written"
        for split, stats in read_card(folder).splits.items()
        if file_sha256(folder / f"{split}.jsonl") != stats.sha256
    )


def findings(
    folder: Path, model: Path | None, params: QLoRA, *, scanned: int | None = SCANNED
) -> DataFindings:
    """`data_report.examine` for a training with `params`."""
    report = examine(
        folder,
        model_path=model,
        max_seq_length=params.max_seq_length,
        mask_prompt=params.mask_prompt,
        scanned=scanned,
    )
    return DataFindings(
        problems=report.problems, warnings=report.warnings, not_checked=report.not_checked
    )


def find_all(
    folder: Path, model: Path | None, params: QLoRA, *, scanned: int | None = SCANNED
) -> DataFindings:
    """The same for a folder of the store, and files that changed since their card was written.

    The standard library is not searched: it holds nobody's secrets.
    """
    ours = (folder / CARD_FILE).is_file() and read_card(folder).name == STDLIB_NAME
    found = findings(folder, model, params, scanned=0 if ours else scanned)
    return found if found.problems else found.evolve(problems=_changed(folder))


def _must_be_fit(source: str, found: DataFindings) -> None:
    if found.fit:
        return
    count = f"{len(found.problems)} problem{'s' if len(found.problems) > 1 else ''}"
    raise OodatcaaError(
        "data.invalid",
        f"{source} has {count}: {found.problems[0]}",
        hint="correct the lines and run the same command again; "
        "docs/how-to/your-own-data.md shows the formats",
        details=found.problems,
    )


def token_lengths(data_dir: Path, model_path: Path) -> dict[str, SplitStats]:
    """Examples and token lengths of every split that exists, counted with a model's tokenizer."""
    return {
        split: with_lengths(_stats(data_dir, split, len(lengths), 1), lengths)
        for split, lengths in example_lengths(data_dir, model_path).items()
    }


def build_stdlib(
    out_root: Path,
    *,
    seed: int = 0,
    max_train: int = 1200,
    max_valid: int = 100,
    max_test: int = 100,
    model_path: Path | None = None,
    max_tokens: int = DEMO_TOKENS,
    source_root: Path | None = None,
) -> DatasetRecord:
    """Pairs from this interpreter's standard library, split by file, in the store.

    The same interpreter, limits, seed and tokenizer give the same bytes. With `model_path` pairs
    longer than `max_tokens` are left out and lengths are recorded. Raises OodatcaaError
    `data.too_little` when the library's source is not installed.
    """
    dropped: Counter[str] = Counter()
    pairs = collect(source_root or stdlib_root(), dropped)
    if model_path is not None and pairs:
        short = _short(pairs, ChatTokenizer(model_path), max_tokens)
        dropped[f"more than {max_tokens} tokens"] += len(pairs) - len(short)
        pairs = short
    limits = {"train": max_train, "valid": max_valid, "test": max_test}
    splits = split_by_file(pairs, seed, limits, dropped)
    empty = [name for name in SPLITS if not splits[name]]
    if empty:
        raise OodatcaaError(
            "data.too_little",
            f"the standard library's source gave {len(pairs)} pairs; {', '.join(empty)} is empty",
            hint="install Python with its library's source, or give your own data folder",
        )
    texts = {
        name: "".join(json.dumps(p.messages(), ensure_ascii=False) + "\n" for p in chosen)
        for name, chosen in splits.items()
    }
    with tempfile.TemporaryDirectory(prefix="oodatcaa-data-") as temp:
        folder = Path(temp)
        for name, text in texts.items():
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        record = DatasetRecord(
            name=STDLIB_NAME,
            path=str(folder),
            sha256="0" * 64,
            source=f"{platform.python_implementation()} {platform.python_version()} library source",
            licence="PSF-2.0",
            seed=seed,
            splits={
                name: _stats(folder, name, len(chosen), len({p.file for p in chosen}))
                for name, chosen in splits.items()
            },
            dropped={reason: count for reason, count in sorted(dropped.items()) if count},
        )
        return _publish(out_root, folder, record, model_path)


def load_user_data(
    folder: Path,
    out_root: Path,
    *,
    model_path: Path | None = None,
    params: QLoRA | None = None,
    name: str = "",
    licence: str = "not stated",
    say: Say = lambda _: None,
) -> DatasetRecord:
    """A user's train/valid/test.jsonl, validated and copied into the store by content.

    With `params` also fit for that training; says what there is to look at. Raises OodatcaaError
    `data.invalid` whose details name every bad line.
    """
    if params is None:
        found = DataFindings(problems=check_folder(folder))
    else:
        found = findings(folder, model_path, params)
    _must_be_fit(str(folder), found)
    for line in found.to_look_at():
        say(line)
    splits = {}
    for split in SPLITS:
        with (folder / f"{split}.jsonl").open("rb") as file:
            splits[split] = _stats(folder, split, sum(1 for _ in file), 1)
    record = DatasetRecord(
        name=name or folder.resolve().name,
        path=str(folder),
        sha256="0" * 64,
        source=str(folder.resolve()),
        licence=licence,
        splits=splits,
    )
    return _publish(out_root, folder, record, model_path)


def read_card(folder: Path) -> DatasetRecord:
    """card.json of a data set in the store. Raises StateError when it can not be read."""
    path = folder / CARD_FILE
    try:
        return DatasetRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise StateError(
            "data.card_unreadable",
            f"{path} can not be read: {str(error).splitlines()[0]}",
            hint=f"remove {folder} and build the data again",
        ) from error


def content_sha256(splits: Mapping[str, SplitStats]) -> str:
    """The hash of a data set: over name and hash of its three files."""
    lines = "".join(f"{name}.jsonl {splits[name].sha256}\n" for name in SPLITS)
    return hashlib.sha256(lines.encode()).hexdigest()


def _short(pairs: list[Pair], tokenizer: ChatTokenizer, most: int) -> list[Pair]:
    try:
        counts = tokenizer.lengths([pair.messages() for pair in pairs])
    except NoTemplateError:
        return pairs  # nothing here can count them; training cuts what is too long
    return [pair for pair, n in zip(pairs, counts, strict=True) if n.total <= most]


def _stats(folder: Path, split: str, examples: int, files: int) -> SplitStats:
    digest = file_sha256(folder / f"{split}.jsonl")
    return SplitStats(examples=examples, files=files, sha256=digest)


def _counted(record: DatasetRecord, folder: Path, model_path: Path | None) -> DatasetRecord:
    if model_path is None or not (model_path / "tokenizer.json").is_file():
        return record  # lengths stay unknown, and are shown as such
    try:
        lengths = example_lengths(folder, model_path)
    except NoTemplateError:
        return record
    return record.evolve(
        tokenizer=model_path.name,
        splits={name: with_lengths(s, lengths[name]) for name, s in record.splits.items()},
    )


def _publish(
    root: Path, source: Path, record: DatasetRecord, model_path: Path | None
) -> DatasetRecord:
    """Copy the three files to their place by one rename; what is there already stays."""
    digest = content_sha256(record.splits)
    target = root.resolve() / digest[:16]
    final = _counted(record.evolve(sha256=digest, path=str(target)), source, model_path)
    if target.is_dir():
        return _existing(target, final)
    root.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(prefix=".new-", dir=root.resolve()))
    try:
        temp.chmod(0o755)
        for split in SPLITS:
            shutil.copyfile(source / f"{split}.jsonl", temp / f"{split}.jsonl")
            if file_sha256(temp / f"{split}.jsonl") != final.splits[split].sha256:
                raise StateError("data.changed", f"{split}.jsonl changed while it was copied")
            (temp / f"{split}.jsonl").chmod(0o444)
        write_atomic(temp / CARD_FILE, final.model_dump_json(indent=2) + "\n", mode=0o444)
        write_atomic(temp / CARD_PAGE, data_card(final), mode=0o444)
        try:
            temp.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            return _existing(target, final)  # another process was first, with the same content
        sync_folder(root)
        return final
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _existing(target: Path, record: DatasetRecord) -> DatasetRecord:
    """The set that is there, once its bytes are proven to be the same."""
    for split in SPLITS:
        path = target / f"{split}.jsonl"
        if not path.is_file() or file_sha256(path) != record.splits[split].sha256:
            raise StateError(
                "data.changed",
                f"{path} is not what its folder's name says",
                hint=f"remove {target} and build the data again",
            )
    return record


def write_probe_data(folder: Path, *, examples: int, tokens: int) -> Path:
    """Chat examples of at least `tokens` tokens each, for measuring memory; the folder's path.

    Digits and spaces alternate, so no tokenizer makes fewer tokens than numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for split in SPLITS:
        lines = []
        for _ in range(examples):
            answer = " ".join(str((number * 7919 + i) % 10) for i in range(tokens))
            lines.append(
                {
                    "messages": [
                        {"role": "user", "content": f"Count, example {number}."},
                        {"role": "assistant", "content": answer},
                    ]
                }
            )
            number += 1
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomic(folder / f"{split}.jsonl", text)
    return folder
