"""Debian's slapd with a few people in it, over TLS, as whoever runs the tests and on free ports."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.ports import free_port

BASE = "dc=clinic,dc=example"
PEOPLE, GROUPS = f"ou=people,{BASE}", f"ou=groups,{BASE}"
SERVICE, SERVICE_PASSWORD = f"cn=archive,{BASE}", "looks-people-up"
MANAGER, MANAGER_PASSWORD = f"cn=manager,{BASE}", "manager-of-the-tests"
PASSWORD = "maple-harbour-71-violin"
ODD = 'o*dd, (one) #"+\\;<ä>='
"""A login with all that filters and names treat specially."""


@dataclass(frozen=True)
class Directory:
    ldaps: str
    ldap: str
    ca: str
    folder: Path
    process: subprocess.Popen[bytes]

    def change(self, ldif: str) -> None:
        done = subprocess.run(
            ["ldapmodify", "-x", "-H", self.ldap, "-D", MANAGER, "-w", MANAGER_PASSWORD], input=ldif.encode(), capture_output=True,
            timeout=20, check=False,
        )
        assert done.returncode == 0, done.stderr

    def section(self, **other: Any) -> dict[str, Any]:
        """[ldap] that looks people up."""
        return {
            "url": self.ldaps, "ca_file": "ca.pem", "base": PEOPLE, "bind_dn": SERVICE, "bind_password_file": "service",
            "object_class": "inetOrgPerson", **other,
        }



def _person(uid: str, rdn: str, *, extra: str = "") -> str:
    return (
        f"dn: uid={rdn},{PEOPLE}\nobjectClass: inetOrgPerson\nuid: {uid}\ncn: {uid}\nsn: {uid}\nuserPassword: {PASSWORD}\n{extra}\n"
    )


LDIF = "\n".join((
    f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\no: clinic\ndc: clinic\n",
    f"dn: {PEOPLE}\nobjectClass: organizationalUnit\nou: people\n",
    f"dn: {GROUPS}\nobjectClass: organizationalUnit\nou: groups\n",
    f"dn: {SERVICE}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: archive\nuserPassword: {SERVICE_PASSWORD}\n",
    _person("mia", "mia"), _person("nora", "nora"), _person("guard", "guard"), _person("stranger", "stranger"), _person("admin", "admin"),
    _person("twin", "twin-a"), _person("twin", "twin-b"),
    f"dn: cn=rad,{GROUPS}\nobjectClass: groupOfNames\ncn: rad\nmember: uid=mia,{PEOPLE}\n",
    f"dn: cn=night,{GROUPS}\nobjectClass: groupOfNames\ncn: night\nmember: uid=nora,{PEOPLE}\n",
    f"dn: ou=away,{PEOPLE}\nobjectClass: referral\nobjectClass: extensibleObject\nou: away\nref: ldap://192.0.2.1/ou=away,{PEOPLE}\n",
))

CONF = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
pidfile {folder}/slapd.pid
argsfile {folder}/slapd.args
TLSCACertificateFile {folder}/ca.pem
TLSCertificateFile {folder}/cert.pem
TLSCertificateKeyFile {folder}/key.pem
allow bind_anon_cred bind_anon_dn
database mdb
suffix "{base}"
rootdn "{manager}"
rootpw {password}
directory {folder}/data
maxsize 33554432
overlay memberof
access to attrs=userPassword by anonymous auth by * none
access to * by * read
"""


def certificate(folder: Path, name: str = "127.0.0.1") -> None:
    """A certificate that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    said = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "directory")])
    at = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(said).issuer_name(said).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(days=1)).not_valid_after(at + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(name))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    for file in ("ca.pem", "cert.pem"):
        (folder / file).write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))


@contextmanager
def running(folder: Path) -> Iterator[Directory]:
    """Run it, or skip where it is not installed."""
    program = shutil.which("slapd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None or shutil.which("ldapmodify") is None:
        message = "needs the packages slapd and ldap-utils"
        if os.environ.get("ARCHIVE_TEST_REQUIRE_ALL"):
            pytest.fail(message)
        pytest.skip(message)
    (folder / "data").mkdir()
    certificate(folder)
    conf, ldif = folder / "slapd.conf", folder / "people.ldif"
    conf.write_text(CONF.format(folder=folder, base=BASE, manager=MANAGER, password=MANAGER_PASSWORD))
    ldif.write_text(LDIF)
    ldaps, ldap = f"ldaps://127.0.0.1:{free_port()}", f"ldap://127.0.0.1:{free_port()}"
    subprocess.run([program.replace("slapd", "slapadd"), "-f", str(conf), "-l", str(ldif)], check=True, capture_output=True, timeout=60)
    # -d keeps it in the foreground, as the test's own process.
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-f", str(conf), "-h", f"{ldaps} {ldap}", "-d", "0"], stdout=subprocess.DEVNULL, stderr=log,
        )
    try:
        port = int(ldap.rpartition(":")[2])
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
        yield Directory(ldaps, ldap, str(folder / "ca.pem"), folder, process)
    finally:
        process.terminate()
        process.wait(20)
