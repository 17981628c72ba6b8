"""The bars of a service under load, on the real model with as little time as shows them; see tests.serve_load for more."""

import pytest

from sam3lab.serve.service import Service
from sam3lab.serve.spec import EngineSpec, Limits
from tests.serve_load import Clients, kill_under_load, overload

pytestmark = pytest.mark.alone


@pytest.fixture
def start():
    running = []

    def make(fallback=None):
        running.append(Service(EngineSpec("onnxruntime"), fallback and EngineSpec(fallback), Limits()))
        running[-1].start()
        return running[-1]

    yield make
    for service in running:
        service.close()


def test_at_ten_times_capacity_everyone_is_answered_or_refused_and_memory_stays(start):
    service = start()
    result = overload(service, seconds=8.0)
    assert result["accepted"] + result["rejected"] == result["sent"], result
    assert result["sent"] > 6 * result["capacity"] * 8.0 and result["rejected"] > 0, result
    assert result["answered"] == result["accepted"] and result["errors"] == {}, result
    assert result["p95"] <= result["deadline"], result
    assert result["grown_mb"] < 50, result
    counts = service.counters()
    ended = ("answered", "failed", "cancelled", "late", "worker_lost")
    assert counts["requests_accepted"] == sum(counts[f"requests_{outcome}"] for outcome in ended)
    assert counts["batched_requests"] > 1.5 * counts["batches"]


@pytest.mark.parametrize("fallback", [None, "openvino"])
def test_kill_9_under_load_costs_a_batch_at_most_and_answers_come_again_within_5_s(start, fallback):
    service = start(fallback)
    result = kill_under_load(service, seconds=5.0)
    lost = result["errors"].pop("WorkerLost", 0)
    assert lost <= Limits().images and result["errors"] == {}, result
    assert result["answered"] + lost == result["accepted"] and result["rejected"] == 0, result
    assert result["longest_silence"] < 5.0, result
    assert service.counters()["worker_restarts"] == 1


@pytest.mark.parametrize("batching", [False, True])
def test_a_device_whose_next_batch_is_there_already_does_more(batching):
    rates = []
    for ahead in (0, 1):
        spec = EngineSpec("tests.serve_faults:Device", resolution=1008, ahead=ahead)
        service = Service(spec, limits=Limits(batching=batching, image_entries=0, prompt_entries=0))
        service.start()
        try:
            rates.append(Clients(service, timeout=30.0).capacity(2.5))
        finally:
            service.close()
    assert rates[1] > 1.1 * rates[0], rates
