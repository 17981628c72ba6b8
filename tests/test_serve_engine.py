"""The service as its users see it, with real worker processes; most of them run a backend that fails when it is told to."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest

from sam3lab.backends import Artifacts
from sam3lab.bench.process import child_environment
from sam3lab.errors import UserError
from sam3lab.model.checkpoint import resolve
from sam3lab.scenes.store import load_split
from sam3lab.segment import segment
from sam3lab.serve.request import Busy, Late, NotReady, Request, ServiceError, WorkerLost
from sam3lab.serve.service import Service
from sam3lab.serve.spec import EngineSpec, Limits
from tests.serve_faults import VARIABLE, hung

QUICK = EngineSpec("tests.serve_faults:Quick", name="quick")
SLOW = EngineSpec("tests.serve_faults:Slow", name="slow")
STEADY = EngineSpec("tests.serve_faults:Steady", name="steady")
# trust comes back within a test's patience
BRIEF = {"probe": 0.05, "probes": 3, "recovery": 0.5, "recovery_most": 2.0, "hang": 1.5}


@pytest.fixture
def fault(tmp_path, monkeypatch):
    """Call it with what the faulty backends are to do from now on; empty: their work."""
    path = tmp_path / "fault"
    monkeypatch.setenv(VARIABLE, str(path))
    path.write_text("")
    return path.write_text


@pytest.fixture
def start(fault):
    """Starts services, and closes them after the test."""
    running = []

    def make(primary=QUICK, fallback=None, **limits):
        service = Service(primary, fallback, Limits(**BRIEF | limits))
        running.append(service)
        service.start()
        return service

    yield make
    for service in running:
        service.close()


def photograph(seed=0, side=64):
    return np.random.default_rng(seed).integers(0, 256, (side, side + 8, 3), dtype=np.uint8)


def ask(service, seed=0, prompts=("circle",), **fields):
    return service.submit(Request(photograph(seed), prompts, **fields))


def until(condition, seconds=10.0):
    """Waits for a condition; whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def state(service, name):
    return service.status()["engines"][name]["state"]


def kill(service, name):
    os.kill(service.status()["engines"][name]["pid"], signal.SIGKILL)


def gained(service, before, *names):
    now = service.counters()
    return tuple(now[name] - before[name] for name in names)


# What it answers


@pytest.fixture(scope="module")
def real():
    service = Service(EngineSpec("onnxruntime"))
    service.start()
    yield service
    service.close()


def test_it_finds_what_segment_finds(real):
    scene = load_split("test")[0]
    prompts = tuple(prompt.text for prompt in scene.prompts[:3])
    artifacts = Artifacts(resolve("sam3-nano"), 252)
    expected = segment(scene.image, list(prompts), "onnxruntime", artifacts, 0.5).found
    answer = real.submit(Request(scene.image, prompts)).result(30)
    found = answer.detections(0.5)
    assert [prompt for prompt, _ in found] == list(prompts) == [prompt for prompt, _ in expected]
    assert sum(len(each) for _, each in found) > 0
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.05)
        assert np.mean(ours.masks != theirs.masks) < 1e-3 if len(theirs) else not len(ours)
    assert (answer.engine, answer.reason, answer.size, answer.batch) == ("onnxruntime", "", scene.image.shape[:2], 1)
    assert list(answer.milliseconds) == ["queue", "preprocess", "image", "text", "detect", "download"]
    assert all(value >= 0 for value in answer.milliseconds.values())


