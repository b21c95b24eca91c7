"""Bytes in, sealed records kept in segments, authenticated bytes out."""
