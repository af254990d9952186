"""``--config FILE.yaml``: the options of ``compress`` from a file, and the options of a run as such a file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pdc_fx.directory import CONFIG

_OF_THE_CALL = ("config", "output", "resume", "overwrite", "download", "json")


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """Make what the file holds the defaults of this call: an option that is given on the command line counts more."""
    if path is None:
        return None
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise typer.BadParameter(f"{path} must hold one option a line, as 'epochs: 5'")
    options = {str(parameter.name): parameter for parameter in context.command.params}
    known = options.keys() - {"config", "help"}
    written = {text.lstrip("-").replace("-", "_"): name for name, option in options.items() for text in option.opts}
    found: dict[str, Any] = {}
    for name, value in values.items():
        plain = name.replace("-", "_")
        plain = written.get(plain, plain)
        if plain not in known:
            near = difflib.get_close_matches(plain, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(sorted(known))}"
            raise typer.BadParameter(f"{path}: there is no option '{name}'; {hint}")
        if isinstance(value, bool) and not getattr(options[plain], "is_flag", False):
            value = "yes" if value else "no"  # which YAML takes for truth values
        found[plain] = [value] if getattr(options[plain], "multiple", False) and isinstance(value, str) else value
    context.default_map = {**(context.default_map or {}), **found}
    return path


def overruled(context: typer.Context, names: Sequence[str]) -> list[str]:
    """Of options of which only one can be given: those of the file, where the command line has another."""
    source = {name: getattr(context.get_parameter_source(name), "name", "") for name in names}
    return [name for name in names if source[name] == "DEFAULT_MAP"] if "COMMANDLINE" in source.values() else []


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.yaml",
        callback=_read,
        is_eager=True,
        help=f"Options from a file, by their long names; those given here count more. A run leaves its own as {CONFIG}.",
    ),
]


def effective(chosen: Mapping[str, Any]) -> str:
    """The options of a run as a file for ``--config``."""
    import yaml

    values = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in chosen.items()
        if name not in _OF_THE_CALL and value is not None
    }
    return str(yaml.safe_dump(values, sort_keys=False))
