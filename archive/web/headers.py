"""Headers that every answer carries."""

from __future__ import annotations

from flask import Flask, Response

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

ALWAYS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

PRIVATE = "private, no-store"
"""Cache-Control of everything that is not known to be free of patient data."""

_ALL = [(name, name.lower(), value) for name, value in {**ALWAYS, "Cache-Control": PRIVATE}.items()]


def register(app: Flask) -> None:
    """Add the headers to every answer; a view that sets one itself keeps it."""

    def add(response: Response) -> Response:
        held = {name.lower() for name, _ in response.headers}
        for name, lower, value in _ALL:
            if lower not in held:
                response.headers.add(name, value)
        return response

    app.after_request(add)
