import os
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sam3lab import nvml
from sam3lab.backends import Artifacts
from sam3lab.bench import gpu_monitor, memory, worker
from sam3lab.bench.case import Case
from sam3lab.bench.clock import Clock, steady
from sam3lab.bench.gpu_monitor import SHARE, STEP, WINDOW, GpuMonitor
from sam3lab.bench.host_speed import HostSpeed
from sam3lab.bench.inputs import Inputs
from sam3lab.errors import UserError
from tests.fakes import Quick


class Library:
    """NVML of a GPU that answers what it is given and nothing else, as drivers do: the rest is not supported."""

    NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_FUNCTION_NOT_FOUND, NVML_ERROR_UNKNOWN = 3, 13, 999
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, nvmlMemory_v2 = 1, 2, 0, 0x02000028  # noqa: N815

    class NVMLError(Exception):
        def __init__(self, value):
            self.value = value

    def __init__(self, **answers):
        self.asked = []
        self.answers = {f"nvmlDeviceGet{name}": answer for name, answer in answers.items()}

    def __getattr__(self, name):
        def ask(handle, *arguments):
            self.asked.append(name)
            answer = self.answers.get(name)
            if answer is None:
                raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
            return answer(*arguments) if callable(answer) else answer

        return ask


def process(pid, megabytes):
    return SimpleNamespace(pid=pid, usedGpuMemory=None if megabytes is None else int(megabytes * 1e6))


def memory_in_use(megabytes):
    return SimpleNamespace(used=int(megabytes * 1e6), total=141e9)


class Board:
    """A GPU on a clock of its own: calls take their time at `busy` watts, all else at `idle`; its counter moves every
    `step` seconds, by what was taken until then. A question for the counter takes `cost` seconds.
    """

    def __init__(self, step=0.1, cost=0.003, busy=600.0, idle=120.0, counts=True):
        self.time, self.joules, self.shown, self.next = 0, 0.0, 0.0, step / 3
        self.step, self.cost, self.busy, self.idle, self.counts = step, cost, busy, idle, counts

    def now(self):
        return int(self.time * 1e9)

    def pass_time(self, seconds, watts):
        end = self.time + seconds
        while self.next <= end:
            self.joules += (self.next - self.time) * watts
            self.time, self.shown, self.next = self.next, self.joules, self.next + self.step
        self.joules += (end - self.time) * watts
        self.time = end

    def call(self, seconds):
        self.pass_time(seconds, self.busy)

    def energy(self):
        self.pass_time(self.cost, self.idle)
        return self.shown if self.counts else None

    def state(self):
        self.pass_time(1e-5, self.idle)
        return {
            "clock_sm": 1980.0,
            "clock_memory": 3201.0,
            "temperature": 41.0 + self.time,
            "power": 555.0,
            "limits": 4,
        }


def phase(board, seconds, calls):
    """What a monitor says of so many calls, as {metric: value}, and the calls that were made in all."""
    made = [0]

    def call():
        made[0] += 1
        board.call(seconds)

    monitor = GpuMonitor(board, board.now)
    monitor.start()
    for _ in range(calls):
        call()
        monitor.between()
        board.pass_time(seconds, board.idle)  # as while cores are looked at
    monitor.finish(call)
    return {metric: value for metric, _, value in monitor.values(1)}, made[0], monitor


@pytest.mark.parametrize("step", [0.02, 0.1])
@pytest.mark.parametrize(("seconds", "calls"), [(0.0016, 250), (0.02, 20), (0.2, 10)])
def test_energy_of_an_image_is_right_though_the_counter_moves_in_steps(step, seconds, calls):
    rng, errors = random.Random(0), []
    for _ in range(20):
        board = Board(step)
        board.pass_time(rng.uniform(0.5, 0.7), board.idle)
        found, made, _ = phase(board, seconds, calls)
        errors.append(found["energy"] / (600 * seconds) - 1)
        assert found["energy"] == pytest.approx(found["power"] * seconds, rel=0.05)
        assert (made - calls) * seconds < WINDOW + 0.7
    assert abs(sum(errors) / len(errors)) < 0.03
    # the later step is known but for what lies between two looks at the counter
    assert max(map(abs, errors)) < 0.02 + (0.0075 + seconds + board.cost) / WINDOW


def test_a_batch_shares_the_energy_of_its_call():
    found, _, monitor = phase(Board(), 0.02, 60)
    shared = {metric: value for metric, _, value in monitor.values(4)}
    assert shared["energy"] == pytest.approx(found["energy"] / 4) and shared["power"] == found["power"]


def test_readings_take_little_of_a_phase_and_say_how_much():
    board = Board()
    board.state = lambda: (
        board.pass_time(0.002, board.idle)
        or dict.fromkeys(("clock_sm", "clock_memory", "temperature", "power", "limits"))
    )
    *_, monitor = phase(board, 0.002, 1000)
    assert 0.005 < monitor.facts()["gpu_reading_share"] <= SHARE * 1.1


