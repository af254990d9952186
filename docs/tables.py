"""The tables of the documentation, as Markdown, from the files that the benchmarks and ``pdc-fx`` left.

Each function takes what is in its file and returns Markdown. Where a file is not there, or holds nothing, the table says that it was
not measured: a figure is never typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from pdc_fx.options import MIXED_FROM
from pdc_fx.words import quantity

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ARTIFACTS = ROOT / "benchmarks" / "artifacts"
NAMES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56", "resnet50": "ResNet-50", "mobilenet_v2": "MobileNet-v2"}
ARMS = {
    "calibrate": "`calibrate`",
    "fold": "`fold`, no data at all",
    "fold, batch norm re-estimated": "`fold`, batch norms estimated from the images",
}
PEER = "Torch-Pruning, its best arm"
Data = dict[str, Any]


def read(path: Path) -> Data | None:
    """What a file of results holds, or None where it is not there; of a folder of artifacts, their certificates and configurations."""
    if path.is_dir():
        return {
            artifact.name: read(artifact / "certificate.json")
            | yaml.safe_load((artifact / "config.yaml").read_text(encoding="utf-8"))
            for artifact in sorted(path.iterdir())
        }
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def name_of(model: str) -> str:
    """How a model is called in print."""
    short = model.rpartition(":")[2]
    return NAMES.get(short, f"`{short}`")


def percent(share: float, digits: int = 2) -> str:
    """A share in percent."""
    return f"{100 * share:.{digits}f}%"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """A Markdown table; all but the first ``left`` columns are set to the right."""
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def source(file: str, command: str) -> str:
    """Where the figures come from."""
    return f"Source: `{file}`, written by `{command}`."


def arms_in_words(data: Data) -> str:
    """What the arms of a benchmark are."""
    return "; ".join(f"`{arm}`: {words}" for arm, words in data["arms"].items())


# -------------------------------------------------------------------------------------------------------------- accuracy
def certificates(data: Data) -> str:
    """Teacher, tied, compact and ONNX of the committed artifacts."""
    head = ("CIFAR-10, all 10,000 test images", "MACs", "original", "epochs", "tied", "compact", "ONNX Runtime")
    rows = [
        (
            name_of(found["model"]),
            f"{quantity(found['macs_before'])} to {quantity(found['macs_after'])} "
            f"(-{percent(1 - found['macs_after'] / found['macs_before'], 1)})",
            percent(found["accuracy"]["teacher"]),
            found["epochs"],
            *(percent(found["accuracy"][form]) for form in ("tied", "compact", "onnx")),
        )
        for found in data.values()
    ]
    tied, onnx = (
        max(c[pair]["max_rel_error"] for c in data.values()) for pair in ("tied_vs_compact", "compact_vs_onnx")
    )
    lost = " and ".join(f"{100 * (c['accuracy']['teacher'] - c['accuracy']['tied']):.2f}" for c in data.values())
    return (
        f"{table(head, rows)}\n\nTied and compact networks differ by {tied:.1e} at most (relative, float64), compact networks and ONNX "
        f"Runtime by {onnx:.1e} (float32): the merge costs nothing. What comes before it cost {lost} points. One run each; networks, "
        "configurations and certificates lie in `benchmarks/artifacts/`, and `python benchmarks/evaluate.py "
        "benchmarks/artifacts/resnet20-cifar10 --data DIR` measures one again, without pdc-fx. The originals are those of "
        "[pytorch_resnet_cifar10](https://github.com/akamaster/pytorch_resnet_cifar10)."
    )


def scores(rows: list[Data]) -> str:
    """The mean over seeds, and the spread where there are several."""
    values = [100 * row["test"] for row in rows]
    return f"{mean(values):.2f}%" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def accuracy_in_short(data: Data) -> str:
    """What is the default at each budget, beside the best that pruning reached; a table for each model."""
    runs: dict[str, dict[int, dict[str, list[Data]]]] = {}
    for row in data["rows"]:
        runs.setdefault(row["model"], {}).setdefault(row["epochs"], {}).setdefault(row["arm"], []).append(row)

    def best(arms: dict[str, list[Data]], optimizer: str) -> str | None:
        pruned = [n for n, rows in arms.items() if n.startswith("tp-") and rows[0]["options"]["opt"] == optimizer]
        return max(pruned, key=lambda n: mean(row["test"] for row in arms[n]), default=None)

    def default(epochs: int) -> str:
        return "calibrate+muon" if epochs < MIXED_FROM else "calibrate+muon+mixed"

    parts = []
    for model, budgets in runs.items():
        kinds = {
            "pdc-fx": {epochs: default(epochs) for epochs in budgets},
            "Torch-Pruning with SGD, its best arm": {e: best(arms, "sgd") for e, arms in budgets.items()},
            "the same with our optimizer": {e: best(arms, "muon") for e, arms in budgets.items()},
        }
        cells = {
            (kind, epochs): f"{scores(rows)}, {len(rows)} seed{'s' * (len(rows) > 1)}"
            for kind, names in kinds.items()
            for epochs, name in names.items()
            if (rows := budgets[epochs].get(str(name)))
        }
        teacher = percent(next(row["teacher_test"] for row in data["rows"] if row["model"] == model))
        head = (f"{name_of(model)}, half of the MACs, from {teacher}", *(f"{epochs} epochs" for epochs in budgets))
        body = [(kind, *(cells.get((kind, epochs), "not measured") for epochs in budgets)) for kind in kinds]
        told = "; ".join(
            f"{epochs} epochs: {', '.join(f'`{names[epochs]}`' for k, names in kinds.items() if (k, epochs) in cells)}"
            for epochs in budgets
        )
        parts.append(f"{table(head, body)}\n\n{told}.")
    return "\n\n".join(parts) + " " + source("benchmarks/results/accuracy.json", "python benchmarks/accuracy.py")


def accuracy(data: Data) -> str:
    """Trained networks at one budget, every arm."""
    runs: dict[tuple[str, str, int], list[Data]] = {}
    for row in data["rows"]:
        runs.setdefault((row["model"], row["arm"], row["epochs"]), []).append(row)

    body = [
        (
            name_of(model),
            f"`{arm}`",
            epochs,
            percent(rows[0]["teacher_test"]),
            quantity(rows[0]["macs_after"]),
            scores(rows),
            len(rows),
        )
        for (model, arm, epochs), rows in runs.items()
    ]
    rates = " or ".join(sorted({str(row["options"]["lr"]) for row in data["rows"]}))
    arms = (
        f"{arms_in_words(data)}. With SGD, and a teacher that sees what the student sees, where nothing else is said. "
        f"Distillation of the logits, images and schedule are the same, with a peak rate of {rates}, "
        f"{'in bfloat16' if data['rows'][0]['options']['amp'] == 'bf16' else 'in float32'}."
    )
    head = ("model", "arm", "epochs", "teacher", "MACs", "test top-1", "seeds")
    return f"{table(head, body, 2)}\n\n{arms} {source('benchmarks/results/accuracy.json', 'python benchmarks/accuracy.py')}"


def unseen(data: Data) -> str:
    """A teacher and its students on images that none of them has seen."""
    return _on_unseen(data, source("benchmarks/results/unseen.json", "python benchmarks/unseen.py"))


def unseen_by_heart(data: Data) -> str:
    """The same where the teacher knows its own images by heart."""
    file = "benchmarks/results/unseen-by-heart.json"
    trainings = " ".join(map(str, data["teacher"]["epochs"]))
    return _on_unseen(data, source(file, f"python benchmarks/unseen.py --teacher-epochs {trainings} -o {file}"))


def _on_unseen(data: Data, where: str) -> str:
    known = percent(data["teacher"]["train_accuracy"], 1)

    def cells(row: Data) -> tuple[str, ...]:
        return percent(row["accuracy"]), f"{row['cross_entropy']:.3f}", percent(row["agreement"], 1)

    head = ("25,000 images of CIFAR-10", "rate", "seeds", "top-1", "cross entropy", "teacher's class")
    body: list[tuple[object, ...]] = [
        (f"ResNet-20, the teacher: knows {known} of its own images", "", "", *cells(data["teacher"])),
        ("its mean answer to image and mirror image", "", "", *cells(data["mirrored"])),
    ]
    runs: dict[tuple[str, int, float], list[Data]] = {}
    for row in data["rows"]:
        runs.setdefault((row["arm"], row["epochs"], row["lr"]), []).append(row)
    for (arm, epochs, rate), rows in runs.items():
        means = {name: mean(row[name] for row in rows) for name in ("accuracy", "cross_entropy", "agreement")}
        body.append((f"`{arm}`, {epochs} epochs", rate, len(rows), *cells(means)))
    return f"{table(head, body)}\n\n{arms_in_words(data)}. {where}"


def one_shot_rows(data: Data) -> list[tuple[str, dict[tuple[str, float], float]]]:
    """Accuracy by (model, share removed): our three arms, then the best of the peer's, with and without data."""
    rows = [row for row in data["rows"] if row["arm"] != "dense"]
    found = [
        (words, {(row["model"], row["target"]): row["accuracy"] for row in rows if row["arm"] == arm})
        for arm, words in ARMS.items()
    ]
    for words, estimated in ((PEER, True), (f"{PEER} without data", False)):
        best: dict[tuple[str, float], float] = {}
        for row in rows:
            if row["arm"].startswith("Torch-Pruning") and (estimated or "re-estimated" not in row["arm"]):
                key = row["model"], row["target"]
                best[key] = max(best.get(key, 0.0), row["accuracy"])
        found.append((words, best))
    return found


