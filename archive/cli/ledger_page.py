"""The page to print and file, as one file that needs nothing else."""

from __future__ import annotations

from html import escape
from typing import Any

_STYLE = (
    "body{font:12pt sans-serif;margin:2cm}svg{width:8cm;height:8cm}th{text-align:left;padding-right:1em;vertical-align:top}"
    "pre,td{overflow-wrap:anywhere;white-space:pre-wrap}"
)


def html(page: dict[str, Any]) -> str:
    """Return the page that `Printed.page` holds."""
    facts = (
        ("Archive", page["name"]), ("Log", page["origin"]), ("Events", page["size"]),
        ("Signed", f"{page['at']:%Y-%m-%d %H:%M:%S} UTC"), ("Root (SHA-256)", page["root"]),
    )
    rows = "".join(f"<tr><th>{label}</th><td>{escape(str(value))}</td></tr>\n" for label, value in facts)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Checkpoint over {page['size']} events</title><style>{_STYLE}</style></head>
<body>
<h1>Checkpoint of the ledger</h1>
<table>
{rows}</table>
{page['picture']}
<pre>
{escape(page['note'])}</pre>
<p>Print this page, date and sign it, and file it away from the archive. Later, <code>archive ledger compare FILE</code> with the text
above, or with what a QR reader gives, tells whether the ledger still contains these events.</p>
<p>Filed by ______________________ on ______________</p>
</body>
</html>
"""
