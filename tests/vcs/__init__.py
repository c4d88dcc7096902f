"""Real repositories, real processes."""
