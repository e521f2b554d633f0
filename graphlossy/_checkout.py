"""Keeps the repository's folder names from shadowing packages of the same name.

Started from the repository's root, Python finds the folders ``datasets/`` and ``llm/`` before the Hugging Face
``datasets`` and other installed packages. Ours are imported as ``graphlossy.datasets`` and ``graphlossy.llm``; under
the bare name the import is handed on to the package that is installed, if one is.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path


def hand_over(name: str, file: str) -> None:
    """Replaces the module ``name``, found in the checkout, by the installed package of that name.

    Where no such package is installed, the bare name becomes another name of ``graphlossy.<name>``.

    Args:
        name: the ``__name__`` under which the folder was imported, such as ``datasets``.
        file: the ``__file__`` of the folder's ``__init__.py``.
    """
    root = Path(file).resolve().parent.parent
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != root]
    spec = importlib.machinery.PathFinder.find_spec(name, elsewhere)
    if spec is None or spec.loader is None:  # a folder without __init__.py has a spec and no loader
        sys.modules[name] = importlib.import_module(f"graphlossy.{name}")
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
