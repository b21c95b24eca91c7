"""The browser interface: plain forms and links, served whole; script only adds comfort."""

from archive.web.pages.blueprint import register

__all__ = ["register"]