def one_shot(data: Data) -> str:
    """Without training, one column for each network and share of the MACs removed."""
    dense = {row["model"]: row["accuracy"] for row in data["rows"] if row["arm"] == "dense"}
    keys = [(model, share) for model in data["options"]["models"] for share in data["options"]["reductions"]]
    head = [f"{name_of(model)} ({percent(dense[model])}), {share:.0%}" for model, share in keys]
    body = [(words, *(percent(cells[key]) for key in keys)) for words, cells in one_shot_rows(data)]
    where = source("benchmarks/results/one-shot.json", "python benchmarks/one_shot.py --weights DIR --data DIR")
    return f"{table(('MACs removed', *head), body)}\n\n{where}"


# --------------------------------------------------------------------------------------------------------------- coverage
def coverage(data: Data) -> str:
    """How many models of a family passed, and the worst error."""
    counts, models = data["counts"], data["models"]
    certificates = [row["certificate"] for row in models if row.get("certificate")]
    worst = {
        kind: max((c["max_rel_error"] for c in certificates if c["dtype"] == kind), default=0.0)
        for kind in ("float64", "float32")
    }
    whole = sum(c["result_type"] != "GraphModule" for c in certificates)
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    return (
        f"{len(models)} models of {data['family']} {data['versions'][data['family']]}: {said}. The largest relative error is "
        f"{worst['float64']:.1e} in float64 and {worst['float32']:.1e} for the models that ran in float32. {whole} keep their class; the "
        "others become a `GraphModule`, since a size in their forward pass had to be edited."
    )


