"""The queue and its journal, the log, the archive."""
