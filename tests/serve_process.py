"""A real server in a process of its own, with a FakeService behind it, for tests that would do it harm.

`python -m tests.serve_process '{"settings": {…}, "seconds": 0.1}'` runs one.
"""

import collections
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import psutil

from sam3lab.paths import ROOT


@dataclass
class Server:
    """url: as "http://127.0.0.1:PORT". port: it alone. process: what answers there."""

    url: str
    port: int
    process: subprocess.Popen

    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self.process.pid).memory_info().rss


@contextlib.contextmanager
def serving(command: list[str], environment: dict[str, str] | None = None, log=None) -> Iterator[Server]:
    """A server that takes requests and says that it is ready. stderr goes to `log`, an open file, if given."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | (environment or {}), stdout=subprocess.PIPE, stderr=log, text=True
    )
    try:
        line = process.stdout.readline()
        if not line.startswith("http://"):
            raise AssertionError(f"no server: {line!r}, status {process.wait(10)}")
        url = line.split()[0]
        end = time.monotonic() + 60
        while httpx.get(f"{url}/readyz").status_code != 200:
            if time.monotonic() > end:
                raise AssertionError("the server was not ready in 60 s")
            time.sleep(0.05)
        yield Server(url, int(url.rpartition(":")[2]), process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def fake(seconds: float = 0.0, fail: str = "", **settings) -> list[str]:
    """The command of a server with a FakeService that takes `seconds`, or whose start fails with the UserError `fail`."""
    return [
        sys.executable,
        "-m",
        "tests.serve_process",
        json.dumps({"seconds": seconds, "fail": fail, "settings": settings}),
    ]


def main() -> int:
    from sam3lab.errors import UserError
    from sam3lab.serve.server import run
    from sam3lab.serve.settings import Settings
    from tests.fake_service import FakeService

    asked = json.loads(sys.argv[1])
    service = FakeService(asked["seconds"])
    service.ready = False
    service.requests = collections.deque(maxlen=1)  # a list of all would hold every photograph
    if asked["fail"]:

        def start():
            raise UserError(asked["fail"])

        service.start = start
    try:
        run(service, Settings(**asked["settings"]), "127.0.0.1", asked.get("port", 0), page=False)
    except UserError as error:
        print(f"refused: {error}", flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
