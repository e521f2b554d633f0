"""The transformers that the caches are made for; apart from them, since it is asked before they are imported."""

from __future__ import annotations

__all__ = ["LEAST", "check_transformers"]

LEAST = "5.23"  # as pyproject.toml says; layers of caches had other methods before


def check_transformers() -> None:
    """Raises ImportError where transformers is older than the caches need, or missing."""
    import transformers
    from packaging.version import Version  # transformers needs it

    if Version(transformers.__version__).release < Version(LEAST).release:
        raise ImportError(
            f"caches of keys and values are made for transformers {LEAST} or newer, and this is "
            f"{transformers.__version__}: pip install 'transformers>={LEAST}'",
            name="transformers",
        )
