"""A real granian around the archive in memory: `python -m tests.web.peer PORT [CERTIFICATE KEY]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from granian import Granian
from granian.constants import Interfaces

from archive.services.retrieve import Found
from archive.web.wsgi import application
from tests.web.fakes import FakeNode, FakeRetrieve, config_of

THREADS = 8
LARGE_STUDY = "1.2.999"
LARGE_COUNT, LARGE_BYTES = 400, 1 << 20


class WithLargeStudy(FakeRetrieve):
    """Knows one study of 400 MiB that is made while it is read."""

    def instances(self, subject: Any, datastore: str, study: str, series: str | None = None, sop: str | None = None) -> list[Found]:
        if study != LARGE_STUDY:
            return super().instances(subject, datastore, study, series, sop)
        return [
            Found(
                study,
                "1.2.998",
                f"1.2.997.{n}",
                "1.2",
                "1.2.840.10008.1.2.1",
                LARGE_BYTES,
                0,
                b"d" * 32,
                f'"{n}"',
                1,
                None,
                datastore,
                None,
            )
            for n in range(LARGE_COUNT)
        ]

    def open(
        self, subject: Any, found: Found, start: int = 0, length: int | None = None, *, just_found: bool = False
    ) -> Iterator[memoryview]:
        if found.study_instance_uid != LARGE_STUDY:
            yield from super().open(subject, found)
            return
        buffer = bytearray(256 << 10)
        for at in range(LARGE_BYTES // len(buffer)):
            buffer[:] = bytes([int(found.etag.strip('"')) % 251, at]) * (len(buffer) // 2)
            yield memoryview(buffer)


def load(port: int, scheme: str) -> Any:
    http = {"threads": THREADS, **({} if scheme == "https" else {"tls": "off"})}
    node = FakeNode(config_of(Path.cwd(), archive={"public_url": f"{scheme}://127.0.0.1:{port}"}, http=http))
    node.retrieve = WithLargeStudy(node)
    return application(node)


def main(port: int, certificate: str = "", key: str = "") -> None:
    granian = Granian(
        "", address="127.0.0.1", port=port, interface=Interfaces.WSGI, workers=1, blocking_threads=THREADS, websockets=False,
        ssl_cert=Path(certificate) if certificate else None, ssl_key=Path(key) if key else None, log_enabled=False,
    )
    granian.serve(target_loader=lambda: load(port, "https" if certificate else "http"), wrap_loader=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
