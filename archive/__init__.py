"""Strongroom: a self-hosted, encrypted medical imaging archive."""

__version__ = "0.1.0"
