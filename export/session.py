"""ONNX Runtime sessions, all made here: quiet, with a stated number of threads and stated execution providers.

Which providers work is asked by trying: ``onnxruntime-gpu`` lists its CUDA provider on machines without a driver, too,
and where it does not load, a session silently gets the CPU instead. Here a provider that was named is used or is an
error. A new target is an entry in :data:`PROVIDERS` and in :data:`~pdc_fx.passes.budget.BLOCKS`, and a name for the command line.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pdc_fx.errors import ArtifactError, InputError

PROVIDERS = MappingProxyType(
    {
        "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
        "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
        "cpu": ("CPUExecutionProvider",),
    }
)
"""Execution providers of ONNX Runtime, in order of preference, by the name a user gives; the best target comes first.

What the first does not know goes to the next, node by node.
"""

AUTO = "auto"
"""The name for the first of :data:`PROVIDERS` that works."""

_LOG_ERRORS_ONLY = 3
_LOG_FATAL_ONLY = 4
_SEED = 0
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


THREADS = 16
"""The most threads for each processor."""


def default_threads() -> int:
    """The number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --------------------------------------------------------------------------------------------------------- providers


@dataclass(frozen=True)
class Provider:
    """A key of :data:`PROVIDERS` that works here, and in one line why it was taken."""

    name: str
    why: str


def choose_provider(
    wanted: str = AUTO,
    *,
    listed: Sequence[str] | None = None,
    trial: Callable[[str], str | None] | None = None,
) -> Provider:
    """The provider to use.

    Args:
        wanted: a key of :data:`PROVIDERS`, or ``auto`` for the first that works.
        listed: the execution providers ONNX Runtime was built with; None asks it.
        trial: says of a key why it does not work, or None; by default :func:`try_provider`.

    Raises:
        InputError: an unknown name, or a provider that does not work here; the message lists those that do.

    >>> on_a_laptop = {"listed": ["CUDAExecutionProvider", "CPUExecutionProvider"], "trial": lambda name: "no driver"}
    >>> choose_provider("auto", **on_a_laptop)
    Provider(name='cpu', why='cuda is listed but does not work: no driver')
    >>> choose_provider("cuda", **on_a_laptop)
    Traceback (most recent call last):
        ...
    pdc_fx.errors.InputError: the provider 'cuda' is not there: no driver; those that are: cpu
    """
    if wanted != AUTO and wanted not in PROVIDERS:
        raise InputError(f"unknown provider {wanted!r}", hint=f"use one of {', '.join([AUTO, *PROVIDERS])}")
    trial = try_provider if trial is None else trial
    if listed is None:
        import onnxruntime

        listed = onnxruntime.get_available_providers()

    @functools.cache
    def problem(name: str) -> str | None:
        if name == "cpu":
            return None
        return trial(name) if PROVIDERS[name][0] in listed else "this build of ONNX Runtime does not have it"

    if wanted != AUTO:
        found = problem(wanted)
        if found is not None:
            there = [name for name in PROVIDERS if problem(name) is None]
            raise InputError(
                f"the provider {wanted!r} is not there: {found}", hint=f"those that are: {', '.join(there)}"
            )
        return Provider(wanted, "as asked")
    broken = list(itertools.takewhile(problem, PROVIDERS))
    name = list(PROVIDERS)[len(broken)]  # the CPU, which comes last, always works
    refused = [f"{n} is listed but does not work: {problem(n)}" for n in broken if PROVIDERS[n][0] in listed]
    return Provider(name, "; ".join(refused) or "the best that ONNX Runtime lists")


@functools.cache
def try_provider(name: str) -> str | None:
    """Why an entry of :data:`PROVIDERS` does not work in this process; None if it does. Asked once, and quietly.

    One convolution is run. The CUDA libraries that PyTorch's wheels bring are loaded before.

    >>> try_provider("cpu") is None
    True
    """
    import onnxruntime

    reason = ""
    with _captured_output() as noise:
        try:
            if name != "cpu":
                onnxruntime.preload_dlls()
            session = onnxruntime.InferenceSession(
                _one_convolution(), _options(1, True), providers=list(PROVIDERS[name]), enable_fallback=0
            )
            if session.get_providers()[0] == PROVIDERS[name][0]:
                session.run(None, {"x": np.ones((1, 1, 1, 1), np.float32)})
                return None
        except Exception as error:  # ONNX Runtime's own errors have no common base class
            reason = _first_line(error)
        noise.seek(0)
        cause = re.search(r"with error: (.+)", noise.read().decode(errors="replace"))
    if cause is None:
        return reason or "ONNX Runtime took another instead"
    return cause[1].strip().removesuffix(": No such file or directory")


def _one_convolution() -> bytes:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 1, 1]) for name in "xy")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [1.0])
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "trial", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