def test_a_cached_prompt_skips_the_text_stage_and_a_cached_image_the_image_stage(real):
    stages = "image_stage_calls", "text_stage_calls", "detect_stage_calls"
    first = real.counters()
    answer = ask(real, 1, ("green heart",)).result(30)
    assert gained(real, first, *stages) == (1, 1, 1)
    assert (answer.cached_prompts, answer.cached_image) == (0, False)
    second = real.counters()
    answer = ask(real, 2, ("green heart",)).result(30)
    assert gained(real, second, *stages) == (1, 0, 1)
    assert (answer.cached_prompts, answer.cached_image) == (1, False)
    third = real.counters()
    answer = ask(real, 2, ("green heart", "ring")).result(30)
    assert gained(real, third, *stages) == (0, 1, 1)
    assert (answer.cached_prompts, answer.cached_image) == (1, True)
    assert gained(real, first, "text_cache_hits", "text_cache_misses", "image_cache_hits", "image_cache_misses") == (
        (2, 2, 1, 2)
    )
    caches = real.status()["engines"]["onnxruntime"]["caches"]
    assert caches["text"]["entries"] >= 2 and caches["image"]["bytes"] > caches["text"]["bytes"] > 0


def test_both_caches_can_be_off(start):
    service = start(prompt_entries=0, image_entries=0)
    for _ in range(2):
        answer = ask(service).result(10)
        assert (answer.cached_prompts, answer.cached_image) == (0, False)
    counts = service.counters()
    assert (counts["image_stage_calls"], counts["text_stage_calls"]) == (2, 2)
    assert counts["text_cache_hits"] == counts["text_cache_misses"] == counts["image_cache_misses"] == 0


def test_requests_that_wait_together_are_served_together_and_their_image_is_encoded_once(start):
    service = start(SLOW, queue=9)
    before = service.counters()
    first = ask(service, 0)
    assert until(lambda: state(service, "slow") and service.status()["engines"]["slow"]["held"] == 1)
    same = [ask(service, 1, prompts) for prompts in (("circle",), ("star",), ("circle", "ring"))]
    answers = [future.result(10) for future in (first, *same)]
    assert [answer.batch for answer in answers] == [1, 3, 3, 3]
    assert gained(service, before, "images_encoded", "prompts_encoded", "pairs_detected", "batches") == (2, 3, 4, 2)
    assert [len(answer.candidates) for answer in answers] == [1, 1, 1, 2]


def test_without_batching_each_request_is_a_batch(start):
    service = start(SLOW, batching=False)
    answers = [future.result(10) for future in [ask(service, 1) for _ in range(3)]]
    assert [answer.batch for answer in answers] == [1, 1, 1]
    assert service.counters()["batches"] == 3


def test_a_request_with_more_prompts_than_a_call_takes_has_them_all_answered(start):
    service = start(pairs=4)
    prompts = tuple(f"thing {number}" for number in range(11))
    answer = ask(service, 0, prompts).result(10)
    assert answer.prompts == prompts and len(answer.candidates) == 11
    counts = service.counters()
    assert (counts["image_stage_calls"], counts["text_stage_calls"], counts["detect_stage_calls"]) == (1, 3, 3)


