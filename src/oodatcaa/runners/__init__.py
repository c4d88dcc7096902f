"""How an agent thinks: built in, or an external command."""
