"""Ray's token, the secret that the machines and the users of a cluster share: where it is here."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT = "~/.ray/auth_token"


def source() -> str | None:
    """Return where Ray finds the token on this machine; it looks in this order."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return name
    return DEFAULT if Path(DEFAULT).expanduser().is_file() else None


def file() -> Path:
    """Return the file that the token is read from, unless RAY_AUTH_TOKEN holds it."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or DEFAULT).expanduser()


def use() -> None:
    """Let Ray show a token that is there; its client for jobs does not do so by itself.

    Ray reads the mode when it is imported, so this comes first. The caller's mode is respected.
    """
    if source() is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