def families(data: Data) -> str:
    """How many models of timm passed, of which each stands for a family."""
    counts, certificates = data["counts"], [row["certificate"] for row in data["models"] if row.get("certificate")]
    worst = max(c["max_rel_error"] for c in certificates)
    others = [row["model"].partition(":")[2] for row in data["models"] if row["result"] != "passed"]
    graphs = sum(c["result_type"] == "GraphModule" for c in certificates)
    return (
        f"{len(data['models'])} models of timm {data['versions']['timm']}, each of another family and of up to 60 million parameters: "
        f"{counts['passed']} passed, with a largest relative error of {worst:.1e} in float64; not: {', '.join(others)}. "
        f"{graphs} become a `GraphModule`."
    )


def export_coverage(data: Data) -> str:
    """How many compact models went through ONNX."""
    by_result: dict[str, list[str]] = {}
    for row in data["models"]:
        by_result.setdefault(row["result"], []).append(f"`{row['model']}`")
    said = ", ".join(
        f"{len(names)} {word}" + ("" if word == "passed" else f" ({', '.join(names)})")
        for word, names in by_result.items()
    )
    errors = [row["max_rel_error"] for row in data["models"] if row["result"] == "passed"]
    return (
        f"{len(data['models'])} compact forms exported and compared with ONNX Runtime at two batch sizes: {said}; largest relative error "
        f"{max(errors):.1e}. {len(data.get('left_out', ()))} more were left out for their size. "
        + source("benchmarks/results/export-coverage.json", "python benchmarks/export_coverage.py")
    )


