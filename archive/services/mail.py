"""Mail to the people who look after the archive: short, plain text, never about a patient."""

from __future__ import annotations

import smtplib
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import BinaryIO

from archive.config import Config
from archive.services.outgoing import Undeliverable

TIMEOUT_S = 15.0
DEADLINE_S = 60.0
"""For one mail, however slowly the server answers."""
MOST_SAID = 256 << 10
"""Bytes a server says about one mail, however fast; what it says besides is not listened to, and the mail not sent."""


class _Deadline:
    """Ends a connection that takes too long, at any moment of it, that of the TLS handshake too."""

    def __init__(self) -> None:
        self._held: socket.socket | None = None
        self._timer = threading.Timer(DEADLINE_S, self._cut)
        self._timer.daemon = True

    def watch(self, connection: socket.socket) -> socket.socket:
        self._held = connection.dup()  # a TLS session takes the socket itself over
        self._timer.start()
        return connection

    def _cut(self) -> None:
        with suppress(OSError):
            if self._held is not None:
                self._held.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._timer.cancel()
        if self._held is not None:
            self._held.close()


class _Said:
    """The lines of a server, none once they are too many: to smtplib that is a connection which ended."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MOST_SAID
        self.close = file.close

    def readline(self, size: int) -> bytes:
        line = self._file.readline(min(size, self._left))
        self._left -= len(line)
        return line if self._left else b""  # half a line may look like an answer


class _Plain(smtplib.SMTP):
    deadline: _Deadline

    def __init__(self, deadline: _Deadline, host: str, port: int) -> None:
        self.deadline = deadline
        super().__init__(host, port, timeout=TIMEOUT_S)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self.deadline.watch(super()._get_socket(host, port, timeout))  # type: ignore[misc]

    def getreply(self) -> tuple[int, bytes]:
        if self.file is None and self.sock is not None:
            self.file = _Said(self.sock.makefile("rb"))
        return super().getreply()


class _Tls(smtplib.SMTP_SSL, _Plain):  # whose _get_socket is called by that of SMTP_SSL
    def __init__(self, deadline: _Deadline, host: str, port: int, context: ssl.SSLContext) -> None:
        self.deadline = deadline
        smtplib.SMTP_SSL.__init__(self, host, port, timeout=TIMEOUT_S, context=context)


class Mail:
    """Sends by SMTP as [alerts] says."""

    def __init__(self, config: Config) -> None:
        """Read nothing yet."""
        self._settings = config.alerts
        self._name = config.archive.name
        self._ca_file = config.resolve(config.alerts.smtp_ca_file) if config.alerts.smtp_ca_file else None
        self._password_file = config.resolve(config.alerts.smtp_password_file) if config.alerts.smtp_password_file else None

    @property
    def wanted(self) -> bool:
        """Whether anybody is to be mailed."""
        return bool(self._settings.mail_to and self._settings.smtp_host)

    @property
    def works(self) -> bool:
        """Whether there is a mail server at all."""
        return bool(self._settings.smtp_host)

    def send(self, subject: str, text: str, *, to: Sequence[str] = ()) -> None:
        """Send one mail: to those who look after the archive, or to whom it is for.

        Raises:
            Undeliverable: the server cannot be reached, or does not take it.
        """
        try:
            self._hand_over(self._message(subject, text, to or self._settings.mail_to))
        except Exception as error:  # an odd answer makes smtplib raise more than it says
            why = f"the mail server did not take it ({type(error).__name__})"
            raise Undeliverable(why, remedy="check [alerts] smtp_host, smtp_port, smtp_tls and the password file") from error

    def _message(self, subject: str, text: str, to: Sequence[str]) -> EmailMessage:
        message = EmailMessage()
        message["Subject"] = f"Strongroom {self._name}: {subject}"
        message["From"] = self._settings.mail_from
        message["To"] = ", ".join(to)
        message["Date"] = formatdate(localtime=True)
        message["Message-ID"] = make_msgid(domain="strongroom.invalid")
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(text)
        return message

    def _hand_over(self, message: EmailMessage) -> None:
        settings = self._settings
        context = ssl.create_default_context(cafile=self._ca_file)
        with closing(_Deadline()) as deadline:
            if settings.smtp_tls == "tls":
                server: smtplib.SMTP = _Tls(deadline, settings.smtp_host, settings.smtp_port, context)
            else:
                server = _Plain(deadline, settings.smtp_host, settings.smtp_port)
            self._converse(server, message, context)

    def _converse(self, server: smtplib.SMTP, message: EmailMessage, context: ssl.SSLContext) -> None:
        settings = self._settings
        with server:
            if settings.smtp_tls == "starttls":
                server.starttls(context=context)
            if settings.smtp_user and self._password_file is not None:
                server.login(settings.smtp_user, self._password_file.read_text(encoding="utf-8").strip())
            server.send_message(message)