def test_a_backend_that_compiles_is_called_in_warmed_shapes_only(start, tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    monkeypatch.setenv("SAM3LAB_TEST_CALLS", str(calls))
    service = start(EngineSpec("tests.serve_faults:Remembers", name="remembers"), images=4, pairs=8)
    warmed = set(calls.read_text().splitlines())
    calls.write_text("")
    random = np.random.default_rng(0)
    for _ in range(12):
        asked = [
            (int(random.integers(8)), tuple(f"thing {n}" for n in random.choice(30, random.integers(1, 12), False)))
            for _ in range(random.integers(1, 7))
        ]
        for future in [ask(service, *each) for each in asked]:
            future.result(10)
    assert set(calls.read_text().splitlines()) <= warmed
    assert len(warmed) < 16


# What it refuses


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompts": ()}, "there is no prompt"),
        ({"prompts": (" ",)}, "is empty"),
        ({"prompts": ("word " * 40,)}, "at most 32"),
        ({"engine": "tensorrt"}, "no engine is called 'tensorrt'; there are onnxruntime"),
        ({"score_threshold": float("nan")}, "nan"),
        ({"score_threshold": 1.5}, r"1\.5"),
        ({"timeout": 0.0}, r"timeout 0\.0"),
        ({"timeout": float("inf")}, "timeout inf"),
        ({"photograph": np.zeros((4, 4), np.uint8)}, "an image is uint8"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_reason(real, fields, said):
    with pytest.raises(UserError, match=said):
        real.submit(Request(**{"photograph": photograph(), "prompts": ("circle",)} | fields))


def test_a_full_queue_answers_at_once_with_an_honest_time(start):
    service = start(SLOW, queue=3, batching=False, wait=0.0)
    ask(service, 99).result(10)
    accepted = []
    with pytest.raises(Busy, match="requests are waiting already") as caught:
        for seed in range(10):
            accepted.append(ask(service, seed))
    began = time.monotonic()
    with pytest.raises(Busy):
        service.check_admission()
    assert time.monotonic() - began < 0.05
    assert len(accepted) in (3, 4)  # and the one that the worker has
    for future in accepted:
        future.result(10)
    took = time.monotonic() - began
    assert 0.4 * took < caught.value.retry_after < 2.5 * took
    service.check_admission()
    counts = service.counters()
    assert (counts["requests_accepted"], counts["requests_answered"], counts["requests_busy"]) == (
        (1 + len(accepted), 1 + len(accepted), 2)
    )


def test_a_late_request_is_told_so_in_time_and_never_run(start, fault):
    service = start(SLOW, batching=False)
    before = service.counters()
    fault("slow")  # more than half a second for a request, which nobody expects yet
    running = ask(service, 0)
    assert until(lambda: service.status()["engines"]["slow"]["held"] == 1)
    began = time.monotonic()
    late = ask(service, 1, timeout=0.4)
    with pytest.raises(Late, match=r"no engine answered within 0\.4 s"):
        late.result(10)
    assert 0.35 < time.monotonic() - began < 0.6
    running.result(10)
    ask(service, 2).result(10)
    assert gained(service, before, "pairs_detected", "requests_late", "requests_answered") == (2, 1, 2)


def test_a_request_that_could_not_be_answered_in_time_is_refused_at_once(start):
    service = start(SLOW, batching=False)
    ask(service).result(10)
    waiting = [ask(service, seed) for seed in range(6)]
    with pytest.raises(Busy, match=r"would be answered in about .* s, and may take 0\.2 s") as caught:
        ask(service, 7, timeout=0.2)
    assert caught.value.retry_after > 0.2
    for future in waiting:
        future.result(10)


def test_a_running_request_is_answered_late_when_its_time_is_out(start, fault):
    service = start(hang=10.0)
    fault("hang")
    began = time.monotonic()
    with pytest.raises(Late):
        ask(service, timeout=0.5).result(10)
    assert time.monotonic() - began < 1.0
    kill(service, "quick")


def test_a_cancelled_request_is_dropped(start):
    service = start(SLOW, batching=False)
    before = service.counters()
    running = ask(service, 0)
    assert until(lambda: service.status()["engines"]["slow"]["held"] == 1)
    gone = ask(service, 1)
    assert gone.cancel() and not running.cancel()
    assert service.status()["queued"] == 0
    running.result(10)
    ask(service, 2).result(10)
    assert gained(service, before, "pairs_detected", "requests_cancelled", "requests_answered") == (2, 1, 2)


def test_a_full_queue_says_when_the_engine_that_is_asked_for_may_be_back(start):
    service = start(SLOW, STEADY, queue=2, batching=False, wait=0.0)
    for name in ("slow", "steady"):
        ask(service, engine=name).result(10)
    waiting = [ask(service, 0)]
    assert until(lambda: service.status()["engines"]["slow"]["held"] == 1)
    waiting += [ask(service, seed) for seed in (1, 2)]
    expected = []
    for name in ("", "slow", "steady"):
        with pytest.raises(Busy) as caught:
            ask(service, 9, engine=name)
        expected.append(caught.value.retry_after)
    assert expected[0] > 0.1 and expected[1] > 0.1 > expected[2], expected
    for future in waiting:
        future.result(10)


def test_a_full_queue_while_the_engine_is_started_again_says_when_it_may_be_back(start):
    service = start(QUICK, queue=2)
    ask(service).result(10)
    kill(service, "quick")
    assert until(lambda: state(service, "quick") == "restarting")
    waiting = [ask(service, seed) for seed in range(2)]
    with pytest.raises(Busy, match=r"^2 requests are waiting already$") as caught:
        ask(service, 3)
    assert caught.value.retry_after >= 1.0 and service.status()["expected_wait"] >= 1.0
    for future in waiting:
        future.result(10)


def test_an_engine_can_be_asked_for_by_name(start, fault):
    service = start(QUICK, STEADY)
    answer = ask(service, engine="steady").result(10)
    assert (answer.engine, answer.reason) == ("steady", "")
    fault("raise")
    with pytest.raises(ServiceError, match=r"^the request was not answered: quick failed$") as caught:
        ask(service, engine="quick").result(10)
    assert caught.value.retry_after is None  # it is as likely the request's own doing
    fault("memory")
    ask(service).result(10)
    with pytest.raises(NotReady, match="quick ran out of memory"):
        ask(service, engine="quick")


# A worker that has its next batch there when it ends one


def test_the_next_batch_is_sent_before_the_last_one_is_done_and_no_more_than_that(start):
    service = start(replace(SLOW, ahead=1), batching=False, image_entries=0, prompt_entries=0)
    ask(service).result(10)
    futures = [ask(service, seed) for seed in range(6)]
    assert until(lambda: service.status()["engines"]["slow"]["held"] == 2)
    assert service.status()["queued"] == 4 and service.status()["expected_wait"] > 4 * 0.15
    answers = [future.result(10) for future in futures]
    assert [answer.batch for answer in answers] == [1] * 6
    queued = [answer.milliseconds["queue"] for answer in answers]
    assert sorted(queued) == queued and queued[1] > 100  # what it waited in the worker is no time of a stage
    pace = service.status()["engines"]["slow"]["seconds_a_request"]
    assert 0.14 < pace < 0.25  # of one after the other, not of both since they were sent


def test_on_a_cpu_requests_wait_together_and_on_a_gpu_the_next_batch_is_there():
    assert (QUICK.ahead, EngineSpec("onnxruntime", device="cuda").ahead) == (0, 1)
    assert EngineSpec("onnxruntime", device="cuda", ahead=0).ahead == 0


def test_each_request_gets_its_own_answer_however_many_batches_are_underway(real):
    service = Service(EngineSpec("onnxruntime", ahead=2), limits=Limits(images=2, image_entries=0))
    service.start()
    try:
        scenes, prompts = load_split("test")[:12], ("circle", "star", "square")
        requests = [Request(scene.image, (prompts[i % 3],)) for i, scene in enumerate(scenes)] * 2
        futures = [service.submit(request) for request in requests]
        for request, future in zip(requests, futures, strict=True):
            one, other = future.result(30).candidates[0], real.submit(request).result(30).candidates[0]
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-3, atol=1e-4)
            assert len(one.masks) == len(other.masks) == len(one.scores)
    finally:
        service.close()


def test_a_lost_device_costs_those_behind_nothing_where_there_is_no_other_engine(start, fault):
    service = start(replace(QUICK, ahead=1), batching=False)
    ask(service).result(10)
    fault("device")
    first = ask(service)
    with pytest.raises(ServiceError, match="quick lost its device"):
        first.result(10)
    behind = [ask(service, seed) for seed in range(3)] if service.ready else []
    fault("")
    outcomes = [future.exception(10) for future in behind]
    assert sum(outcome is not None for outcome in outcomes) <= 1  # what was begun before it was mended
    assert until(lambda: state(service, "quick") == "ready") and ask(service).result(10).engine == "quick"


def test_closing_with_batches_underway_answers_all(start):
    service = start(replace(SLOW, ahead=1), batching=False)
    futures = [ask(service, seed) for seed in range(5)]
    assert until(lambda: service.status()["engines"]["slow"]["held"] == 2)
    service.close()
    outcomes = [future.exception(0) for future in futures]
    assert outcomes[0] is None and all(isinstance(outcome, NotReady) for outcome in outcomes[2:])
    assert outcomes[1] is None or isinstance(outcomes[1], NotReady)


# Failures of the first engine


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("memory", "quick ran out of memory"),
        ("device", "quick lost its device"),
        ("raise", "quick failed"),
        ("nan", "quick failed"),
        ("hang", r"quick did not answer within 1\.5 s"),
    ],
)
def test_every_request_is_answered_by_the_fallback_until_the_first_engine_has_recovered(
    start, fault, kind, reason, ahead
):
    service = start(replace(QUICK, ahead=ahead), STEADY)
    assert ask(service).result(10).engine == "quick"
    fault(kind)
    failed = time.monotonic()
    answers = [future.result(10) for _ in range(4) for future in [ask(service, seed) for seed in range(5)]]
    assert {answer.engine for answer in answers} == {"steady"}
    assert all(answer.reason.startswith(reason.replace("\\", "")) for answer in answers[:1])
    assert all(answer.reason for answer in answers)
    together = [ask(service, seed) for seed in range(8)]
    assert {future.result(10).engine for future in together} == {"steady"}
    assert state(service, "quick") in ("failing", "restarting")
    assert until(lambda: service.counters()["trials"] >= 3 or kind in ("device", "hang"))
    assert service.status()["engine"] == "steady" and service.status()["reason"].startswith("quick ")
    fault("")
    mended = time.monotonic()
    assert until(lambda: service.status()["engine"] == "quick")
    assert time.monotonic() - failed >= BRIEF["recovery"]
    assert time.monotonic() - mended < 5.0
    answer = ask(service).result(10)
    assert (answer.engine, answer.reason) == ("quick", "")
    counts = service.counters()
    assert counts["requests_answered"] == counts["requests_accepted"] and counts["switches"] >= 2