# ------------------------------------------------------------------------------------------------------------------ speed
def compile_time(data: Data) -> str:
    """Seconds to trace, analyse and rewrite, beside the peer."""
    models = data["models"]
    rows = [
        (f"`{row['model']}`", f"{row['ours']['total']:.2f}", f"{row['peer']['total']:.2f}", f"{row['ratio']:.2f}")
        for row in models["rows"]
        if row.get("ratio") is not None
    ]
    versions = data["machine"]["versions"]
    peer = f"Torch-Pruning {versions['torch-pruning']}"
    return (
        f"{table(('model', 'pdc-fx, s', f'{peer}, s', 'ratio'), rows)}\n\n"
        f"Geometric mean of the ratios over {models['compared']} models: {models['geometric_mean_ratio']:.2f}. pdc-fx traces, analyses and "
        f"rewrites, its verification switched off; the peer builds its graph and prunes. {data['machine']['threads']} thread, "
        f"{data['machine']['cpu']}. "
        + source("benchmarks/results/compile-time.json", "python benchmarks/compile_time.py")
    )


def tying(data: Data) -> str:
    """What tying adds to a step of training."""
    rows = []
    for row in data["rows"]:
        for threads, time in row["time"].items():
            low, high = (f"{100 * (q - 1):+.1f}" for q in time["quartiles"])
            rows.append(
                (
                    name_of(row["model"]),
                    row["batch"],
                    threads,
                    f"{time['tied']:.3f}",
                    f"{100 * (time['ratio'] - 1):+.1f}%",
                    f"{low} to {high}",
                )
            )
    head = ("model", "batch", "threads", "s per step", "added, median", "quartiles, %")
    return f"{table(head, rows)}\n\n" + source(
        "benchmarks/results/tying-overhead.json", "python benchmarks/tying_overhead.py"
    )


def tying_in_words(data: Data) -> str:
    """The medians alone, as a sentence."""

    def added(row: Data, threads: str) -> str:
        return f"{100 * (row['time'][threads]['ratio'] - 1):.1f}%"

    rows = data["rows"]
    counts = dict.fromkeys(threads for row in rows for threads in row["time"])
    parts = [
        f"on {threads} thread{'s' if threads != '1' else ''} "
        + ", ".join(
            f"{added(row, threads)} ({name_of(row['model'])}, batch {row['batch']})"
            for row in rows
            if threads in row["time"]
        )
        for threads in counts
    ]
    furthest = max(
        abs(quartile - time["ratio"]) for row in rows for time in row["time"].values() for quartile in time["quartiles"]
    )
    return (
        f"What tying adds to a step of plain distillation, in the median: {'; '.join(parts)}. Quartiles are up to "
        f"{100 * furthest:.0f} points away. "
        + source("benchmarks/results/tying-overhead.json", "python benchmarks/tying_overhead.py")
    )


def latency(data: Data) -> str:
    """Times in ONNX Runtime by rounding, and plans by a budget of time."""
    parts = [f"{data['device']}, {data['threads']} threads, {data['runtime']}; random weights."]
    if data["rounding"]:
        rows = [
            (
                name_of(row["model"]),
                row["round_to"],
                row["batch"],
                f"{row['dense_ms']:.1f}",
                f"{row['compact_ms']:.1f}",
                f"{row['speedup']:.2f}",
                f"{row['efficiency']:.2f}",
            )
            for row in data["rounding"]
        ]
        head = (
            "half of the MACs removed",
            "widths rounded to",
            "batch",
            "dense, ms",
            "compact, ms",
            "speed-up",
            "efficiency",
        )
        parts += [table(head, rows, 2), *(f"- {note}" for note in data.get("notes", ()))]
    if data["latency"]:
        rows = [
            (
                name_of(row["model"]),
                row["batch"],
                percent(row["latency_reduction"], 0) if "error" not in row else "",
                percent(row["foretold"], 1) if "error" not in row else "refused",
                percent(row["measured"], 1) if "error" not in row else row["error"],
            )
            for row in data["latency"]
        ]
        parts.append(table(("model", "batch", "time to remove", "foretold", "measured"), rows))
    if not data.get("complete", True):
        parts.append("The run was not finished.")
    parts.append(source("benchmarks/results/latency.json", "python benchmarks/latency.py"))
    return "\n\n".join(parts)


def gpu(data: Data) -> str:
    """Times on a GPU, one row for each engine and batch."""
    rows = [
        (
            name_of(row["model"]),
            row["engine"],
            t["batch"],
            f"{t['dense']['median_ms']:.2f}",
            f"{t['compact']['median_ms']:.2f}",
            f"{t['speedup']:.2f}",
        )
        for row in data["rows"]
        for t in row["timings"]
    ]
    if not rows:
        reasons = "; ".join(dict.fromkeys(row["problem"] for row in data["rows"] if row.get("problem")))
        return f"Not measured: {reasons}. `python benchmarks/gpu.py` measures it where there is one."
    head = ("model", "engine", "batch", "dense, ms", "compact, ms", "speed-up")
    return f"{data['gpu']}.\n\n{table(head, rows, 2)}\n\n" + source(
        "benchmarks/results/gpu.json", "python benchmarks/gpu.py"
    )


