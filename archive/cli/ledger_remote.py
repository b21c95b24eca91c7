"""`archive ledger verify --url`: the log of an archive elsewhere, with its public keys and a token alone."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from archive.errors import InvalidRequest, Unavailable
from archive.ledger import cosignatures, elsewhere, printed
from archive.ledger.notes import Verifier

TIMEOUT_S = 30
MAX_BYTES = 1 << 22


def verify(
    url: str, keys_file: Path, *, token_file: Path | None, ca_file: Path | None, witnesses: Sequence[str], since: Path | None
) -> dict[str, Any]:
    """Fetch and recompute the log; return what was signed.

    Raises:
        InvalidRequest, Unavailable, LedgerBroken.
    """
    lines = (line.strip() for line in keys_file.read_text(encoding="utf-8").splitlines())
    keys = [Verifier.parse(line) for line in lines if line and not line.startswith("#")]
    earlier = None if since is None else printed.find(since.read_text(encoding="utf-8", errors="replace"), keys)
    token = "" if token_file is None else token_file.read_text(encoding="utf-8").strip()
    outside = [cosignatures.parse_key(one) for one in witnesses]
    seen = elsewhere.check(_fetching(url, token, ca_file), keys, witnesses=outside, earlier=earlier)
    return {
        "origin": seen.origin, "size": seen.size, "root": seen.root.hex(), "signed_at": seen.signed_at,
        "witnesses": [{"name": name, "at": at} for name, at in seen.witnesses],
    }


class _Refuses(urllib.request.HTTPRedirectHandler):
    """A token goes nowhere else."""

    def redirect_request(self, *_args: Any, **_named: Any) -> None:
        """Follow nothing."""


def _fetching(url: str, token: str, ca_file: Path | None) -> Callable[[str], bytes]:
    if not url.startswith(("https://", "http://127.0.0.1:", "http://localhost:")):
        message = "the address is not https"
        raise InvalidRequest(message, remedy="write it as https://host:port/api/ledger")
    context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _Refuses())
    headers = {"Accept-Encoding": "gzip", **({"Authorization": f"Bearer {token}"} if token else {})}

    def fetch(path: str) -> bytes:
        try:
            with opener.open(urllib.request.Request(f"{url.rstrip('/')}/{path}", headers=headers), timeout=TIMEOUT_S) as answer:  # noqa: S310
                data: bytes = answer.read(MAX_BYTES)
                zipped = answer.headers.get("Content-Encoding") == "gzip"
                return zlib.decompressobj(wbits=31).decompress(data, MAX_BYTES) if zipped else data
        except urllib.error.HTTPError as error:
            message = f"{path}: answered {error.code}"
            raise Unavailable(message, remedy="give a token with the permission audit, and the address that ends in /api/ledger") from None
        except (OSError, zlib.error) as error:
            message = f"{path}: {error}"
            raise Unavailable(message, remedy="check the address, and --ca with the archive's ca.pem") from None

    return fetch