def test_a_trial_that_hangs_is_ended_though_nobody_asks_for_anything(start, fault):
    service = start(QUICK, STEADY)
    fault("memory")
    assert ask(service).result(10).engine == "steady"
    fault("hang")
    assert until(lambda: service.counters()["worker_restarts"] >= 1)
    fault("")
    assert until(lambda: service.status()["engine"] == "quick")


@pytest.mark.parametrize("kind", ["die-on-load", "no-load"])
def test_a_first_engine_that_does_not_load_is_replaced_from_the_start(start, fault, kind):
    fault(kind)
    service = start(QUICK, STEADY)
    assert service.ready and state(service, "quick") == "restarting"
    answers = [ask(service, seed).result(10) for seed in range(3)]
    assert {answer.engine for answer in answers} == {"steady"}
    said = "ended with exit code 3" if kind == "die-on-load" else "could not be loaded"
    assert answers[0].reason == f"quick {said}"
    fault("")
    assert until(lambda: ask(service).result(10).engine == "quick")


def test_out_of_memory_with_several_pairs_the_first_engine_does_them_one_by_one(start, fault):
    service = start(QUICK, STEADY)
    fault("memory-of-several")
    futures = [ask(service, seed, ("circle", "star")) for seed in range(4)]
    assert {(future.result(10).engine, future.result(10).reason) for future in futures} == {("quick", "")}
    assert service.counters()["memory_failures"] > 0 and service.counters()["switches"] == 0


