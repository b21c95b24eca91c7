"""Tests of archive.dicom."""
