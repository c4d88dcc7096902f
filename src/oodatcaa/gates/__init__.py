"""Gathers evidence: commands, metrics, files. Nothing that an agent says counts."""

from oodatcaa.gates.ports import Checkouts, GateRequest, MetricSource, MetricValue
from oodatcaa.gates.runner import GateRunner
from oodatcaa.gates.store import EvidenceStore

__all__ = [
    "Checkouts",
    "EvidenceStore",
    "GateRequest",
    "GateRunner",
    "MetricSource",
    "MetricValue",
]
