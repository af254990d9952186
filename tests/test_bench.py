"""Timing dense against compact: which provider is taken, what is measured, what is said about it, and what is refused."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner, Result

import pdc_fx
from pdc_fx.artifacts import Compressed, save
from pdc_fx.children import HERE, child_environment
from pdc_fx.cli import app
from pdc_fx.cli.options import Provider
from pdc_fx.directory import BENCHMARK, DENSE_MACS_KEY, MACS_KEY, ONNX, RECIPE, REPORT
from pdc_fx.errors import ArtifactError, InputError, PdcError
from pdc_fx.export import session as sessions
from pdc_fx.export.benchmark import benchmark
from pdc_fx.export.onnx import export_onnx
from pdc_fx.export.pages.speed import BEGIN, END
from pdc_fx.export.session import choose_provider, make_session
from pdc_fx.export.timing.benchmark_torch import benchmark_torch
from pdc_fx.export.timing.memory import own_peak, peak_memory
from pdc_fx.export.timing.profiling import NodeTime, explain, node_times, placement, profile, recorded
from pdc_fx.export.timing.turns import BatchTiming, Timing, time_batch
from pdc_fx.files import replace_file
from pdc_fx.passes.budget import BLOCKS
from pdc_fx.passes.rewrite import ChannelAddition

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
FACTORY = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )

def other():
    return nn.Sequential(nn.Conv2d(3, 4, 3))
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A factory, an output directory, and its dense and compact networks as files."""
    path = tmp_path_factory.mktemp("bench")
    (path / "net.py").write_text(FACTORY)
    names: dict[str, Any] = {}
    exec(FACTORY, names)
    torch.manual_seed(0)
    model, example = names["net"]().eval(), torch.zeros(1, 3, 16, 16)
    plan = pdc_fx.plan(model, pdc_fx.analyze(model, example), flops_reduction=0.5)
    plan = pdc_fx.tie(model, plan, mode="hard").snap()
    addition = ChannelAddition(plan, example)
    compact = addition(model).eval()
    assert addition.comparison is not None
    source = {"model": f"{path / 'net.py'}:net"}
    save(Compressed(compact, model, plan, (example,), addition.comparison, source=source), path / "out")
    (path / "fresh.html").write_bytes((path / "out" / REPORT).read_bytes())
    export_onnx(model, example, path / "dense.onnx")
    macs = {MACS_KEY: str(plan.macs_after), DENSE_MACS_KEY: str(plan.macs_before)}
    export_onnx(compact, example, path / "compact.onnx", metadata=macs)
    export_onnx(compact, example, path / "static.onnx", dynamic_batch=False)
    export_onnx(compact, torch.zeros(1, 3, 12, 12), path / "narrow.onnx")
    (path / "text.onnx").write_text("not a model")
    return path


# --------------------------------------------------------------------------------------------------------- providers

NO_DRIVER = {"cuda": "no driver", "tensorrt": "no library"}


@pytest.mark.parametrize(
    ("wanted", "listed", "problems", "name", "words"),
    [
        ("auto", [CPU], {}, "cpu", "the best that ONNX Runtime lists"),
        ("auto", [CUDA, CPU], {}, "cuda", "the best that ONNX Runtime lists"),
        ("auto", [TENSORRT, CUDA, CPU], {}, "tensorrt", "the best that ONNX Runtime lists"),
        ("auto", [TENSORRT, CUDA, CPU], {"tensorrt": "no library"}, "cuda", "tensorrt is listed but does not work: no"),
        ("auto", [TENSORRT, CUDA, CPU], NO_DRIVER, "cpu", "cuda is listed but does not work: no driver"),
        ("cpu", [CUDA, CPU], {}, "cpu", "as asked"),
        ("cuda", [CUDA, CPU], {}, "cuda", "as asked"),
        ("cuda", [CPU], {}, None, "does not have it; those that are: cpu"),
        ("cuda", [TENSORRT, CUDA, CPU], NO_DRIVER, None, "no driver; those that are: cpu"),
        ("tensorrt", [TENSORRT, CUDA, CPU], {"tensorrt": "no library"}, None, "no library; those that are: cuda, cpu"),
        ("abacus", [CPU], {}, None, "use one of auto, tensorrt, cuda, cpu"),
    ],
)
def test_which_provider(wanted: str, listed: list[str], problems: dict[str, str], name: str | None, words: str) -> None:
    if name is None:
        with pytest.raises(InputError, match=words):
            choose_provider(wanted, listed=listed, trial=problems.get)
        return
    chosen = choose_provider(wanted, listed=listed, trial=problems.get)
    assert chosen.name == name
    assert words in chosen.why


