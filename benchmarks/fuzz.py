"""Random networks at scale: does any of them come out of the merge, of a save and load, or of ONNX as another function?

    python benchmarks/fuzz.py --networks 5000             into benchmarks/results/fuzz.json; goes on where it was interrupted
    python benchmarks/fuzz.py --only 1234                 one network, with its program and what became of it

The network of a seed is a random program of the generator in ``tests/random_programs.py``: convolutions of every kind, norms, products,
attention, gates, shared layers, concats, splits, shuffles, indexing, and heads. Each is analysed, a random plan is drawn (any partition,
or half of the channels), the network is tied by projection, every intermediate value inside a cluster is compared, the network is merged
and compared in float64. Every ``--deliver-every``-th is also saved, which exports it to ONNX and verifies that, and loaded again.

A failure is a disagreement, or any exception that is no ``PdcError``; a network that is refused with a reason is none. Failures are made
smaller and added to ``tests/random_programs.json``, which ``tests/test_random_networks.py`` replays. Exit code 1 if there were any.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
FOLDER = re.compile(r"(?<= )/\S*/(?=\w+\.py:)")  # what a source line stands in is another folder on every machine
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def attempt(program: Any, seed: int, delivered: bool) -> tuple[str, str]:
    """``(result, words)``: ``merged``, ``nothing``, ``refused`` with the reason, or ``failed`` with what was seen."""
    from random_programs import deliver_and_load, examine

    from pdc_fx.errors import PdcError

    try:
        if not delivered:
            found = examine(program, seed)
        else:
            with tempfile.TemporaryDirectory() as folder:
                found = deliver_and_load(program, seed, Path(folder))
    except PdcError as error:
        if error.exit_code != 1:
            return "refused", f"{type(error).__name__}: {FOLDER.sub('', error.what)}"
        return "failed", f"{type(error).__name__}: {error}"
    except Exception as error:  # what this script looks for
        return "failed", f"{type(error).__name__}: {error}"
    return ("nothing", found) if found == "nothing to merge" else ("merged", found)


def reduced(program: Any, seed: int, delivered: bool, words: str) -> Any:
    """The smallest program found that fails with the same kind of error."""
    from random_programs import shrink

    kind = words.partition(":")[0]

    def fails(candidate: Any) -> bool:
        result, said = attempt(candidate, seed, delivered)
        return result == "failed" and said.partition(":")[0] == kind

    return shrink(program, fails, 60 if delivered else 400)


def keep(program: Any, seed: int, delivered: bool, words: str) -> None:
    """Add a failure to the programs that the tests replay."""
    from random_programs import SAVED, saved, to_row

    row = to_row(program, seed, FOLDER.sub("", words.splitlines()[0][:200]), delivered)
    rows = [*saved(), row]
    SAVED.write_text("[\n" + ",\n".join(f" {json.dumps(row)}" for row in rows) + "\n]\n", encoding="utf-8")


def fresh(args: argparse.Namespace) -> dict[str, Any]:
    """Nothing done yet."""
    return {
        "deliver_every": args.deliver_every,
        "networks": 0,
        "results": {},
        "refusals": {},
        "operations": {},
        "rules": [],
        "delivered": {},
        "failures": [],
        "slowest": {"seed": None, "seconds": 0.0},
        "seconds": 0.0,
    }


def one(seed: int, data: dict[str, Any]) -> None:
    """Examine the network of a seed and count what came out."""
    from random_programs import draw, made, rules_of

    program, began = draw(seed), time.perf_counter()
    deliver = data["deliver_every"] and seed % data["deliver_every"] == 0
    for delivered in (False, True)[: 2 if deliver else 1]:
        result, words = attempt(program, seed, delivered)
        counts = data["delivered"] if delivered else data["results"]
        counts[result] = counts.get(result, 0) + 1
        if result == "refused":
            data["refusals"][words] = data["refusals"].get(words, 0) + 1
        if result == "failed":
            print(f"seed {seed} FAILED{' when delivered' if delivered else ''}: {words}\n{program}", flush=True)
            small = reduced(program, seed, delivered, words)
            print(f"smaller: {small}\n{small.source()}", flush=True)
            keep(small, seed, delivered, words)
            data["failures"].append(
                {"seed": seed, "delivered": delivered, "words": FOLDER.sub("", words[:300]), "program": repr(small)}
            )
    data["operations"] = dict(
        sorted((Counter(data["operations"]) + Counter(step.op for step in (*program.steps, *program.heads))).items())
    )
    data["rules"] = sorted({*data["rules"], *rules_of(*made(program, seed))})
    seconds = time.perf_counter() - began
    if seconds > data["slowest"]["seconds"] and not deliver:
        data["slowest"] = {"seed": seed, "seconds": round(seconds, 2)}
    data["networks"] += 1
    data["seconds"] = round(data["seconds"] + seconds, 2)


def recheck(data: dict[str, Any]) -> None:
    """Examine again what failed in an earlier call, and note what has been mended since."""
    from random_programs import draw

    for failure in data["failures"]:
        if failure.get("mended"):
            continue
        result, _ = attempt(draw(failure["seed"]), failure["seed"], failure["delivered"])
        if result != "failed":
            failure["mended"] = True
            counts = data["delivered"] if failure["delivered"] else data["results"]
            counts["failed"] -= 1
            counts[result] = counts.get(result, 0) + 1
            print(f"seed {failure['seed']} failed before and is {result} now", flush=True)


def write(data: dict[str, Any], path: Path) -> None:
    """The state of the run, complete at any time."""
    from random_programs import rules_in_all

    from pdc_fx.files import replace_file

    data = {**data, "rules_in_all": rules_in_all(), "versions": {"torch": version("torch")}}
    replace_file(path, (json.dumps(data, indent=1) + "\n").encode())


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=5000, help="seeds 0, 1, 2, ... up to this many")
    parser.add_argument("--seconds", type=float, default=1800.0, help="stop after so long; another call goes on")
    parser.add_argument(
        "--deliver-every", type=int, default=50, help="save, export, verify and load every n-th; 0 for none"
    )
    parser.add_argument("--fresh", action="store_true", help="begin at seed 0, whatever was done before")
    parser.add_argument("--only", type=int, metavar="SEED", help="one network; nothing is written")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine the networks; 1 if one failed."""
    args = parse_args(arguments)
    warnings.simplefilter("error")  # as in the tests
    from random_programs import draw

    if args.only is not None:
        program = draw(args.only)
        print(f"{program}\n{program.source()}")
        results = [attempt(program, args.only, delivered) for delivered in (False, True)]
        print("\n".join(": ".join(result) for result in results))
        return int(any(result == "failed" for result, _ in results))
    data = fresh(args)
    if args.output.exists() and not args.fresh:
        data = {**data, **json.loads(args.output.read_text(encoding="utf-8")), "deliver_every": args.deliver_every}
    recheck(data)
    until = time.monotonic() + args.seconds
    print(f"seeds {data['networks']} to {args.networks - 1}", flush=True)
    try:
        while data["networks"] < args.networks and time.monotonic() < until:
            one(data["networks"], data)
            if data["networks"] % 100 == 0:
                print(f"{data['networks']} networks, {data['seconds']:.0f} s, {data['results']}", flush=True)
                write(data, args.output)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    write(data, args.output)
    print(json.dumps({key: data[key] for key in ("networks", "results", "delivered", "refusals")}, indent=1))
    return int(any(not failure.get("mended") for failure in data["failures"]))


if __name__ == "__main__":
    sys.exit(main())
