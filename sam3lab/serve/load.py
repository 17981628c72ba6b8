"""Load on a service: `python -m sam3lab.serve.load FD PARENT`, a process of its own that Locust drives.

It is told what to send and to whom (Target), answers "ready", then takes one phase after the other, each answered with
when it began and a record of every request. Arrivals do not wait for answers (an open loop, see Poisson): a slow service
is asked as often as a quick one, and latency counts from when a request was due, not from when it could be sent.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from sam3lab.bench import child

PATIENCE = 60.0  # seconds that the last requests of a phase are waited for
STOP = "stop"  # ends a phase before its time
_STAGES = ("queue", "preprocess", "image", "text", "detect", "download", "decode", "postprocess", "total")
_SETTING_UP = 0.2  # seconds from the order to the begin of a phase
_LOOK = 0.05  # seconds between two looks whether a phase is to end


@dataclass(frozen=True)
class Target:
    """Where requests go, and the bodies that they have in turn, each with its content type."""

    url: str
    bodies: tuple[tuple[bytes, str], ...]


@dataclass(frozen=True)
class Closed:
    """So many users for so many seconds, each of whom asks again as soon as an answer is there."""

    users: int
    seconds: float


@dataclass(frozen=True)
class Poisson:
    """Arrivals at a mean rate, per second, for so many seconds, whatever becomes of the requests before."""

    rate: float
    seconds: float
    seed: int


def arrivals(phase: Poisson) -> list[float]:
    """Seconds from the phase's begin to each arrival: gaps are exponential, and equal seeds give equal arrivals."""
    rng, times, moment = np.random.default_rng(phase.seed), [], 0.0
    while (moment := moment + rng.exponential(1 / phase.rate)) < phase.seconds:
        times.append(moment)
    return times


def record(at: float, latency: float, status: int, content: bytes | None) -> dict[str, Any]:
    """What is kept of a request. at: when it was due, in seconds; latency: seconds; status: 0 where no answer came."""
    found: dict[str, Any] = {"at": at, "latency": 1000 * latency, "status": status}
    if status != 200 or not content:
        return found
    answer = json.loads(content)
    found |= {name: answer["milliseconds"][name] for name in _STAGES if name in answer["milliseconds"]}
    found |= {"engine": answer["engine"], "reason": answer["reason"], "batch": answer["batch"]}
    return found | {"cached_prompts": answer["cached"]["prompts"], "cached_image": answer["cached"]["image"]}


def main(fd: str, parent: str) -> None:
    """Serve until the parent hangs up."""
    child.tie_to_parent(int(parent))
    os.set_inheritable(int(fd), False)
    with Connection(int(fd)) as parent_end:
        users = _Users(parent_end.recv())
        parent_end.send("ready")
        while True:
            try:
                phase = parent_end.recv()
            except (EOFError, ConnectionError):
                return
            if phase != STOP:  # else one that came when its phase had ended
                parent_end.send(users.run(phase, parent_end))


class _Users:
    """Locust's users against one service."""

    def __init__(self, target: Target):
        import locust  # patches the standard library for gevent, so that nothing else of this process may come first

        locust.log.setup_logging("ERROR")
        self._target, self._next = target, count()

    def run(self, phase: Closed | Poisson, stop: Connection) -> tuple[float, list[dict[str, Any]]]:
        """(when it began, as time.monotonic tells; a record of every request, in the order in which they were due)."""
        import gevent
        from gevent.pool import Group
        from locust.env import Environment

        sent: list[tuple[float, float, int, bytes | None]] = []
        group, begin = Group(), time.monotonic() + _SETTING_UP

        def ask(client, due: float) -> None:
            body, kind = self._target.bodies[next(self._next) % len(self._target.bodies)]
            mine = len(sent)
            sent.append((due - begin, PATIENCE, 0, None))  # in case that no answer comes
            answer = client.post("/v1/segment", data=body, headers={"Content-Type": kind})
            sent[mine] = due - begin, time.monotonic() - due, answer.status_code or 0, answer.content

        make = _arriving(phase, begin, ask, group) if isinstance(phase, Poisson) else _asking(phase, begin, ask)
        environment = Environment(user_classes=[make], host=self._target.url)
        runner = environment.create_local_runner()
        users = phase.users if isinstance(phase, Closed) else 1
        runner.start(users, spawn_rate=users)
        runner.spawning_greenlet.join()
        while runner.user_count and not stop.poll():
            gevent.sleep(_LOOK)
        if stop.poll():
            stop.recv()
        runner.stop()
        group.join(PATIENCE)
        group.kill()
        runner.quit()
        return begin, [record(*each) for each in sorted(sent, key=lambda each: each[0])]


def _arriving(phase: Poisson, begin: float, ask, group) -> type:
    """A user who sends each request in a greenlet of its own, when it is due."""
    import gevent
    from locust import FastHttpUser, task
    from locust.exception import StopUser

    due = iter(arrivals(phase))

    class Arrivals(FastHttpUser):
        concurrency = 1_000_000  # connections: requests are not to wait for each other here
        network_timeout = connection_timeout = PATIENCE

        def on_start(self) -> None:
            gevent.sleep(self.wait_time())

        def wait_time(self) -> float:
            """Seconds to the next arrival, counted from the phase's begin, so that no lateness adds up."""
            self.moment = next(due, None)
            return 0.0 if self.moment is None else max(0.0, begin + self.moment - time.monotonic())

        @task
        def arrive(self) -> None:
            if self.moment is None:
                raise StopUser
            group.spawn(ask, self.client, begin + self.moment)

    return Arrivals


def _asking(phase: Closed, begin: float, ask) -> type:
    """A user who asks, waits for the answer, and asks again."""
    import gevent
    from locust import FastHttpUser, constant, task
    from locust.exception import StopUser

    class Asks(FastHttpUser):
        wait_time = constant(0)
        network_timeout = connection_timeout = PATIENCE

        def on_start(self) -> None:
            gevent.sleep(max(0.0, begin - time.monotonic()))

        @task
        def again(self) -> None:
            if time.monotonic() >= begin + phase.seconds:
                raise StopUser
            ask(self.client, time.monotonic())

    return Asks


def bodies(url: str, questions: Sequence[tuple[bytes, Sequence[str]]]) -> tuple[tuple[bytes, str], ...]:
    """Requests to a service, each an image file and its prompts, encoded as forms with their content types."""
    import httpx

    made = [
        httpx.Request("POST", url, files={"image": ("image", file)}, data={"prompt": list(prompts)})
        for file, prompts in questions
    ]
    return tuple((request.read(), request.headers["Content-Type"]) for request in made)


if __name__ == "__main__":
    from sam3lab.serve import load  # not this module under its other name, whose classes are not those that come

    child.guard(load.main, *sys.argv[1:])
