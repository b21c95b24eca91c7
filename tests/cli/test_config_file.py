"""Writing config.toml."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.cli import config_file
from archive.config import load
from archive.errors import ConfigurationError


def test_the_first_file_loads_and_one_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert config_file.write_first(path)
    assert load(path).http.port == 8443
    path.write_text("[http]\nport = 1\n")
    assert not config_file.write_first(path)
    assert load(path).http.port == 1


def test_what_is_written_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    files: list[int] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        files.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    path = tmp_path / "a" / "b" / "config.toml"
    config_file.write_first(path)
    folders = [str(tmp_path), str(tmp_path / "a"), str(path.parent)]
    assert [one for one in synced if one in folders] == folders
    assert files.count(path.stat().st_ino) == 1
    synced.clear()
    config_file.open_to_network(path, "192.168.1.20")
    assert [one == str(path.parent) for one in synced] == [False, True]
    assert [one.name for one in path.parent.iterdir()] == ["config.toml"]


def test_lan_changes_both_listeners_and_the_public_address(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    config_file.write_first(path)
    path.chmod(0o640)
    config_file.open_to_network(path, "192.168.1.20")
    config = load(path)
    assert (config.http.host, config.dimse.tls.host, config.archive.public_url) == ("192.168.1.20", "192.168.1.20", "https://192.168.1.20:8443")
    assert config.dimse.plain.host == "127.0.0.1"
    assert path.stat().st_mode & 0o777 == 0o640
    before = path.read_text()
    config_file.open_to_network(path, "192.168.1.20")
    assert path.read_text() == before


def test_lan_keeps_comments_ports_and_order(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        "# ours\n[dimse.plain]\nenabled = true # old CT\n\n[http] # web\nport = 9443\nhost = 'localhost'  # was loopback\n"
        '[archive]\nname = "x"\n'
    )
    config_file.open_to_network(path, "fd00::5")
    text = path.read_text()
    assert "# ours\n[dimse.plain]" in text
    assert 'host = "fd00::5"  # was loopback' in text
    config = load(path)
    assert config.archive.public_url == "https://[fd00::5]:9443"
    assert config.dimse.plain.host == config.dimse.tls.host == "fd00::5"


def test_a_form_it_does_not_understand_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    text = 'http = {host = "127.0.0.1"}\n'
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        config_file.open_to_network(path, "10.0.0.1")
    assert "http" in caught.value.remedy or "archive" in caught.value.remedy
    assert path.read_text() == text


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20))
def test_any_string_survives(value: str) -> None:
    text = config_file.set_key('[a]\nb = "x" # c\n[d]\nb = "y"\n', "a", "b", value)
    assert tomllib.loads(text) == {"a": {"b": value}, "d": {"b": "y"}}


def test_a_witness_is_written_beside_whatever_is_there(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    example = (Path(__file__).resolve().parents[2] / "config.example.toml").read_text()
    for text in ("", "[archive]\nname = 'x' # ours", example, "[witness]\nevery_minutes = 7\nknown = []\n[http]\nport = 1\n"):
        path.write_text(text)
        before = load(path)
        config_file.add_witness(path, "nas", "http://nas:7373", "key+one")
        config_file.add_witness(path, "nas-2", "https://partner.example/w", "key+two")
        assert [(one.name, one.key) for one in load(path).witness.known] == [("nas", "key+one"), ("nas-2", "key+two")]
        config_file.remove_witness(path, "nas")
        assert [one.name for one in load(path).witness.known] == ["nas-2"]
        config_file.remove_witness(path, "nas-2")
        assert load(path) == before
    odd = '[witness]\nknown = [{name = "nas", url = "http://nas:1", key = "k"}]\n'
    path.write_text(odd)
    for change in (lambda: config_file.add_witness(path, "b", "http://b:1", "k"), lambda: config_file.remove_witness(path, "nas")):
        with pytest.raises(ConfigurationError):
            change()
    assert path.read_text() == odd
