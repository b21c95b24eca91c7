"""`archive witness`: who outside remembers the ledger, and the small program that does."""

from __future__ import annotations

from pathlib import Path

import click

from archive.cli import config_file, failures, output
from archive.cli.main import Group
from archive.cli.session import Session
from archive.errors import InvalidRequest, LedgerBroken

STATE = click.option("--state", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR",
                     help="Where the witness keeps its key and memory.")


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(witness)


@click.group("witness", cls=Group)
def witness() -> None:
    """A witness outside: it remembers how far the ledger has come, so that a rollback shows."""


@witness.command("add")
@click.argument("name")
@click.argument("url")
@click.argument("key", metavar="VKEY")
@click.pass_obj
def add(session: Session, name: str, url: str, key: str) -> None:
    """Let a witness be asked from now on; VKEY is what it printed when it was made."""
    from archive.ledger import cosignatures

    try:
        cosignatures.parse_key(key)
    except LedgerBroken as error:
        message = "this is not the verifier key of a witness"
        raise InvalidRequest(message, remedy="give what 'archive witness init' printed there") from error
    config_file.add_witness(Path(session.config.path), name, url, key)
    session.node.witnesses.configured(session.subject, what="witness added", name=name, url=url, key=key)
    own = session.node.oversight.public_keys()[0]
    session.answer(
        {"name": name, "url": url, "key": key, "log": own},
        f"{name} is asked from now on. There, let it know this ledger:\n"
        f"  archive witness serve --state DIR --listen HOST:PORT --log '{own}'",
    )


@witness.command("remove")
@click.argument("name")
@click.pass_obj
def remove(session: Session, name: str) -> None:
    """Let a witness be asked no more."""
    config_file.remove_witness(Path(session.config.path), name)
    session.node.witnesses.configured(session.subject, what="witness removed", name=name)
    session.answer({"removed": name}, f"{name} is asked no more")


@witness.command("list")
@click.pass_obj
def list_(session: Session) -> None:
    """List the witnesses: what each remembers, when it last agreed, what is wrong."""
    session.rows(session.node.witnesses.show(session.subject), "name", "url", "size", "agreed_at", "problem")


@witness.command("ask")
@click.argument("name", required=False)
@click.pass_obj
def ask(session: Session, name: str | None) -> int:
    """Ask a witness, or all of them, now."""
    session.node.upkeep.checkpoint()
    found = session.node.witnesses.ask(session.subject, name)
    session.rows(found, "name", "size", "at", "problem")
    if any(one["against"] for one in found):
        from archive.serve import state

        state.begin_anew(session.config)  # a serving archive looks at what was found, and goes on reading only
    return failures.FAILED if any(one["problem"] for one in found) else failures.DONE


@witness.command("init")
@STATE
@click.option("--name", required=True, metavar="TEXT", help="Its name in signatures, for example nas.clinic.example/witness.")
@click.pass_obj
def init(session: Session, state: Path, name: str) -> None:
    """Make a witness on this machine, and print its verifier key."""
    from archive.witness import memory

    key = str(memory.make(state, name))
    session.answer({"key": key}, key)


@witness.command("serve")
@STATE
@click.option("--listen", default="127.0.0.1:7373", show_default=True, metavar="HOST:PORT")
@click.option("--log", "logs", multiple=True, required=True, metavar="VKEY|FILE", help="What 'archive ledger keys' printed at the archive.")
@click.option("--certificate", type=click.Path(path_type=Path, dir_okay=False), help="PEM; without it plain HTTP: what counts is signed.")
@click.option("--key", type=click.Path(path_type=Path, dir_okay=False), help="PEM, of the certificate.")
def serve(state: Path, listen: str, logs: tuple[str, ...], certificate: Path | None, key: Path | None) -> None:
    """Be a witness until SIGTERM; needs no archive. On a small machine: python -m archive.witness."""
    from archive.witness import __main__ as program

    program.serve(state, listen, logs, certificate, key)


@witness.command("remembered")
@STATE
@click.pass_obj
def remembered(session: Session, state: Path) -> None:
    """Show what a witness on this machine remembers; not while it serves."""
    from archive.witness import __main__ as program

    session.rows([{"origin": origin, "size": size, "note": note} for origin, size, note in program.show(state)], "origin", "size")


@witness.command("forget")
@STATE
@click.option("--origin", required=True, metavar="TEXT", help="Of the ledger, as 'remembered' shows it.")
@click.pass_obj
def forget(session: Session, state: Path, origin: str) -> None:
    """Begin anew with an archive whose newest part is lost for good; what was remembered stays on record."""
    from archive.witness import __main__ as program

    size = program.forget(state, origin)
    session.answer({"origin": origin, "size": size}, f"forgotten at {output.text(size)} events: the next checkpoint begins anew")
