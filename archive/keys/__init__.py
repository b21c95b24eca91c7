"""The archive's long-lived keys and its certificate authority."""
