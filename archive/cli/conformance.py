"""`archive conformance`: the DICOM Conformance Statement (PS3.2) of this release and configuration, made from the code's own tables."""

from __future__ import annotations

from typing import Any

import click

from archive.cli import output
from archive.cli.main import Command
from archive.cli.session import Session


def attach(archive: click.Group) -> None:
    """Add the command of this file."""
    archive.add_command(conformance)


@click.command("conformance", cls=Command)
@click.option("--markdown", is_flag=True, help="As Markdown; so it is without --json too.")
@click.option("--defaults", is_flag=True, help="Of a configuration in which nothing is changed.")
@click.pass_obj
def conformance(session: Session, markdown: bool, defaults: bool) -> None:
    """Print the DICOM conformance statement of this configuration."""
    from archive.cli import statement, statement_page
    from archive.config import Config

    made: dict[str, Any] = statement.of(Config() if defaults else session.config)
    if session.as_json and not markdown:
        print(output.to_json(made))
    else:
        print(statement_page.markdown(made), end="")
