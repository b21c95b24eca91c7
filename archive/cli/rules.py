"""`archive rule`: grants that come by themselves as studies arrive."""

from __future__ import annotations

from datetime import datetime

import click

from archive.cli.main import Group
from archive.cli.session import Session
from archive.cli.when import WHEN


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(rule)


@click.group("rule", cls=Group)
def rule() -> None:
    """Rules that give a grant, with an end, to whom a study is for as it arrives."""


@rule.command("add")
@click.argument("name", metavar="NAME")
@click.option("--to", required=True, metavar="SUBJECT", help="A user, group or peer, by name or id.")
@click.option("--role", required=True, metavar="ROLE", help="Whose permissions on images the grants give.")
@click.option("--referring", multiple=True, metavar="NAME", help="Referring physician, as Family^Given; * and ? stand for anything.")
@click.option("--performing", multiple=True, metavar="NAME", help="Performing physician.")
@click.option("--department", multiple=True, metavar="TEXT", help="Institutional department.")
@click.option("--station", multiple=True, metavar="TEXT", help="Station name.")
@click.option("--modality", multiple=True, metavar="M", help="Modality; '*' means every series.")
@click.option("--calling-ae", multiple=True, metavar="AET", help="AE title it was sent from.")
@click.option("--level", type=click.Choice(["patient", "study", "series"]), default="study", show_default=True,
              help="What each grant covers.")
@click.option("--for", "lifetime", default="90d", show_default=True, metavar="TIME", help="How long each grant lasts: 8h, 90d, 12w.")
@click.option("--renew", is_flag=True, help="A later series of the same begins that time anew.")
@click.option("--priority", type=click.IntRange(-1000, 1000), default=0, show_default=True, help="The highest is asked first.")
@click.option("--datastore", default="clinical", show_default=True)
@click.pass_obj
def add(
    session: Session, name: str, to: str, role: str, referring: tuple[str, ...], performing: tuple[str, ...], department: tuple[str, ...],
    station: tuple[str, ...], modality: tuple[str, ...], calling_ae: tuple[str, ...], level: str, lifetime: str, renew: bool, priority: int,
    datastore: str,
) -> None:
    """Add a rule; of an option given several times one must fit, of different options all."""
    from archive.services.arrival_admin import NewRule
    from archive.services.arrival_terms import Conditions
    from archive.services.arrival_terms import lifetime as seconds

    conditions = Conditions(
        referring=referring, performing=performing, department=department, station=station, modality=modality, calling_ae=calling_ae
    )
    made = session.node.arrival_rules.add(session.subject, NewRule(
        name, to, role, conditions, level=level, lifetime_s=seconds(lifetime), renew=renew, priority=priority, datastore=datastore,
    ))
    session.answer(made, f"rule {made['name']}: what arrives gives {to} {role} on its {level}; "
                         f"archive rule apply --since WHEN --rule {made['name']} looks at what is there")


@rule.command("list")
@click.pass_obj
def list_(session: Session) -> None:
    """List rules in the order they are asked, and how many of their grants count."""
    found = session.node.arrival_rules.list(session.subject)
    session.rows(found, "id", "name", "to", "role", "level", "conditions", "days", "renew", "priority", "enabled", "grants")


@rule.command("remove")
@click.argument("ref", metavar="NAME")
@click.option("--keep-grants", is_flag=True, help="What it gave goes on to its end; else it ends now.")
@click.pass_obj
def remove(session: Session, ref: str, keep_grants: bool) -> None:
    """Take a rule away, and what it gave."""
    done = session.node.arrival_rules.remove(session.subject, ref, keep_grants=keep_grants)
    session.answer(done, f"rule {done['name']} is removed; {done['revoked']} grants ended, {done['kept']} go on")


@rule.command("enable")
@click.argument("ref", metavar="NAME")
@click.pass_obj
def enable(session: Session, ref: str) -> None:
    """Let a rule count again."""
    done = session.node.arrival_rules.switch(session.subject, ref, enabled=True)
    session.answer(done, f"rule {done['name']} counts")


@rule.command("disable")
@click.argument("ref", metavar="NAME")
@click.pass_obj
def disable(session: Session, ref: str) -> None:
    """Let a rule give nothing more; what it gave goes on."""
    done = session.node.arrival_rules.switch(session.subject, ref, enabled=False)
    session.answer(done, f"rule {done['name']} gives nothing more")


@rule.command("test")
@click.argument("study", metavar="STUDY_UID")
@click.option("--datastore", default="clinical", show_default=True)
@click.pass_obj
def test(session: Session, study: str, datastore: str) -> None:
    """Tell which rules are about a stored study, and whether each would give something now."""
    found = session.node.arrival_rules.test(session.subject, study, datastore_name=datastore)
    session.rows(found, "rule", "to", "role", "level", "object", "due")


@rule.command("apply")
@click.option("--since", required=True, type=WHEN, metavar="WHEN", help="What arrived since then.")
@click.option("--rule", "ref", metavar="NAME", help="Only this rule.")
@click.option("--datastore", default="clinical", show_default=True)
@click.option("--yes", is_flag=True, help="Give it; without this it is only told what that would be.")
@click.pass_obj
def apply(session: Session, since: datetime, ref: str | None, datastore: str, yes: bool) -> None:
    """Give what rules say of what is there already."""
    done = session.node.arrival_rules.apply(session.subject, since=since, rule=ref, datastore_name=datastore, confirm=yes)
    if session.as_json:
        session.answer(done, "")
        return
    session.rows(done["shown"], "rule", "to", "role", "level", "object")
    session.answer(done, f"{done['grants']} grants given" if yes else f"{done['grants']} grants would be given; --yes gives them")
