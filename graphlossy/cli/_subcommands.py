"""A command with commands of its own, which says in one line what a mistyped one may have meant."""

from __future__ import annotations

import difflib

import click

__all__ = ["CommandGroup"]


class CommandGroup(click.Group):
    """``graphlossy NAME COMMAND``: shows its help when no command is given."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a suggestion for a mistyped name."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            near = difflib.get_close_matches(args[0], self.commands, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.commands)}"
            ctx.fail(f"no command {args[0]!r} of graphlossy {self.name}; {hint}")
        return super().resolve_command(ctx, args)
