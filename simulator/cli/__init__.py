"""The ``sim`` command: parse, call, print.

One module per command. A module imports nothing heavy at its top, so that ``sim --help`` is quick; this is the top
layer, which may import every package and is imported by none.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from simulator.cli import (
    calibrate_fit,
    calibrate_host,
    calibrate_links,
    calibrate_observe,
    calibrate_predict,
    calibrate_run,
    calibrate_serving,
    calibrate_validate,
    compare,
    conform,
    dashboard,
    estimate,
    gpus,
    models,
    report,
    reproduce,
    run,
    serve,
    size,
    sweep,
    systems,
    trace,
    validate_operators,
    validate_serving,
)
from simulator.compiled import is_compiled
from simulator.errors import SimError

__all__ = ["app", "main"]

app = typer.Typer(
    name="sim",
    help="Say how an LLM serving system will behave on given hardware under given traffic.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
calibrate = typer.Typer(
    help="Measure devices, fit profiles, hold them against the engine.", no_args_is_help=True
)
calibrate.command("run")(calibrate_run.run)
calibrate.command("fit")(calibrate_fit.fit)
calibrate.command("validate")(calibrate_validate.validate)
calibrate.command("observe")(calibrate_observe.observe)
calibrate.command("import")(calibrate_observe.import_results)
calibrate.command("fit-host")(calibrate_host.fit_host)
calibrate.command("predict")(calibrate_predict.predict)
calibrate.command("fit-links")(calibrate_links.fit_links)
calibrate.command("fit-serving")(calibrate_serving.fit_serving)
validate = typer.Typer(help="Hold predictions against measurements.", no_args_is_help=True)
validate.command("operators")(validate_operators.operators)
validate.command("serving")(validate_serving.serving)

app.command("run")(run.run)
app.command("compare")(compare.compare)
app.command("explain")(compare.explain)
app.command("estimate")(estimate.estimate)
app.add_typer(trace.app, name="trace")
app.command("models")(models.models)
app.add_typer(gpus.app, name="gpus")
app.command("systems")(systems.systems)
app.command("conform")(conform.conform)
app.command("dashboard")(dashboard.dashboard)
app.command("size")(size.size)
app.command("sweep")(sweep.sweep)
app.command("report")(report.report)
app.command("reproduce")(reproduce.reproduce)
app.command("export")(report.export)
app.command("serve")(serve.serve)
app.add_typer(calibrate, name="calibrate")
app.add_typer(validate, name="validate")


@app.callback(invoke_without_command=True)
def options(
    show_version: bool = typer.Option(
        False,
        "--version",
        is_eager=True,
        help="Version, interpreter, and whether the hot modules are compiled.",
    ),
) -> None:
    """Say how an LLM serving system will behave on given hardware under given traffic."""
    if show_version:
        import platform
        from importlib.metadata import version

        how = "compiled" if is_compiled() else "plain Python, half the speed"
        typer.echo(f"servesim {version('servesim')}, Python {platform.python_version()}, {how}")
        raise typer.Exit


def main() -> None:
    """Run the command line. What the user got wrong is one line on stderr and exit code 2: a `SimError`, a word that is
    no option, a file or folder that the system does not let us use."""
    try:
        code = app(prog_name="sim", standalone_mode=False)
    except (SimError, TyperException) as error:
        _refuse(_said(error) if isinstance(error, TyperException) else str(error))
    except BrokenPipeError:  # the reader of our output left, as `head` does
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}")
    sys.exit(code if isinstance(code, int) else 0)


def _said(error: TyperException) -> str:
    """What is wrong with the words of a command, and where to look."""
    context = getattr(error, "ctx", None)
    path = "sim" if context is None else context.command_path
    return f"{' '.join(error.format_message().split()).rstrip('.')}. See `{path} --help`."


def _refuse(why: str) -> NoReturn:
    print(f"sim: error: {why}", file=sys.stderr)
    sys.exit(2)
