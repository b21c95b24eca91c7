"""The log: JSON lines without a data set's values."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

from archive.errors import SealBroken
from archive.serve import logs


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_a_record_is_one_line_with_its_extras() -> None:
    fields = {"name": "archive.x", "levelname": "INFO", "levelno": 20, "msg": "done %s\nmore", "args": ("it",), "worker": 3}
    record = logging.makeLogRecord(fields)
    line = logs.JsonLines("web").format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert found["message"] == "done it\nmore"
    assert (found["role"], found["worker"], found["level"], found["logger"]) == ("web", 3, "info", "archive.x")
    assert found["at"].endswith("+00:00")


def test_the_text_of_a_foreign_exception_does_not_travel() -> None:
    error = raised(ValueError("Invalid value CANARY^ANNA"))
    record = logging.makeLogRecord({"msg": "failed", "exc_info": (type(error), error, error.__traceback__)})
    line = logs.JsonLines("dimse").format(record)
    assert "CANARY" not in line
    assert json.loads(line)["exception"]["class"] == "ValueError"
    assert "test_logs.py" in line


def test_our_own_text_does() -> None:
    assert logs.describe(raised(SealBroken("chunk 3 does not authenticate")))["message"] == "chunk 3 does not authenticate"


def test_libraries_warnings_and_uncaught_exceptions_say_no_value() -> None:
    code = """
import logging, threading, warnings
from archive.serve import logs
logs.configure("dimse")
warnings.warn("CANARY")
for name in ("pydicom", "pynetdicom.dimse", "PIL.x"):
    logging.getLogger(name).critical("CANARY")
def fail(): raise RuntimeError("CANARY")
thread = threading.Thread(target=fail); thread.start(); thread.join()
logging.getLogger("archive.dimse").info("fine")
fail()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "CANARY" not in done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["message"] for line in lines] == ["uncaught exception in a thread", "fine", "uncaught exception"]


def test_what_only_informs_is_written_a_moment_later_and_never_lost(tmp_path: Path) -> None:
    code = """
import logging, sys, time
from pathlib import Path
from archive.serve import logs
path = Path(sys.argv[1])
logs.HELD_S = 1.0  # so that a busy machine does not look too late
logs.configure("web")
log = logging.getLogger("archive.web.access")
logging.getLogger().handlers[0].setStream(path.open("w"))
def written():
    return path.read_text().count("\\n")
log.info("one"); log.info("two")
assert written() == 0
end = time.monotonic() + 10
while written() < 2 and time.monotonic() < end: time.sleep(0.01)
assert written() == 2
log.info("three"); log.warning("four")
assert written() == 4
for number in range(logs.HELD_LINES): log.info("many")
assert written() >= logs.HELD_LINES
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "log"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_last_lines_of_a_forked_worker_are_written() -> None:
    code = """
import logging, multiprocessing
from archive.serve import logs
def work():
    logs.configure("web")
    for number in range(50): logging.getLogger("archive.web.access").info("line")
worker = multiprocessing.get_context("fork").Process(target=work)
worker.start(); worker.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.count('"line"') == 50
