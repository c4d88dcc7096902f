"""Small shared tools: atomic files, locks, child processes, memory sampling, configuration."""
