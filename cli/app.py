"""The ``skumatch`` command: assembles the commands and turns errors into one line and an exit code.

Exit codes: 0 done, 1 done but a gate failed, 2 error, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

import skumatch
from skumatch.cli import data, gallery, gallery_show, gallery_versions, keys, reviews
from skumatch.cli.audit import audit
from skumatch.cli.bench import bench
from skumatch.cli.calibrate import calibrate
from skumatch.cli.dedupe import dedupe, dedupe_apply
from skumatch.cli.dedupe_learn import dedupe_learn
from skumatch.cli.demo import demo
from skumatch.cli.doctor import doctor
from skumatch.cli.embed import embed
from skumatch.cli.eval import evaluate
from skumatch.cli.export import export
from skumatch.cli.finetune import finetune
from skumatch.cli.init import init
from skumatch.cli.match import match
from skumatch.cli.serve import serve
from skumatch.cli.sweep import sweep
from skumatch.cli.synth import synth
from skumatch.errors import SkumatchError
from skumatch.machine import limit_threads

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Recognise which SKU a noisy crop of a shop shelf shows.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"skumatch {skumatch.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Recognise which SKU a noisy crop of a shop shelf shows."""


data.app.command("synth")(synth)
data.app.command("audit")(audit)
app.command()(init)
app.command()(finetune)
app.command("eval")(evaluate)
app.command()(sweep)
app.command()(calibrate)
app.command()(export)
app.command()(bench)
app.command()(match)
app.command()(embed)
app.command()(serve)
app.add_typer(gallery.app, name="gallery")
gallery_show.register(gallery.app)
gallery_versions.register(gallery.app)
app.add_typer(data.app, name="data")
app.add_typer(keys.app, name="keys")
app.add_typer(reviews.app, name="reviews")
app.command()(dedupe)
app.command("dedupe-learn")(dedupe_learn)
app.command("dedupe-apply")(dedupe_apply)
app.command()(demo)
app.command()(doctor)


def main() -> NoReturn:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    debug = "--debug" in sys.argv[1:]
    if debug:
        sys.argv.remove("--debug")
    limit_threads()
    sys.exit(_run(debug))


def _run(debug: bool) -> int:
    try:
        code = app(prog_name="skumatch", standalone_mode=False)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            return _reader_gone()  # typer turns it into exit code 1, which means a failed gate here
        return end.code if isinstance(end.code, int) else 2
    except TyperException as error:
        return _misused(error)
    except SkumatchError as error:
        if debug:
            raise
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        return 2
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        return _reader_gone()
    return code if isinstance(code, int) else 0


def _misused(error: TyperException) -> int:
    """Say in one line what is wrong with the arguments. (Without any, typer has printed the help already.)"""
    what = " ".join(error.format_message().split()).rstrip(".")
    if what:
        command = getattr(getattr(error, "ctx", None), "command_path", "skumatch")
        typer.echo(f"error: {what} - see `{command} --help`", err=True)
    return 2


def _reader_gone() -> int:
    """The reader of stdout is gone (`| head`): nothing is left to say, and Python must not flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]
    return 0


if __name__ == "__main__":
    main()
