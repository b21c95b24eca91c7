"""The ledger: every event a leaf of one signed Merkle log, every stored instance a signed statement."""