@contextmanager
def _captured_output() -> Iterator[IO[bytes]]:
    """A file that gets what is printed meanwhile, by Python and, through the descriptors 1 and 2, by libraries in C."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with tempfile.TemporaryFile() as noise, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept: list[tuple[int, int]] = []
        for descriptor in (1, 2):
            try:
                kept.append((descriptor, os.dup(descriptor)))
            except OSError:  # closed: nothing can be printed there
                continue
        try:
            for descriptor, _ in kept:
                os.dup2(noise.fileno(), descriptor)
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                yield noise
        finally:
            for descriptor, copy in kept:
                os.dup2(copy, descriptor)
                os.close(copy)


# ---------------------------------------------------------------------------------------------------------- sessions


def make_session(
    model: str | os.PathLike[str] | bytes,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    optimize: bool = True,
    tf32: bool = False,
    profile: str | os.PathLike[str] | None = None,
) -> Any:
    """An ``onnxruntime.InferenceSession`` for a file or a serialised model.

    Args:
        model: path of an ONNX file, or its bytes.
        provider: a key of :data:`PROVIDERS`, or ``auto``.
        threads: threads within one operator; None for all processors of this process.
        optimize: let ONNX Runtime rewrite the graph; without it each node's own value is computed.
        tf32: let CUDA round the factors of products to 10 bits, as a plain session does; without it float32 is float32.
        profile: record how long each node takes; the path of the record begins with this, ``end_profiling`` writes it.

    Raises:
        InputError: an unknown provider, one that does not work here, or a number of threads below one or far beyond that of processors.
        ArtifactError: the file is missing, damaged, or not an ONNX model this ONNX Runtime can run there.

    >>> make_session(b"no model")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    pdc_fx.errors.ArtifactError: ONNX Runtime cannot load the model...
    """
    import onnxruntime as ort

    name = choose_provider(provider).name
    threads = default_threads() if threads is None else threads
    most = THREADS * default_threads()  # to start more would take all memory, and hours
    if not 1 <= threads <= most:
        raise InputError(
            f"the number of threads must be from 1 to {most}",
            where=f"threads={threads}",
            hint=f"this process may use {default_threads()} processors",
        )
    where = "model in memory" if isinstance(model, bytes) else str(model)
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise ArtifactError("there is no such ONNX file", where=where)
    cuda = {"use_tf32": str(int(tf32))}
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else os.fspath(model),
            _options(threads, optimize, profile),
            providers=[(one, cuda if one.startswith("CUDA") else {}) for one in PROVIDERS[name]],
            enable_fallback=0,  # what goes wrong is raised, and not run again on the CPU
        )
    except Exception as error:  # ONNX Runtime's own errors have no common base class
        reason = _first_line(error)
        hint = (
            "export it in float32 (model.float()) or with a lower opset"
            if "NOT_IMPLEMENTED" in reason
            else "export it again"
        )
        raise ArtifactError(f"ONNX Runtime cannot load the model: {reason}", where=where, hint=hint) from error
    if session.get_providers()[0] != PROVIDERS[name][0]:
        raise ArtifactError(f"ONNX Runtime does not run the model on {name}", where=where, hint="use another provider")
    return session


def _options(threads: int, optimize: bool, profile: str | os.PathLike[str] | None = None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle sessions leave the processors alone
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, os.fspath(profile)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def run_session(session: Any, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """All outputs of ``session`` by name.

    Raises:
        InputError: ONNX Runtime does not run the model on these inputs (an unexpected name, type or shape).
    """
    names = [output.name for output in session.get_outputs()]
    values = _guarded(feed, lambda options: session.run(names, feed, options))
    return dict(zip(names, (np.asarray(value) for value in values), strict=True))


def bind(session: Any, feed: dict[str, NDArray[Any]]) -> Callable[[], None]:
    """A function that runs ``session`` once on ``feed``, with inputs and outputs staying on the session's device.

    Raises:
        InputError: as of :func:`run_session`; raised by the function, or here for an unexpected name.
    """
    import onnxruntime as ort

    device = "cpu" if session.get_providers()[0] == "CPUExecutionProvider" else "cuda"
    binding = session.io_binding()

    def prepare(_: Any) -> None:
        for name, value in feed.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, device, 0))
        for output in session.get_outputs():
            binding.bind_output(output.name, device)

    def run(options: Any) -> None:
        session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()

    _guarded(feed, prepare)
    return lambda: _guarded(feed, run)


def random_feed(session: Any, batch: int) -> dict[str, NDArray[Any]]:
    """Standard normal values for all inputs of a session; a fixed first dimension must be ``batch``.

    Raises:
        InputError: an input that does not hold floating-point numbers, a size other than the batch that is open, or a batch
            that the file does not take.
    """
    generator = np.random.default_rng(_SEED)
    feed: dict[str, NDArray[Any]] = {}
    for value in session.get_inputs():
        if value.type not in _TYPES:
            raise InputError("only inputs of float32 or float16 can be timed", where=f"{value.name}: {value.type}")
        shape = [batch if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(value.shape)]
        if not all(isinstance(size, int) for size in shape):
            raise InputError(
                "a size other than the batch is open",
                where=f"{value.name}: {value.shape}",
                hint="export with fixed sizes to time the file",
            )
        feed[value.name] = generator.standard_normal(shape, dtype=np.float32).astype(_TYPES[value.type])
    if feed and all(value.shape[:1] != (batch,) for value in feed.values()):
        takes = session.get_inputs()[0].shape
        raise InputError(
            f"the file does not take a batch of {batch}", where=f"{takes}", hint=f"its batch size is {takes[:1]}"
        )
    return feed


def _guarded(feed: dict[str, NDArray[Any]], call: Callable[[Any], Any]) -> Any:
    """``call`` with options of a run; what ONNX Runtime raises becomes an :class:`InputError` that names the shapes."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.log_severity_level = _LOG_FATAL_ONLY  # what goes wrong is raised, and must not be printed as well
    try:
        return call(options)
    except Exception as error:  # ONNX Runtime's own errors have no common base class
        shapes = ", ".join(f"{name}: {'x'.join(map(str, np.shape(value)))}" for name, value in feed.items())
        raise InputError(f"ONNX Runtime does not run the model: {_first_line(error)}", where=shapes) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
