"""The processes of a serving experiment: `sam3lab serve`, and the generator of load. Neither outlives this process."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path

from sam3lab.bench import child
from sam3lab.bench.process import child_environment, tail
from sam3lab.cores import available_cores
from sam3lab.errors import UserError

START = 1800.0  # seconds that a service may take to be ready, exports and compilation among them
_END = 20.0  # seconds that it may take to end
_POLL = 0.02


@dataclass
class Server:
    """A running service. url: as "http://127.0.0.1:PORT"; log: what it and its workers write.

    listening, ready: seconds from the start of its process until it took connections and until it would take requests.
    """

    url: str
    log: Path
    process: subprocess.Popen
    listening: float = 0.0
    ready: float = 0.0

    def settled(self) -> None:
        """Returns when each of its engines is there, or has failed while another is. UserError where that takes too long."""
        self._told(r" ready: .+$", "its engines did not start")

    def worker(self, engine: str) -> int:
        """The process that computes for an engine, once it is ready. UserError where that takes too long."""
        return int(self._told(rf" {re.escape(engine)}: worker (\d+) is ready$", f"the engine {engine} did not start"))

    def _told(self, pattern: str, problem: str) -> str:
        """What its log tells, the last time that it does."""
        end, said = time.monotonic() + START, re.compile(pattern, re.MULTILINE)
        while time.monotonic() < end and self.process.poll() is None:
            if found := said.findall(self.log.read_text("utf-8", "replace")):
                return found[-1]
            time.sleep(_POLL)
        raise UserError(f"{problem}: {tail(self.log, 1)}")

    @property
    def engine(self) -> str:
        """The engine that the service says answers now; empty where none does."""
        answer = self._get("/readyz")
        return answer.json()["engine"] if answer is not None and answer.status_code == 200 else ""

    def counters(self) -> dict[str, float]:
        """The service's counts, by their names without "sam3lab_service_" and "_total"; none where it does not answer."""
        answer = self._get("/metrics")
        said = re.findall(r"^sam3lab_service_(\w+)_total (\S+)$", answer.text if answer else "", re.MULTILINE)
        return {name: float(value) for name, value in said}

    def _get(self, path: str):
        import httpx

        try:
            # No certificates, which would take the cores of what is measured twenty times as long as the rest of it
            return httpx.get(f"{self.url}{path}", timeout=10, verify=False)
        except httpx.TransportError:
            return None


@contextlib.contextmanager
def serving(log: Path, *options: str) -> Iterator[Server]:
    """`sam3lab serve` with these options, on a free port of this machine, until the block ends; without the page.

    UserError, with the last line of its log, where it ends before it is ready or is not in START seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sam3lab.study.serving_process", str(os.getpid()), "serve", "--port", "0"]
    begun = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--no-page", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env=child_environment(available_cores(), offline=True),
        )
    try:
        line = process.stdout.readline().decode()
        if not line.startswith("http://"):
            raise UserError(f"the service did not start: {tail(log, 1)}")
        server = Server(line.split()[0], log, process, time.monotonic() - begun)
        while not server.engine:
            if process.poll() is not None or time.monotonic() - begun > START:
                raise UserError(f"the service was not ready: {tail(log, 1)}")
            time.sleep(_POLL)
        server.ready = time.monotonic() - begun
        yield server
    finally:
        process.terminate()
        try:
            process.wait(_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class Generator:
    """The process that makes load (sam3lab.serve.load), against one service. To be closed."""

    def __init__(self, url: str, questions: Sequence[tuple[bytes, Sequence[str]]]):
        from sam3lab.serve import load

        self._own, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sam3lab.serve.load", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=child_environment(1, offline=True),
                pass_fds=[theirs.fileno()],
            )
        self._own.send(load.Target(url, load.bodies(f"{url}/v1/segment", questions)))
        self._reply()

    def begin(self, phase) -> None:
        """Begin one of sam3lab.serve.load's phases; `end` is to follow."""
        self._own.send(phase)

    def stop(self) -> None:
        """End the phase before its time."""
        from sam3lab.serve import load

        self._own.send(load.STOP)

    def end(self) -> tuple[float, list[dict]]:
        """When the phase began, as time.monotonic tells, and its records (see load.record), when its last answer is there."""
        return self._reply()

    def run(self, phase) -> list[dict]:
        """The records of a phase."""
        self.begin(phase)
        return self.end()[1]

    def close(self) -> None:
        self._own.close()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _reply(self):
        try:
            return self._own.recv()
        except (EOFError, ConnectionError) as error:
            raise UserError("the process that makes load has ended; its errors are above") from error


def main(parent: str, *arguments: str) -> None:
    """sam3lab's command line, as a process that ends with its parent."""
    from sam3lab import cli

    child.tie_to_parent(int(parent))
    sys.exit(cli.main(list(arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
