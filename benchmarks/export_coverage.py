"""Does the compact form of every model that `pdc-fx check` passes export to ONNX, and does the file compute the same?

    python benchmarks/export_coverage.py                      all of torchvision, into benchmarks/results/export-coverage.json
    python benchmarks/export_coverage.py --only 'resnet*'     some of it; results of other models stay in the file
    python benchmarks/export_coverage.py --table              only write the table again, into docs/coverage.md

Every model has a process of its own with a time limit, one thread, and random weights: half of its channels are merged at random in
float64, as `check` does it, then the compact form is exported in float32 and compared with ONNX Runtime on random inputs at two batch
sizes. A run that was interrupted goes on with the models that are not in the file; `--again` repeats those that did not pass.

Images are 64 pixels high and wide where a model takes any size, to save time; detection models resize what they get.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pdc_fx.children import child_environment

ROOT = Path(__file__).resolve().parent.parent
CHECKED = ROOT / "docs" / "coverage.json"
RESULTS = ROOT / "benchmarks" / "results" / "export-coverage.json"
PAGE = ROOT / "docs" / "coverage.md"
LARGE = 100_000_000
"""Parameters above which a model is left out, and named, unless ``--large`` asks for it."""

OTHERS = r"vit_.*|swin.*|mvit_.*|raft_.*|maskrcnn_.*|keypointrcnn_.*|fasterrcnn_mobilenet.*|.*_fpn_v2|ssdlite.*"
"""Left out: transformers, optical flow, masks and keypoints, and further versions of detection models that are in the table."""

SIZES = (
    (r"fasterrcnn_.*", (1, 3, 24, 24)),  # see GAINS
    (r"maxvit_t|s3d|ssd.*|.*rcnn_.*|retinanet_.*|fcos_.*", None),  # of one size, or resized to one, which pdc-fx knows
    (r"inception_v3|alexnet", (1, 3, 96, 96)),
    (r"(mc3|r3d|r2plus1d)_18", (1, 3, 8, 64, 64)),
    (r".*", (1, 3, 64, 64)),
)
"""Pattern of a name -> shape of the input, or None for the model's own. The first match counts."""

GAINS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""How much the last layers of an untrained detector are amplified, until it finds something.

What is amplified more than needed, or from maps that hardly vary, tests the rounding of float32 and not the exporter: with a gain of
100 on noise of 64 x 640 pixels, the scores of Faster R-CNN in PyTorch's own float32 are 5e-4 from those in float64. With a gain of 30
on 24 x 24 pixels, which it enlarges to smooth images, they are 7e-6 from them.
"""


# -------------------------------------------------------------------------------------------------------------- one model
def compact_form(name: str, seed: int = 0) -> tuple[Any, Any]:
    """A torchvision model with half of its channels merged at random, in float32, and its example inputs.

    An untrained detector finds nothing; as in ``check``, its last layers are amplified until it does.
    """
    import torch

    from pdc_fx.models import build_model, example_inputs
    from pdc_fx.passes.check import merged_halves
    from pdc_fx.passes.compare import random_inputs, run, varies

    torch.manual_seed(seed)
    size = next(size for pattern, size in SIZES if re.fullmatch(pattern, name))
    loaded = build_model(f"torchvision:{name}")
    example = example_inputs(loaded, [size] if size else ())
    for made in merged_halves(loaded.model, example, seed, gains=GAINS):
        compact = made.compact.float().eval()
        if varies(run(compact, random_inputs(example, seed))):
            return compact, example
    raise SystemExit("the outputs are empty or constant")


def measure(name: str) -> dict[str, Any]:
    """Export and verify the compact form of one model."""
    from pdc_fx.export.onnx import export_onnx
    from pdc_fx.export.verify import verify_onnx

    clock = time.perf_counter
    start = clock()
    model, example = compact_form(name)
    built = clock()
    listed = isinstance(example[0], list)  # images of their own: there is no batch to vary
    with tempfile.TemporaryDirectory() as directory:
        info = export_onnx(model, example, Path(directory) / "model.onnx", dynamic_batch=not listed)
        exported = clock()
        found = verify_onnx(model, info.path, example, batch_sizes=(1,) if listed else (1, 3))
    return {
        "result": "passed" if found.passed else "failed",
        "reason": found.first_difference or "",
        "exporter": info.exporter,
        "notes": [*info.notes, *found.notes],
        "nodes": sum(info.nodes.values()),
        "bytes": info.bytes,
        "input": [list(spec.shape) for spec in info.inputs],
        "batches": list(found.batches),
        "max_rel_error": found.to_json()["max_rel_error"],
        "tolerance": found.tolerance,
        "seconds": {
            "merge": round(built - start, 2),
            "export": round(exported - built, 2),
            "verify": round(clock() - exported, 2),
        },
    }


def run_one(name: str, timeout: float) -> dict[str, Any]:
    """``measure`` in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", name]
    try:
        done = subprocess.run(
            command,
            env=child_environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"model": name, "result": "timeout", "reason": f"took longer than {timeout:g} s"}
    if done.returncode == 0:
        return {"model": name, **json.loads(done.stdout)}
    last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "")
    return {"model": name, "result": "failed", "reason": (last or f"exit code {done.returncode}")[-500:]}


# ------------------------------------------------------------------------------------------------------------------- all
def candidates() -> tuple[list[str], dict[str, int]]:
    """The models that ``check`` passed, and those left out for their size with their parameters."""
    models = json.loads(CHECKED.read_text(encoding="utf-8"))["models"]
    passed = {
        entry["model"].partition(":")[2]: entry["certificate"]["params_before"]
        for entry in models
        if entry["result"] == "passed" and not re.fullmatch(OTHERS, entry["model"].partition(":")[2])
    }
    large = {name: params for name, params in passed.items() if params > LARGE}
    return [name for name in passed if name not in large], large


