"""The program ``pdc-fx``: its commands, and how it ends."""

from __future__ import annotations

import io
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from pdc_fx.cli.bench import bench
from pdc_fx.cli.check import check
from pdc_fx.cli.compress import compress
from pdc_fx.cli.demo import demo
from pdc_fx.cli.deploy import export, verify
from pdc_fx.cli.inspect import inspect
from pdc_fx.cli.panels import GroupedCommand

app = typer.Typer(
    name="pdc-fx",
    help="Make a trained CNN smaller by clustering its filters under distillation and adding identical channels, exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done and verified; 1 a verification failed; 2 bad input or usage; 3 nothing in the model can be merged; "
    "128+N ended by signal N (Ctrl-C: 130).",
)


def _version(wanted: bool) -> None:
    if wanted:
        from pdc_fx.artifacts import package_version

        typer.echo(f"pdc-fx {package_version()}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    pass


app.command()(inspect)
app.command()(check)
app.command(cls=GroupedCommand)(compress)
app.command()(export)
app.command()(verify)
app.command()(bench)
app.command()(demo)


def main() -> None:
    """Entry point of the ``pdc-fx`` script. What a terminal cannot show is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    came: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        """End as an error does, so that what was begun is removed, and not as a signal does, which leaves it."""
        came.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        app()
    except Exception:
        if not came:
            raise
        sys.stderr.write("interrupted\n")  # C code that was being imported makes an error of its own of it
        raise SystemExit(128 + came[0]) from None
    except SystemExit as ended:
        if came and ended.code:
            raise SystemExit(128 + came[0]) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _leave_the_other_processes()


def _leave_the_other_processes() -> None:
    """Threads of a process group that are still there when Python ends may abort it."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
