"""Layer times on disk: what was measured once is not measured again, and another machine's file can be used here.

A table holds for one device, execution provider, number of threads and version of ONNX Runtime. It is a JSON file that says so itself.
Without a file of the user's it lies in the platform's cache directory. Only the machine that a table speaks of adds to it.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pdc_fx.errors import ArtifactError, InputError
from pdc_fx.export.timing.turns import processor_name
from pdc_fx.files import locked, parse_json, replace_file

FORMAT = 1


@dataclass(frozen=True)
class Target:
    """Where times were or will be measured."""

    device: str
    provider: str
    threads: int
    runtime: str

    def __str__(self) -> str:
        return f"{self.device}, {self.provider}, {self.threads} thread{'s' * (self.threads > 1)}, {self.runtime}"


@dataclass
class LatencyTable:
    """Times in microseconds.

    Attributes:
        layers: by :meth:`pdc_fx.passes.latency.Layer.key`.
        networks: whole dense networks, by what makes them up.
        reductions: share of the time that was measured to go, 0 to 1, by network and widths. With these a plan that is made again
            is the same, though no two measurements are.
    """

    target: Target
    layers: dict[str, float] = field(default_factory=dict)
    networks: dict[str, float] = field(default_factory=dict)
    reductions: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. What another process added meanwhile stays in it, and is known here from now on."""
        with locked(path.parent):
            other = LatencyTable.load(path) if path.exists() else None
            if other is not None and other.target == self.target:
                for name in ("layers", "networks", "reductions"):
                    setattr(self, name, getattr(other, name) | getattr(self, name))
            self._write(path)

    def _write(self, path: Path) -> None:
        data = {"format": FORMAT, "unit": "microseconds", **asdict(self.target)}
        data |= {"reductions": self.reductions, "networks": self.networks}
        data["layers"] = dict(sorted(self.layers.items()))
        replace_file(path, (json.dumps(data, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read a file.

        Raises:
            ArtifactError: it cannot be read, or does not hold such a table.
        """
        try:
            data = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _damaged(path, f"it cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise _damaged(path, f"it is not a JSON object with format {FORMAT}")
        kinds = {"device": str, "provider": str, "threads": int, "runtime": str}
        wrong = [name for name, kind in kinds.items() if not isinstance(data.get(name), kind)]
        wrong += [name for name in ("layers", "networks") if not _numbers(data.get(name), 0.0)]
        wrong += [] if _numbers(data.get("reductions"), -math.inf) else ["reductions"]
        if wrong:
            raise _damaged(path, f"missing or malformed: {', '.join(wrong)}")
        target = Target(**{f.name: data[f.name] for f in fields(Target)})
        return cls(target, data["layers"], data["networks"], data["reductions"])


def _numbers(value: Any, least: float) -> bool:
    """Whether a value maps names to finite numbers of at least ``least``."""
    return isinstance(value, dict) and all(
        isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) and n >= least
        for n in value.values()
    )


def _damaged(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"this is no table of layer times: {reason}", where=str(path), hint="delete it to have the layers timed again"
    )


def open_table(path: Path | None, here: Target) -> tuple[LatencyTable, Path]:
    """The table to use and its file; an empty table of this machine where there is no file yet.

    Args:
        path: the user's file, or None for the one in the cache directory.
        here: this machine, with the provider and the threads that were asked for.

    Raises:
        ArtifactError: the file is damaged.
        InputError: it was measured with another provider or another number of threads.
    """
    file = path or cache_directory() / "latency" / f"{re.sub(r'[^a-z0-9.]+', '-', str(here).lower())}.json"
    if not file.exists():
        return LatencyTable(here), file
    table = LatencyTable.load(file)
    for name in ("provider", "threads"):
        if getattr(table.target, name) != getattr(here, name):
            raise InputError(
                f"the table was measured with {name} {getattr(table.target, name)}, this is for {name} {getattr(here, name)}",
                where=str(file),
                hint="choose another --latency-table, or another --provider or number of threads",
            )
    return table, file


def require_all(table: LatencyTable, file: Path, missing: int) -> None:
    """Raise :class:`InputError` if a table of another machine lacks something: it cannot be measured here."""
    if missing:
        raise InputError(
            f"the table lacks {missing} times that this model needs, and they cannot be measured here",
            where=f"{file}: {table.target}",
            hint="plan once with it on that machine, or choose another --latency-table",
        )


def cache_directory() -> Path:
    """Where this platform keeps what can be made again: below ``XDG_CACHE_HOME`` where that is set."""
    home = Path.home()
    if given := os.environ.get("XDG_CACHE_HOME"):
        base = Path(given)
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    else:
        base = home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"
    return base / "pdc-fx"


def this_machine(provider: str, threads: int) -> Target:
    """This machine with a provider, named as on the command line."""
    import onnxruntime

    return Target(processor_name(), provider, threads, f"onnxruntime {onnxruntime.__version__}")
