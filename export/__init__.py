"""Stands at the top of the repository; imported as ``pdc_fx.export`` and under no other name."""

if __name__ != "pdc_fx.export":
    raise ImportError(
        f"this package was imported as {__name__!r}; import it as 'pdc_fx.export' (run 'pip install -e .' in the repository first)"
    )