def test_without_a_counter_power_is_the_drivers_and_nothing_is_added():
    found, made, monitor = phase(Board(counts=False), 0.02, 20)
    assert made == 20 and "energy" not in found
    assert found["power"] == 555 and found["clock_sm"] == 1980 and found["clock_memory"] == 3201
    assert 41 < found["temperature"] < 42 and found["limited"] == 1
    assert monitor.facts()["gpu_limits"] == {"power cap": 1}


def test_a_counter_that_stands_still_does_not_hold_a_phase_up():
    found, made, _ = phase(Board(step=1000), 0.02, 20)
    assert "energy" not in found and 20 < made < 20 + STEP / 0.02 + 2


def test_what_a_driver_does_not_tell_is_no_row():
    board = Board()
    board.state = lambda: dict.fromkeys(("clock_sm", "clock_memory", "temperature", "power", "limits"))
    board.energy = lambda: None
    found, _, monitor = phase(board, 0.02, 5)
    assert found == {} and monitor.facts()["gpu_limits"] == {}


def test_the_gpu_is_never_read_inside_a_timed_region():
    order = []

    class Gpu:
        def energy(self):
            order.append("read")
            return float(len(order))

        def state(self):
            order.append("read")
            return dict.fromkeys(("clock_sm", "clock_memory", "temperature", "power", "limits"))

    clock = Clock(lambda: order.append("end"))
    steady(clock, lambda: order.append("begin"), least=300, seconds=0.2, monitor=GpuMonitor(Gpu()))
    text = " ".join(order)
    assert "begin read" not in text and "read end" not in text and text.count("read") > 3


def test_a_gpu_tells_what_its_driver_offers_and_asks_in_vain_only_once():
    library = Library(TotalEnergyConsumption=123456, ClockInfo=lambda kind: {1: 1980, 2: 2619}[kind])
    gpu = nvml.Gpu(library, object())
    for _ in range(3):
        assert gpu.energy() == 123.456
        known = {"clock_sm": 1980, "clock_memory": 2619, "temperature": None, "power": None, "limits": None}
        assert gpu.state() == known
    assert library.asked.count("nvmlDeviceGetPowerUsage") == 1
    assert library.asked.count("nvmlDeviceGetTotalEnergyConsumption") == 3


def test_a_question_that_fails_once_is_asked_again():
    answers = [None, 5000]

    def energy():
        answer = answers.pop(0)
        if answer is None:
            raise Library.NVMLError(Library.NVML_ERROR_UNKNOWN)
        return answer

    gpu = nvml.Gpu(Library(TotalEnergyConsumption=energy), object())
    assert gpu.energy() is None and gpu.energy() == 5


def on_the_card(monkeypatch, used=0.0, computing=(), drawing=()):
    library = Library(
        MemoryInfo=lambda version=None: memory_in_use(used),
        ComputeRunningProcesses=lambda: list(computing() if callable(computing) else computing),
        GraphicsRunningProcesses=lambda: list(drawing),
    )
    monkeypatch.setattr(nvml, "gpu", lambda: nvml.Gpu(library, object()))


def test_other_processes_are_refused_by_number_and_size(monkeypatch):
    on_the_card(monkeypatch, 12500, [process(os.getpid(), 500), process(4321, 12000), process(77, None)])
    with pytest.raises(UserError) as caught:
        nvml.refuse_others(patience=0)
    message = str(caught.value)
    assert "77" in message and "4321 (12000 MB)" in message and "CUDA_VISIBLE_DEVICES" in message
    assert str(os.getpid()) not in message


def test_memory_of_hidden_processes_is_refused(monkeypatch):
    on_the_card(monkeypatch, 700)
    with pytest.raises(UserError, match="700 MB"):
        nvml.refuse_others(patience=0)


@pytest.mark.parametrize(
    "card",
    [
        {},
        {"used": 30},
        {"used": 9000, "computing": [process(os.getpid(), 8000), process(os.getppid(), 950)]},
        {"used": 1300, "drawing": [process(10, 1200)]},
    ],
    ids=["idle", "the driver's own", "this process and its parent", "a desktop"],
)
def test_a_card_of_ones_own_is_not_refused(monkeypatch, card):
    on_the_card(monkeypatch, **card)
    nvml.refuse_others(patience=0)


def test_what_has_just_ended_is_waited_for(monkeypatch):
    asked = []

    def computing():
        asked.append(1)
        return [process(4321, 12000)] if len(asked) < 4 else []

    on_the_card(monkeypatch, computing=computing)
    nvml.refuse_others(patience=5)
    assert len(asked) >= 4


def test_memory_of_this_process_is_told_or_else_the_growth_of_the_devices(monkeypatch):
    monkeypatch.setattr(memory, "_torch_cuda", lambda: None)  # another test may have filled a real GPU
    told = nvml.Gpu(
        Library(
            MemoryInfo=lambda version=None: memory_in_use(9000),
            ComputeRunningProcesses=lambda: [process(os.getpid(), 3000), process(1, 6000)],
        ),
        object(),
    )
    used = memory.GpuMemory(told)
    assert used.read() == 3000 and used.source == "process"

    readings = iter([1000, 5000, 4000])
    hidden = nvml.Gpu(Library(MemoryInfo=lambda version=None: memory_in_use(next(readings))), object())
    used = memory.GpuMemory(hidden)
    assert used.read() == 4000 and used.read() == 3000 and used.peak == 4000 and used.source == "device"
    assert memory.GpuMemory(None).read() is None


