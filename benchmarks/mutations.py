"""Is a fault in the code noticed? Faults are planted one at a time, and tests and the product's own certificate are asked.

    python benchmarks/mutations.py                      all of it, into benchmarks/results/mutations.json
    python benchmarks/mutations.py --only 'reader*'     some of it; results of other faults stay in the file
    python benchmarks/mutations.py --jobs 2             two at a time
    python benchmarks/mutations.py --again              those too whose result is in the file

The faults are the table in benchmarks/mutation_table.py: a text of a source file, and what takes its place. Each is planted in a copy of
the repository, never in the repository itself. There the tests that should notice it are run, up to the first that fails. Where merged
or exported networks could come out wrong, a *probe* follows: some networks of tests/samples.py are tied at random and rewritten as a
user would (``pdc_fx.rewrite``), or a few networks are exported and verified. What pdc-fx raises is counted, and what it returns is compared
with the network that went in by a few lines here that share no code with pdc-fx. A network that was returned and is another function is
*silently wrong*: the certificate has missed the fault.

The copy without a fault has to pass all of it first. A run that was interrupted goes on with the faults that are not in the file. The exit
code is 1 if a fault survived, and 2 if the table is out of date: a text that is not in its file exactly once, tests that are not there.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from mutation_table import FAULTS, Fault

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutations.json"
TIMEOUT = 900
HEAVY = (
    "accelerate",
    "networkx",
    "onnxruntime",
    "onnxscript",
    "scipy.sparse.csgraph",
    "sklearn.cluster",
    "torchvision",
)
PROBED = """
conv functional shared_module depthwise depthwise_multiplier linear batch_norm instance_norm prelu residual
layer_scale squeeze_excite concat input_concat input_beside_added input_added half_activated half_flipped
halves_scaled rolled_onto_itself three_cycles split chunk flatten flatten_channels_last view_literal select
subsampled_padded mean_over_channels softmax_over_channels sorted_channels channel_shuffle grouped grouped_wider
grouped_residual layer_norm layer_norm_with_inputs layer_norm_of_odd_pair layer_norm_channels_last group_norm
group_norm_bare einsum matmul_transposed bilinear attention transposed transposed_grouped transposed_depthwise
pixel_shuffle channel_shuffle_function repeat gather spatial_transformer output_is_stem slopes_from_the_input
group_norm_beside_frozen
"""
"""Samples of the probe of merges: one or two of each kind."""
WRONG = 1e-5
"""Relative error from which on a network is another function; the probes compare in float64, but for ONNX."""
Row = dict[str, Any]


class TableError(Exception):
    """The table of faults does not fit the sources."""


# ----------------------------------------------------------------------------------------------------------- the faults
def planted(fault: Fault, source: str) -> str:
    """The source with the fault in it.

    Raises:
        TableError: the text is not there, or more than once, or what results is no Python.
    """
    count = source.count(fault.before)
    if count != 1:
        raise TableError(f"{fault.name}: its text is {count} times in {fault.file}, and has to be there once")
    mutated = source.replace(fault.before, fault.after)
    try:
        compile(mutated, fault.file, "exec")
    except SyntaxError as error:
        raise TableError(f"{fault.name}: {fault.file} is no Python with it: {error}") from error
    return mutated


def outdated(faults: Sequence[Fault] = FAULTS, root: Path = ROOT) -> list[str]:
    """What is wrong with the table, one line each."""
    found = [f"{name}: the name of {n} faults" for name, n in Counter(f.name for f in faults).items() if n > 1]
    for fault in faults:
        try:
            planted(fault, (root / fault.file).read_text(encoding="utf-8"))
        except (OSError, TableError) as error:
            found.append(str(error))
        found += [f"{fault.name}: there is no {path}" for path in _files_of(fault) if not (root / path).is_file()]
    return found


def _files_of(fault: Fault) -> list[str]:
    return [test.partition("::")[0] for test in fault.tests]


def digest(fault: Fault) -> str:
    """Changes with anything that decides what comes of a fault but the sources themselves."""
    networks = PROBED.split() if fault.probe == "merge" else ()
    parts = json.dumps([fault.file, fault.before, fault.after, list(fault.tests), fault.probe, *networks])
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------- one fault
def copy_of_the_tree(folder: Path) -> Path:
    """What git knows of the repository, as it is in the working tree, without the large results."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    tree = folder / "tree"
    for name in filter(None, names):
        source, target = ROOT / name, tree / name
        if source.is_symlink() or source.is_file():  # else it was deleted and is still in the index
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return tree


