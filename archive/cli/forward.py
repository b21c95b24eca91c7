"""`archive forward`: what goes on to other systems by itself, and what became of it."""

from __future__ import annotations

import click

from archive.cli.main import Group
from archive.cli.session import Session
from archive.errors import InvalidRequest


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(forward)


@click.group("forward", cls=Group)
def forward() -> None:
    """Forwarding: rules, destinations, the queue."""


@forward.command("add")
@click.argument("name")
@click.option("--to", "destination", required=True, metavar="PEER", help="A registered peer with an address.")
@click.option("--as", "on_behalf_of", required=True, metavar="USER", help="On whose right: what this user may send.")
@click.option("--modality", multiple=True, metavar="CT|MR|…")
@click.option("--calling-ae", multiple=True, metavar="AET", help="As which AE title the sender came.")
@click.option("--called-ae", multiple=True, metavar="AET", help="Which AE title the sender called.")
@click.option("--station", multiple=True, metavar="NAME", help="Station Name.")
@click.option("--where", multiple=True, metavar="KEYWORD=PATTERN", help="An attribute of patient, study or series.")
@click.option("--hours", default="", metavar="HH:MM-HH:MM", help="Only then, in local time.")
@click.option("--quiet", type=click.IntRange(0, 10_080), default=0, metavar="MINUTES",
              help="Only when nothing came for the study for so long.")
@click.option("--existing", is_flag=True, help="What is there already, too.")
@click.option("--datastore", default="clinical", show_default=True)
@click.pass_obj
def add(
    session: Session, name: str, destination: str, on_behalf_of: str, modality: tuple[str, ...], calling_ae: tuple[str, ...],
    called_ae: tuple[str, ...], station: tuple[str, ...], where: tuple[str, ...], hours: str, quiet: int, existing: bool, datastore: str,
) -> None:
    """Add rule NAME. Conditions of different kinds must all hold; of one kind, one. Patterns take * and ?."""
    from archive.services.forward_rules import Conditions

    pairs = [one.partition("=") for one in where]
    if not all(keyword and equals for keyword, equals, _ in pairs):
        message = "--where takes KEYWORD=PATTERN"
        raise InvalidRequest(message, remedy="for example --where StudyDescription=*chest*")
    conditions = Conditions(modality, calling_ae, called_ae, station, {keyword: pattern for keyword, _, pattern in pairs})
    made = session.node.forwarding.add(
        session.subject, name, destination, on_behalf_of=on_behalf_of, conditions=conditions, hours=hours, quiet_s=60 * quiet,
        existing=existing, datastore_name=datastore,
    )
    session.answer(made, f"{name} forwards to {destination} what {on_behalf_of} may send and {destination} receive")


@forward.command("list")
@click.pass_obj
def list_(session: Session) -> None:
    """List rules."""
    session.rows(session.node.forwarding.list(session.subject),
                 "name", "destination", "as", "datastore", "conditions", "hours", "quiet_s", "enabled")


@forward.command("remove")
@click.argument("name")
@click.pass_obj
def remove(session: Session, name: str) -> None:
    """Remove rule NAME and what still waits by it, unless another rule to the same destination sends that too."""
    session.node.forwarding.remove(session.subject, name)
    session.answer({"name": name, "removed": True}, f"{name} is removed")


@forward.command("destinations")
@click.pass_obj
def destinations(session: Session) -> None:
    """Show how each destination stands, of forwards and of commitment reports."""
    session.rows(session.node.forwarding.destinations(session.subject),
                 "destination", "state", "waiting", "done", "failed", "failures", "retry_at", "reached_at", "reason")


@forward.command("queue")
@click.option("--to", "destination", default="", metavar="PEER")
@click.option("--state", default="", type=click.Choice(["", "waiting", "done", "failed", "rejected"]), metavar="STATE",
              help="waiting, done, failed or rejected.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.pass_obj
def queue(session: Session, destination: str, state: str, limit: int) -> None:
    """List deliveries, the newest first."""
    session.rows(session.node.forwarding.queue(session.subject, state=state, destination=destination, limit=limit),
                 "id", "kind", "destination", "rule", "state", "attempts", "run_at", "reason", "finished_at")


@forward.command("retry")
@click.option("--to", "destination", default="", metavar="PEER", help="Only what goes to this peer.")
@click.option("--id", "number", type=int, metavar="ID", help="Only this delivery.")
@click.pass_obj
def retry(session: Session, destination: str, number: int | None) -> None:
    """Try now what failed or waits."""
    count = session.node.forwarding.retry(session.subject, destination=destination, number=number)
    session.answer({"deliveries": count}, f"{count} deliveries are tried again")


@forward.command("pause")
@click.argument("destination", metavar="PEER")
@click.pass_obj
def pause(session: Session, destination: str) -> None:
    """Send nothing to PEER until it is resumed; what is under way ends first."""
    session.node.forwarding.pause(session.subject, destination, paused=True)
    session.answer({"destination": destination, "paused": True}, f"{destination} is paused")


@forward.command("resume")
@click.argument("destination", metavar="PEER")
@click.pass_obj
def resume(session: Session, destination: str) -> None:
    """Go on sending to PEER, at once."""
    session.node.forwarding.pause(session.subject, destination, paused=False)
    session.answer({"destination": destination, "paused": False}, f"{destination} goes on")
