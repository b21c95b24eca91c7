"""Commands are documented; the README's commands are the ones that are checked."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from archive.cli.main import load_commands

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(group: click.Group, path: str = "archive") -> list[str]:
    found = []
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found += commands(command, f"{path} {name}")
        elif not command.hidden:
            found.append(f"{path} {name}")
    return found


@pytest.mark.parametrize("command", commands(load_commands()))
def test_every_command_is_in_the_reference(command: str) -> None:
    reference = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| `{re.escape(command)}[` ]", reference, re.MULTILINE), f"{command} is not in docs/commands.md"


def test_the_reference_names_no_command_that_is_not_there() -> None:
    reference = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    known = commands(load_commands())
    for line in re.findall(r"^\| `(archive [^`]*)`", reference, re.MULTILINE):
        assert any(f"{line} ".startswith(f"{command} ") for command in [*known, "archive import", "archive backup"]), line


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_every_command_named_in_a_page_exists(document: str) -> None:
    group = load_commands()
    for line in re.findall(r"`archive ([a-z][^`]*)`", (ROOT / document).read_text(encoding="utf-8")):
        node: click.Command = group
        for word in line.split():
            if not isinstance(node, click.Group) or not re.fullmatch(r"[a-z-]+", word):
                break
            assert word in node.commands or getattr(node, "default", ""), f"{document} names 'archive {line}'"
            node = node.commands.get(word, node.commands.get(getattr(node, "default", ""), node))


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), f"{document} links to {link}"


def first_screen() -> list[str]:
    """The commands before the first heading below the title."""
    return re.findall(r"```sh\n(.*?)\n```", README.split("\n## ")[0], re.DOTALL)


def test_the_first_screen_holds_two_commands_of_one_line_each() -> None:
    run, test = first_screen()
    assert "\n" not in run
    assert "\n" not in test
    assert run.endswith("archive up --demo")
    assert "pytest" in test
    assert README.split("\n## ")[0].count("\n") < 40


def test_ci_runs_the_readmes_test_command_with_everything_required() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    _run, test = first_screen()
    assert f"\n{test}\n" in script
    assert "ARCHIVE_TEST_REQUIRE_ALL=1" in script.split(test)[0]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
