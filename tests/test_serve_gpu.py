"""Degradation on a real GPU: another process takes its memory, and gives it back."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from sam3lab import backends
from sam3lab.serve.request import Request
from sam3lab.serve.service import Service
from sam3lab.serve.spec import EngineSpec, Limits
from tests.test_serve_engine import until

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.alone,  # it takes all of its memory
]

PRIMARIES = [("pytorch", "fp16"), ("onnxruntime", "fp16")]


class Ballast:
    """Takes what memory the GPU has left, also what others give back, until it is let go."""

    def __enter__(self):
        self._pieces, self._stop = [], threading.Event()
        self._take()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self.free()

    def free(self):
        self._stop.set()
        self._thread.join()
        self._pieces.clear()
        torch.cuda.empty_cache()

    def _take(self):
        # the last is the most that torch does not take 20 MiB of the driver for, which would leave as much to others
        for size in (2**32, 2**30, 2**26, 2**20):
            try:
                while True:
                    self._pieces.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except RuntimeError:  # torch.OutOfMemoryError is one
                continue

    def _watch(self):
        while not self._stop.wait(0.02):
            self._take()


def fallback():
    for name in ("openvino", "onnxruntime", "pytorch"):
        if backends.get(name).unavailable("cpu", "fp32") is None:
            return EngineSpec(name, name="cpu")
    pytest.skip("no backend runs on this CPU")


@pytest.fixture
def start():
    running = []

    def make(name, precision, **limits):
        if reason := backends.get(name).unavailable("cuda", precision):
            pytest.skip(reason)
        primary = EngineSpec(name, precision=precision, device="cuda", name="gpu")
        limits = {"probe": 0.1, "recovery": 1.0, "images": 2, "pairs": 4} | limits
        service = Service(primary, fallback(), Limits(**limits))
        running.append(service)
        service.start()
        return service

    yield make
    for service in running:
        service.close()


def ask(service, seed, prompts=("circle",)):
    photograph = np.random.default_rng(seed).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    return service.submit(Request(photograph, prompts, timeout=60.0))


def test_out_of_memory_the_cpu_answers_and_the_gpu_again_when_there_is_some(start, monkeypatch):
    # each allocation is then one of the driver's, as are the first ones of any new shape or size
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    service = start("pytorch", "fp16")
    assert ask(service, 0).result(60).engine == "gpu"
    with Ballast():
        answers = [future.result(60) for future in [ask(service, seed) for seed in range(10)]]
        assert {answer.engine for answer in answers} == {"cpu"}
        assert {answer.reason for answer in answers} == {"gpu ran out of memory"}
        time.sleep(2.0)  # longer than it would take to be trusted again
        assert service.status()["engine"] == "cpu"
        detail = service.status()["engines"]["gpu"]["detail"]
        assert "out of memory" in detail, detail
    assert until(lambda: service.status()["engine"] == "gpu", 30.0)
    answer = ask(service, 0).result(60)
    assert (answer.engine, answer.reason) == ("gpu", "")
    counts = service.counters()
    assert counts["requests_answered"] == counts["requests_accepted"] == 12
    assert counts["worker_restarts"] == 0  # memory that is short is no reason to load anew


@pytest.mark.parametrize(("name", "precision"), PRIMARIES)
def test_a_worker_that_finds_no_memory_to_load_into_is_replaced_until_it_does(start, name, precision):
    service = start(name, precision)
    assert ask(service, 0).result(60).engine == "gpu"
    with Ballast():
        os.kill(service.status()["engines"]["gpu"]["pid"], signal.SIGKILL)
        assert until(lambda: service.status()["engine"] == "cpu", 30.0)
        answers = [future.result(60) for future in [ask(service, seed) for seed in range(5)]]
        assert {answer.engine for answer in answers} == {"cpu"} and all(answer.reason for answer in answers)
        assert until(lambda: service.status()["engines"]["gpu"]["reason"] == "could not be loaded", 60.0)
    assert until(lambda: service.status()["engine"] == "gpu", 60.0)
    assert ask(service, 0).result(60).engine == "gpu"


@pytest.mark.parametrize(("name", "precision"), PRIMARIES)
def test_kept_features_are_let_go_before_a_request_fails(start, name, precision):
    service = start(name, precision, image_entries=1000)
    with Ballast():
        answers = [ask(service, seed).result(60) for seed in range(60)]
    assert len(answers) == 60 and {answer.engine for answer in answers} <= {"gpu", "cpu"}
    assert answers[0].engine == "gpu"


@pytest.mark.parametrize(
    ("name", "precision"), [*PRIMARIES, pytest.param("pytorch-compiled", "fp16", marks=pytest.mark.slow)]
)
def test_no_request_waits_for_a_capture_or_a_compilation(start, name, precision):
    service = start(name, precision, timeout=600.0)
    random, times = np.random.default_rng(0), []
    for _ in range(60):
        futures = [
            ask(
                service, int(random.integers(20)), tuple(f"thing {n}" for n in random.choice(40, random.integers(1, 7)))
            )
            for _ in range(random.integers(1, 4))
        ]
        for future in futures:
            answer = future.result(60)
            assert answer.engine == "gpu"
            times.append(sum(answer.milliseconds[stage] for stage in ("image", "text", "detect")))
    assert max(times) < 10 * np.median(times) + 50, sorted(times)[-5:]
