"""Backends, worker, run store, memory estimate and enforcement, datasets, evaluation."""
