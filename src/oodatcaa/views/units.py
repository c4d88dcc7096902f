"""Numbers as people read them. A value that was not measured says so; it never becomes 0."""

from __future__ import annotations

from datetime import datetime

from oodatcaa.domain.base import GB, as_utc

NOT_MEASURED = "not measured"


def memory(count: int | None) -> str:
    """Decimal gigabytes: `2.41 GB`, `16.0 GB`. Memory is always GB, so columns compare."""
    if count is None:
        return NOT_MEASURED
    value = count / GB
    return f"{value:.1f} GB" if abs(value) >= 9.995 else f"{value:.2f} GB"


def size(count: int | None) -> str:
    """The size of a file, in the decimal unit that fits: `812 B`, `8.1 kB`, `92.0 MB`."""
    if count is None:
        return NOT_MEASURED
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def duration(seconds: float | None) -> str:
    """Measured time: `0.42 s`, `12.3 s`, `4 min 25 s`, `1 h 05 min`."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        rest = f" {whole % 60:02d} s" if whole % 60 else ""
        return f"{whole // 60} min{rest}"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def minutes(value: float | None) -> str:
    """An estimate, in whole minutes; nobody estimates seconds. `120 min`, `under 1 min`."""
    if value is None:
        return NOT_MEASURED
    return "under 1 min" if 0 < value < 0.5 else f"{round(value)} min"


def moment(at: datetime | None) -> str:
    """`2026-01-30 12:00:00 UTC`."""
    return "not yet" if at is None else as_utc(at).strftime("%Y-%m-%d %H:%M:%S UTC")


def loss(value: float | None) -> str:
    """Nats per target token, three decimals."""
    return NOT_MEASURED if value is None else f"{value:.3f}"


def interval(low: float | None, high: float | None) -> str:
    return NOT_MEASURED if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def rate(value: float | None, unit: str = "tokens/s") -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value:.1f} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def number(value: float) -> str:
    """Short and exact enough: `0.0003`, `2`, `1,024`."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.6g}"


def percent(share: float | None) -> str:
    """`0.125` -> `12.5 %`, `1` -> `100 %`."""
    return NOT_MEASURED if share is None else f"{share * 100:.1f}".removesuffix(".0") + " %"


def count(amount: int, singular: str, plural: str = "") -> str:
    """`1 story`, `2 stories`: give the plural where adding an s is wrong."""
    return f"{amount:,} {singular if amount == 1 else plural or singular + 's'}"


def short(commit: str | None) -> str:
    """A commit or hash, shortened to eight characters for reading."""
    return (commit or "")[:8]


def words(name: str) -> str:
    """`planning_complete` -> `planning complete`."""
    return name.replace("_", " ")


def sentence(text: str) -> str:
    """First letter upper case; the rest as it is."""
    return text[:1].upper() + text[1:]


def listing(items: tuple[str, ...] | list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def printable(text: str) -> str:
    """Without control characters: a plan must not be able to rewrite the reader's terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)