def run_in(tree: Path, work: Callable[[], int], timeout: float = TIMEOUT) -> tuple[int, str]:
    """Exit code and output of ``work`` in a process of its own, in which the package is that of the copy.

    The process is forked from this one, which has loaded what is heavy and nothing of ``pdc_fx``: that takes seconds, and has to be done
    for every fault twice. No byte code is written, which could outlive the fault that it was made from.

    Raises:
        TimeoutError: it took longer.
    """
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.setsid()
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
                sys.stdout, sys.stderr = (os.fdopen(stream, "w") for stream in (1, 2))
                os.chdir(tree)
                os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
                sys.dont_write_bytecode = True
                sys.path[:0] = [str(tree)]
                code = work()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        status = _end_of(child, timeout)
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    if status is None:
        raise TimeoutError(f"it took longer than {timeout:g} s: {text[-300:]}")
    return os.waitstatus_to_exitcode(status), text


def _end_of(child: int, timeout: float) -> int | None:
    """The status of a process when it ends; None where it had to be killed."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def load_what_is_heavy() -> None:
    """What tests and probes import anyway, but for the package itself."""
    for name in HEAVY:
        importlib.import_module(name)
    if "pdc_fx" in sys.modules:
        raise TableError("pdc_fx was imported before a fault could be planted")


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[str, str]:
    """``passed``, or ``failed`` and the first test that did; anything else is an error of the table.

    Raises:
        TableError: the tests did not run.
    """
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-rfE", "-m", "not slow"]
    options.append("--numprocesses=0")  # in this process, whatever PYTEST_ADDOPTS says
    code, text = run_in(tree, lambda: int(pytest.main([*options, *tests])))
    if code == 0:
        return "passed", ""
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    if code != 1 or found is None:
        raise TableError(f"the tests did not run: {text.strip()[-800:]}")
    return "failed", found[1]


def run_probe(tree: Path, probe: str) -> Mapping[str, int]:
    """How many networks came out right, wrong, or were refused by which error.

    Raises:
        TableError: the probe did not run to its end.
    """

    def work() -> int:
        warnings.simplefilter("ignore")
        print(json.dumps(counted(PROBES[probe]())))
        return 0

    code, text = run_in(tree, work)
    if code != 0:
        raise TableError(f"the probe did not run: {text.strip()[-800:]}")
    counts: dict[str, int] = json.loads(text.splitlines()[-1])
    return counts


@contextmanager
def with_fault(tree: Path, fault: Fault) -> Iterator[None]:
    """The copy with a fault in it, for as long as it takes."""
    path = tree / fault.file
    source = path.read_text(encoding="utf-8")
    path.write_text(planted(fault, source), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(source, encoding="utf-8")


def judge(tree: Path, fault: Fault) -> Row:
    """Plant a fault and see what notices it."""
    row: Row = {"name": fault.name, "file": fault.file, "what": fault.what, "digest": digest(fault)}
    started = time.perf_counter()
    try:
        with with_fault(tree, fault):
            result, test = run_tests(tree, fault.tests)
            counts = dict(run_probe(tree, fault.probe)) if fault.probe else {}
    except (TableError, TimeoutError) as error:
        return {**row, "result": "error", "reason": str(error)}
    row |= {"test": test, "probe": counts, "seconds": round(time.perf_counter() - started, 1)}
    row["result"] = "caught" if result == "failed" else "survived"
    return row


def in_words(row: Row) -> str:
    """What noticed it, in one line."""
    counts = ", ".join(f"{n} {name}" for name, n in row["probe"].items())
    return "; ".join(filter(None, [row["test"].partition("::")[2] or "no test", counts]))


# ---------------------------------------------------------------------------------------------------------------- probes
def counted(cases: Iterator[Callable[[], bool]]) -> dict[str, int]:
    """Each case is right, wrong, or ends in an error, by whose class it is counted."""
    counts: Counter[str] = Counter()
    for case in cases:
        try:
            counts["right" if case() else "wrong"] += 1
        except Exception as error:  # a fault may raise anything: what matters is that nothing was returned
            counts[type(error).__name__] += 1
    return dict(sorted(counts.items()))


def differ(a: Any, b: Any) -> bool:
    """Whether two outputs are other numbers; written here so that no fault can reach it."""
    from torch.utils._pytree import tree_leaves

    xs, ys = tree_leaves(a), tree_leaves(b)
    if len(xs) != len(ys) or any(x.shape != y.shape for x, y in zip(xs, ys, strict=True)):
        return True
    errors = [
        float((x - y).abs().max()) / max(float(x.abs().max()), 1e-30) for x, y in zip(xs, ys, strict=True) if x.numel()
    ]
    return not all(error <= WRONG for error in errors)  # not a number is no agreement


def merged_samples() -> Iterator[Callable[[], bool]]:
    """Samples with half of their channels tied at random, then rewritten, in float64."""
    sys.path.insert(0, str(Path.cwd() / "tests"))  # of the copy
    import torch
    from samples import SAMPLES

    import pdc_fx
    from pdc_fx.passes.check import randomize_statistics
    from pdc_fx.passes.random_plans import random_halves

    def case(sample: Any) -> bool:
        torch.manual_seed(0)
        model = sample.build().double().eval().requires_grad_(False)
        randomize_statistics(model, 0)
        inputs = torch.randn(sample.shape, dtype=torch.float64)
        groups = pdc_fx.analyze(model, inputs)
        if not groups.groups:
            return True
        plan = pdc_fx.tie(model, random_halves(groups, 0), mode="hard").snap()
        compact = pdc_fx.rewrite(model, plan, inputs).eval()
        return not differ(model(inputs), compact(inputs))

    by_name = {sample.name: sample for sample in SAMPLES}
    return (lambda sample=by_name[name]: case(sample) for name in PROBED.split())


def exported_networks() -> Iterator[Callable[[], bool]]:
    """A few networks exported, verified, and compared with ONNX Runtime on inputs of our own."""
    import onnxruntime
    import torch
    from torch import nn

    import pdc_fx

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.conv(self.one(self.conv(x)).relu()))  # type: ignore[no-any-return]

    def plain() -> nn.Module:
        conv, norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        return nn.Sequential(
            conv, norm, nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        )

    def upsampled() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 4, 1))

    def large() -> nn.Module:
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
        nn.init.constant_(network[0].weight, 3000.0)  # type: ignore[arg-type]
        nn.init.constant_(network[2].weight, 1e-4)  # type: ignore[arg-type]
        return network

    def case(build: Callable[[], nn.Module], half: bool) -> bool:
        torch.manual_seed(0)
        model, example = build(), torch.randn(2, 3, 12, 12)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    nn.init.uniform_(tensor.data, 0.5, 1.5)  # type: ignore[union-attr]
        with tempfile.TemporaryDirectory() as folder:
            path = pdc_fx.export_onnx(model, example, Path(folder) / "model.onnx", fp16=half).path
            pdc_fx.verify_onnx(model, path, example).ensure()
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            (found,) = session.run(None, {"input": example.numpy()})
        with torch.no_grad():
            wanted = model.eval()(example)
        error = float((torch.from_numpy(found) - wanted).abs().max() / wanted.abs().max())
        return error <= (0.02 if half else 1e-4)

    builds = [(Twice, False), (plain, False), (upsampled, False), (plain, True), (upsampled, True), (large, True)]
    return (lambda build=build, half=half: case(build, half) for build, half in builds)


PROBES = {"merge": merged_samples, "export": exported_networks}


# ------------------------------------------------------------------------------------------------------------------- all
def require_clean(tree: Path, faults: Sequence[Fault]) -> None:
    """Without a fault all tests have to pass and all networks to be right: else nothing could be concluded.

    Raises:
        TableError: they do not, or another package than that of the copy is imported.
    """

    def work() -> int:
        print(Path(importlib.import_module("pdc_fx.passes.rewrite").__file__ or "").resolve())
        return 0

    _, where = run_in(tree, work)
    if not where.startswith(str(tree.resolve())):
        raise TableError(f"the copy is not what is imported, but {where.strip()[-300:]}")
    tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
    whole = {test for test in tests if "::" not in test}
    result, test = run_tests(tree, [test for test in tests if test in whole or test.partition("::")[0] not in whole])
    if result != "passed":
        raise TableError(f"{test} fails without any fault")
    for probe in {fault.probe for fault in faults if fault.probe}:
        counts = run_probe(tree, probe)
        if set(counts) != {"right"}:
            raise TableError(f"the probe '{probe}' finds {dict(counts)} without any fault")


def read(path: Path) -> dict[str, Row]:
    """Results there are, by name."""
    return {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["faults"]} if path.exists() else {}


def write(path: Path, known: Mapping[str, Row]) -> None:
    """All results, in the order of the table."""
    rows = [known[fault.name] for fault in FAULTS if fault.name in known]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".writing")
    beside.write_text(json.dumps({"planned": len(FAULTS), "faults": rows}, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


_tree: Path  # of this worker


def _take_a_copy(scratch: Path) -> None:
    global _tree
    _tree = copy_of_the_tree(scratch / str(os.getpid()))


def _judge_here(fault: Fault) -> Row:
    return judge(_tree, fault)


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant what is asked for; 1 if a fault survived, 2 if the table is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="names of faults, with * and ?")
    parser.add_argument("--again", action="store_true", help="repeat those that are in the file, too")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time, each in a copy of its own")
    parser.add_argument("--trust", action="store_true", help="do not run tests and probes without a fault first")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if problems := outdated():
        print("\n".join([*problems, "bring benchmarks/mutation_table.py in line with the sources"]), file=sys.stderr)
        return 2
    known = read(options.output)
    chosen = [fault for fault in FAULTS if any(fnmatchcase(fault.name, pattern) for pattern in options.only)]
    settled = {name for name, row in known.items() if row["result"] == "caught"} if not options.again else set()
    pending = [f for f in chosen if f.name not in settled or known[f.name]["digest"] != digest(f)]
    with tempfile.TemporaryDirectory(prefix="mutations-") as scratch:
        if pending:
            load_what_is_heavy()
        if pending and not options.trust:
            try:
                require_clean(copy_of_the_tree(Path(scratch) / "clean"), pending)
            except TableError as error:
                print(error, file=sys.stderr)
                return 2
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(options.jobs, context, _take_a_copy, (Path(scratch),)) as pool:
            for row in (done.result() for done in as_completed([pool.submit(_judge_here, f) for f in pending])):
                known[row["name"]] = row
                write(options.output, known)
                print(
                    f"{row['result']:9}{row['name']:38}{in_words(row) if 'test' in row else row['reason'].splitlines()[-1]}",
                    flush=True,
                )
    write(options.output, known)  # without those that are no longer in the table
    bad = [f.name for f in chosen if known[f.name]["result"] != "caught" or known[f.name]["probe"].get("wrong")]
    print(f"{len(chosen)} faults, {len(chosen) - len(bad)} caught" + (f"; not: {', '.join(bad)}" if bad else ""))
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main())
