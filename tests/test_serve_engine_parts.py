"""The engine's parts by themselves, in this process: caches, sizes, batches, queue, health, failures, and the computing."""

import threading

import numpy as np
import pytest

from sam3lab import backends, images
from sam3lab.backends import Artifacts
from sam3lab.errors import UserError
from sam3lab.model.checkpoint import resolve
from sam3lab.postprocess import detections
from sam3lab.scenes.store import load_split
from sam3lab.serve import failures
from sam3lab.serve.batch import Batch, Failure, Filling
from sam3lab.serve.caches import LruCache
from sam3lab.serve.computing import Computer, Kept
from sam3lab.serve.health import Backoff, Health, Overflow
from sam3lab.serve.preprocess import Preprocessor
from sam3lab.serve.request import FLOOR, Answer, Busy
from sam3lab.serve.sizes import Sizes, steps
from sam3lab.serve.spec import EngineSpec, Limits
from sam3lab.serve.tally import Tally
from sam3lab.serve.waiting import Job, Waiting, now


class Clock:
    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


# Limits


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"queue": 0}, "queue is 0"),
        ({"images": 1.5}, "images is 1.5: give a whole number"),
        ({"pairs": True}, "pairs is True"),
        ({"image_bytes": -1}, "image_bytes"),
        ({"wait": float("nan")}, "wait is nan"),
        ({"fill": -0.1}, "fill is -0.1"),
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"recovery": 10.0, "recovery_most": 1.0}, "recovery_most is 1 s"),
    ],
)
def test_limits_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        Limits(**settings)


def test_a_spec_is_checked_and_has_a_name():
    assert EngineSpec("onnxruntime").name == "onnxruntime"
    assert EngineSpec("onnxruntime", name="first").name == "first"
    with pytest.raises(UserError, match="100"):
        EngineSpec("onnxruntime", resolution=100)
    with pytest.raises(UserError, match="threads is -1"):
        EngineSpec("onnxruntime", threads=-1)


# Caches


def test_a_cache_is_bounded_by_entries_and_lets_the_least_recently_used_go():
    cache = LruCache(2, 100)
    for key in "ab":
        cache.put(key, key.upper(), 10)
    assert cache.get("a") == "A"
    cache.put("c", "C", 10)
    assert (cache.get("b"), cache.get("a"), cache.get("c")) == (None, "A", "C")
    assert (cache.hits, cache.misses, cache.evictions, len(cache), cache.nbytes) == (3, 1, 1, 2, 20)


def test_a_cache_is_bounded_by_bytes():
    cache = LruCache(10, 100)
    cache.put("a", 1, 60)
    cache.put("b", 2, 30)
    cache.put("c", 3, 50)  # makes a and no more go
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (None, 2, 3)
    cache.put("d", 4, 101)  # has no room whatever goes
    assert (cache.get("d"), len(cache), cache.nbytes, cache.evictions) == (None, 2, 80, 1)
    cache.put("c", 5, 10)  # another value of the same key
    assert (cache.get("c"), cache.nbytes) == (5, 40)
    cache.clear()
    assert (len(cache), cache.nbytes, cache.evictions) == (0, 0, 3)


@pytest.mark.parametrize("bounds", [(0, 100), (10, 0)])
def test_a_cache_of_nothing_keeps_and_counts_nothing(bounds):
    cache = LruCache(*bounds)
    cache.put("a", 1, 1)
    assert cache.get("a") is None
    assert (len(cache), cache.hits, cache.misses, cache.on) == (0, 0, 0, False)


def test_counts_outlive_the_worker_that_counted():
    tally = Tally()
    for counts in ({"text_cache_hits": 3, "text_cache_bytes": 7}, {"text_cache_hits": 5, "text_cache_bytes": 9}):
        tally.add(counts)
    tally.new_worker()
    assert tally.caches()["text"] == {"entries": 0, "bytes": 0}
    tally.add({"text_cache_hits": 2, "text_cache_bytes": 4})
    assert (tally.counts["text_cache_hits"], tally.caches()["text"]["bytes"]) == (7, 4)


# Sizes


