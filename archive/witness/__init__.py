"""An outside witness: a small program of its own that remembers how far a log has come, and cosigns what continues it."""
