"""DIMSE: associations in and out, over mutual TLS or, where allowed, plain."""
