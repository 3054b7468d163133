"""`python -m ollmlx`: what the Python side offers by itself. Everything else is the `ollmlx` command."""

from __future__ import annotations

import json

import click

from ollmlx import __version__


class Commands(click.Group):
    """Points whoever looks for a command of the server to where it is."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None:
            raise click.UsageError(
                f"no such command here: {args[0]!r}. The server and its commands are `ollmlx`, as in"
                f" `ollmlx {' '.join(args)}`.",
                ctx,
            )
        return super().resolve_command(ctx, args)


@click.group(cls=Commands)
@click.version_option(__version__, prog_name="ollmlx (Python package)")
def main() -> None:
    """The Python side of ollmlx. The server and its commands are `ollmlx`."""


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Examine whether MLX works here; the Python half of `ollmlx doctor`."""
    from ollmlx import blas
    from ollmlx.doctor import examine

    # Examined is what a runner would have.
    blas.restart_with()
    report = examine()
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else report.as_text())
    ctx.exit(1 if report.problems else 0)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def runner(args: tuple[str, ...]) -> None:
    """Say how runners are started."""
    raise click.UsageError(
        "a runner is started by the server, once for each model; its program is `python -m ollmlx.runner`,"
        " specified in docs/runner-protocol.md."
    )


if __name__ == "__main__":
    main(prog_name="python -m ollmlx")
