"""The standard itself, pure: no database, no sockets, no clock."""
