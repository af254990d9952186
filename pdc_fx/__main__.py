"""``python -m pdc_fx`` is ``pdc-fx``."""

from pdc_fx.cli import main

if __name__ == "__main__":
    main()
