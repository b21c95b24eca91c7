"""DICOMweb (PS3.18): store, search and retrieve."""
