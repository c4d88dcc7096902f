"""Gathers evidence: commands, metrics, files."""