def test_a_request_on_which_every_engine_fails_ends_in_an_error_and_costs_no_other(start, fault):
    service = start(QUICK, EngineSpec("tests.serve_faults:Quick", name="other"))
    fault("raise")
    with pytest.raises(ServiceError, match="every engine that it was given to failed on the request"):
        ask(service).result(10)
    fault("")
    assert ask(service).result(10).engine == "quick"


def test_an_engine_without_a_fallback_goes_on_trying(start, fault):
    service = start()
    fault("memory")
    for _ in range(3):
        with pytest.raises(ServiceError, match="quick ran out of memory"):
            ask(service).result(10)
    assert service.ready
    fault("")
    assert ask(service).result(10).engine == "quick"


def test_a_wait_beyond_the_limit_moves_what_waits_longest_to_the_fallback(start):
    service = start(SLOW, STEADY, batching=False, wait=0.5, queue=40)
    ask(service).result(10)
    futures = [ask(service, seed) for seed in range(20)]
    answers = [future.result(20) for future in futures]
    moved = [answer for answer in answers if answer.engine == "steady"]
    assert moved and len(moved) < 20 and answers[0].engine == "slow"
    assert {answer.reason for answer in moved} == {"the wait for slow was over 0.5 s"}
    assert state(service, "slow") == "ready"
    assert ask(service).result(10).engine == "slow"