@pytest.mark.parametrize(("most_images", "most_pairs"), [(4, 8), (1, 1), (3, 5), (8, 4), (2, 16)])
def test_padded_calls_have_warmed_shapes_only(most_images, most_pairs):
    sizes = Sizes(most_images, most_pairs, padded=True)
    warmed = {"image": set(), "text": set(), "detect": set()}
    for images_, pairs in sizes.warm():
        warmed["image"].add(sizes.image(images_))
        warmed["text"].add(sizes.text(pairs))
        warmed["detect"].add(sizes.detect(images_, pairs, pairs))
    for count in range(1, min(most_images, most_pairs) + 1):
        assert count <= sizes.image(count) in warmed["image"]
    for pairs in range(1, most_pairs + 1):
        assert pairs <= sizes.text(pairs) in warmed["text"]
        for images_ in range(1, min(most_images, pairs) + 1):
            for texts in range(1, pairs + 1):
                asked, given = (images_, texts, pairs), sizes.detect(images_, texts, pairs)
                assert given in warmed["detect"], (asked, given)
                assert all(one <= other for one, other in zip(asked, given, strict=True))
    assert len(warmed["detect"]) <= 2 * len(steps(most_pairs))


def test_unpadded_calls_have_the_size_they_need():
    sizes = Sizes(4, 8, padded=False)
    assert (sizes.image(3), sizes.text(5), sizes.detect(3, 2, 5)) == (3, 5, (3, 2, 5))
    assert sizes.warm() == [(1, 1), (2, 2)]


# What an exception means


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 20.00 MiB"), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"), "memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), "memory"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (
            RuntimeError(
                "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
                "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 1073741824"
            ),
            "memory",
        ),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; expr=cudaMalloc(&p, size);"), "memory"),
        (RuntimeError("Exception from src/inference/src/cpp/infer_request.cpp:223: std::bad_alloc"), "memory"),
        (MemoryError(), "memory"),
        (np._core._exceptions._ArrayMemoryError((10**9,), np.dtype(float)), "memory"),
        (RuntimeError("cuMemcpyDtoDAsync_v2 gave CUDA error 2: out of memory"), "memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "device"),
        (type("AcceleratorError", (RuntimeError,), {})("CUDA error: device-side assert triggered"), "device"),
        (RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0"), "device"),
        (RuntimeError("cuCtxGetCurrent gave CUDA error 999: unknown error"), "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device"),
        (RuntimeError("No CUDA GPUs are available: no CUDA-capable device is detected"), "device"),
        (ValueError("operands could not be broadcast together"), "error"),
        (UserError("the prompt is empty"), "error"),
    ],
)
def test_failures_are_told_apart(error, kind):
    assert failures.classify(error) == kind


def test_a_failure_is_described_in_a_line():
    assert failures.describe(ValueError("one\ntwo")) == "ValueError: one"
    assert failures.describe(MemoryError()) == "MemoryError"
    assert len(failures.describe(ValueError("x" * 1000))) == 300


# Health


def test_trust_comes_back_after_enough_trials_and_enough_time():
    clock = Clock()
    health = Health(Limits(probe=1.0, probes=3, recovery=5.0), clock)
    assert not health.trusted
    health.loaded()
    assert health.trusted and health.next_trial() is None
    health.failed("ran out of memory", "OutOfMemoryError")
    assert (health.trusted, health.reason, health.detail) == (False, "ran out of memory", "OutOfMemoryError")
    for second in range(1, 5):
        clock.time = 100.0 + second
        assert health.next_trial() == clock.time
        health.passed()
        assert not health.trusted  # enough trials from the third on, but not enough time
    clock.time = 105.0
    health.passed()
    assert (health.trusted, health.reason, health.detail) == (True, "", "")


def test_a_failed_trial_makes_it_begin_again():
    clock = Clock()
    health = Health(Limits(probes=3, recovery=0.0), clock)
    health.loaded()
    health.failed("failed")
    health.passed(), health.passed(), health.failed("failed again"), health.passed(), health.passed()
    assert not health.trusted and health.reason == "failed again"
    health.passed()
    assert health.trusted


def test_an_engine_that_flaps_is_trusted_later_and_later_up_to_a_bound():
    clock, pauses = Clock(), []
    health = Health(Limits(probes=1, recovery=5.0, recovery_most=30.0), clock)
    health.loaded()
    for _ in range(5):
        health.failed("failed")
        pauses.append(health.pause)
        clock.time += health.pause
        health.passed()
        assert health.trusted
        clock.time += 1.0
    assert pauses == [5.0, 10.0, 20.0, 30.0, 30.0]
    clock.time += 1000.0
    health.failed("failed")
    assert health.pause == 5.0


