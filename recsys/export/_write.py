"""The library that tables are written with."""

from __future__ import annotations

from typing import Any

__all__ = ["safetensors_library"]


def safetensors_library() -> Any:
    """safetensors with its torch functions."""
    try:
        import safetensors.torch
    except ImportError as error:
        message = "tables are safetensors files: pip install safetensors, or pip install 'graphlossy[recsys]'"
        raise ImportError(message) from error
    return safetensors