class FakeSession:
    """A session as ONNX Runtime makes it where CUDA is listed but does not load: on the CPU, with noise."""

    providers = (CPU,)
    noise = b"\x1b[1;31m[E:onnxruntime] Failed to load library x.so with error: libcuda.so.1: cannot open: No such file or directory\n"

    def __init__(self, *_: Any, **options: Any) -> None:
        assert options["enable_fallback"] == 0
        os.write(2, self.noise)
        print("EP Error")

    def get_providers(self) -> list[str]:
        return list(self.providers)

    def run(self, *_: Any) -> None:
        os.write(1, b"running\n")


class Loading(FakeSession):
    providers = (CUDA, CPU)


class Raising(FakeSession):
    noise = b""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image is available\nfor this device")


@pytest.mark.parametrize(
    ("session", "problem"),
    [(FakeSession, "libcuda.so.1: cannot open"), (Loading, None), (Raising, "no kernel image is available")],
)
def test_a_trial_is_quiet_and_says_why(
    session: type, problem: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    preloaded: list[bool] = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: preloaded.append(True))
    assert sessions.try_provider.__wrapped__("cuda") == problem
    assert preloaded == [True]
    assert capfd.readouterr() == ("", "")
    os.write(2, b"heard again")
    assert capfd.readouterr() == ("", "heard again")


