"""An engine's process: `python -m sam3lab.serve.worker FD PARENT`, over a pair of connected sockets.

It is told what to load (Order), answers ("ready", facts) or ("failed", kind, reason), then serves until its parent hangs
up: ("batch", Batch) is answered ("taken",) when it is taken up and ("batch", outcomes, counts) when done, ("trial",) is
answered ("trial", Failure or None). All of it is pickled, which is safe between a process and the one that started it, and
which threads of their own do: the device need not wait while an answer of megabytes leaves and the next batch arrives.
"""

import contextlib
import os
import sys
import threading
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue

import numpy as np

from sam3lab import backends
from sam3lab.bench import child
from sam3lab.errors import UserError
from sam3lab.model.checkpoint import fingerprint
from sam3lab.model.tokenizer import load_tokenizer
from sam3lab.serve import failures
from sam3lab.serve.batch import Batch, Failure
from sam3lab.serve.caches import LruCache
from sam3lab.serve.computing import Computer, Kept
from sam3lab.serve.messages import Facts, Order
from sam3lab.serve.sizes import Sizes

_NEEDED = ("fetch", "gather", "nbytes")  # of a backend's methods, what older ones outside of this package may lack
# Calls of each shape before the first request. On a GPU: those that a backend's graphs need until they settle, whatever
# memory their inputs lie in, see backends.plans.
_ROUNDS = {"cpu": 2, "cuda": 6}


def main(fd: str, parent: str) -> None:
    """Serve until the parent hangs up."""
    child.tie_to_parent(int(parent))
    os.set_inheritable(int(fd), False)
    with Connection(int(fd)) as parent_end:
        order = parent_end.recv()
        try:
            worker = _Worker(order)
        except Exception as error:
            kind = failures.classify(error)
            parent_end.send(("failed", kind, str(error) if isinstance(error, UserError) else failures.describe(error)))
            if not isinstance(error, UserError):
                raise  # the log tells where
            return
        parent_end.send(("ready", worker.facts))
        _serve(worker, parent_end)
        worker.close()


def _serve(worker: "_Worker", parent_end: Connection) -> None:
    """Answer all that arrives, until the parent hangs up."""
    inbox, outbox, speaking = SimpleQueue(), SimpleQueue(), threading.Lock()

    def receive() -> None:
        try:
            while True:
                inbox.put(parent_end.recv())
        except (EOFError, ConnectionError):
            pass
        finally:
            inbox.put(None)

    def say(message: tuple) -> None:
        with speaking, contextlib.suppress(OSError, ValueError):  # it has hung up, of which `receive` tells
            parent_end.send(message)

    def send() -> None:
        while (message := outbox.get()) is not None:
            say(message)
            del message

    sender = threading.Thread(target=send, daemon=True)
    for thread in (threading.Thread(target=receive, daemon=True), sender):
        thread.start()
    message, answer = inbox.get(), None
    while message is not None:
        if message[0] == "batch":
            # said from here, before it is begun, which may end this process; and before the last answer, of megabytes
            say(("taken",))
        if answer is not None:
            outbox.put(answer)
        answer = worker.answer(message)
        del message  # its pixels, while the next is waited for
        try:
            message = inbox.get_nowait()
        except Empty:
            outbox.put(answer)
            answer, message = None, inbox.get()
    if answer is not None:
        outbox.put(answer)
    outbox.put(None)
    sender.join()


class _Worker:
    """A loaded backend, warmed up."""

    def __init__(self, order: Order):
        kind, artifacts, limits = backends.get(order.backend), order.artifacts, order.limits
        if reason := kind.unavailable(artifacts.device, artifacts.precision):
            raise UserError(
                f"the backend {order.backend} cannot run {artifacts.precision} on {artifacts.device}: {reason}"
            )
        absent = [name for name in _NEEDED if not hasattr(kind, name)]
        if absent:
            raise UserError(f"the backend {order.backend} cannot be served: it lacks {', '.join(absent)}")
        sha256 = fingerprint(artifacts.checkpoint)
        artifacts = artifacts if order.prepared else kind.prepare(artifacts)
        self._backend = kind()
        self._backend.load(artifacts)
        padded = getattr(kind, "compiles", False) or artifacts.device != "cpu"
        sizes = Sizes(limits.images, limits.pairs, padded)
        kept = Kept(
            LruCache(limits.image_entries, limits.image_bytes), LruCache(limits.prompt_entries, limits.prompt_bytes)
        )
        key = sha256, artifacts.precision, artifacts.resolution
        self._computer = Computer(self._backend, sizes, key, kept, limits.candidates)
        self._ids, self._mask = load_tokenizer(artifacts.checkpoint).encode(["a thing"])
        random = np.random.default_rng(0)
        self._pixels = random.integers(0, 256, (1, 3, artifacts.resolution, artifacts.resolution), dtype=np.uint8)
        seconds = [self._warm_up(size, _ROUNDS.get(artifacts.device, 6)) for size in sizes.warm()]
        # what an unpadded engine was not warmed up with takes longer, at most in proportion
        most = seconds[-1] * limits.images * limits.pairs / np.prod(sizes.warm()[-1])
        self.facts = Facts(artifacts, sha256, seconds[0], float(most))

    def answer(self, message: tuple) -> tuple:
        if message[0] == "trial":
            return "trial", self._trial()
        batch: Batch = message[1]
        outcomes = self._computer.run(batch)
        return "batch", outcomes, self._computer.counts()

    def close(self) -> None:
        self._backend.close()

    def _warm_up(self, size: tuple[int, int], rounds: int) -> float:
        """Seconds of the last of the rounds."""
        return [self._computer.trial(*size, self._ids, self._mask, self._pixels) for _ in range(rounds)][-1]

    def _trial(self) -> Failure | None:
        try:
            self._computer.trial(1, 1, self._ids, self._mask, self._pixels)
        except Exception as error:
            return Failure(failures.classify(error), failures.describe(error))
        return None


if __name__ == "__main__":
    child.guard(main, *sys.argv[1:])
