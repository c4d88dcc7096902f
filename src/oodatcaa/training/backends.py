"""The backend that a name means."""

from __future__ import annotations

from collections.abc import Callable

from oodatcaa.domain.ports import TrainingBackend
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.axolotl.backend import AxolotlBackend
from oodatcaa.training.backend import ChildBackend, HfBackend, MlxBackend, Models
from oodatcaa.training.children import DEFAULTS, ChildSettings
from oodatcaa.training.forecast import ProbeCache
from oodatcaa.training.reservation import Reservation, Reservations
from oodatcaa.training.runs import RunStore

CHILD_BACKENDS: dict[str, type[ChildBackend]] = {
    "mlx": MlxBackend,
    "hf": HfBackend,
    "axolotl": AxolotlBackend,
}
BACKENDS = tuple(CHILD_BACKENDS)


def make_backend(
    name: str,
    runs: RunStore,
    models: Models,
    *,
    reservations: Reservations | None = None,
    probes: ProbeCache | None = None,
    on_wait: Callable[[tuple[Reservation, ...]], None] | None = None,
    settings: ChildSettings = DEFAULTS,
    learns: bool = False,
    say: Callable[[str], None] = print,
) -> TrainingBackend:
    """`mlx`, `hf` or `axolotl`, whether or not it is installed here: ask its `probe()`.

    Raises OodatcaaError `backend.unknown`.
    """
    if name not in CHILD_BACKENDS:
        raise OodatcaaError(
            "backend.unknown",
            f"there is no backend {name!r}",
            hint=f"backends: {', '.join(BACKENDS)}",
        )
    return CHILD_BACKENDS[name](
        runs,
        models,
        reservations=reservations,
        probes=probes,
        on_wait=on_wait,
        settings=settings,
        learns=learns,
        say=say,
    )
