"""The command `fastslm`: what it knows, and how it ends.

Results go to standard output, all else to standard error. Exit status: 0 done; 2 the user's input is at fault, said in
one sentence; 1 a bug, with a traceback; 130 stopped by Ctrl-C; 141 nobody reads what is printed, as behind `| head`:
it ends without a word, as other commands do (128 + SIGPIPE). Heavy imports wait until a command needs them.
"""

import errno
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from fastslm import __version__
from fastslm.cli import authors, data, evaluate, plan, tasks, train, weights
from fastslm.cli.files import forget_what_cannot_be_written
from fastslm.cli.printing import any_text, print_text, say, tell
from fastslm.cli.standard_error import forgive_standard_error
from fastslm.errors import FastSLMError

INTERRUPTED = 130
NOBODY_READS = 141
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
USERS_FAULT = 2

app = typer.Typer(
    name="fastslm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_text(f"fastslm {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Listen to hours of speech at 1.67 tokens a second: transcribe, translate, summarize, ask.

    Recordings are any sound or video files that FFmpeg reads, or memories made by `fastslm encode` (.fslm).
    """


app.add_typer(tasks.app)
app.add_typer(plan.app)
app.add_typer(train.app)
app.add_typer(data.app, name="data")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(weights.app, name="weights")
app.add_typer(authors.app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default the process's own, and leave with its exit status."""
    forgive_standard_error()
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run the command and return its exit status; a bug is raised."""
    with any_text():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    try:
        command: Any = typer.main.get_command(app)
        status = command.main(arguments, prog_name="fastslm", standalone_mode=False)
    except FastSLMError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        status = INTERRUPTED
    except SystemExit as error:
        # So typer and rich leave where a pipe is closed, with the status of a bug; sys.stdout is harmless by then.
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        return NOBODY_READS
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return _complain(f"{error.filename} is too long for the name of a file: check the path.")
        if error.errno not in NO_ROOM:
            raise
        forget_what_cannot_be_written()
        where = error.filename or "The result"
        return _complain(f"{where} cannot be written ({error.strerror}): free some room, or write it elsewhere.")
    except Exception as error:
        # typer's own errors, whose class is not public, know their words.
        words: Any = getattr(error, "format_message", None)
        if words is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            if words():  # rich has printed the help already
                tell(words())
            return USERS_FAULT
        context: Any = getattr(error, "ctx", None)
        path = context.command_path if context else "fastslm"
        said = words() if words()[-1:] in ".?" else f"{words()}."
        return _complain(f"{said} See `{path} --help`.")
    if status == INTERRUPTED:
        tell("\nfastslm: stopped.")
    return status if isinstance(status, int) else 0


def _complain(sentence: str) -> int:
    say(sentence)
    return USERS_FAULT
