"""A crew of agents that fine-tunes language models inside a hard memory budget."""

__version__ = "0.1.0"
