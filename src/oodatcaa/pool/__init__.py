"""Loaded base models and their adapters; serving."""
