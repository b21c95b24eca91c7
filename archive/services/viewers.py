"""Viewers somebody else makes: a downloaded release of OHIF is checked, unpacked beside the data and served as it is.

Nothing of it is changed but its configuration (`app-config.js`), which the archive writes itself when it serves: the one that is shipped
points at servers of others.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from archive.config import Config
from archive.errors import InvalidRequest, NotFound, Unavailable

NAME = "@ohif/app"
RECORD = "release.json"
FILES = "files"
MOST_BYTES = 1 << 30
MOST_FILES = 20_000
_TOP = "package"
_INSIDE = ("package", "dist")
_PART = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9._@+~-]*")
_LEFT_OUT = (".map",)  # what only developers read, most of the size


@dataclass(frozen=True, slots=True)
class Release:
    """An unpacked release."""

    name: str
    version: str
    sha256: str  # of the tarball
    files: int
    bytes: int


def folder(config: Config) -> Path:
    """Return where OHIF lies once it is unpacked."""
    return config.storage_dir / "viewers" / "ohif"


def installed(config: Config) -> Release | None:
    """Return the release that is there, or None."""
    try:
        said = json.loads((folder(config) / RECORD).read_text(encoding="utf-8"))
        return Release(**said)
    except (OSError, ValueError, TypeError):
        return None


def install(config: Config, tarball: Path, told: Callable[[int], None] = lambda _files: None) -> Release:
    """Unpack a tarball of npm's package @ohif/app in the place of what was there; `told` hears how many files are out.

    Raises:
        InvalidRequest: it is none, or holds what a release does not.
        Unavailable: it cannot be read, or storage cannot be written.
    """
    target = folder(config)
    fresh = target.with_name("ohif.new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        (fresh / FILES).mkdir(parents=True, mode=0o700)
        release = _unpack(tarball, fresh, told)
        (fresh / RECORD).write_text(json.dumps(asdict(release)), encoding="utf-8")
        old = target.with_name("ohif.old")
        shutil.rmtree(old, ignore_errors=True)
        with suppress(FileNotFoundError):
            target.replace(old)
        fresh.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    except (tarfile.TarError, EOFError) as error:
        message = f"{tarball} is not a tarball of {NAME}"
        raise InvalidRequest(message, remedy=f"download it with: npm pack {NAME}") from error
    except OSError as error:
        message = f"{error.filename or tarball} cannot be used: {error.strerror or type(error).__name__}"
        raise Unavailable(message, remedy="check that the tarball is readable, and the space on the storage disk") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return release


def remove(config: Config) -> None:
    """Take the viewer away.

    Raises:
        NotFound: there is none.
    """
    if not folder(config).exists():
        message = "no viewer is installed"
        raise NotFound(message)
    shutil.rmtree(folder(config))


def _unpack(tarball: Path, fresh: Path, told: Callable[[int], None]) -> Release:
    with tarball.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    version, count, total = "", 0, 0
    with tarfile.open(tarball, "r:gz") as packed:
        for member, parts in _members(packed):
            count, total = count + 1, total + member.size
            if count > MOST_FILES or total > MOST_BYTES:
                message = "the tarball holds more than a release of OHIF does"
                raise InvalidRequest(message, remedy=f"download it with: npm pack {NAME}")
            source = packed.extractfile(member)
            assert source is not None  # a regular file
            if parts == (_TOP, "package.json"):
                version = _version(source.read(1 << 20))
            elif parts[:2] == _INSIDE and not parts[-1].endswith(_LEFT_OUT):
                path = fresh.joinpath(FILES, *parts[2:])
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with path.open("xb") as target:
                    shutil.copyfileobj(source, target)
                told(count)
    if not version or not (fresh / FILES / "index.html").is_file():
        message = f"{tarball} holds no built release of {NAME}"
        raise InvalidRequest(message, remedy=f"download it with: npm pack {NAME}")
    return Release(NAME, version, digest, count, total)


def _members(packed: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, tuple[str, ...]]]:
    """Yield the regular files of the package; links, devices and odd names are refused."""
    for member in packed:
        parts = PurePosixPath(member.name).parts
        if member.isdir():
            continue
        if not member.isfile() or not all(_PART.fullmatch(part) for part in parts) or parts[:1] != (_TOP,):
            message = "the tarball holds a link, a device or a name that no release has"
            raise InvalidRequest(message, remedy=f"download it with: npm pack {NAME}")
        yield member, parts


def _version(described: bytes) -> str:
    try:
        said = json.loads(described)
        name, version = str(said["name"]), str(said["version"])
    except (ValueError, KeyError, TypeError):
        name = version = ""
    if name != NAME or not re.fullmatch(r"[0-9A-Za-z.+-]{1,40}", version):
        message = f"the tarball is not the package {NAME}"
        raise InvalidRequest(message, remedy=f"download it with: npm pack {NAME}")
    return version