def test_a_worker_that_dies_again_and_again_is_started_later_and_later():
    clock = Clock()
    backoff, pauses = Backoff(clock), []
    for life in (100.0, 1.0, 1.0, 1.0, 100.0):
        backoff.started()
        clock.time += life
        backoff.lost()
        pauses.append(backoff.until - clock.time)
    assert pauses == [0.0, 0.5, 1.0, 2.0, 0.0]
    for _ in range(20):  # never ready
        backoff.lost()
    assert backoff.until - clock.time == 30.0


def test_a_wait_is_too_long_until_it_is_short_for_a_while():
    clock = Clock()
    overflow = Overflow(Limits(wait=10.0, recovery=5.0), clock)
    assert not overflow.update(10.0)
    assert overflow.update(10.1)
    clock.time += 2.0
    assert overflow.update(1.0)  # short, but only just now
    clock.time += 4.0
    assert overflow.update(6.0)  # long enough ago, but not short
    assert not overflow.update(4.9)
    assert not Overflow(Limits(wait=0.0), clock).update(1e9)


# The queue


@pytest.fixture(scope="module")
def preprocessor():
    return Preprocessor(resolve("sam3-nano"), 252)


@pytest.fixture(scope="module")
def scenes():
    return load_split("test")[:6]


def job(preprocessor, seed=0, prompts=("circle",), timeout=10.0, **fields):
    photograph = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    inputs = preprocessor.inputs(photograph, prompts)
    fields = {"inputs": {"one": inputs}, "deadline": now() + timeout} | fields
    return Job(prompts=prompts, size=(60, 80), floor=FLOOR, timeout=timeout, **fields)


def queue(**limits):
    return Waiting(Limits(**limits), threading.Condition(threading.RLock()))


def always(job, place):
    return True


def test_a_batch_takes_what_fits_and_leaves_the_rest_in_order(preprocessor):
    waiting = queue(images=2, pairs=4)
    a, b, same, c, many = (
        job(preprocessor, seed, prompts)
        for seed, prompts in ((1, ["circle"]), (2, ["circle"]), (1, ["star"]), (3, ["circle"]), (1, list("abcdefgh")))
    )
    for each in (a, b, same, c, many):
        waiting.put(each, 1.0)
    assert waiting.take("one", always) == ([a, b, same], None)  # a third image, or eight more pairs, are too many
    assert waiting.take("one", always) == ([c], None)
    assert waiting.take("one", always) == ([many], None)  # alone, however many prompts it has
    assert waiting.take("one", always) == ([], None)


def test_without_batching_each_goes_alone(preprocessor):
    waiting = queue(batching=False)
    jobs = [job(preprocessor, 1), job(preprocessor, 1)]
    for each in jobs:
        waiting.put(each, 1.0)
    assert [waiting.take("one", always)[0] for _ in jobs] == [[each] for each in jobs]


def test_a_batch_waits_to_fill_if_it_is_told_to(preprocessor):
    waiting = queue(fill=5.0, pairs=2)
    first = job(preprocessor, 1)
    waiting.put(first, 1.0)
    assert waiting.take("one", always) == ([], first.queued + 5.0)
    second = job(preprocessor, 2)
    waiting.put(second, 1.0)
    assert waiting.take("one", always) == ([first, second], None)


def test_a_full_queue_says_so_and_a_cancelled_request_makes_room(preprocessor):
    waiting = queue(queue=2)
    jobs = [job(preprocessor, seed) for seed in range(3)]
    waiting.put(jobs[0], 1.0), waiting.put(jobs[1], 1.0)
    with pytest.raises(Busy, match=r"^2 requests are waiting already$") as caught:
        waiting.put(jobs[2], 2.5)
    assert caught.value.retry_after == 2.5
    assert jobs[0].future.cancel()
    waiting.put(jobs[2], 2.5)
    assert waiting.take("one", always)[0] == jobs[1:]
    assert not jobs[1].future.cancel()  # a worker has it


def test_what_is_late_or_for_another_engine_is_not_taken(preprocessor):
    waiting = queue()
    late, other, good = job(preprocessor, timeout=-1.0), job(preprocessor), job(preprocessor)
    other.inputs = {"two": other.inputs["one"]}
    for each in (late, other, good):
        waiting.put(each, 1.0)
    assert waiting.next_deadline() == late.deadline
    assert waiting.take("one", always)[0] == [good]
    assert waiting.late(now()) == [late]
    assert waiting.clear() == [other]


