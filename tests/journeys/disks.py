"""Small disks, and what fills them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mounted(folder: Path, size: int, mode: str) -> Iterator[bool]:
    """A disk of `size` bytes in `folder`; False, and nothing done, where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode={mode}", "tmpfs", str(folder)]
    done = os.geteuid() == 0 and shutil.which("mount") is not None
    done = done and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(path: Path, leave: int) -> None:
    """Use up the disk but for some bytes."""
    stat = os.statvfs(path.parent)
    free = stat.f_bavail * stat.f_frsize - leave
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free, 1))