def report_page(data: Data) -> str:
    """Size and time of the report's pages; the clock is left out where other work wanted the processors, too."""
    load, cores, chromium = (data["environment"][key] for key in ("load", "cores", "chromium"))
    busy = load > cores
    head = ["model", "operators", "groups", "MB", "to open, s", "a step of zooming, ms"]
    rows = [
        (
            f"`{row['model']}`",
            f"{row['operators']:,}",
            row["groups"],
            f"{row['bytes'] / 1e6:.1f}",
            *(
                [f"{row['open_cpu_s']:.1f}", f"{row['zoom_cpu_ms']:.0f}"]
                if busy
                else [f"{row['open_s']:.1f}", f"{row['zoom_ms']['median']:.0f}"]
            ),
        )
        for row in data["pages"]
    ]
    clock = (
        f"Processor time of all of Chromium's processes, since {load:.0f} programs shared the {cores} cores"
        if busy
        else "By the clock"
    )
    return (
        f"{table(head, rows)}\n\n{clock}; Chromium {chromium.split('.')[0]}, 1280 × 900, without a GPU and without a network. "
        + source("benchmarks/results/report-page.json", "python benchmarks/report_page.py")
    )


# ------------------------------------------------------------------------------------------------------------- robustness
def mutations(data: Data) -> str:
    """One row for each planted fault: what, where, the test that noticed it, and what became of networks at run time."""
    faults = data["faults"]
    rows = [(row["what"], f"`{row['file']}`", *noticed(row)) for row in faults]
    caught = [row for row in faults if row["result"] == "caught"]
    certified = [row for row in caught if any(name in CERTIFICATES for name in row.get("probe", {}))]
    silent = sum(row.get("probe", {}).get("wrong", 0) > 0 for row in faults)
    head = ("fault", "where", "test that fails", "networks at run time")
    return (
        f"{len(faults)} of {data['planned']} faults planted, one at a time: {len(caught)} make a test fail. With {len(certified)} of "
        f"them the certificate refuses networks at run time as well; with {silent} a network came back that is silently "
        "another function.\n\n"
        f"{table(head, rows, 4)}\n\n" + source("benchmarks/results/mutations.json", "python benchmarks/mutations.py")
    )


CERTIFICATES = ("ExactnessError", "VerificationError")


def noticed(row: Data) -> tuple[str, str]:
    """The test that fails, and how many networks were refused and how."""
    if row["result"] == "error":
        return "not run", ""
    counts = row["probe"]
    total, parts = sum(counts.values()), []
    if n := sum(counts.get(name, 0) for name in CERTIFICATES):
        parts.append(f"{n} refused by the certificate")
    parts += [
        f"{n} end in `{name}`" for name, n in counts.items() if name not in (*CERTIFICATES, "right", "wrong") and n
    ]
    if counts.get("wrong"):
        parts.append(f"**{counts['wrong']} silently wrong**")
    test = row["test"].partition("::")[2].partition("[")[0]
    return f"`{test}`" if test else "**none**", f"{', '.join(parts) or 'all right'}, of {total}" if total else ""


def fuzzing(data: Data) -> str:
    """What random networks came to, which operators they held, and what was mended."""
    words = {
        "merged": "merged exactly",
        "nothing": "nothing to merge, as every channel is frozen",
        "refused": "refused with a reason",
        "failed": "failed",
    }
    rows = [(text, data["results"].get(key, 0), data["delivered"].get(key, 0)) for key, text in words.items()]
    missing = [f"`{rule}`" for rule in data["rules_in_all"] if rule not in data["rules"]]
    saved = read(ROOT / "tests" / "random_programs.json") or []
    mended = "".join(f"\n- {row['shows']}" for row in saved)
    refused = "".join(f"\n- {count} x {reason}" for reason, count in sorted(data["refusals"].items()))
    steps = sum(data["operations"].values())
    return (
        f"{data['networks']:,} networks of seeds 0 to {data['networks'] - 1:,}, {steps:,} operations of {len(data['operations'])} kinds; "
        f"{len(data['rules'])} of {len(data['rules_in_all'])} rules were asked"
        + (f" (not {', '.join(missing)})" if missing else "")
        + f".\n\n{table(('became', 'networks', 'saved, exported, verified and loaded'), rows)}\n\n"
        + (f"What was refused:\n{refused}\n\n" if refused else "")
        + f"Failures that it found, each mended and kept as a test:\n{mended}\n\n"
        + source("benchmarks/results/fuzz.json", "python benchmarks/fuzz.py --networks 5000")
    )


