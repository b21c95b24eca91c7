"""WHEN as the type of an option."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from archive.errors import InvalidRequest


class When(click.ParamType[datetime]):
    """ISO 8601, or a time from now such as 8h or 30d."""

    name = "WHEN"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the instant, or fail as wrong usage."""
        if isinstance(value, datetime):
            return value
        from archive.access import when

        try:
            return when.parse(str(value), datetime.now(UTC))
        except InvalidRequest as error:
            self.fail(f"{error.message}; {error.remedy}", param, ctx)


WHEN = When()
