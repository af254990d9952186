"""Peak memory of an ONNX file, measured in a fresh process: one that has already run something else keeps its peak.

On Linux the peak is ``VmHWM`` of the process's own status, and not ``ru_maxrss``: that one counts the memory of the
process that started this one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from pdc_fx.children import HERE, child_environment
from pdc_fx.errors import ArtifactError
from pdc_fx.export.session import bind, make_session, random_feed

RUNS = 3


def peak_memory(path: str | os.PathLike[str], batch: int, *, threads: int) -> int | None:
    """Bytes that ONNX Runtime takes at most to open a file and run it on the CPU with random inputs.

    The memory of Python and of ONNX Runtime itself, as it is before the file is opened, is not counted.

    Returns:
        None on a system that does not say what a process took.

    Raises:
        ArtifactError: the file cannot be run.
    """
    if own_peak() is None:
        return None
    command = [sys.executable, "-m", "pdc_fx.export.timing.memory", os.path.abspath(path), str(batch), str(threads)]
    done = subprocess.run(command, cwd=HERE, env=child_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ArtifactError(f"the file does not run in a process of its own: {last}", where=str(path))
    before, after = json.loads(done.stdout)
    return int(after - before)


def own_peak() -> int | None:
    """The most memory that this process has taken so far, in bytes; None where the system does not say.

    >>> own_peak() is None or own_peak() > 10**6
    True
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"), flags=re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _measure(path: str, batch: int, threads: int) -> tuple[int | None, int | None]:
    import onnxruntime  # noqa: F401 - its own memory is not the model's

    before = own_peak()
    session = make_session(path, threads=threads)
    call = bind(session, random_feed(session, batch))
    for _ in range(RUNS):
        call()
    return before, own_peak()


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
