"""Requests that go where they are sent and nowhere else."""

from __future__ import annotations

import urllib.request
from typing import Any


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Behind a redirect a token would be shown to whoever stands at its end, and a POST would become a GET without its body."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


open_straight = urllib.request.build_opener(_NoRedirect).open
"""``urllib.request.urlopen``, to which a redirect is an HTTPError."""
