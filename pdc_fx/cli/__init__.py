"""The command line ``pdc-fx``: results on standard output, progress and errors on standard error."""

from pdc_fx.cli.app import app, main

__all__ = ["app", "main"]