def test_a_provider_of_this_machine_works_or_is_refused_quietly(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever is installed here; a session never runs elsewhere than it was asked to."""
    for name, providers in sessions.PROVIDERS.items():
        if name == "cpu" or (providers[0] in onnxruntime.get_available_providers() and not sessions.try_provider(name)):
            assert make_session(folder / "dense.onnx", provider=name).get_providers()[0] == providers[0]
        else:
            with pytest.raises(InputError, match=r"those that are: .*cpu"):
                make_session(folder / "dense.onnx", provider=name)
    assert make_session(folder / "dense.onnx", provider="auto", threads=1) is not None
    assert capfd.readouterr() == ("", "")


def test_a_session_that_falls_back_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "choose_provider", lambda _: sessions.Provider("cuda", "as asked"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    with pytest.raises(ArtifactError, match="does not run the model on cuda"):
        make_session(folder / "dense.onnx", provider="cuda")


# ---------------------------------------------------------------------------------------------------- what is measured


def test_calls_alternate() -> None:
    order: list[str] = []
    timed = time_batch(lambda: order.append("d"), lambda: order.append("c"), 8, runs=3, warmup=2, mac_ratio=2.0)
    assert "".join(order) == "dcdc" + "dc" + "cd" + "dc"
    assert timed.efficiency == pytest.approx(timed.speedup / 2)
    assert timed.dense.throughput == pytest.approx(8e3 / timed.dense.median_ms)


def event(name: str, ts: int, dur: int, operator: str = "", *shapes: list[int], provider: str = CPU) -> dict[str, Any]:
    *inputs, output = shapes or ([1],)
    args = {
        "op_name": operator,
        "provider": provider,
        "input_type_shape": [{"float": shape} for shape in inputs],
        "output_type_shape": [{"float": output}],
    }
    return {"cat": "Node" if operator else "Session", "name": name, "ts": ts, "dur": dur, "args": args}


PRODUCTS = {
    "plain": ("Conv", [1, 8, 4, 4], [16, 8, 3, 3], [1, 16, 4, 4], 16 * 16 * 8 * 9, "convolutions", True),
    "grouped": ("Conv", [1, 32, 4, 4], [16, 8, 3, 3], [1, 16, 4, 4], 16 * 16 * 8 * 9, "convolutions", False),
    "depthwise": ("FusedConv", [1, 16, 4, 4], [16, 1, 3, 3], [1, 16, 4, 4], 16 * 16 * 9, "depthwise", False),
    "grey": ("Conv", [1, 1, 4, 4], [16, 1, 3, 3], [1, 16, 4, 4], 16 * 16 * 9, "convolutions", True),
    "transposed": ("ConvTranspose", [1, 8, 4, 4], [8, 1, 2, 2], [1, 1, 8, 8], 16 * 8 * 4, "convolutions", True),
    "matrix": ("Gemm", [2, 64], [10, 64], [2, 10], 2 * 10 * 64, "matrix products", True),
    "addition": ("Add", [2, 64], [2, 64], [2, 64], 0, "others", False),
    "blocks": ("ReorderInput", [2, 64], [2, 64], [2, 64], 0, "layout", False),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_node_as_recorded(name: str) -> None:
    operator, image, weight, result, macs, kind, uneven = PRODUCTS[name]
    events = [event("model_run", 0, 100), event("n_kernel_time", 10, 60, operator, image, weight, result)]
    node, between = node_times(events)
    assert (node.name, node.ms, node.macs, node.kind, node.uneven(16)) == ("n", 0.06, macs, kind, uneven)
    assert (between.kind, between.ms) == ("between nodes", pytest.approx(0.04))


def test_each_provider_has_blocks_and_a_name() -> None:
    """What ``--round-to auto`` plans for a provider fills the blocks that ``bench`` asks for there."""
    assert set(BLOCKS) == set(sessions.PROVIDERS) == set(get_args(Provider)) - {"auto"}
    made = NodeTime("c", "Conv", CPU, 1.0, 1, (64 + BLOCKS["cuda"],))
    assert (made.uneven(BLOCKS["cuda"]), made.uneven(BLOCKS["cpu"])) == (False, True)


def test_the_middle_runs_count_and_add_up() -> None:
    durations = [9000, 100, 400, 200, 300, 900, 150]
    events = [
        one
        for number, ms in enumerate(durations)
        for one in (event("model_run", number * 10**4, ms), event("a_kernel_time", number * 10**4, ms // 2, "Relu"))
    ]
    node, between = node_times(events, warmup=1)
    assert node.ms == pytest.approx((200 + 300) / 2 / 2e3)
    assert node.ms + between.ms == pytest.approx((200 + 300) / 2e3)


def test_a_profile_counts_what_runs(folder: Path) -> None:
    """Widths are multiples of 16 in the dense network, so that no block is filled up."""
    (nodes,) = profile([folder / "dense.onnx"], 2, threads=1, runs=3)
    per_image = 16 * 16 * 32 * 3 * 9 + 16 * 16 * 32 * 32 * 9 + 32 * 10
    assert sum(node.macs for node in nodes) == 2 * per_image
    assert set(placement(nodes)) == {CPU}
    assert sum(placement(nodes)[CPU].values()) == len(nodes) - 1


def test_the_page_explains_every_kind() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "deployment.md").read_text(encoding="utf-8")
    kinds = {kind for *_, kind, _ in PRODUCTS.values()} | {"between nodes"}
    assert [kind for kind in sorted(kinds) if f"`{kind}`" not in page] == []
    named = set(re.findall(r"(--[a-z][a-z-]*)", page.partition("## Is it faster?")[2])) - {"--round-to"}
    command = typer.main.get_command(app).commands["bench"]  # type: ignore[attr-defined]
    assert named <= {option for parameter in command.params for option in parameter.opts}


CONV, ADD = NodeTime("c", "Conv", CPU, 8.0, 800, (64, 64)), NodeTime("a", "Add", CPU, 2.0)


@pytest.mark.parametrize(
    ("compact", "lines"),
    [
        (
            [NodeTime("c", "Conv", CPU, 6.0, 400, (64, 61)), NodeTime("a", "Add", CPU, 1.0)],
            ["2.00 ms over dense/2.00: convolutions +2.00", "100% of products' time, dense 0%; MACs +0%"],
        ),
        (
            [NodeTime("c", "Conv", CPU, 6.0, 480, (64, 64)), NodeTime("a", "Add", CPU, 1.0)],
            ["2.00 ms over dense/2.00: convolutions +2.00", "0% of products' time, dense 0%; MACs +20%"],
        ),
        (
            [NodeTime("c", "Conv", CPU, 4.0, 400, (32, 32)), NodeTime("a", "Add", CPU, 2.0)],
            ["1.00 ms over dense/2.00: others +1.00"],
        ),
        (
            [NodeTime("c", "Conv", CPU, 4.0, 400, (32, 32)), NodeTime("r", "ReorderInput", CPU, 1.5)],
            ["0.50 ms over dense/2.00: layout +1.50"],
        ),
        ([NodeTime("c", "Conv", CPU, 4.0, 400, (32, 32)), NodeTime("a", "Add", CPU, 1.0)], ["no such loss"]),
    ],
    ids=["uneven", "filled-up", "memory-bound", "layout", "none"],
)
def test_what_takes_the_time(compact: list[NodeTime], lines: list[str]) -> None:
    told = explain([CONV, ADD], compact, (800, 400))
    assert len(told) == len(lines)
    assert all(words in line for words, line in zip(lines, told, strict=True)), told


def test_peak_memory_is_that_of_the_file_alone(tmp_path: Path, folder: Path) -> None:
    """Neither what this process has taken counts, nor what Python takes."""
    if own_peak() is None:
        pytest.skip("this system does not say what a process takes")
    ballast = np.ones(40_000_000)
    size = 4 * 4000 * 4000
    export_onnx(nn.Linear(4000, 4000), torch.zeros(1, 4000), tmp_path / "large.onnx")
    large, small = (peak_memory(path, 1, threads=1) for path in (tmp_path / "large.onnx", folder / "dense.onnx"))
    assert large is not None
    assert small is not None
    assert small < 50e6 < size < large < 4 * size
    assert ballast.nbytes > large
    with pytest.raises(ArtifactError, match="does not run in a process of its own"):
        peak_memory(folder / "text.onnx", 1, threads=1)


def test_efficiency_and_details(folder: Path) -> None:
    asked: list[str] = []
    options: dict[str, Any] = {"batch_sizes": (1, 2), "runs": 3, "warmup": 1, "threads": 1}
    files = folder / "dense.onnx", folder / "compact.onnx"
    report = benchmark(*files, **options, details=True, progress=asked.append)
    assert report.dense_macs is not None
    assert report.compact_macs is not None
    ratio = report.dense_macs / report.compact_macs
    assert ratio == pytest.approx(2, rel=0.05)
    for timing in report.timings:
        assert timing.efficiency == pytest.approx(timing.speedup / ratio)
        assert bool(timing.reasons) == (timing.efficiency < 0.95)
        assert (timing.dense_memory or 0) > 0
    assert list(report.placement or {}) == [CPU]
    assert [words[-1] for words in asked] == ["1", "2"]
    assert json.loads(json.dumps(report.to_json()))["provider"] == "cpu"
    low = benchmark(*files, **options, macs=(10**9, 1), details=True).timings[0]
    assert low.reasons[0].startswith(tuple("0123456789"))
    unknown = benchmark(files[1], files[0], **options)
    assert unknown.timings[0].efficiency is None
    assert unknown.dense_macs is None


def test_torch_eager_and_compiled() -> None:
    """What a compiler cannot do is reported; what the user got wrong is raised."""
    wide, slim, example = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 4, 3).train(), torch.zeros(1, 3, 8, 8)
    options: dict[str, Any] = {"batch_sizes": (1, 4), "runs": 3, "threads": 1, "macs": (2, 1)}
    compiled: list[nn.Module] = []

    def compiler(module: nn.Module) -> Callable[..., Any]:
        compiled.append(module)
        return module

    report = benchmark_torch(wide, slim, example, **options, compiler=compiler, channels_last=True)
    assert (report.engine, report.problem, len(report.timings)) == ("compile", None, 2)
    assert report.timings[0].efficiency == pytest.approx(report.timings[0].speedup / 2)
    assert [module.training for module in compiled] == [False, False]
    assert slim.training

    seen: list[torch.Size] = []

    def backend(graph: nn.Module, inputs: list[torch.Tensor]) -> nn.Module:
        seen.extend(tensor.shape[:1] for tensor in inputs if tensor.dim() == 4 and tensor.shape[1:] == (3, 8, 8))
        return graph

    several = options | {"batch_sizes": tuple(range(2, 9)), "runs": 1}
    benchmark_torch(wide, slim, example, **several, compiler=lambda m: torch.compile(m, dynamic=False, backend=backend))
    assert [size for (size,) in seen] == [size for size in range(2, 9) for _ in (wide, slim)]

    def broken(module: nn.Module) -> Callable[..., Any]:
        raise RuntimeError("no C++ compiler\nfound")

    report = benchmark_torch(wide, slim, example, **options, compiler=broken)
    assert (report.timings, report.problem) == ((), "RuntimeError: no C++ compiler")
    with pytest.raises(RuntimeError, match="channels"):
        benchmark_torch(wide, nn.Conv2d(4, 4, 3), example, **options)
    with pytest.raises(InputError):
        benchmark_torch(wide, slim, example, batch_sizes=())
    assert torch.get_num_threads() == 1


# ------------------------------------------------------------------------------------------------------- command line


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


QUICK = ("--runs", 3, "--warmup", 1, "--threads", 1, "--provider", "cpu")


def test_bench_a_directory(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    result = run("bench", folder / "out", *QUICK, "-b", 1, "-b", 4, "--json", "-o", tmp_path / "bench.json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    plan = json.loads((folder / "out" / RECIPE).read_text())["plan"]
    assert (found["dense_macs"], found["compact_macs"]) == (plan["macs_before"], plan["macs_after"])
    assert [timing["batch"] for timing in found["timings"]] == [1, 4]
    assert found["dense_bytes"] > 1.5 * found["compact_bytes"]
    assert (found["threads"], found["provider"], found["torch"]) == (1, "cpu", [])
    assert "provider" not in result.stderr  # it was asked for
    after = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    assert json.loads(after.pop(BENCHMARK)) == found
    assert {name for name, content in after.items() if content != before[name]} == {REPORT}
    assert run("verify", folder / "out").exit_code == 0


def card_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return text[text.index(BEGIN) : text.index(END)]


def test_the_page_shows_what_was_measured_last(folder: Path, tmp_path: Path) -> None:
    directory = copy_of(folder, tmp_path / "out", lambda _: None)
    fresh = (folder / "fresh.html").read_text(encoding="utf-8")
    (directory / REPORT).write_text(fresh, encoding="utf-8")
    assert "Not measured when this page was written" in card_of(directory / REPORT)
    for batch in (1, 2):
        assert run("bench", directory, *QUICK, "-b", batch).exit_code == 0
        card = card_of(directory / REPORT)
        assert f'data-label="Batch">{batch}<' in card
        assert card.count('data-label="Batch"') == 1
        assert "Not measured when" not in card
    now = (directory / REPORT).read_text(encoding="utf-8")
    assert (now.partition(BEGIN)[0], now.partition(END)[2]) == (fresh.partition(BEGIN)[0], fresh.partition(END)[2])
    (directory / REPORT).unlink()
    assert run("bench", directory, *QUICK, "-b", 1).exit_code == 0
    assert not (directory / REPORT).exists()


@pytest.mark.parametrize("name", ["read-only", "page of another version"])
def test_figures_that_cannot_be_kept_are_printed(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = copy_of(folder, tmp_path / "out", lambda _: None)
    if name == "read-only":
        replace = os.replace

        def refused(old: Path, new: Path) -> None:
            if directory in Path(new).parents:
                raise OSError(30, "Read-only file system")
            replace(old, new)

        monkeypatch.setattr(os, "replace", refused)
    else:
        (directory / REPORT).write_text("<p>an old page</p>")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    result = run("bench", directory, *QUICK, "-b", 1, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["timings"]
    (note,) = [line for line in result.stderr.splitlines() if line.startswith("note:")]
    assert ("Read-only file system" if name == "read-only" else "no place for a benchmark") in note
    assert ("make it writable" in note, "make room" in note) == (name == "read-only", False)
    after = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != BENCHMARK}
    assert after == {name: content for name, content in before.items() if name != BENCHMARK}


def test_the_dense_network_is_the_tied_one(folder: Path, tmp_path: Path) -> None:
    """Values matter little for time; numbers too small to be normal would not."""
    from pdc_fx.cli.bench import _Pair

    pair = _Pair(folder / "out", None)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(pair.dense(images), pair.compact(images), atol=1e-5)


def test_bench_in_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    result = run("bench", folder / "out", *QUICK, "-b", 1, "-b", 32, "--torch")
    assert result.exit_code == 0, result.stderr
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    for words in ("efficiency", "eager", "compile", "1 thread", "MACs", "memory"):
        assert words in result.stdout
    plain = run("bench", folder / "dense.onnx", folder / "dense.onnx", *QUICK, "-b", 1)
    assert plain.exit_code == 0, plain.stderr
    assert any("-" in line.split() for line in plain.stdout.splitlines())  # no efficiency without MACs


def test_an_engine_that_does_not_run_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(module: nn.Module, dynamic: bool) -> None:
        raise RuntimeError("no compiler was found\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    result = run("bench", folder / "out", *QUICK, "-b", 1, "--torch")
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert re.search(
        r"compile, cpu.*, float32, 1 thread: not run: RuntimeError: no compiler was found times in ms", said
    )


def copy_of(folder: Path, target: Path, change: Callable[[Path], object]) -> Path:
    target.mkdir()
    for path in (folder / "out").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    change(target)
    return target


def changed_recipe(directory: Path, **changes: Any) -> None:
    recipe = json.loads((directory / RECIPE).read_text())
    (directory / RECIPE).write_text(json.dumps({**recipe, **changes}))


def nudged(directory: Path) -> None:
    proto = onnx.load(directory / ONNX)
    proto.producer_name = "somebody else"
    onnx.save(proto, directory / ONNX)


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def tiny(path: Path, kind: int, shape: list[int | str], **metadata: str) -> Path:
    """A file of one node, which gives its input as float32."""
    x, y = (onnx.helper.make_tensor_value_info(n, k, shape) for n, k in (("x", kind), ("y", onnx.TensorProto.FLOAT)))
    node = onnx.helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)
    opsets = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y]), opset_imports=opsets, ir_version=8)
    onnx.helper.set_model_props(model, {f"pdc_fx.{key}": value for key, value in metadata.items()} or {"a": "b"})
    onnx.save(model, path)
    return path


def test_macs_that_are_no_number_are_none(tmp_path: Path) -> None:
    files = [
        tiny(tmp_path / f"{n}.onnx", onnx.TensorProto.FLOAT, [1, 3], macs=n, dense_macs="9") for n in ("4", "many")
    ]
    options: dict[str, Any] = {"runs": 1, "warmup": 0, "threads": 1}
    assert benchmark(files[0], files[0], **options).compact_macs == 4
    report = benchmark(files[1], files[1], **options)
    assert (report.dense_macs, report.compact_macs, report.timings[0].efficiency) == (None, None, None)


def test_an_efficient_network_is_not_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdc_fx.export.benchmark.peak_memory", lambda *_, **__: 7)
    file = tiny(tmp_path / "a.onnx", onnx.TensorProto.FLOAT, ["batch", 3])
    report = benchmark(file, file, batch_sizes=(1, 2), runs=1, warmup=0, threads=1, macs=(1, 10**9), details=True)
    assert [(t.reasons, t.dense_memory, t.compact_memory) for t in report.timings] == [((), 7, 7)] * 2
    assert list(report.placement or {}) == [CPU]


def test_a_trial_where_everything_is_closed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a service may be started: the trial opens nothing that stays open."""
    monkeypatch.setattr(sys, "stdout", None)
    kept = {descriptor: os.dup(descriptor) for descriptor in (0, 1, 2)}
    for descriptor in kept:
        os.close(descriptor)
    try:
        found = sessions.try_provider.__wrapped__("cpu")
        is_open = [descriptor for descriptor in kept if Path(f"/dev/fd/{descriptor}").exists()]
    finally:
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)
    assert (found, is_open) == (None, [])
    assert capfd.readouterr() == ("", "")


