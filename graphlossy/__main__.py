"""``python -m graphlossy``: versions, which kernels are live on which device, and a self-test against the reference.

The exit code is 1 if any operator differs from its reference by a single bit on any device, else 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphlossy._diagnostics import NVRTC, OPTIONAL, REQUIRED, report


def main(arguments: list[str] | None = None) -> int:
    """Prints the report and returns the exit code.

    Args:
        arguments: command-line arguments; None reads those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m graphlossy", description=__doc__.splitlines()[0].split(": ", 1)[1])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args(arguments)
    found = report()
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found, Console())
    return 0 if found["ok"] else 1


def show(found: dict[str, Any], console: Console) -> None:
    """Prints the report as tables.

    Args:
        found: what :func:`graphlossy._diagnostics.report` returned.
        console: where to print.
    """
    versions = found["versions"]
    console.print(f"[bold]graphlossy {versions['graphlossy']}[/], Python {versions['python']}")
    packages = _table("package", "version")
    for name in REQUIRED:
        packages.add_row(name, versions[name] or "[red]missing[/]")
    for name, extra in OPTIONAL.items():
        if name in NVRTC and versions[name] is None and NVRTC[name] != found["cuda"]:
            continue  # of another CUDA than torch's
        hint = f"pip install 'graphlossy\\[{extra}]'" if extra else "used where it is installed"
        packages.add_row(name, versions[name] or f"[dim]absent: {hint}[/]")
    console.print(packages, "")

    kernels = _table("device", "kernels")
    for device, status in found["kernels"].items():
        state = "[green]live[/]" if status["live"] else "[yellow]not live: the reference runs[/]"
        kernels.add_row(device, f"{state} ({escape(status['detail'])})")
    console.print(kernels, "")

    tests = found["self_test"]
    table = _table("self-test, bit for bit", *tests)
    for op in next(iter(tests.values())):
        table.add_row(op, *(_verdict(**ops[op]) for ops in tests.values()))
    console.print(table, "")
    if found["ok"]:
        console.print("[green]Every operator equals its reference on every device.[/]")
    else:
        console.print("[red]Operators differ from their reference: results on that device cannot be trusted.[/]")


def _verdict(cases: int, differ: int) -> str:
    return f"[red]{differ} of {cases} differ[/]" if differ else f"[green]{cases} cases equal[/]"


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 3, 0, 0), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


if __name__ == "__main__":
    sys.exit(main())
