"""``pdc-fx check`` over a whole model collection: one process per model, one JSON file, one page.

Each model runs in a process of its own, so that a crash, a lack of memory or a time limit costs that model alone. The JSON file is
written after each; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from pdc_fx.children import HERE, child_environment
from pdc_fx.errors import InputError
from pdc_fx.factories import collection
from pdc_fx.files import parse_json, replace_file
from pdc_fx.words import share

Result = Literal["passed", "refused", "failed", "timeout"]

RESULTS: tuple[Result, ...] = ("passed", "refused", "failed", "timeout")
DATA, PAGE = "coverage.json", "coverage.md"
KEPT = "<!-- from here on not written by 'pdc-fx check --all' -->"
"""Line of the page from which on it stays as it is: other tables stand there."""
REFUSALS = (2, 3)
"""Exit codes of ``check`` that say that a model cannot be checked or has nothing to merge."""


@dataclass(frozen=True)
class Checked:
    """What came of one model.

    Attributes:
        model: its spec.
        result: ``refused`` is an answer (nothing to merge, or a size that cannot be edited); ``failed`` is not (an error above
            the tolerance, a crash, no memory).
        reason: why, where it did not pass.
        seconds: of the whole process.
        certificate: as ``check --json`` printed it, where there is one.
    """

    model: str
    result: Result
    reason: str
    seconds: float
    certificate: dict[str, Any] | None = None

    @property
    def passed(self) -> bool:
        return self.result == "passed"


@dataclass(frozen=True)
class Coverage:
    """A whole collection.

    Attributes:
        settings: what all results depend on: family, seed, versions.
        models: by spec, in the order of the collection.
    """

    settings: dict[str, Any]
    models: dict[str, Checked]

    def counts(self) -> dict[str, int]:
        """Result -> number of models."""
        found = Counter(checked.result for checked in self.models.values())
        return {result: found[result] for result in RESULTS}

    def to_json(self) -> str:
        models = [asdict(checked) for checked in self.models.values()]
        return json.dumps({**self.settings, "counts": self.counts(), "models": models}, indent=1) + "\n"


def cover(
    family: str,
    output: Path,
    *,
    only: str = "*",
    timeout: float = 600,
    workers: int = 1,
    fresh: bool = False,
    seed: int = 0,
    report: Callable[[Checked, int, int], None] = lambda *_: None,
) -> Coverage:
    """Check every model of a collection and write ``coverage.json`` and ``coverage.md`` in ``output``.

    Args:
        family: ``torchvision`` or ``timm``.
        only: patterns of names with commas in between, such as ``resnet*,vgg11``; results of other models stay in the files.
        timeout: seconds per model.
        workers: processes at a time.
        fresh: check again what is in the file.
        report: called with each result, its number and how many there are.

    Returns:
        The models that were asked for, those whose result was in the file already included.

    Raises:
        InputError: there is no such collection, no such model, no place to write, or the file holds results of another seed or
            other versions, which must not be mixed.
    """
    if timeout <= 0:
        raise InputError("the time limit must be positive", where=f"--timeout {timeout:g}")
    order = [f"{family}:{name}" for name in collection(family)]
    patterns = only.split(",")
    wanted = [spec for spec in order if any(fnmatchcase(spec.partition(":")[2], pattern) for pattern in patterns)]
    for pattern in patterns:
        if not any(fnmatchcase(spec.partition(":")[2], pattern) for spec in wanted):
            raise InputError(f"no model of {family} is called {pattern!r}", hint="write a pattern such as 'resnet*'")
    settings = {"family": family, "seed": seed, "versions": versions(family)}
    try:
        output.mkdir(parents=True, exist_ok=True)
        _require_own(output)
        known = _read(output / DATA, settings, fresh=fresh)
        for spec in wanted if fresh else ():
            known.pop(spec, None)

        def write() -> Coverage:
            coverage = Coverage(settings, {spec: known[spec] for spec in order if spec in known})
            replace_file(output / PAGE, (page(coverage) + _kept(output / PAGE)).encode())
            replace_file(output / DATA, coverage.to_json().encode())
            return coverage

        open_specs = [spec for spec in wanted if spec not in known or known[spec].result == "timeout"]
        done = len(wanted) - len(open_specs)
        for checked in _run_all(open_specs, timeout, workers, seed):
            known[checked.model] = checked
            write()
            done += 1
            report(checked, done, len(wanted))
        write()
    except OSError as error:
        raise InputError(f"the results cannot be written: {error.strerror}", where=str(error.filename)) from error
    return Coverage(settings, {spec: known[spec] for spec in wanted})


def _require_own(output: Path) -> None:
    """Refuse to write over a page of another program: reports on tests are called so, too."""
    path = output / PAGE
    if path.exists() and "pdc-fx check --all" not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(
            "this page was not written by 'pdc-fx check --all'", where=str(path), hint="choose another --output"
        )


def versions(family: str) -> dict[str, str]:
    """Package -> version, of those that decide the result."""
    found = {}
    for package in dict.fromkeys(("pdc-fx", "torch", family)):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a clone on the path that was never installed
            found[package] = "unknown"
    return found


def _kept(path: Path) -> str:
    """What stands at the end of the page that was not written here."""
    _, mark, rest = path.read_text(encoding="utf-8").partition(KEPT) if path.exists() else ("", "", "")
    return f"\n{mark}{rest}" if mark else ""


def _read(path: Path, settings: dict[str, Any], *, fresh: bool) -> dict[str, Checked]:
    if not path.exists():
        return {}
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
        same = all(data[key] == value for key, value in settings.items())
        models = {entry["model"]: Checked(**entry) for entry in data["models"]}
    except (ValueError, TypeError, KeyError) as error:
        if fresh:
            return {}
        raise InputError(
            "this is no file of coverage results", where=str(path), hint="move it away, or pass --fresh"
        ) from error
    if same:
        return models
    if fresh:
        return {}
    raise InputError(
        "the results there are of another collection, another seed or other versions",
        where=str(path),
        hint="pass --fresh to start over, or another --output",
    )


# ------------------------------------------------------------------------------------------------------------- processes
def _run_all(specs: Sequence[str], timeout: float, workers: int, seed: int) -> Iterator[Checked]:
    """Results as they come. When the caller goes away, what has not begun does not begin."""
    pool = ThreadPoolExecutor(workers)
    futures: list[Future[Checked]] = [pool.submit(run_one, spec, timeout, seed, workers) for spec in specs]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def command(spec: str, seed: int) -> list[str]:
    """What is run for a model."""
    return [sys.executable, "-m", "pdc_fx", "check", spec, "--json", "--dtype", "auto", "--seed", str(seed)]


def run_one(spec: str, timeout: float, seed: int = 0, workers: int = 1) -> Checked:
    """Check one model in a process of its own."""
    environment = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers)),
        **child_environment(PYTHONWARNINGS="ignore"),
    }
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):  # what it prints is read by a program
        environment.pop(name, None)
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command(spec, seed),
            cwd=HERE,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except OSError as error:
        return Checked(spec, "failed", f"could not be started: {error.strerror}", 0.0)
    except subprocess.TimeoutExpired:
        return Checked(spec, "timeout", f"took longer than {timeout:g} s", round(time.perf_counter() - start, 2))
    result, reason, certificate = judge(done.returncode, done.stdout, done.stderr)
    return Checked(spec, result, _portable(reason), round(time.perf_counter() - start, 2), _portable(certificate))


def judge(code: int, stdout: str, stderr: str) -> tuple[Result, str, dict[str, Any] | None]:
    """Result, reason and certificate of a process that ended.

    >>> judge(3, "", "error: no two channels of this model may be merged")[:2]
    ('refused', 'no two channels of this model may be merged')
    >>> judge(-9, "", "")[:2]
    ('failed', 'was killed (SIGKILL), most likely because memory ran out')
    """
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        cause = ", most likely because memory ran out" if name == "SIGKILL" else ""
        return "failed", f"was killed ({name}){cause}", None
    certificate = _certificate(stdout)
    if certificate is not None:
        if code == 0 and certificate["passed"]:
            return "passed", "", certificate
        where = certificate.get("first_difference") or "output"
        error = _number(certificate["max_rel_error"])
        return "failed", f"relative error {error}, allowed {certificate['tolerance']:g}, at {where}", certificate
    message = re.search(r"^error: (.+)", stderr, re.MULTILINE | re.DOTALL)
    if message:
        text = " ".join(message[1].split())
        return ("refused" if code in REFUSALS else "failed"), text, None
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), f"exit code {code}")
    no_memory = re.search(r"\bMemoryError\b|can't allocate memory|not enough memory", stderr)
    return "failed", f"{'ran out of memory' if no_memory else 'crashed'}: {last}", None


def _certificate(stdout: str) -> dict[str, Any] | None:
    try:
        data = json.loads(stdout)
    except ValueError:
        return None
    return data if isinstance(data, dict) and "max_rel_error" in data else None


def _number(value: float | None) -> str:
    return f"{value:.1e}" if value is not None and isfinite(value) else "not finite"


def _portable(value: Any) -> Any:
    """As JSON can hold it, and without this machine's folders in source locations, so that two machines' files compare."""
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, str):
        for folder in sorted({*filter(None, sys.path), HERE}, key=len, reverse=True):
            value = value.replace(folder.rstrip("/\\") + os.sep, "")
        return re.sub(r"[\w./\\:+-]*[/\\]site-packages[/\\]", "", value)
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    return [_portable(item) for item in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------------------------ page
HEADINGS = ("model", "result", "result type", "channels", "MACs", "relative error", "seconds", "frozen, and why")


def page(coverage: Coverage) -> str:
    """The results as Markdown."""
    family = coverage.settings["family"]
    counts = coverage.counts()
    made_with = ", ".join(f"{package} {number}" for package, number in coverage.settings["versions"].items())
    lines = [
        f"# Which models of {family} can be merged exactly",
        "",
        f"Written by `pdc-fx check --all {family}`, for all models or those of `--only`; {DATA} holds the full certificates. "
        f"{made_with}; seed {coverage.settings['seed']}.",
        "",
        f"{len(coverage.models)} models: " + ", ".join(f"{number} {result}" for result, number in counts.items()) + ".",
        "",
        "Random halves of all channels that may be merged were tied and merged, and the tied network was compared with the result.",
        "",
        "- *result*: `passed`, the relative error is within 1e-9 in float64 (1e-4 in float32, where the table says so: models of over",
        "  150 million parameters, and those that do not run in float64); `refused`, the tool said why it does not; `failed`, the error is",
        "  above that, or the process crashed; `timeout`.",
        "- *result type*: the model's own class, or `GraphModule` where a size written into the forward pass had to be edited.",
        "- *channels*, *MACs*: the share of the channels that may be merged, and of the multiply-accumulates in layers that can shrink.",
        "- *seconds*: of the whole process, start and comparison included.",
        "- *frozen, and why*: channels that stay, the most common reasons; all of them, with source lines, are in the JSON file.",
        "",
        _row(HEADINGS),
        _row("---" if name not in HEADINGS[3:7] else "---:" for name in HEADINGS),
    ]
    lines += [_row(_cells(checked)) for checked in coverage.models.values()]
    others = [checked for checked in coverage.models.values() if checked.result != "passed"]
    if others:
        lines += ["", "## Those that did not pass", ""]
        lines += [f"- `{_name(checked)}` {checked.result}: {_escaped(checked.reason)}" for checked in others]
    return "\n".join(lines) + "\n"


def _name(checked: Checked) -> str:
    return checked.model.partition(":")[2]


def _cells(checked: Checked) -> list[str]:
    found = checked.certificate
    seconds = f"{checked.seconds:.1f}"
    if found is None:
        return [
            f"`{_name(checked)}`",
            checked.result,
            "",
            "",
            "",
            "",
            seconds,
            _escaped(_shortened(checked.reason, 80)),
        ]
    precision = "" if found["dtype"] == "float64" else f" ({found['dtype']})"
    return [
        f"`{_name(checked)}`",
        checked.result,
        f"`{found['result_type']}`",
        share(found["mergeable_channels"], found["channels"]),
        share(found["mergeable_macs"], found["macs_before"]),
        _number(found["max_rel_error"]) + precision,
        seconds,
        _escaped(frozen_summary(found["frozen"])),
    ]


def frozen_summary(frozen: Iterable[dict[str, Any]]) -> str:
    """The most common reasons, without modules and source lines.

    >>> frozen_summary([{"channels": 10, "module": "fc", "reason": "is an output of the model"}])
    '10: is an output of the model'
    """
    counted: Counter[str] = Counter()
    for entry in frozen:
        reason = re.sub(r" \(at '[^']*'\)$", "", entry["reason"])
        reason = re.sub(r" \([^()]*:\d+\)", "", reason)
        counted[_shortened(re.sub(r"'[\w.]+\.(\w+)'", r"a \1", reason), 70)] += entry["channels"]
    parts = [f"{channels:,}: {reason}" for reason, channels in counted.most_common(3)]
    left = len(counted) - len(parts)
    return "; ".join(parts) + (f"; {left} more" if left else "")


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 4].rstrip() + " ..."


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    return re.sub(r"([|*_<>`\[\]])", r"\\\1", text)