BAD: dict[str, tuple[Callable[[Path, Path], list[object]], str]] = {
    "nowhere": (lambda f, _: [f / "nowhere"], "no such directory"),
    "no output directory": (lambda f, _: [f], "no output directory"),
    "one file": (lambda f, _: [f / "dense.onnx"], "give the compact ONNX file"),
    "directory and file": (lambda f, _: [f / "out", f / "compact.onnx"], "holds both networks"),
    "torch without recipe": (lambda f, _: [f / "dense.onnx", f / "compact.onnx", "--torch"], "--torch needs"),
    "model without recipe": (lambda f, _: [f / "dense.onnx", f / "compact.onnx", "--model", "a:b"], "--model needs"),
    "not ONNX": (lambda f, _: [f / "dense.onnx", f / "text.onnx"], "cannot load the model"),
    "missing file": (lambda f, _: [f / "dense.onnx", f / "gone.onnx"], "no such ONNX file"),
    "other input": (lambda f, _: [f / "dense.onnx", f / "narrow.onnx"], "take different inputs"),
    "whole numbers": (
        lambda _, t: [tiny(t / "a.onnx", onnx.TensorProto.INT64, [1, 3])] * 2,
        "only inputs of float32 or float16 can be timed [x: tensor(int64)]",
    ),
    "open size": (
        lambda _, t: [tiny(t / "a.onnx", onnx.TensorProto.FLOAT, ["batch", 3, "height", 8])] * 2,
        "a size other than the batch is open [x: ['batch', 3, 'height', 8]]; export with fixed sizes to time the file",
    ),
    "fixed batch": (lambda f, _: [f / "static.onnx", f / "static.onnx", "-b", 8], "does not take a batch of 8"),
    "output exists": (lambda f, _: [f / "out", "-o", f / "net.py"], "the file exists"),
    "output is a pipe": (lambda f, t: [f / "out", "-o", pipe(t / "pipe"), "--overwrite"], "cannot be written"),
    "output folder": (lambda f, _: [f / "out", "-o", f / "no" / "such.json"], "cannot be written"),
    "changed": (lambda f, t: [copy_of(f, t / "c", nudged)], "changed since the directory was certified: model.onnx"),
    "no model": (lambda f, t: [copy_of(f, t / "c", lambda d: changed_recipe(d, model=None))], "pass --model"),
    "other model": (lambda f, _: [f / "out", "--model", f"{f / 'net.py'}:other"], ""),
    "no factory": (lambda f, _: [f / "out", "--model", f"{f / 'net.py'}:gone"], "no function 'gone'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_message(name: str, folder: Path, tmp_path: Path) -> None:
    arguments, words = BAD[name]
    given = arguments(folder, tmp_path)
    before = {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    result = run("bench", *given, "--runs", 1, "--warmup", 0, "--threads", 1)
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert words in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("command", ["bench", "verify"])
def test_a_provider_that_is_not_there(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "try_provider", lambda name: "no driver")
    result = run(command, folder / "out", "--provider", "cuda")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "the provider 'cuda' is not there: " in result.stderr
    assert "those that are: cpu" in result.stderr


@pytest.mark.parametrize("command", ["bench", "verify", "export"])
def test_what_auto_takes_and_why_is_said(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(sessions, "try_provider", lambda name: "no driver")
    more = {"bench": (*QUICK[:-2], "-b", 1), "verify": (), "export": ("-o", tmp_path / "m.onnx")}[command]
    result = run(command, folder / "out", "--provider", "auto", "--json", *more)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("provider: cpu (cuda is listed but does not work: no driver)\n") == 1
    if command == "bench":
        assert json.loads(result.stdout)["provider_reason"] == "cuda is listed but does not work: no driver"


@pytest.mark.parametrize(
    "options", [("-b", 0), ("-b", "many"), ("--threads", 0), ("--runs", 0), ("--provider", "abacus")]
)
def test_options_out_of_range(options: tuple[object, ...], folder: Path) -> None:
    result = run("bench", folder / "out", *options)
    assert result.exit_code == 2
    assert "Invalid value" in result.stderr


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(PdcError, match="no regular file"):
        replace_file(pipe(tmp_path / "pipe"), b"something")
    assert (tmp_path / "pipe").is_fifo()


def test_a_record_that_is_not_whole_is_told(tmp_path: Path) -> None:
    """ONNX Runtime does not say that its record found no room."""
    (tmp_path / "record.json").write_text('[{"cat": "Node"')
    with pytest.raises(PdcError, match=r"not whole.*make room"):
        recorded(SimpleNamespace(end_profiling=lambda: str(tmp_path / "record.json")))


def test_no_room_for_temporary_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "/tmp/x")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    result = run("bench", folder / "out", *QUICK)
    assert result.exit_code == 2
    assert "No space left on device [/tmp/x]; make room" in result.stderr


def test_other_load_and_what_a_gpu_session_leaves_to_the_cpu_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from pdc_fx.cli.render_bench import print_benchmark
    from pdc_fx.export.benchmark import BenchmarkReport

    timed = BatchTiming(1, Timing(3.0, 2.0, 2.9, 333.3), Timing(2.0, 1.0, 5.4, 500.0), 1.5)
    places = {CUDA: {"Conv": 53}, CPU: {"Shape": 2, "Gather": 1}}
    given: dict[str, Any] = {"timings": (timed,), "runs": 1, "warmup": 0, "threads": 2, "providers": (CUDA, CPU)}
    report = BenchmarkReport(
        Path("d"), Path("c"), 2, 1, 2.0, **given, runtime="onnxruntime", provider="cuda", placement=places
    )
    print_benchmark("net", report, [])
    shown = capsys.readouterr().out
    assert "batch 1: 10% and 90% are a factor of 5.4 apart: was the machine busy?\n" in shown
    assert f"{CUDA}: Conv x53\n{CPU}: Shape x2, Gather x1\n" in shown


def test_no_space_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    result = run("bench", folder / "out", *QUICK, "-b", 1, "-o", tmp_path / "bench.json")
    assert result.exit_code == 2
    assert "No space left" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_the_working_directory_is_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('a file of somebody else')")
    monkeypatch.chdir(tmp_path)
    assert (peak_memory(folder / "dense.onnx", 1, threads=1) or 1) > 0
    monkeypatch.setenv("PYTHONPATH", "relative")
    assert child_environment()["PYTHONPATH"].split(os.pathsep) == [HERE, str(tmp_path / "relative")]
