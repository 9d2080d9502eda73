"""Conventions of both command lines: lazy command groups, refusals, exit codes, common options.

Exit codes: 0 done, 1 refused (the message says how to fix it), 2 wrong usage.

Every command starts by importing this module, so it imports nothing but click. What a command needs is imported with
the module of that command.
"""

import atexit
import gc
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

from gatehouse.shared.protocol.redaction import printable

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

LazyCommands = Mapping[str, tuple[str, str]]
"""Commands by name, each with its location, `package.module:attribute`, and its short help."""

Discover = Callable[[click.Context], Mapping[str, click.Command]]
"""Finds further commands by name, such as those of a tool catalogue. May raise Refusal."""

TAKES_A_KEY = {"ignore_unknown_options": True, "help_option_names": ["--help"]}
"""Context settings of a command whose argument is a key's thumbprint: one in 64 begins with a dash, like an option."""

# At exit, Python looks for cycles in whatever was imported, which takes longer than many commands. The system frees it
# anyway.
atexit.register(gc.freeze)


class Refusal(click.ClickException):
    """The command was understood and refused. Exit code 1; nothing was changed."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # A file name or a stored value must not act on the terminal. Several problems keep their lines.
        super().__init__("\n".join(printable(line) for line in message.split("\n")))


class LazyGroup(click.Group):
    """A group that imports the module of a command when that command is invoked or shows its help.

    `lazy` lists the commands. The group's own help prints their short help from the table, without an import.
    `discover` is called only for a name that the group does not know, and for the group's own help.
    """

    def __init__(
        self, *arguments: Any, lazy: LazyCommands | None = None, discover: Discover | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.lazy = lazy or {}
        self._discover = discover

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, sorted."""
        return sorted({*self.commands, *self.lazy, *self._discovered(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, and import it if necessary; None if there is none of that name.

        Raises:
            Refusal: the name is unknown, and further commands cannot be discovered.
        """
        if cmd_name in self.lazy and cmd_name not in self.commands:
            module, _, attribute = self.lazy[cmd_name][0].partition(":")
            # An import creates many objects that stay. To look for garbage among them takes a tenth of its time.
            gc.disable()
            try:
                self.add_command(getattr(import_module(module), attribute), cmd_name)
            finally:
                gc.enable()
        known = super().get_command(ctx, cmd_name)
        if known is None and self._discover is not None:
            return self._discover(ctx).get(cmd_name)
        return known

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands into the group's help."""
        rows = {name: click.Command(name, help=short_help) for name, (_, short_help) in self.lazy.items()}
        # Without this group's methods, which would import the commands.
        click.Group(commands={**self._discovered(ctx), **self.commands, **rows}).format_commands(ctx, formatter)

    def _discovered(self, ctx: click.Context) -> Mapping[str, click.Command]:
        """Return the discovered commands for a list. A failure shortens the list: help must be printed in any case."""
        if self._discover is None:
            return {}
        try:
            return self._discover(ctx)
        except Exception:  # noqa: BLE001 - discovery runs code of a catalogue, which may raise anything
            return {}


class ServerGroup(LazyGroup):
    """A server's commands. Their failures are messages: no traceback, SQL or connection string is printed."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. A failure that an operator can fix becomes a Refusal."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal that cannot show a character shows its escape.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            result = super().invoke(ctx)
            # Writing the rest of the output can fail, too.
            sys.stdout.flush()
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except BrokenPipeError:
            # Nobody reads standard output any more, as after `| head`, and knows it.
            raise click.exceptions.Exit(1) from None
        except Exception as error:
            # Imported for a failure only: it brings SQLAlchemy and pydantic.
            explain = import_module("gatehouse.shared.service.failures").explain
            if (explanation := explain(error)) is None:
                raise
            raise Refusal(explanation) from None
        finally:
            _discard_unwritten_output()
        return result


def _discard_unwritten_output() -> None:
    """Drop output that cannot be written, or Python would fail on it at exit and change the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def until_output_closes() -> Iterator[None]:
    """End the block quietly when nobody reads standard output any more, as after `| head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_unwritten_output()


def server_group(lazy: LazyCommands, discover: Discover | None = None) -> Callable[[Callable[..., None]], ServerGroup]:
    """Make a function the group of a server's commands, with `--env-file` and `--version`."""

    def decorate(function: Callable[..., None]) -> ServerGroup:
        env_file = click.option(
            "--env-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            expose_value=False,
            callback=_remember_env_file,
            help="Read settings from this file; environment variables take precedence.",
        )
        version = click.version_option(package_name="gatehouse")
        settings = {"help_option_names": ["-h", "--help"]}
        make = click.group(cls=ServerGroup, context_settings=settings, lazy=lazy, discover=discover)
        return make(env_file(version(function)))

    return decorate


def _remember_env_file(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    ctx.obj = value


def env_file_of(ctx: click.Context) -> Path | None:
    """Return the value of `--env-file`."""
    env_file: Path | None = ctx.find_root().obj
    return env_file


def join_scopes(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> str:
    """Read `--scope "a b"` and `--scope a --scope b` alike."""
    return " ".join(values)


def output_option(function: FunctionT) -> FunctionT:
    """Add `--output table|json` to a command."""
    return click.option(
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Output format: table for people, json for programs.",
    )(function)


_DURATION = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> int | None:
    """Return the seconds of a duration such as `90s`, `15m`, `12h` or `7d`; None for any other text."""
    match = _DURATION.fullmatch(text)
    return int(match[1]) * _UNITS[match[2]] if match else None


def example(text: str) -> Callable[[FunctionT], FunctionT]:
    """Append an example to a command's help."""
    return partial(_append_example, text)


def _append_example(text: str, function: FunctionT) -> FunctionT:
    lines = "\n".join(f"  {line}" for line in text.strip().splitlines())
    # The example has no indentation, so the text before it must have none either.
    function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n\b\nExample:\n{lines}\n"
    return function


def confirm(question: str, *, yes: bool, because: str = "This cannot be undone.") -> None:
    """Ask before a step that a person must decide about. Where nobody can answer, only `--yes` is consent.

    `because` says why, where nobody answers.

    Raises:
        Refusal: the answer is no, or there is none.
    """
    try:
        consent = yes or click.confirm(question, err=True)
    except click.Abort:
        raise Refusal(f"{because} Repeat the command with --yes.") from None
    if not consent:
        raise Refusal("Nothing was changed.")
