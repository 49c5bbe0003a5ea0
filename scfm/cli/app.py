"""Arguments in, exit code out.

0 done; 2 what the user can mend (one message on stderr, no traceback unless --debug); 1 our fault.
"""

import contextlib
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import typer

from scfm.cli import (
    annotate,
    calibrate,
    convert,
    demo,
    denoise,
    embed,
    evaluate,
    export,
    finetune,
    generate,
    info,
    ontology,
    plan,
    prepare,
    pretrain,
    reference,
    tfbind,
    tfbind_use,
)
from scfm.errors import Interrupted, ScfmError, ScfmWarning

app = typer.Typer(
    name="scfm",
    help="Foundation models of single-cell gene expression: pretrain, embed, annotate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="--debug anywhere shows a traceback. Exit codes: 0 done, 2 mend the input, 1 our fault.",
)
for module in (
    *(demo, prepare, plan, pretrain, export, convert),
    *(embed, annotate, calibrate, denoise, generate, info),
):
    app.command(module.__name__.rpartition(".")[2])(module.command)
for command in (tfbind_use.predict, tfbind_use.activity, tfbind_use.variants):
    tfbind.app.command(command.__name__)(command)
app.add_typer(finetune.app, name="finetune")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(ontology.app, name="ontology")
app.add_typer(reference.app, name="reference")
app.add_typer(tfbind.app, name="tfbind")


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    if version:
        from scfm.version import __version__

        print(f"scfm {__version__}")
        raise typer.Exit


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    with _warnings_as_lines(debug), _signals_as_errors():
        sys.exit(_run(arguments, debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        found = app(arguments, prog_name="scfm", standalone_mode=True)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    except ScfmError as error:
        return _say(error, debug, 2)
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001 the last resort: said to be ours, never swallowed
        if debug:
            traceback.print_exc()
        print(
            f"scfm: internal error: {type(error).__name__}: {error}\n"
            "This is a fault of scfm. Run again with --debug and report the traceback.",
            file=sys.stderr,
        )
        return 1
    return int(found or 0)


@contextlib.contextmanager
def _signals_as_errors() -> Iterator[None]:
    """Ctrl-C and SIGTERM as an error that unwinds: temporary files go, one line is said."""

    def stop(*_: object) -> None:
        raise Interrupted("Stopped on request. What was there before is as it was.")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(error: ScfmError, debug: bool, code: int) -> int:
    if debug:
        traceback.print_exc()
    print(f"scfm: {error}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _warnings_as_lines(debug: bool) -> Iterator[None]:
    """Our warnings as a line each; other libraries', meant for programmers, not at all."""
    if debug:
        yield
        return

    def show(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, ScfmWarning):
            print(f"scfm: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ScfmWarning)
        warnings.showwarning = show
        yield


if __name__ == "__main__":  # python -m scfm.cli.app, as torchrun starts it
    main()