def test_the_peak_holds_what_torch_gave_back_since_the_last_reading(monkeypatch):
    """As at the end of loading, which empties torch's cache; what it holds beside torch's memory may grow later."""
    now = {}
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        memory_reserved=lambda: now["held"] * 1e6,
        max_memory_reserved=lambda: now["height"] * 1e6,
        max_memory_allocated=lambda: now["height"] * 1e6,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    processes = Library(
        ComputeRunningProcesses=lambda: [process(os.getpid(), now["used"])], MemoryInfo=memory_in_use(0)
    )
    gpu = memory.GpuMemory(nvml.Gpu(processes, object()))
    for used, held, height, peak in [
        (1500, 1000, 5000, 500 + 5000),
        (1900, 1300, 5000, 5500),  # beside torch's 600 now, but its height was at 500
        (6100, 4500, 5000, 6100),
        (2400, 1700, 5600, 700 + 5600),
    ]:
        now |= {"used": used, "held": held, "height": height}
        assert gpu.read() == used and gpu.peak == peak
    assert memory.torch_peaks() == {"torch_allocated_peak": 5600, "torch_reserved_peak": 5600}
    cuda.is_initialized = lambda: False
    assert memory.torch_peaks() == {} and gpu.read() == 2400 and gpu.peak == 6300


def test_a_worker_on_a_gpu_writes_what_was_read_beside_the_times_of_the_pipeline(monkeypatch):
    class Events:
        def __init__(self, stream):
            self.stream = stream

        def start(self):
            pass

        def stop(self):
            pass

        def milliseconds(self):
            return self.stream

    begin = time.perf_counter()
    library = Library(
        TotalEnergyConsumption=lambda: round((time.perf_counter() - begin) * 100) * 5000,  # 500 W, every 10 ms
        ClockInfo=lambda kind: 1980,
        MemoryInfo=lambda version=None: memory_in_use(1000),
        CurrentClocksThrottleReasons=0x24,
    )
    monkeypatch.setattr(nvml, "gpu", lambda: nvml.Gpu(library, object()))
    monkeypatch.setattr(memory, "_torch_cuda", lambda: None)
    monkeypatch.setattr(gpu_monitor, "WINDOW", 0.05)

    class Slowed(HostSpeed):
        def disturbed(self, count, least):
            super().disturbed(count, least)
            self.slowed = 0.25
            return [True] + [False] * (count - 1)

    monkeypatch.setattr(worker, "CudaEvents", Events)
    monkeypatch.setattr(worker, "HostSpeed", Slowed)
    monkeypatch.setattr(Quick, "stream", 7, raising=False)
    case = Case(backend="tests.fakes:Quick", resolution=28, mode="model", device="cuda", batch=2)
    pixels, ids = np.zeros((2, 3, 28, 28), np.uint8), np.zeros((1, 32), np.int64)
    one = worker._Worker(case, time.perf_counter_ns())
    loads = Artifacts(Path(), 28, device="cuda")
    one.make_ready(loads)
    one.load(loads)
    one.first(Inputs(pixels, ids, ids == 0, np.arange(2), np.zeros(2, int), np.full((2, 2), 28), ()))
    one.steady(5, 0.02)
    rows = {(row["stage"], row["phase"], row["metric"]): row for row in one.measurements}
    for stage in ("image", "text", "detect", "pipeline", "pipeline_cached"):
        wall = rows[stage, "steady", "wall"]["values"]
        assert len(wall) >= 4 and set(rows[stage, "steady", "cuda_event"]["values"]) == {7}
        assert len(rows[stage, "disturbed", "wall"]["values"]) == 1  # of the five or more, which does not count
        assert rows[stage, "disturbed", "cuda_event"]["values"] == [7]
        assert rows[stage, "steady", "slowed"]["values"] == [0.25]
        assert ((stage, "steady", "energy") in rows) == (stage == "pipeline")
    (joules,), (watts,) = (rows["pipeline", "steady", metric]["values"] for metric in ("energy", "power"))
    wall = rows["pipeline", "steady", "wall"]["values"]
    assert watts == pytest.approx(500, rel=0.3)
    assert 0.8 * min(wall) < 1e3 * 2 * joules / watts < 1.5 * max(wall)
    assert rows["pipeline", "steady", "clock_sm"]["values"] == [1980]
    assert rows["pipeline", "steady", "limited"]["values"] == [1]
    assert ("pipeline", "steady", "temperature") not in rows
    facts = one.facts()
    assert facts["gpu_limits"] == {"power cap": 1, "thermal slowdown": 1} and facts["gpu_memory_source"] == "device"
    assert rows["process", "memory", "gpu_peak"]["values"] == [0]
    assert facts["host_look_ms"] > 0