# Workers that die


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("fallback", [None, STEADY])
def test_kill_9_costs_only_what_the_worker_computed_and_the_service_is_back_within_5_s(start, fault, fallback, ahead):
    service = start(replace(QUICK, ahead=ahead), fallback, batching=False)
    ask(service).result(10)
    fault("hang")
    held = ask(service, 0)
    assert until(lambda: hung().exists())
    waiting = [ask(service, seed) for seed in range(1, 5)]
    assert until(lambda: service.status()["engines"]["quick"]["held"] == 1 + ahead)
    fault("")
    killed = time.monotonic()
    kill(service, "quick")
    with pytest.raises(WorkerLost, match="the worker of quick died with the request"):
        held.result(1)
    for future in waiting:
        assert future.result(10).engine == ("steady" if fallback else "quick")
    assert time.monotonic() - killed < 5.0
    assert until(lambda: service.status()["engine"] == "quick")
    assert time.monotonic() - killed < 5.0
    assert ask(service).result(10).engine == "quick"
    counts = service.counters()
    assert (counts["requests_worker_lost"], counts["requests_answered"], counts["worker_restarts"]) == (1, 6, 1)


def test_a_segmentation_fault_is_answered_too(start, fault):
    service = start()
    fault("die")
    with pytest.raises(WorkerLost):
        ask(service).result(10)
    fault("")
    assert until(lambda: state(service, "quick") == "ready")
    assert ask(service).result(10).engine == "quick"


def test_a_worker_that_is_killed_while_idle_costs_nothing(start):
    service = start()
    for seed in range(3):
        kill(service, "quick")
        assert ask(service, seed).result(10).engine == "quick"
    counts = service.counters()
    assert (counts["requests_answered"], counts["requests_accepted"], counts["worker_restarts"]) == (3, 3, 3)


def test_restarts_leave_nothing_behind(start):
    service = start()
    own = psutil.Process()

    def held():
        return own.num_fds(), threading.active_count(), len(own.children(recursive=True))

    ask(service).result(10)
    before = held()
    for restarts in range(1, 5):
        kill(service, "quick")
        assert until(lambda restarts=restarts: service.counters()["worker_restarts"] == restarts)
        assert until(lambda: state(service, "quick") == "ready", 30.0)
    ask(service).result(10)
    assert held() == before


def test_an_engine_that_never_comes_back_is_named_and_the_time_of_its_next_start(start, fault):
    service = start()
    fault("die-on-load")
    kill(service, "quick")
    assert until(lambda: service.status()["engines"]["quick"]["restarts"] >= 2)
    assert until(lambda: not service.ready)
    with pytest.raises(NotReady, match="no engine can answer now: quick ended with exit code 3") as caught:
        service.check_admission()
    assert caught.value.retry_after >= 1.0
    fault("")
    assert until(lambda: service.ready, 30.0)


# Beginning and end


def test_before_the_start_and_after_the_end_it_says_so(start):
    service = Service(QUICK, limits=Limits(**BRIEF))
    assert not service.ready and not service.status()["ready"]
    with pytest.raises(NotReady, match="the service is starting"):
        service.check_admission()
    service.start()
    assert service.ready and service.status()["engine"] == "quick"
    service.close()
    assert not service.ready
    with pytest.raises(NotReady, match="the service is closing"):
        ask(service)
    service.close()


