"""Crashes: power cuts, kills and faults between any two steps; what was acknowledged is there afterwards."""
