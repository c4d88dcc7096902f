"""A package, so that its sample records have one name for pytest and for mypy."""
