"""A real tritonserver on a model repository, from the environment that .ci/triton-venv makes."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

import psutil

from sam3lab.paths import ROOT

REMEDY = "run .ci/triton-venv, or name such an environment in SAM3LAB_TRITON"


def absent() -> str | None:
    """Why the server cannot be run here, with the remedy, or None."""
    venv = environment()
    if not (venv / ".ready").exists():
        return f"{venv} has no tritonserver: {REMEDY}"
    folder, library = _libpython(venv)
    if ".so" not in library or not (folder / library).exists():
        return f"the Python of {venv} has no shared libpython in {folder}: make it with another PYTHON, or install that"
    return None


def environment() -> Path:
    return Path(os.environ.get("SAM3LAB_TRITON") or ROOT / ".venv" / "triton")


class TritonServer:
    """A server on a free port of this machine, until `stop` or the end of the with block; its output goes to `log`.

    Its Python models are processes of its own process group, and share memory under names that begin with `shared`.
    """

    def __init__(self, repository: Path, folder: Path, *options: str):
        venv = environment()
        library, _ = _libpython(venv)
        self.log, self.shared = folder / "tritonserver.log", f"sam3lab_{uuid.uuid4().hex[:12]}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"127.0.0.1:{probe.getsockname()[1]}"
        (package,) = venv.glob("lib/python3.*/site-packages/pytriton/tritonserver")
        stub = package / "python_backend_stubs" / package.parents[2].name.removeprefix("python")
        backend = folder / "backends" / "python"
        backend.mkdir(parents=True)
        # links, since the binaries find their libraries from where they really are
        for file in (*(package / "backends" / "python").iterdir(), stub / "triton_python_backend_stub"):
            (backend / file.name).symlink_to(file)
        command = [
            *("timeout", "--kill-after=40", "240"),  # in case this process cannot stop it
            package / "bin" / "tritonserver",
            f"--model-repository={repository}",
            f"--backend-directory={backend.parent}",
            f"--backend-config=python,shm-region-prefix-name={self.shared}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self.url.rpartition(':')[2]}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--exit-timeout-secs=20",
            "--log-verbose=1",
            *options,
        ]
        environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environ |= {"PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(library)}
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environ, start_new_session=True
            )

    def __enter__(self) -> "TritonServer":
        return self

    def __exit__(self, *error) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for left in self.regions():  # of a server that was killed
            left.unlink()

    def wait_until_ready(self, client, seconds: float = 60) -> None:
        """Raises AssertionError with the log's end where the server does not become ready."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(Exception):  # while it is not listening yet
                if client.is_server_ready():
                    return
            time.sleep(0.1)
        raise AssertionError(f"tritonserver is not ready:\n{self.log.read_text(errors='replace')[-4000:]}")

    def stop(self) -> int:
        """Ask it to end, as an operator would; its exit status."""
        self._process.send_signal(signal.SIGTERM)  # which `timeout` hands on
        return self._process.wait(40)

    def processes(self) -> list[int]:
        """What lives of its process group, the server and its models."""
        alive = []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                if os.getpgid(process.pid) == self._process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process.pid)
        return alive

    def regions(self) -> list[Path]:
        """The shared memory that its models hold."""
        return list(Path("/dev/shm").glob(f"{self.shared}*"))


def _libpython(venv: Path) -> tuple[Path, str]:
    code = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'), sysconfig.get_config_var('INSTSONAME'))"
    done = subprocess.run([venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    folder, name = done.stdout.split()
    return Path(folder), name
