"""The catalog: what is stored, and the one way to search it."""