def test_what_is_put_back_comes_first_even_into_a_full_queue(preprocessor):
    waiting = queue(queue=1)
    first, second = job(preprocessor, 1), job(preprocessor, 2)
    waiting.put(first, 1.0)
    taken, _ = waiting.take("one", always)
    waiting.put(second, 1.0)
    waiting.put_back(taken)
    assert len(waiting) == 2
    assert waiting.take("one", always)[0] == [first, second]


# Batches


def test_equal_images_and_prompts_of_a_batch_are_there_once(preprocessor):
    one, other = (np.random.default_rng(seed).integers(0, 256, (50, 50, 3), dtype=np.uint8) for seed in (1, 2))
    asked = [(one, ("circle", "star")), (other, ("star",)), (one, ("star", "circle", "star"))]
    inputs = [preprocessor.inputs(*each) for each in asked]
    batch = Batch.of(list(zip(inputs, (0.05, 0.05, 0.01), strict=True)))
    assert (len(batch.images), len(batch.ids), len(batch.mask)) == (2, 2, 2)
    assert [(ask.image, ask.texts) for ask in batch.asks] == [(0, (0, 1)), (1, (1,)), (0, (1, 0, 1))]
    assert batch.pairs == {(0, 0): 0.01, (0, 1): 0.01, (1, 1): 0.05}
    part = batch.part(1, 2)
    assert (len(part.images), len(part.ids), part.asks[0].image, part.asks[0].texts) == (1, 1, 0, (0,))
    np.testing.assert_array_equal(part.images[0][1], inputs[1].pixels)
    np.testing.assert_array_equal(part.ids, inputs[1].ids)
    filling = Filling(4, 3)
    assert [filling.add(each) for each in inputs] == [True, True, True] and filling.full


# Computing, on the real model


def computer(backend, sizes, images_=(16, 2**30), prompts=(16, 2**30), most=200):
    return Computer(backend, sizes, ("key",), Kept(LruCache(*images_), LruCache(*prompts)), most)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "pytorch"])
def backend(request):
    kind = backends.get(request.param)
    backend = kind()
    backend.load(kind.prepare(Artifacts(resolve("sam3-nano"), 252)))
    yield backend
    backend.close()


def plain(backend, inputs, size):
    """What the backend finds for one request without anything of the service."""
    upload = backend.upload
    index = np.zeros(len(inputs.ids), dtype=np.int64), np.arange(len(inputs.ids))
    mask = upload(inputs.mask)
    features, text = backend.image(upload(inputs.pixels[None])), backend.text(upload(inputs.ids), mask)
    raw = backend.detect(features, text, mask, *map(upload, index))
    return detections(type(raw)(*backend.download(tuple(raw))), size, 0.3)


def check(found, inputs, size, backend, prompts):
    """That an outcome is what the backend alone finds, but for the rounding of other batches and of float16."""
    answer = Answer(prompts, found.candidates, size, "one")
    for (_, ours), theirs in zip(answer.detections(0.3), plain(backend, inputs, size), strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.05)
        if len(theirs):
            assert np.mean(ours.masks != theirs.masks, axis=(1, 2)).max() < 1e-3, theirs.scores
    return sum(len(each) for _, each in answer.detections(0.3))


@pytest.mark.parametrize("padded", [False, True])
def test_a_batch_finds_what_each_request_finds_alone_cached_or_not(backend, preprocessor, scenes, padded):
    asked = [(scene, tuple(prompt.text for prompt in scene.prompts[:3])) for scene in scenes[:3]]
    asked.append(
        (scenes[0], (*asked[1][1][:1], *asked[0][1][:1]))
    )  # the first image again, with one prompt of the second
    inputs = [preprocessor.inputs(scene.image, prompts) for scene, prompts in asked]
    engine = computer(backend, Sizes(2, 4, padded))
    objects = 0
    for order in ([0, 1], [3, 1, 2], [0, 1, 2, 3], [2, 0], [3]):  # from fresh, over mixed, to cached altogether
        outcomes = engine.run(Batch.of([(inputs[i], FLOOR) for i in order]))
        for i, found in zip(order, outcomes, strict=True):
            objects += check(found, inputs[i], asked[i][0].image.shape[:2], backend, asked[i][1])
    assert objects > 10
    counts = engine.counts()
    distinct = {key for each in inputs for key in each.prompts}
    assert (counts["images_encoded"], counts["prompts_encoded"]) == (3, len(distinct))
    assert (outcomes[0].cached_image, outcomes[0].cached_prompts) == (True, 2)


