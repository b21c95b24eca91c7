"""The use cases: the only rooms that open a transaction."""
