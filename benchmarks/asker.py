"""The fast C-FIND and C-GET client: requests encoded ahead, answers only counted, so that the client is not the limit (PS3.7 9.3)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from benchmarks import pdus
from benchmarks.instances import CT
from benchmarks.sender import Scp

FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
_FIND_CONTEXT, _GET_CONTEXT, _STORE_CONTEXT = 1, 3, 5
_PENDING = (0xFF00, 0xFF01)
_TIMEOUT_S = 120
_BUFFER_BYTES = 1 << 20


class Asker:
    """One association for Study Root FIND and GET, and CT Image Storage to receive by."""

    def __init__(self, scp: Scp) -> None:
        """Connect and negotiate; the storage context is accepted with the SCP role (PS3.7 D.3.3.4)."""
        self._socket = socket.create_connection((scp.host, scp.port), timeout=_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer, self._have, self._at = bytearray(_BUFFER_BYTES), 0, 0
        contexts = ((_FIND_CONTEXT, FIND), (_GET_CONTEXT, GET), (_STORE_CONTEXT, CT))
        role = struct.pack(">H", len(CT)) + CT.encode() + b"\x00\x01"
        self._socket.sendall(pdus.associate_rq_of(contexts, calling="BENCHQR", called=scp.ae_title, roles=(role,)))
        kind, _body = self._pdu()
        if kind != pdus.AC:
            message = f"the association was answered with PDU type {kind}"
            raise ConnectionError(message)

    def find(self, keys: Mapping[int, str]) -> int:
        """Ask, and return how many answers came.

        Raises:
            ConnectionError: the SCP ended with something else than success.
        """
        self._request(_FIND_CONTEXT, 0x0020, FIND, keys)
        answers = 0
        while True:
            _context, command = self._message()
            status = command[0x0900]
            if status not in _PENDING:
                if status:
                    message = f"C-FIND ended with status {status:04X}"
                    raise ConnectionError(message)
                return answers
            answers += 1

    def get(self, keys: Mapping[int, str]) -> int:
        """Retrieve, and return how many instances came.

        Raises:
            ConnectionError: the SCP ended with something else than success.
        """
        self._request(_GET_CONTEXT, 0x0010, GET, keys)
        stored = 0
        while True:
            _context, command = self._message()
            if command[0x0100] == 0x0001:  # C-STORE-RQ
                stored += 1
                self._stored(command)
            elif (status := command[0x0900]) not in _PENDING:
                if status:
                    message = f"C-GET ended with status {status:04X}"
                    raise ConnectionError(message)
                return stored

    def release(self) -> None:
        """End in order."""
        self._socket.sendall(pdus.RELEASE)
        self._pdu()
        self._socket.close()

    # --- messages ---------------------------------------------------------------------------------------------------------------------

    def _request(self, context: int, field: int, sop_class_uid: str, keys: Mapping[int, str]) -> None:
        command = pdus.command(((0x0002, sop_class_uid), (0x0100, field), (0x0110, 1), (0x0700, 0), (0x0800, 0)))
        self._socket.sendall(pdus.p_data(context, 3, command) + pdus.p_data(context, 2, _identifier(keys)))

    def _stored(self, request: Mapping[int, int]) -> None:
        uids = ((0x0002, CT), (0x0100, 0x8001), (0x0120, request[0x0110]), (0x0800, 0x0101), (0x0900, 0))
        self._socket.sendall(pdus.p_data(_STORE_CONTEXT, 3, pdus.command(uids)))

    def _message(self) -> tuple[int, dict[int, int]]:
        """Return a message's context and the numbers in its command set, once its data set has gone by."""
        command, context, whole = b"", 0, False
        while True:
            kind, body = self._pdu()
            if kind != pdus.DATA:
                message = f"PDU type {kind} in the place of an answer"
                raise ConnectionError(message)
            at = 0
            while at < len(body):
                length, context, control = struct.unpack_from(">LBB", body, at)
                if control & 1:
                    command += bytes(body[at + 6 : at + 4 + length])
                    whole = bool(control & 2)
                    found = pdus.numbers(command) if whole else {}
                    if whole and found[0x0800] == 0x0101:
                        return context, found
                elif control & 2:
                    return context, found
                at += 4 + length

    def _pdu(self) -> tuple[int, memoryview]:
        kind, length = struct.unpack(">BxL", self._exactly(6))
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> memoryview:
        if self._have - self._at < count:
            self._buffer[: self._have - self._at] = self._buffer[self._at : self._have]
            self._at, self._have = 0, self._have - self._at
            view = memoryview(self._buffer)
            while self._have < count:
                came = self._socket.recv_into(view[self._have :])
                if not came:
                    message = "the peer closed the connection"
                    raise ConnectionError(message)
                self._have += came
        found = memoryview(self._buffer)[self._at : self._at + count]
        self._at += count
        return found


def _identifier(keys: Mapping[int, str]) -> bytes:
    """Return keys as a data set in Explicit VR Little Endian."""
    made = []
    for tag, value in sorted(keys.items()):
        vr = _VRS[tag]
        coded = value.encode()
        coded += (b"\0" if vr == "UI" else b" ") * (len(coded) % 2)
        made.append(struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(coded)) + coded)
    return b"".join(made)


LEVEL, STUDY_DATE, PATIENT_NAME, PATIENT_ID = 0x00080052, 0x00080020, 0x00100010, 0x00100020
STUDY, SERIES, STUDY_DESCRIPTION = 0x0020000D, 0x0020000E, 0x00081030
_VRS = {LEVEL: "CS", STUDY_DATE: "DA", PATIENT_NAME: "PN", PATIENT_ID: "LO", STUDY: "UI", SERIES: "UI", STUDY_DESCRIPTION: "LO"}
