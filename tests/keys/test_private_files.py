"""Private files: one that is new has no second name that outlives a process which was killed while it wrote."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from archive.errors import KeysUnavailable
from archive.keys import private_files

KILLED = 9
CHILD = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from archive.keys import private_files
    link, moment = os.link, sys.argv[2]
    def cut(*arguments, **options):
        if moment == "after":
            link(*arguments, **options)
        os._exit(9)
    os.link = cut
    private_files.write(Path(sys.argv[1]), b"a key", replace=False)
""")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_writer_leaves_no_second_name(tmp_path: Path, moment: str) -> None:
    root = Path(__file__).resolve().parents[2]
    path = tmp_path / "root.key"
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), moment], env={**os.environ, "PYTHONPATH": str(root)}, timeout=60, check=False
    ).returncode
    assert ended in {0, KILLED}
    assert [one.name for one in tmp_path.iterdir()] == ([] if (ended, moment) == (KILLED, "before") else ["root.key"])
    if path.exists():
        assert path.stat().st_nlink == 1
        assert private_files.read(path) == b"a key"


def test_a_new_file_is_whole_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new.key"
    private_files.write(path, b"first", replace=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(KeysUnavailable, match="already"):
        private_files.write(path, b"second", replace=False)
    assert path.read_bytes() == b"first"
    with pytest.raises(KeysUnavailable, match="cannot be written"):
        private_files.write(tmp_path / "absent" / "new.key", b"first", replace=False)
    assert [one.name for one in tmp_path.iterdir()] == ["new.key"]


def test_a_file_system_whose_files_have_names_from_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_files, "_NAMELESS", 0)
    path = tmp_path / "new.key"
    private_files.write(path, b"first", replace=False)
    assert path.read_bytes() == b"first"
    with pytest.raises(KeysUnavailable, match="already"):
        private_files.write(path, b"second", replace=False)
    assert [one.name for one in tmp_path.iterdir()] == ["new.key"]


def test_only_what_a_write_left_is_swept(tmp_path: Path) -> None:
    for name in (".root.key.0123456789ab", ".root.key.old", ".root.key.0123456789ab.txt", "root.key", ".other.key.0123456789ab"):
        (tmp_path / name).touch()
    private_files.sweep(tmp_path / "root.key")
    assert sorted(one.name for one in tmp_path.iterdir()) == [".other.key.0123456789ab", ".root.key.0123456789ab.txt", ".root.key.old",
                                                             "root.key"]
