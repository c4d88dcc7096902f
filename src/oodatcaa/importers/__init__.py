"""Plans and queues written by other tools."""
