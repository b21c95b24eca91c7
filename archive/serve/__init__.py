"""The processes of a running archive: one supervisor, DIMSE workers, web workers, one background worker."""
