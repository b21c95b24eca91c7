"""The databases: tables, engine, guard and migrations."""