def faults(data: Data) -> str:
    """One row for each fault: how the process ended, what has the final name, and what resuming made of it."""

    def after(row: Data) -> str:
        if "then" not in row:
            return ""
        return row["then"] + (", same weights" if row.get("same_weights") else "")

    def ended(row: Data) -> str:
        if row.get("code") is None:
            return "not tried"
        return "killed" if row["code"] == -9 else f"exit code {row['code']}"

    rows = [
        (row["kind"], row["phase"], ended(row), row.get("final", row.get("said", "")), after(row))
        for row in data["rows"]
    ]
    good = sum(row["ok"] is True for row in data["rows"])
    head = ("fault", "phase", "the process", "under the final name", "after `--resume`")
    return (
        f"{good} of {len(data['rows'])} as they should be. *Same weights*: bit for bit those of a run that nothing disturbed.\n\n"
        f"{table(head, rows, 5)}\n\n" + source("benchmarks/results/faults.json", "python benchmarks/faults.py")
    )


def uncovered(data: Data) -> str:
    """What share of each package the tests reach, and why each line that they do not reach is left."""

    def share(counts: Data, what: str) -> str:
        return f"{percent(counts[f'covered_{what}'] / counts[what], 1)} of {counts[what]:,}"

    rows = [(f"`{name}`", share(c, "lines"), share(c, "branches")) for name, c in data["packages"].items()]
    whys: dict[str, list[str]] = {}
    for row in data["uncovered"]:
        text = row["text"].replace("|", "\\|")
        way = " (one way only)" if row["reached"] else ""
        whys.setdefault(row["why"], []).append(f"`{row['file']}`, `{row['function'] or 'module'}`: `{text}`{way}")
    reasons = "".join(
        f"\n- {why}" + "".join(f"\n    - {line}" for line in lines) for why, lines in sorted(whys.items())
    )
    return (
        f"{table(('package', 'lines', 'branches'), rows)}\n\n"
        f"Python {data['python']}, PyTorch {data['torch']}. What no test reaches, by the reason why:\n{reasons}\n\n"
        + source("benchmarks/results/uncovered.json", "python benchmarks/uncovered.py")
    )


BLOCKS: dict[str, tuple[Path, Callable[[Data], str]]] = {
    "certificates": (ARTIFACTS, certificates),
    "accuracy": (RESULTS / "accuracy.json", accuracy),
    "accuracy-in-short": (RESULTS / "accuracy.json", accuracy_in_short),
    "unseen": (RESULTS / "unseen.json", unseen),
    "unseen-by-heart": (RESULTS / "unseen-by-heart.json", unseen_by_heart),
    "one-shot": (RESULTS / "one-shot.json", one_shot),
    "coverage": (ROOT / "docs" / "coverage.json", coverage),
    "coverage-timm": (ROOT / "docs" / "timm" / "coverage.json", families),
    "export-coverage": (RESULTS / "export-coverage.json", export_coverage),
    "compile-time": (RESULTS / "compile-time.json", compile_time),
    "tying-overhead": (RESULTS / "tying-overhead.json", tying),
    "tying-in-words": (RESULTS / "tying-overhead.json", tying_in_words),
    "latency": (RESULTS / "latency.json", latency),
    "gpu": (RESULTS / "gpu.json", gpu),
    "report-page": (RESULTS / "report-page.json", report_page),
    "mutations": (RESULTS / "mutations.json", mutations),
    "fuzzing": (RESULTS / "fuzz.json", fuzzing),
    "faults": (RESULTS / "faults.json", faults),
    "uncovered": (RESULTS / "uncovered.json", uncovered),
}
"""Name of a generated block -> its file, and what makes Markdown of it."""


def block(name: str) -> str:
    """The Markdown of one block."""
    path, render = BLOCKS[name]
    data = read(path)
    return render(data) if data else f"Not measured yet: `{path.relative_to(ROOT).as_posix()}` is not there."
