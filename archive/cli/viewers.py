"""`archive viewer`: viewers of others, served beside the archive."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from archive.cli import output
from archive.cli.main import Group
from archive.cli.session import Session


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(viewer)


@click.group("viewer", cls=Group)
def viewer() -> None:
    """Serve a viewer somebody else makes."""


@viewer.command("ohif")
@click.option("--tarball", type=click.Path(path_type=Path, dir_okay=False, exists=True), required=True, metavar="FILE",
              help="A release of OHIF, as 'npm pack @ohif/app' downloads it.")
@click.pass_obj
def ohif(session: Session, tarball: Path) -> None:
    """Unpack a downloaded release of OHIF and serve it, unmodified, at an origin of its own."""
    from archive.serve import state
    from archive.services import viewers

    config = session.config
    with output.progress(quiet=session.as_json) as track:
        release = viewers.install(config, tarball, lambda files: track("unpacking, files", files))
    serving = state.is_serving(config)
    restart = "restart the archive" if serving else "start the archive"
    answer = {**asdict(release), "url": config.viewer_url, "restart": serving}
    session.answer(answer, f"OHIF {release.version} is installed; {restart}, then open {config.viewer_url}/")


@viewer.command("show")
@click.pass_obj
def show(session: Session) -> None:
    """Tell which viewer is installed and where it is served."""
    from archive.serve import state
    from archive.services import viewers

    config = session.config
    release, running = viewers.installed(config), state.read_status(config)
    served = running is not None and running.viewer is not None
    url = running.viewer.public_url if running is not None and running.viewer is not None else config.viewer_url
    answer = {"installed": None if release is None else asdict(release), "serving": served, "url": url}
    told = "no viewer is installed; see 'archive viewer ohif --help'" if release is None else (
        f"OHIF {release.version}, " + (f"served at {url}/" if served else "not served yet: start the archive anew"))
    session.answer(answer, told)


@viewer.command("remove")
@click.pass_obj
def remove(session: Session) -> None:
    """Take the viewer away; a running archive serves it until it is started anew."""
    from archive.services import viewers

    viewers.remove(session.config)
    session.answer({"removed": True}, "removed; restart the archive")
