"""The documentation that comes with every CPython: the language reference's topics, and docstrings of its library."""

from __future__ import annotations

import ast
import functools
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from graphlossy.datasets._errors import DatasetError

__all__ = ["pydoc_documents"]

# Tests, demonstrations, copies of other packages, and what some versions do not have any more.
_LEFT_OUT = {
    "antigravity", "config", "distutils", "ensurepip", "idle_test", "idlelib", "lib2to3", "pydoc_data", "site-packages",
    "test", "tests", "this", "turtledemo",
}  # fmt: skip
_LEAST = 200  # characters that make a module's documentation a document
_Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def pydoc_documents() -> tuple[tuple[str, str], ...]:
    """Name and text of every document, topics first, sorted by name.

    Raises:
        DatasetError: this Python has come without its documentation.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DatasetError(
            "pydoc: this Python has come without pydoc_data; install its whole standard library (Debian: python3), or "
            "give a text file"
        ) from None
    found = [(f"topic:{name}", text.strip("\n")) for name, text in sorted(topics.items()) if text.strip()]
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = {}
    for file in _files(library):
        name = _module_name(file.relative_to(library))
        try:
            text = module_text(name, file.read_text("utf-8"))
        except (OSError, ValueError, SyntaxError):  # not to be read, or of another Python
            continue
        if len(text) >= _LEAST:
            modules[f"module:{name}"] = text
    return (*found, *sorted(modules.items()))


def module_text(name: str, source: str) -> str:
    """What ``help`` would say of a module, of its docstrings alone: it is parsed, not run.

    Example:
        >>> print(module_text("shapes", 'def area(r, *, pi=3.14):\\n    "Area of a circle."\\n'))
        shapes
        <BLANKLINE>
        area(r, *, pi=3.14)
            Area of a circle.
    """
    tree = ast.parse(source)
    parts = [name, *_paragraphs(ast.get_docstring(tree))]
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, *_Function)) and not node.name.startswith("_"):
            parts += _described(node, "")
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _described(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, indent: str) -> Iterator[str]:
    """A class or function with a docstring, and the methods of a class."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        head = f"class {node.name}({bases})" if bases else f"class {node.name}"
    else:
        head = f"{node.name}({ast.unparse(node.args)})"
    text = ast.get_docstring(node)
    inner = indent + "    "
    inside = []
    if isinstance(node, ast.ClassDef):
        for item in node.body:
            if isinstance(item, _Function) and not item.name.startswith("_"):
                inside += _described(item, inner)
    if text and text.strip():
        lines = [f"{inner}{line}".rstrip() for line in text.strip().split("\n")]
        yield "\n".join([indent + head, *lines])
    elif inside:
        yield indent + head
    yield from inside


def _paragraphs(text: str | None) -> list[str]:
    return [text.strip()] if text and text.strip() else []


def _files(library: Path) -> Iterator[Path]:
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in _LEFT_OUT:
            continue
        if (file := library / f"{name}.py").is_file():
            yield file
        for inner in sorted((library / name).rglob("*.py")):
            parts = inner.relative_to(library).with_suffix("").parts
            if not any(part in _LEFT_OUT or (part.startswith("_") and part != "__init__") for part in parts):
                yield inner


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
