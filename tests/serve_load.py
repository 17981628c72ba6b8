"""A service under more load than it can take: what is sent, accepted and answered, how late, and what memory grows.

`python -m tests.serve_load --seconds 60` does it for a minute, with a fallback or with `--fallback none` without.
"""

import argparse
import json
import os
import signal
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import psutil

from sam3lab.serve.request import FLOOR, Busy, NotReady, Request
from sam3lab.serve.service import Service
from sam3lab.serve.spec import EngineSpec, Limits

PROMPTS = ("circle", "red star", "blue square", "small green heart")


@dataclass
class Load:
    """What became of the requests. errors: by the name of their class; seconds: of each that was answered."""

    sent: int = 0
    accepted: int = 0
    rejected: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    engines: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    longest_silence: float = 0.0

    @property
    def answered(self) -> int:
        return len(self.seconds)

    def counts(self) -> dict:
        names = ("sent", "accepted", "rejected", "answered", "errors", "engines")
        return {name: getattr(self, name) for name in names}

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.seconds, q)) if self.seconds else float("nan")


class Clients:
    """Sends requests of many images at random moments, as many do that know nothing of each other."""

    def __init__(self, service: Service, timeout: float, seed: int = 0):
        self._service, self._timeout, self._random = service, timeout, np.random.default_rng(seed)
        self._photographs = self._random.integers(0, 256, (40, 200, 240, 3), dtype=np.uint8)
        self._lock = threading.Lock()

    def run(self, rate: float, seconds: float) -> Load:
        """`rate` requests a second for so long; returns when the last one that was accepted has ended."""
        load, pending, last = Load(), [], [time.monotonic()]
        end = moment = time.monotonic()
        end += seconds
        while moment < end:
            time.sleep(max(0.0, moment - time.monotonic()))
            self._send(load, pending, last)
            moment += self._random.exponential(1 / rate)
        for future in pending:
            future.exception(timeout=2 * self._timeout)  # waits; raises where it never ends
        return load

    def capacity(self, seconds: float = 3.0) -> float:
        """Requests a second that it answers when some always wait."""
        end, futures, count = time.monotonic() + seconds, [], 0
        while time.monotonic() < end:
            while len(futures) < 12:
                futures.append(self._service.submit(self._request(timeout=60.0)))
            futures.pop(0).result()
            count += 1
        for future in futures:
            future.result()
        return count / seconds

    def _request(self, timeout: float) -> Request:
        image, prompt = self._random.integers(len(self._photographs)), self._random.choice(PROMPTS)
        return Request(self._photographs[image], (str(prompt),), FLOOR, timeout=timeout)

    def _send(self, load: Load, pending: list, last: list[float]) -> None:
        load.sent += 1
        began = time.monotonic()
        try:
            self._service.check_admission()
            future = self._service.submit(self._request(self._timeout))
        except (Busy, NotReady):
            load.rejected += 1
            return
        load.accepted += 1

        def ended(future):
            took = time.monotonic() - began
            with self._lock:
                if error := future.exception():
                    name = type(error).__name__
                    load.errors[name] = load.errors.get(name, 0) + 1
                else:
                    load.seconds.append(took)
                    engine = future.result().engine
                    load.engines[engine] = load.engines.get(engine, 0) + 1
                    load.longest_silence = max(load.longest_silence, time.monotonic() - last[0])
                    last[0] = time.monotonic()

        future.add_done_callback(ended)
        pending.append(future)
        if len(pending) > 1000:
            pending[:] = [future for future in pending if not future.done()]


def resident() -> float:
    """MB of this process and its children."""
    own = psutil.Process()
    return sum(process.memory_info().rss for process in (own, *own.children(recursive=True))) / 1e6


def overload(service: Service, seconds: float, factor: float = 10.0, timeout: float = 5.0) -> dict:
    """`factor` times what the service can take, for so long, after a while of the same that fills caches and pools."""
    clients = Clients(service, timeout)
    capacity = clients.capacity()
    clients.run(factor * capacity, min(10.0, max(4.0, seconds / 3)))
    before = resident()
    load = clients.run(factor * capacity, seconds)
    return {
        "capacity": round(capacity, 1),
        **load.counts(),
        "p50": round(load.percentile(50), 3),
        "p95": round(load.percentile(95), 3),
        "deadline": timeout,
        "resident_mb": round(before, 1),
        "grown_mb": round(resident() - before, 1),
    }


def kill_under_load(service: Service, seconds: float, timeout: float = 8.0) -> dict:
    """kill -9 of the first engine's worker in the middle of a load that it can take."""
    clients = Clients(service, timeout)
    rate = clients.capacity(2.0) / 2
    pid = service.status()["engines"][service.engines[0]]["pid"]
    timer = threading.Timer(seconds / 2, os.kill, (pid, signal.SIGKILL))
    timer.start()
    load = clients.run(rate, seconds)
    timer.join()
    return {
        **load.counts(),
        "longest_silence": round(load.longest_silence, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--primary", default="onnxruntime")
    parser.add_argument("--fallback", default="openvino")
    args = parser.parse_args()
    fallback = None if args.fallback == "none" else EngineSpec(args.fallback)
    for what in (overload, kill_under_load):
        service = Service(EngineSpec(args.primary), fallback, Limits())
        service.start()
        try:
            print(what.__name__, json.dumps(what(service, args.seconds if what is overload else 12.0)), flush=True)
        finally:
            service.close()


if __name__ == "__main__":
    main()