def read(path: Path) -> dict[str, Any]:
    """Results there are, by name."""
    if not path.exists():
        return {}
    return {entry["model"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))["models"]}


def write(path: Path, known: dict[str, Any]) -> None:
    """All results, in the order of the collection."""
    from pdc_fx.files import replace_file

    names, large = candidates()
    versions = {package: version(package) for package in ("torch", "torchvision", "onnx", "onnxscript")}
    everything = sorted({*names, *large})
    left_out = {name: params for name, params in large.items() if name not in known}
    data = {"versions": versions, "left_out": left_out, "models": [known[name] for name in everything if name in known]}
    replace_file(path, (json.dumps(data, indent=1) + "\n").encode())


# ----------------------------------------------------------------------------------------------------------------- table
def table(data: dict[str, Any]) -> Iterator[str]:
    """The results as lines of Markdown."""
    models = data["models"]
    passed = sum(entry["result"] == "passed" for entry in models)
    versions = ", ".join(f"{package} {number}" for package, number in data["versions"].items())
    yield "## Compact forms as ONNX files"
    yield ""
    yield f"Written by `python benchmarks/export_coverage.py`; its results are in benchmarks/results/{RESULTS.name}. {versions}."
    yield ""
    yield f"{len(models)} models: {passed} exported and verified, {len(models) - passed} not."
    yield ""
    yield "Half of the channels merged at random, then exported, then run by ONNX Runtime on a CPU in float32 beside PyTorch on random"
    yield "inputs. *Exporter*: `torch.export`, or `torchscript`, the older one. *Relative error*: the largest of all outputs, 1e-4 is"
    yield "allowed. *Seconds*: of export and verification, one thread, on a machine that had other things to do."
    yield "Transformers, optical flow, masks, keypoints and further versions of the detection models were not run."
    if data["left_out"]:
        sizes = ", ".join(f"`{name}` ({params / 1e6:.0f} M)" for name, params in data["left_out"].items())
        yield f"Left out, since they have more than {LARGE / 1e6:.0f} M parameters: {sizes}."
    yield ""
    yield "| model | result | input | exporter | nodes | MB | relative error | export s | verify s |"
    yield "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for entry in models:
        yield "| " + " | ".join(cells(entry)) + " |"
    noted = [entry for entry in models if entry.get("notes")]
    if noted:
        yield ""
        yield from (f"- `{entry['model']}`: {escaped('; '.join(entry['notes']))}" for entry in noted)
    others = [entry for entry in models if entry["result"] != "passed"]
    if others:
        yield ""
        yield from (f"- `{entry['model']}` {entry['result']}: {escaped(entry['reason'])}" for entry in others)


def cells(entry: dict[str, Any]) -> list[str]:
    """One row of the table."""
    if "exporter" not in entry:
        return [f"`{entry['model']}`", entry["result"], *[""] * 7]
    error = entry["max_rel_error"]
    return [
        f"`{entry['model']}`",
        entry["result"],
        ", ".join("x".join(map(str, shape)) for shape in entry["input"]),
        f"`{entry['exporter']}`",
        f"{entry['nodes']:,}",
        f"{entry['bytes'] / 1e6:.1f}",
        "not finite" if error is None else f"{error:.1e}",
        f"{entry['seconds']['export']:.1f}",
        f"{entry['seconds']['verify']:.1f}",
    ]


def escaped(text: str) -> str:
    """Without what Markdown would take for markup."""
    return re.sub(r"([|*_<>`\[\]])", r"\\\1", text)


def write_table(results: Path, page: Path) -> None:
    """Put the table into ``page``, in the place of the one that is there."""
    from pdc_fx.coverage import KEPT
    from pdc_fx.files import replace_file

    above = page.read_text(encoding="utf-8").partition(KEPT)[0]
    lines = "\n".join(table(json.loads(results.read_text(encoding="utf-8"))))
    replace_file(page, f"{above.rstrip()}\n\n{KEPT}\n\n{lines}\n".encode())


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="pattern of names")
    parser.add_argument("--large", action="store_true", help="those too that are left out for their size")
    parser.add_argument("--timeout", type=float, default=600, help="seconds per model")
    parser.add_argument("--again", action="store_true", help="repeat what did not pass")
    parser.add_argument("--fresh", action="store_true", help="repeat everything that --only names")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument("--table", action="store_true", help="write docs/coverage.md from the results there are")
    parser.add_argument("--one", metavar="NAME", help="measure one model here and print it")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not in the file yet; 1 if anything that was asked for did not pass."""
    args = parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    if args.one:
        json.dump(measure(args.one), sys.stdout)
        return 0
    if args.table:
        write_table(args.output, PAGE)
        return 0
    names, large = candidates()
    names = [name for name in (*names, *(large if args.large else ())) if fnmatchcase(name, args.only)]
    known = read(args.output)
    done = {name for name in names if name in known and not args.fresh}
    done -= {name for name in done if args.again and known[name]["result"] != "passed"}
    for name in names:
        if name not in done:
            start = time.perf_counter()
            known[name] = run_one(name, args.timeout)
            write(args.output, known)
            taken = time.perf_counter() - start
            print(name, known[name]["result"], f"{taken:.1f} s", known[name]["reason"], file=sys.stderr, flush=True)
    if args.output == RESULTS:
        write_table(args.output, PAGE)
    return int(any(known[name]["result"] != "passed" for name in names))


if __name__ == "__main__":
    sys.exit(main())
