"""The parent's side: run one module in a process of its own, wait without waking, and say how it ended."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[2]
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_TAIL_LINES = 20


@dataclass(frozen=True)
class Outcome:
    """How a child ended, after how many seconds. status: done, failed or timeout; reason: why, where not done."""

    status: str
    reason: str
    seconds: float


def run(module: str, arguments: Sequence[str], log: Path, timeout: float, threads: int, offline: bool) -> Outcome:
    """`python -m module arguments… SPAWNED_NS` with its output in `log`; killed with all its children after `timeout` s.

    threads: what the numeric libraries' thread variables are set to. offline: whether model hubs are out of reach, as
    they should be where loading is timed. A child never outlives this call.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    timed_out = threading.Event()
    with log.open("wb") as output:
        spawned = time.perf_counter_ns()
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, str(spawned)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=child_environment(threads, offline),
            start_new_session=True,
        )

        def expire():
            timed_out.set()
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGUSR1)  # the child's stacks go to its log
            time.sleep(0.5)
            _kill(process)

        # A timer and a blocking wait: Popen.wait(timeout) would wake this process many times a second beside the child.
        timer = threading.Timer(timeout, expire)
        timer.daemon = True
        timer.start()
        try:
            _wait(process)
        finally:
            timer.cancel()
            timer.join()
            _kill(process)
            process.wait()
    seconds = (time.perf_counter_ns() - spawned) / 1e9
    if timed_out.is_set():
        return Outcome("timeout", f"no end after {timeout:g} s", seconds)
    if process.returncode == 0:
        return Outcome("done", "", seconds)
    return Outcome("failed", _how(process.returncode, log), seconds)


def tail(log: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log, which may hold any bytes."""
    text = log.read_bytes()[-20000:].decode("utf-8", "replace")
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _wait(process: subprocess.Popen) -> None:
    """Until the child has ended, leaving it unreaped, so that its process group's number cannot be given away."""
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    else:
        process.wait()


def _kill(process: subprocess.Popen) -> None:
    """The child and what it started; its process group bears its number."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _how(code: int, log: Path) -> str:
    if code > 0:
        return f"exit code {code}: {tail(log, 1)}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def child_environment(threads: int, offline: bool) -> dict[str, str]:
    """The environment of a child: thread variables set, and able to import what this process can."""
    environment = dict(os.environ)
    environment.update({name: str(threads) for name in _THREAD_VARIABLES})
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment["PYTHONSAFEPATH"] = "1"  # `python -m` would put the working directory first
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    # What this process imports from outside its installation (this package, a test's backends) the child can too. Not
    # the working directory, which would go before the installation, with whatever there has a library's name;
    # `backends.get` looks there last.
    places = [os.path.abspath(entry) for entry in sys.path if os.path.isdir(entry or ".")]
    own = [place for place in places if not place.startswith((sys.prefix, sys.base_prefix)) and place != os.getcwd()]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(_PACKAGE), *own]))
    return environment
