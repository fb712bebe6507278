"""What benchmarks need: programs on chosen cores, CPU time, medians, tables, JSON.

Everything listens on 127.0.0.1, and every program that is started here is ended here.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def cores() -> tuple[set[int], set[int]]:
    """The core of the program that is measured, and the cores of everything else.

    On a machine of one core both are the same.
    """
    available = sorted(os.sched_getaffinity(0))
    return {available[0]}, set(available[1:] or available)


def free_port() -> int:
    """A TCP port on loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, all its threads, from /proc/PID/task/*/schedstat."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_bytes().split()[0]) for task in tasks.iterdir()) / 1e9


class Program:
    """A process of a benchmark; ends with the `with` block, or with us, however we end.

    Args:
        name: for messages.
        command: what to run.
        cpus: the cores that it may use.
        environ: added to ours.
        folder: where it runs; here if None.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        cpus: set[int] | None = None,
        environ: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `stop`
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
            cwd=folder,
            preexec_fn=_prepare(cpus),
        )
        self.pid = self._process.pid

    def output(self) -> str:
        """What it has printed so far; of much, the end."""
        size = os.fstat(self._output.fileno()).st_size
        start = max(0, size - 1_000_000)
        return os.pread(self._output.fileno(), size - start, start).decode(errors="replace")

    def wait(self, timeout_s: float) -> str:
        """What it printed until it ended by itself.

        Raises:
            RuntimeError: it did not end in time, or with a status other than 0.
        """
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{self.name} is not done after {timeout_s:g} s") from None
        if status != 0:
            raise RuntimeError(f"{self.name} ended with status {status}:\n{self.output()}")
        return self.output()

    def wait_until(self, is_so: Callable[[], object], timeout_s: float = 20.0) -> None:
        """Looks until `is_so()`.

        Raises:
            RuntimeError: the program has ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not is_so():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} is not ready:\n{self.output()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM, after 5 s SIGKILL."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._output.close()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def _prepare(cpus: set[int] | None) -> Callable[[], None]:
    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if cpus:
            os.sched_setaffinity(0, cpus)

    return prepare


def accepts(port: int) -> Callable[[], bool]:
    """For `Program.wait_until`: whether something listens on the loopback port."""

    def is_so() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    return is_so


def script(name: str) -> str:
    """The path of a program, the one beside this Python first (``twistd``, ``redis-server``).

    Raises:
        RuntimeError: it is not installed.
    """
    folders = (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
    path = shutil.which(name, path=os.pathsep.join(folders))
    if path is None:
        raise RuntimeError(f"{name} is not installed")
    return path


def peer_python(*packages: str) -> str:
    """An interpreter that has the packages of peers: this one, or one of a venv made for them."""
    if all(importlib.util.find_spec(package) for package in packages):
        return sys.executable
    home = Path(tempfile.gettempdir()) / f"benchmark-pelotontx-{'-'.join(sorted(packages))}"
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return str(python)


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a share `q` of the sorted values lies; 0.0 of nothing."""
    return values[min(len(values) - 1, int(len(values) * q))] if values else 0.0


def median(values: Iterable[float]) -> float:
    """The median, 0.0 of nothing."""
    collected = list(values)
    return statistics.median(collected) if collected else 0.0


def versions(*packages: str) -> dict[str, str]:
    """The machine, Python and packages (of the Python package index) that figures belong to."""
    found = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": str(len(os.sched_getaffinity(0))),
    }
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table for people: the first column to the left, the others to the right."""
    texts = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[n]) for row in texts) for n in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def save(name: str, figures: Mapping[str, Any], path: str | None) -> None:
    """Writes the figures as JSON, to ``build/benchmarks/NAME.json`` if no path is given."""
    target = Path(path) if path else ROOT / "build" / "benchmarks" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\nJSON: {os.path.relpath(target)}")
