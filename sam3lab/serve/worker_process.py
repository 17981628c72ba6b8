"""A worker seen from the server: the process, and a thread that reads what it says."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from multiprocessing.connection import Connection, Pipe
from typing import Any

from sam3lab.bench.process import child_environment
from sam3lab.cores import available_cores

_BUFFER = 4 * 2**20  # bytes; the pixels of an image and the masks of one fit in, so that neither side waits in between


class WorkerProcess:
    """Starts a worker. `replies`: what it said and no one took yet; `gone`: whether it has ended or hung up.

    Both change under the condition `changed`, which is then notified. It dies with the thread that started it, and with
    this process. It is a session of its own, so that a Ctrl-C in the terminal leaves it to finish what it holds.
    """

    def __init__(self, name: str, threads: int, changed: threading.Condition):
        self._changed = changed
        self.replies: deque[tuple] = deque()
        self.gone = self._ended = False
        self._connection, theirs = Pipe()
        _widen(self._connection)
        _widen(theirs)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sam3lab.serve.worker", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what runtimes print goes to the log
                env=child_environment(threads or available_cores(), offline=True),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name=f"sam3lab-{name}-reader", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Any) -> bool:
        """Whether it could be sent; that it was read is for the worker to say."""
        try:
            self._connection.send(message)
        except (OSError, ValueError):  # it hung up, or `kill` ended it in the meantime
            return False
        return True

    def reply(self) -> tuple | None:
        """What it says next, waited for; None where it ends without."""
        with self._changed:
            self._changed.wait_for(lambda: self.replies or self.gone)
            return self.replies.popleft() if self.replies else None

    def kill(self, stacks: bool = False) -> None:
        """End it and all it started, whatever it is doing. stacks: let it write where its threads are to the log first."""
        with self._changed:
            if self._ended:  # its number may be another's by now
                return
            if stacks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGUSR1)
        if stacks:
            time.sleep(0.1)
        with self._changed:
            if not self._ended:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)

    def end(self, grace: float = 2.0) -> str:
        """Hang up, give it `grace` seconds to end by itself, end it, and say how it ended. To be called once."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as pair:
            pair.shutdown(socket.SHUT_RDWR)  # what the reader waits in returns, which a mere closing would not do
        deadline = time.monotonic() + grace
        # Left unreaped, so that the number of its process group cannot be given away before that is killed.
        while not os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.kill()
        with self._changed:
            self._ended = True
        code = self._process.wait()
        self._reader.join()
        self._connection.close()
        return _how(code)

    def _read(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except Exception:  # the end of the pipe, or what a process leaves that is killed while it writes
                message = None
            with self._changed:
                if message is None:
                    self.gone = True
                else:
                    self.replies.append(message)
                self._changed.notify_all()
            if message is None:
                return


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


def _widen(end: Connection) -> None:
    """Have the kernel hold more of what is sent from here, as far as it allows that."""
    with socket.socket(fileno=os.dup(end.fileno())) as pair:
        pair.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
