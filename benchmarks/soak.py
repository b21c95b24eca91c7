"""`python -m benchmarks.soak`: hours of mixed load on an installed archive, bad peers in between; memory, descriptors, errors, latency.

Everybody works at a pace, so that the machine is busy and not overrun: modalities store, clients search and retrieve, rights come and
go. Half of the time peers behave badly: they send slowly, fall silent, reset, flood. The result says what grew and what failed.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import bad_peers, bounds, memory, strongroom
from benchmarks.instances import Series, series, uid
from benchmarks.sender import Association, send
from benchmarks.server import Server
from benchmarks.web import Request, run

_JSON = "application/dicom+json"
_DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_STOW = 'multipart/related; type="application/dicom"; boundary=benchmark'
_PHASE_S = 60.0
_SAMPLE_S = 15.0
_SETTLED = 0.25  # the first quarter fills caches and pools: growth is judged from there


@dataclass
class Account:
    """What was done, how long it took, what failed; by kind of work, and by whether bad peers were about."""

    took: dict[tuple[str, bool], list[float]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    acknowledged: int = 0
    samples: list[dict[str, float]] = field(default_factory=list)
    each: list[dict[str, Any]] = field(default_factory=list)


class Soak:
    """One run."""

    def __init__(self, archive: strongroom.Archive, server: Server, hours: float, pace: float, record: Path | None = None) -> None:
        """`pace` multiplies how often everything is done; to `record` goes what each process held, a line of JSON a sample."""
        self._record = record
        self._archive, self._server, self._pace = archive, server, pace
        self._end = time.monotonic() + hours * 3600
        self._began = time.monotonic()
        self._account = Account()
        self._lock = threading.Lock()
        self._known: list[tuple[Series, list[str]]] = []
        self._bad = False

    def run(self) -> dict[str, Any]:
        """Work until the end and return the account."""
        self._known.append(self._one("CT", 40))
        self._known.append(self._one("multiframe", 1))
        works: list[tuple[str, float, Callable[[int], None]]] = [
            ("c-store ct", 4, self._store("CT", 20)), ("c-store mr", 3, self._store("MR", 40)), ("stow", 5, self._stow),
            ("search", 0.5, self._search), ("series", 4, self._series), ("frame", 1, self._frame), ("metadata", 2, self._metadata),
            ("thumbnail", 1, self._thumbnail), ("rights", 20, self._rights), ("one c-store", 0.5, self._single()),
        ]
        threads = [threading.Thread(target=self._loop, args=work, daemon=True) for work in works]
        threads.append(threading.Thread(target=self._misbehave, daemon=True))
        for thread in threads:
            thread.start()
        while time.monotonic() < self._end:
            time.sleep(min(_SAMPLE_S, max(0.1, self._end - time.monotonic())))
            self._sample()
        for thread in threads:
            thread.join(120)
        return self._judged()

    # --- what is done -----------------------------------------------------------------------------------------------------------------

    def _loop(self, name: str, every_s: float, work: Callable[[int], None]) -> None:
        number = 0
        while time.monotonic() < self._end:
            bad, at = self._bad, time.perf_counter()
            try:
                work(number)
            except Exception as error:  # noqa: BLE001 # counted: a soak goes on
                with self._lock:
                    self._account.failed.append(f"{time.monotonic() - self._began:.0f} s, {name}: {type(error).__name__}: {error}"[:200])
            else:
                took = time.perf_counter() - at
                if bad == self._bad:
                    with self._lock:
                        self._account.took.setdefault((name, bad), []).append(took)
            number += 1
            time.sleep(max(0.01, every_s / self._pace - (time.perf_counter() - at)))

    def _one(self, kind: str, count: int, *tag: object) -> tuple[Series, list[str]]:
        made = series(kind, "soak", *tag, name=f"Soak^{kind}")
        stored = made, send(self._server.plain, made, count, associations=min(2, count))
        with self._lock:
            self._account.acknowledged += count
        return stored

    def _store(self, kind: str, count: int) -> Callable[[int], None]:
        def work(number: int) -> None:
            stored = self._one(kind, count, kind, number)
            if kind == "CT":
                with self._lock:
                    self._known[2:] = [*self._known[2:], stored][-20:]

        return work

    def _single(self) -> Callable[[int], None]:
        """One instance on an association that stays: what a waiting modality feels."""
        made = series("MR", "soak", "single")
        kept: list[Association] = []

        def work(number: int) -> None:
            if not kept:
                kept.append(Association(self._server.plain, made))
            try:
                kept[0].store(uid("single", number))
            except Exception:
                kept.clear()
                raise
            with self._lock:
                self._account.acknowledged += 1

        return work

    def _stow(self, number: int) -> None:
        one = series("CT", "soak", "stow", number)
        head = b"--benchmark\r\nContent-Type: application/dicom\r\n\r\n"
        parts = [head + one.part10(uid("stow", number, i)) + b"\r\n" for i in range(10)]
        run(self._server, [Request("/studies", _JSON, "POST", b"".join((*parts, b"--benchmark--\r\n")), _STOW)])
        with self._lock:
            self._account.acknowledged += 10

    def _search(self, number: int) -> None:
        asked = ("limit=25", "PatientName=Soak*&limit=25", "StudyDate=20260131&limit=25&offset=25", "ModalitiesInStudy=CT&limit=10")
        run(self._server, [Request(f"/studies?{asked[number % 4]}", _JSON)])

    def _path(self, which: int) -> str:
        one = self._known[which][0]
        return f"/studies/{one.study_instance_uid}/series/{one.series_instance_uid}"

    def _series(self, number: int) -> None:
        run(self._server, [Request(self._path(0 if number % 2 else -1), _DICOM)], least_bytes=1000)

    def _frame(self, number: int) -> None:
        accept = 'multipart/related; type="application/octet-stream"'
        run(self._server, [Request(f"{self._path(1)}/instances/{self._known[1][1][0]}/frames/{number % 200 + 1}", accept)])

    def _metadata(self, _number: int) -> None:
        run(self._server, [Request(f"{self._path(-1)}/metadata", _JSON, coding="gzip")])

    def _thumbnail(self, number: int) -> None:
        uids = self._known[0][1]
        run(self._server, [Request(f"{self._path(0)}/instances/{uids[number % len(uids)]}/thumbnail", "image/jpeg")])

    def _rights(self, number: int) -> None:
        """A user is given a study, and it is taken away again."""
        name, study = f"soak-{number}", self._known[0][0].study_instance_uid
        secret = self._archive.folder / "password"
        secret.write_text("violet-otter-94-lantern\n")
        secret.chmod(0o600)
        self._archive.command("user", "add", name, "--password-file", str(secret))
        made = self._archive.command("grant", "add", "--to", name, "--role", "referrer", "--study", study)
        self._archive.command("grant", "revoke", str(made["id"]))

    def _misbehave(self) -> None:
        """Turn by turn: a minute of bad peers, a minute of none."""
        while time.monotonic() < self._end:
            time.sleep(min(_PHASE_S, max(0.1, self._end - time.monotonic())))
            self._bad = True
            bad_peers.behave_badly(self._server.plain, min(_PHASE_S, max(0.1, self._end - time.monotonic())))
            self._bad = False

    # --- what is seen -----------------------------------------------------------------------------------------------------------------

    def _sample(self) -> None:
        each = memory.of_tree(self._server.pid, self._archive.folder / "storage/run/status.json", self._archive.probed)
        at_s, bad, count = round(time.monotonic() - self._began), self._bad, self._account.acknowledged
        self._account.samples.append({
            "at_s": at_s, "acknowledged": count, "memory_mb": round(sum(one["kb"]["pss"] for one in each) / 1024, 1),
            "descriptors": sum(sum(one["descriptors"].values()) for one in each), "processes": len(each), "bad": float(bad),
        })
        self._account.each.append({"at_s": at_s, "acknowledged": count, "bad": bad, "processes": each})
        if self._record is not None:  # written as it goes: a soak that is broken off has said what it saw
            with self._record.open("a", encoding="utf-8") as record:
                record.write(json.dumps(self._account.each[-1]) + "\n")

    def _judged(self) -> dict[str, Any]:
        account = self._account
        settled = account.samples[int(len(account.samples) * _SETTLED):] or account.samples
        calm = [one for one in settled if not one["bad"]] or settled
        half = max(1, len(calm) // 2)

        def change(name: str) -> list[float]:
            return [round(statistics.median(one[name] for one in part), 1) for part in (calm[:half], calm[-half:])]

        latency = {}
        for name in sorted({name for name, _bad in account.took}):
            calm_s, bad_s = (account.took.get((name, bad), []) for bad in (False, True))
            latency[name] = {
                "count": len(calm_s) + len(bad_s), "p50_ms": _ms(calm_s, 0.5), "p95_ms": _ms(calm_s, 0.95),
                "p50_ms_bad_peers": _ms(bad_s, 0.5), "p95_ms_bad_peers": _ms(bad_s, 0.95),
            }
        verified = self._archive.command("verify", "--full")
        found = {
            "hours": round((time.monotonic() - self._began) / 3600, 2), "acknowledged": account.acknowledged,
            "memory_mb first and second half": change("memory_mb"), "descriptors first and second half": change("descriptors"),
            "each process": memory.growth(account.each[int(len(account.each) * _SETTLED):]),
            "failed": account.failed[:20], "failures": len(account.failed), "latency": latency,
            "verify ok": verified["ok"], "errors in the log": self._logged(), "samples": account.samples,
        }
        return {**found, "bounds exceeded": bounds.exceeded(found)}

    def _logged(self) -> list[str]:
        lines = (self._archive.folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        return [line[:600] for line in lines if "Traceback" in line or '"level":"error"' in line or '"level":"critical"' in line][:20]


def _ms(values: list[float], share: float) -> float | None:
    return round(sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1000, 1) if values else None


def main(argv: list[str]) -> int:
    """Soak and say what was seen; status 1 when a bound was not kept (bounds.py)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--pace", type=float, default=1.0, help="how much is done: 2 is twice as often")
    parser.add_argument("--python", default=strongroom.default_python(), metavar="FILE", help="interpreter with Strongroom installed")
    parser.add_argument("--folder", type=Path, help="the disk to work on")
    parser.add_argument("--samples", action="store_true", help="print every sample too")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write what each process holds, a line of JSON for each sample")
    parser.add_argument("--probe", action="store_true", help="record what the allocators of each process say too")
    parser.add_argument("--settings", default="", metavar="TOML", help="further lines for the configuration")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="strongroom-soak-", dir=args.folder)))
        archive = strongroom.Archive(folder / "archive", args.python, args.settings.replace("\\n", "\n"))
        if args.probe:
            archive.probe()
        server = archive.start()
        stack.callback(server.stop)
        found = Soak(archive, server, args.hours, args.pace, args.record).run()
    if not args.samples:
        del found["samples"]
    print(json.dumps(found, indent=1))
    return 1 if found["bounds exceeded"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