def test_closing_answers_what_waits_and_leaves_no_process_and_no_thread(start):
    threads, own = threading.active_count(), psutil.Process()
    children, files = own.children(recursive=True), own.num_fds()
    service = start(SLOW, STEADY, batching=False, wait=0.0)
    futures = [ask(service, seed) for seed in range(5)]
    assert until(lambda: service.status()["engines"]["slow"]["held"] == 1)
    service.close()
    outcomes = [future.exception(0) for future in futures]
    assert outcomes[0] is None  # it was being computed
    assert all(isinstance(outcome, NotReady) for outcome in outcomes[1:])
    assert own.children(recursive=True) == children and threading.active_count() == threads
    assert own.num_fds() == files


def test_closing_while_it_starts_ends_the_start(fault, monkeypatch):
    service = Service(EngineSpec("onnxruntime"), limits=Limits())
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        starting = pool.submit(service.start)
        assert until(lambda: service.status()["engines"])
        service.close()
        starting.result(10)
    assert not service.ready


def test_status_and_counters_are_for_machines(start):
    service = start(QUICK, STEADY)
    first = service.counters()
    assert set(first.values()) == {0.0}
    ask(service).result(10)
    status = json.loads(json.dumps(service.status()))
    assert (status["ready"], status["engine"], status["reason"], status["queued"]) == (True, "quick", "", 0)
    assert set(status["engines"]) == set(service.engines) == {"quick", "steady"}
    engine = status["engines"]["quick"]
    assert (engine["state"], engine["device"], engine["precision"], engine["answered"]) == ("ready", "cpu", "fp32", 1)
    second = service.counters()
    assert set(second) == set(first) and all(second[name] >= first[name] for name in first)


def test_what_lies_in_the_working_directory_is_no_library_and_may_be_a_backend(start, tmp_path, monkeypatch):
    for name in ("random", "numpy", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this is no library')")
    (tmp_path / "absent").mkdir()  # a folder is a package too where there is none of that name
    (tmp_path / "mine.py").write_text(
        "from tests.serve_faults import Steady\n\n\nclass Mine(Steady):\n    name = 'mine'\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])  # what is added to it goes again
    monkeypatch.chdir(tmp_path)
    service = start(EngineSpec("mine:Mine"), EngineSpec("onnxruntime"))
    assert {name: engine["state"] for name, engine in service.status()["engines"].items()} == {
        "mine:Mine": "ready",
        "onnxruntime": "ready",
    }
    assert ask(service, engine="mine:Mine").result(10).engine == "mine:Mine"
    command = [sys.executable, "-c", "import sam3lab, importlib.util; print(importlib.util.find_spec('absent'))"]
    done = subprocess.run(command, env=child_environment(1, offline=True), capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (EngineSpec("tensorflow"), "no backend is named 'tensorflow'"),
        (EngineSpec("sleep", checkpoint="no-such"), "no checkpoint 'no-such'"),
        (
            EngineSpec("sleep", device="cuda"),
            "no engine could be started: sleep could not be loaded: the backend sleep",
        ),
        (EngineSpec("tests.serve_faults:Incomplete"), "it lacks fetch, gather, nbytes"),
    ],
)
def test_what_cannot_be_started_is_refused_with_a_reason(spec, said):
    children = psutil.Process().children(recursive=True)
    with pytest.raises(UserError, match=said):
        Service(spec).start()
    assert psutil.Process().children(recursive=True) == children


def test_engines_need_names_of_their_own():
    with pytest.raises(UserError, match="both engines are called openvino"):
        Service(EngineSpec("openvino"), EngineSpec("openvino", device="cpu"))


ORPHAN = """
import os, signal
from sam3lab.serve.service import Service
from sam3lab.serve.spec import EngineSpec
service = Service(EngineSpec("tests.serve_faults:Steady", name="steady"))
service.start()
print(service.status()["engines"]["steady"]["pid"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent's life")
def test_a_worker_ends_with_its_server_however_that_ends():
    server = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=60)
    assert server.returncode == -signal.SIGKILL, server.stderr
    worker = int(server.stdout)
    assert until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)
