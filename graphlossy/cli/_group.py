"""The command group: loads a command's file only when it is needed, and says every user error in one line."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

import graphlossy

__all__ = ["LazyGroup"]

HELP = """Train and serve graph networks, recommenders and language models in a fraction of the memory.

\b
Examples:
  graphlossy train
  graphlossy train --help
  graphlossy plan --dataset ogbn-arxiv --memory 8GiB
  graphlossy sparsify --dataset cora --ratio 0.5 --out thin-cora
  graphlossy recsys
  graphlossy llm finetune --model smollm2
  graphlossy outliers run
  graphlossy datasets list
"""


class LazyGroup(click.Group):
    """``graphlossy COMMAND``: commands are imported on call, so that ``--help`` does not wait for torch.

    Args:
        commands: names of the commands and their one-line descriptions.
        package: where the files of the commands are.
    """

    def __init__(self, commands: dict[str, str], package: str = "graphlossy.cli") -> None:
        super().__init__(name="graphlossy", help=HELP, invoke_without_command=True, callback=_show_help)
        self._lines = commands
        self._package = package
        version = click.version_option(graphlossy.__version__, "-V", "--version", message="graphlossy %(version)s")
        version(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands in the order they were given."""
        return list(self._lines)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; None if there is none."""
        if cmd_name not in self._lines:
            return None
        command: click.Command = importlib.import_module(f"{self._package}.{cmd_name.replace('-', '_')}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a suggestion for a mistyped name."""
        if args and not args[0].startswith("-") and args[0] not in self._lines:
            near = difflib.get_close_matches(args[0], self._lines, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self._lines)}"
            ctx.fail(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._lines.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command; a user error becomes one line on stderr and exit code 2."""
        name = prog_name or "graphlossy"
        if not standalone_mode:
            return super().main(args, name, complete_var, standalone_mode=False, **extra)
        try:
            value = super().main(args, name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _fail("interrupted", 130)
        except OSError as error:  # commands turn those of their files into errors of their own
            _drop_output()
            _fail(f"cannot write the output: {error.strerror or error}", 2)
        sys.exit(value if isinstance(value, int) else 0)


@click.pass_context
def _show_help(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _fail(message: str, code: int) -> NoReturn:
    # One line; blanks inside it stay as they are, for they may be part of a path.
    line = " ".join(part.strip() for part in message.splitlines())
    try:
        click.echo(f"graphlossy: error: {line}", err=True)
    except OSError:  # the exit code must do
        pass
    sys.exit(code)


def _drop_output() -> None:
    """What could not be written is dropped; Python would try again when it ends, and fail with lines of its own."""
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
    except (OSError, ValueError):  # stdout is no file of the system
        pass
