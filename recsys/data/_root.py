"""Where data are kept: packages that hold some, and encoded tables."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_root"]


def cache_root(root: str | os.PathLike[str] | None = None) -> Path:
    """``root``, else ``$GRAPHLOSSY_DATA``, else ``~/.cache/graphlossy``."""
    if root is not None:
        return Path(root)
    return Path(os.environ.get("GRAPHLOSSY_DATA") or Path.home() / ".cache" / "graphlossy")
