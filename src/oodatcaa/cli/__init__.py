"""Typer commands: parse, call app, show."""
