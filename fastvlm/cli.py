"""The `fastvlm` command: finds the command typed, and turns every way it can end into one line and an exit code.

    0    good
    1    the answer is no: validate, verify, scan, check-official, `lint --min-resident`, a profile that lost a
         process, or this machine lacks things
    2    wrong usage or bad input: one `Error:` line that says what was found and what to do
    70   a fault in this program (never used for what a user or a file can cause); says how to report it
    130, 141, 143   interrupted by the keyboard, by a closed pipe, by a termination signal

Tracebacks appear with --debug only. Command modules are imported when they are asked for, rooms when a command runs.
"""

from __future__ import annotations

import sys

try:
    import errno
    import importlib
    import io
    import os
    import shlex
    import signal
    import traceback
    from collections.abc import Iterator, Sequence
    from contextlib import contextmanager, suppress
    from types import FrameType
    from typing import Any, NoReturn

    import click

    from fastvlm import __version__
    from fastvlm.commands.options import Settings, debug
    from fastvlm.errors import FastVLMError, MissingBase
    from fastvlm.quoting import printable, typed
except KeyboardInterrupt:  # these imports take tenths of a second, in which nobody else catches it
    sys.stderr.write("Interrupted.\n")
    raise SystemExit(130) from None

COMMANDS = (  # in the order they are typed
    "fit", "scan", "export", "validate", "report", "sweep", "lint", "profile", "run", "inspect", "bundle", "verify",
    "train", "synth",
    "check-official", "doctor",
)  # fmt: skip
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
CLOSED_PIPE = 128 + signal.SIGPIPE
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Commands(click.Group):
    """A group that imports a command's module when that command is asked for, and reports errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of use, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command `fastvlm.commands.<name>.<name>`, or None for a name that is none."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"fastvlm.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def make_context(self, *given: Any, **extra: Any) -> click.Context:
        """As click's; a pipe that closes while help is printed ends the command quietly."""
        with _closed_pipe_is_quiet():
            return super().make_context(*given, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """As click's; a pipe that closes while a result is printed ends the command quietly."""
        with _closed_pipe_is_quiet():
            return super().invoke(ctx)

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """As click's, with this project's exit codes and messages; also what `click.testing` calls."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        settings = Settings()
        try:
            code = super().main(args, prog_name, standalone_mode=False, obj=settings, **extra)
            sys.stdout.flush()
        except Exception as error:
            words = sys.argv[1:] if args is None else args
            code = _report(_with_command(error, words), settings.debug)
        except SystemExit as ended:
            if hasattr(ended, "__notes__"):  # a signal ended a run that left something
                _say(_ending("Terminated", ended), 0)
            raise
        sys.exit(code if isinstance(code, int) else 0)


@click.group(
    cls=Commands, invoke_without_command=True, subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)  # fmt: skip
@click.version_option(__version__, prog_name="fastvlm", message="%(prog)s %(version)s")
@debug
@click.pass_context
def cli(context: click.Context) -> None:
    """Export FastVLM checkpoints to Core ML, run the packages on any machine, prove that they match PyTorch.

    CHECKPOINT is a folder, `tiny` (the embedded one), or a Hub id: owner/name or owner/name@revision.

    Exit codes: 0 good, 1 the answer is no, 2 wrong usage or bad input, 70 a fault in this program.
    """
    if context.invoked_subcommand is None:  # click's own answer is an error that holds the whole help
        click.echo(context.get_help())
        context.exit(2)


def main() -> NoReturn:
    """Entry point of the installed command."""
    # A terminated run shall clean up like an interrupted one: SystemExit unwinds, the default action does not.
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored
        signal.signal(signal.SIGHUP, _terminated)
    if isinstance(sys.stdout, io.TextIOWrapper):  # strict by default: a name in another script would end the command
        sys.stdout.reconfigure(errors="backslashreplace")
    cli.main(prog_name="fastvlm")
    sys.exit(0)


def _terminated(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


@contextmanager
def _closed_pipe_is_quiet() -> Iterator[None]:
    """Leaves with CLOSED_PIPE; click itself would exit with 1, which here means that the answer is no."""
    try:
        yield
    except BrokenPipeError:
        _silence_stdout()
        raise click.exceptions.Exit(CLOSED_PIPE) from None


def _silence_stdout() -> None:
    """What is still buffered has no reader: the flush at exit must not fail a second time."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_command(error: Exception, words: Sequence[str]) -> Exception:
    """Ends an error that only lacks options with the command to type: the one that was typed, with them."""
    if isinstance(error, MissingBase):
        command = typed(shlex.join(["fastvlm", *words, *error.options]))
        return MissingBase(f"{error}; type: {command}", error.options).with_traceback(error.__traceback__)
    return error


def _report(error: Exception, show_traceback: bool) -> int:
    """Tells an error in one line on stderr and returns the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if show_traceback:
        traceback.print_exception(error)
    if isinstance(error, click.Abort):  # what click makes of Ctrl-C
        return _say(_ending("Interrupted", error.__cause__), 130)
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return CLOSED_PIPE
    if isinstance(error, FastVLMError):
        return _say(f"Error: {error}", error.exit_code)
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "fastvlm"
        return _say(f"Error: {_plain(error)}; `{command} --help` explains the usage", 2)
    if isinstance(error, click.ClickException):
        return _say(f"Error: {error.format_message()}", 2)
    if isinstance(error, MemoryError):
        return _say("Error: not enough memory; close other programs, or use a smaller checkpoint or image size", 2)
    if isinstance(error, OSError) and error.errno in NO_SPACE and error.filename is None:
        _silence_stdout()  # it is the output: files are named
        return _say(f"Error: the output cannot be written ({error.strerror}); free some space, or send it elsewhere", 2)
    if isinstance(error, OSError) and error.filename is not None:
        return _say(f"Error: {error.filename}: {error.strerror}; check the path, its permissions and the disk", 2)
    return _say(
        f"Error: internal error ({type(error).__name__}: {error}); this is a fault of fastvlm {__version__}, not "
        "yours: run it again with --debug and report what it prints",
        INTERNAL_ERROR,
    )


def _plain(error: click.UsageError) -> str:
    """What click found wrong in one line and in words: its list of choices has a line each, its types are Python's."""
    message = " ".join(error.format_message().rstrip(".").split())
    for types, words in (("integer range", "whole number"), ("float range", "number"), ("float", "number")):
        message = message.replace(f"is not a valid {types}", f"is no {words}")
    return message


def _ending(how: str, error: BaseException | None) -> str:
    """One sentence that says how a run ended, and what the exception's notes say of what it left."""
    return "; ".join([how, *getattr(error, "__notes__", ())]) + "."


def _say(text: str, code: int) -> int:
    """Prints `text` as one printable line: file names may hold line breaks and terminal escapes."""
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    click.echo(printable(line, None), err=True)
    return code
