"""Strongroom beside Orthanc on one machine: `python -m benchmarks`."""
