"""The HTTP door: DICOMweb, probes and pages; everything goes through services."""