def test_without_caches_everything_is_computed_each_time(backend, preprocessor, scenes):
    inputs = preprocessor.inputs(scenes[0].image, ("circle",))
    engine = computer(backend, Sizes(2, 4, False), (0, 0), (0, 0))
    for _ in range(2):
        (found,) = engine.run(Batch.of([(inputs, FLOOR)]))
        assert (found.cached_image, found.cached_prompts) == (False, 0)
    counts = engine.counts()
    assert (counts["image_stage_calls"], counts["text_stage_calls"], counts["image_cache_misses"]) == (2, 2, 0)


class Tight:
    """A backend in front of another, with memory for so many pairs at a time."""

    def __init__(self, backend, pairs):
        self._backend, self._pairs, self.calls, self.given_back = backend, pairs, [], 0

    def give_back(self):
        self.given_back += 1

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def detect(self, features, text, mask, image_index, text_index):
        count = len(self._backend.download(image_index))
        self.calls.append(count)
        if count > self._pairs:
            raise MemoryError("none left")
        return self._backend.detect(features, text, mask, image_index, text_index)


def test_out_of_memory_smaller_batches_are_tried(backend, preprocessor, scenes):
    prompts = ("circle", "red star")
    inputs = [preprocessor.inputs(scene.image, prompts) for scene in scenes[:3]]
    for room, found in ((2, True), (1, True), (0, False)):
        tight = Tight(backend, room)
        engine = computer(tight, Sizes(4, 8, False))
        outcomes = engine.run(Batch.of([(each, FLOOR) for each in inputs]))
        if found:
            for outcome, each, scene in zip(outcomes, inputs, scenes, strict=False):
                check(outcome, each, scene.image.shape[:2], backend, prompts)
            assert tight.calls[0] == 6 and tight.calls[-1] == room
        else:
            assert [outcome.kind for outcome in outcomes] == ["memory"] * 3
        assert engine.counts()["memory_failures"] == tight.given_back > 0


def test_only_what_scores_above_the_floor_leaves_the_device(backend, preprocessor, scenes):
    inputs = preprocessor.inputs(scenes[0].image, tuple(prompt.text for prompt in scenes[0].prompts[:2]))
    engine = computer(backend, Sizes(2, 4, False))
    low, high = engine.run(Batch.of([(inputs, 0.0), (inputs, 0.5)]))
    for every, some in zip(low.candidates, high.candidates, strict=True):
        assert len(every.scores) == 40 and (np.diff(every.scores) <= 0).all()
        count = int((every.scores > 0.5).sum())
        assert len(some.scores) == len(some.boxes) == len(some.masks) == count
        np.testing.assert_array_equal(some.masks, every.masks[:count])
        assert every.masks.dtype == np.float16 and every.masks.shape[1:] == (72, 72)
    assert sum(len(each.scores) for each in high.candidates) > 0
    (best,) = computer(backend, Sizes(2, 4, False), most=3).run(Batch.of([(inputs, 0.0)]))
    for every, some in zip(low.candidates, best.candidates, strict=True):
        np.testing.assert_array_equal(some.scores, every.scores[:3])
        np.testing.assert_array_equal(some.masks, every.masks[:3])


@pytest.mark.parametrize("field", ["logits", "masks"])
def test_numbers_that_are_not_finite_are_a_failure(backend, preprocessor, field):
    class Broken(Tight):
        def detect(self, *arguments):
            raw = self._backend.detect(*arguments)
            spoilt = self._backend.upload(np.full_like(self._backend.download(getattr(raw, field)), np.nan))
            return raw._replace(**{field: spoilt})

    inputs = preprocessor.inputs(images.load("astronaut"), ("circle",))
    (failure,) = computer(Broken(backend, 9), Sizes(2, 4, False)).run(Batch.of([(inputs, 0.0)]))
    assert isinstance(failure, Failure) and failure.kind == failures.ERROR and "finite" in failure.reason
