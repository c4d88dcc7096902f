"""Use cases and the agent loop; wires ports to adapters."""
