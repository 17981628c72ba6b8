"""Samples taken while the host's core was slowed are kept apart, and a core that is not slowed is looked for."""

import json
import os

import pytest

from sam3lab.bench import clock, runner
from sam3lab.bench.case import Case
from sam3lab.bench.clock import Clock, Samples, steady
from sam3lab.bench.host_speed import ENOUGH, PATIENCE, SEEKING, SHARE, TRIES, Cores, HostSpeed, loop
from sam3lab.bench.process import Outcome

CALL, LOOK = 20e6, 0.3e6  # ns at the core's own speed


class Core:
    """One of some cores, on a clock of its own, slower by `factor` while its entry in `slow` says so of the time in
    seconds."""

    def __init__(self, *slow, factor=1.5):
        self.time, self.slow, self.factor, self.looks = 0.0, slow, factor, 0
        self.allowed, self.at, self.left = list(range(len(slow))), 0, 0

    def now(self):
        return int(self.time)

    def settle(self, core):
        self.at = core

    def leave(self):
        self.left += 1

    def work(self, nanoseconds):
        second = self.time / 1e9
        factor = self.factor(second) if callable(self.factor) else self.factor
        self.time += nanoseconds * (factor if self.slow[self.at](second) else 1)

    def look(self):
        self.looks += 1
        self.work(LOOK)


def phase(core, host, least, seconds):
    samples = steady(Clock(lambda: None), lambda: core.work(CALL), least, seconds, host=host)
    return samples.parted(host.disturbed(len(samples.wall), least))


def measured(core, monkeypatch, least=20, seconds=2.0, fastest=None):
    """What counts and what does not of a phase on the core, in ms, and the HostSpeed."""
    monkeypatch.setattr(clock, "now", core.now)
    host = HostSpeed(fastest, core.now, core.look, core)
    parts = phase(core, host, least, seconds)
    return *([wall / 1e6 for wall in part.wall] for part in parts), host


def test_on_a_quiet_host_everything_counts(monkeypatch):
    core = Core(lambda second: False)
    counted, others, host = measured(core, monkeypatch)
    assert others == [] and set(counted) == {20.0} and len(counted) == pytest.approx(2.0 / 0.02, rel=0.05)
    assert host.fastest == 0.3 and host.slowed == 0
    assert core.looks * LOOK <= SHARE * 1.1 * core.time


def test_what_was_measured_beside_a_slow_look_does_not_count(monkeypatch):
    core = Core(lambda second: 0.5 < second < 1.2)
    counted, others, host = measured(core, monkeypatch)
    assert set(counted) == {20.0}
    # the slowed calls, and a few that no look shows to have been at the core's own speed
    assert 20 <= sum(wall > 20 for wall in others) <= len(others) <= 28 and host.slowed == 0


def test_a_core_that_is_slowed_for_milliseconds_again_and_again_is_slowed(monkeypatch):
    core = Core(lambda second: second > 0.5 and int(second * 5000) % 2)  # by turns, for 0.2 ms
    counted, others, _ = measured(core, monkeypatch)
    assert 20 <= len(counted) <= 27 and len(others) > 45


def test_enough_undisturbed_samples_are_waited_for(monkeypatch):
    counted, others, host = measured(Core(lambda second: second > 0.1 and second < 3), monkeypatch)
    assert set(counted) == {20.0} and 20 <= len(counted) <= 24 and len(others) > 60 and host.slowed == 0


def test_on_a_host_that_stays_slow_what_is_beside_the_fastest_looks_counts_in_the_end(monkeypatch):
    core = Core(lambda second: second > 0.01)
    counted, others, host = measured(core, monkeypatch)
    assert 2 + PATIENCE <= core.time / 1e9 < 2.1 + PATIENCE and others == [] and set(counted[1:]) == {30.0}
    assert 0.9 < host.slowed <= 1 and host.fastest == 0.3
    begin = core.time
    phase(core, host, 20, 1.0)  # each phase is as patient
    assert 1 + PATIENCE <= (core.time - begin) / 1e9 < 1.1 + PATIENCE and host.slowed == 1

    core = Core(lambda second: second > 0.01)
    core.factor = lambda second: 1.4 if 2 < second < 2.5 else 1.9
    counted, others, host = measured(core, monkeypatch)
    assert host.slowed == 1 and set(counted) == {28.0} and 10 < len(counted) < 20 and len(others) > 80


def test_a_few_undisturbed_samples_are_worth_more_than_many_others(monkeypatch):
    core = Core(lambda second: second > 0.2)
    counted, others, host = measured(core, monkeypatch)
    assert ENOUGH <= len(counted) < 20 and set(counted) == {20.0} and len(others) > 50 and host.slowed == 0


def test_a_process_that_is_slow_throughout_is_known_by_what_others_saw(monkeypatch):
    core = Core(lambda second: second < 3)
    counted, others, _ = measured(core, monkeypatch, fastest=LOOK / 1e6)
    assert set(counted) == {20.0} and max(others) == 30.0 and len(counted) >= 20
    counted, others, _ = measured(Core(lambda second: second < 3), monkeypatch)
    assert set(counted) == {30.0} and others == []  # which it cannot know alone


def test_a_host_a_little_slower_than_at_its_best_is_not_slowed(monkeypatch):
    counted, others, _ = measured(Core(lambda second: int(second * 5) % 2, factor=1.2), monkeypatch)
    assert others == [] and len(counted) > 80


def test_where_another_core_is_not_slowed_the_thread_moves_there(monkeypatch):
    core = Core(lambda second: second > 0.5, lambda second: True, lambda second: second > 1.0, lambda second: False)
    counted, others, host = measured(core, monkeypatch)
    assert set(counted) == {20.0} and len(counted) > 85 and len(others) <= 8 and core.at == 3
    assert host.slowed == 0 and core.left == 1


def test_a_phase_begins_on_the_fastest_core(monkeypatch):
    speeds = [lambda second: True, lambda second: False, lambda second: True]
    counted, others, _ = measured(Core(*speeds), monkeypatch)
    assert set(counted) == {20.0} and others == []
    counted, others, _ = measured(Core(*speeds, factor=1.2), monkeypatch)  # also where none is slow
    assert set(counted) == {20.0} and others == []
    many = Core(*100 * speeds)
    HostSpeed(None, many.now, many.look, many).start()
    assert many.looks == 3 * (TRIES + 1)


@pytest.mark.parametrize("slowed", [[True] * 16, [number % 2 == 0 for number in range(16)]], ids=["all", "every other"])
def test_looking_takes_little_of_a_phase_however_many_cores_are_slowed(monkeypatch, slowed):
    """The device idles meanwhile, which a user's would not, and its clocks would be higher for it."""
    core = Core(*[lambda second, slow=slow: slow and second > 0.1 for slow in slowed])
    counted, others, _ = measured(core, monkeypatch)
    calls = (sum(counted) + sum(others)) * 1e6
    assert 1 - calls / core.time < 1.2 * SEEKING


def test_where_every_core_is_slowed_one_is_waited_for(monkeypatch):
    core = Core(*2 * [lambda second: 0.1 < second < 3])
    counted, others, host = measured(core, monkeypatch)
    assert set(counted) == {20.0} and len(counted) >= 20 and max(others) == 30.0
    assert host.slowed == 0 and core.time / 1e9 < 3.6


def test_a_thread_that_has_one_core_is_left_where_it_runs(monkeypatch):
    core = Core(lambda second: False)
    measured(core, monkeypatch)
    assert core.left == 0


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not tell a thread's cores")
def test_a_thread_stays_on_the_core_that_it_is_given_until_it_leaves():
    before, cores = os.sched_getaffinity(0), Cores()
    assert set(cores.allowed) == before
    try:
        cores.settle(cores.allowed[-1])
        assert os.sched_getaffinity(0) == {cores.allowed[-1]}
        cores.leave()
        assert os.sched_getaffinity(0) == before
    finally:
        os.sched_setaffinity(0, before)


def test_without_a_host_to_look_at_nothing_is_kept_apart():
    assert len(steady(Clock(lambda: None), lambda: None, 5, 0).wall) == 5
    counted, others = Samples([1, 2, 3]).parted([False] * 3)
    assert len(counted.wall) == 3 and others.wall == []


def test_the_loop_takes_as_long_as_is_said():
    host = HostSpeed(loop=loop)
    host.start()
    assert 0.05 < host.fastest < 5


def test_a_worker_is_told_the_fastest_look_of_those_before_it(tmp_path, monkeypatch):
    given, answers = [], iter([{"host_look_ms": 0.5}, {}, {"host_look_ms": 0.4}, {"host_look_ms": 0.6}, {}])
    run = runner._Run(tmp_path, 10.0, 5, 0.1, "transformers")
    run.environment = {}
    case = Case(backend="pytorch", resolution=84)

    def child(module, job, *rest, **others):
        given.append(json.loads(json.dumps(job))["host_look_ms"])
        return Outcome("done", "", 0.1), {"measurements": [], "facts": next(answers)}

    monkeypatch.setattr(run, "_child", child)
    monkeypatch.setattr(run, "_answer", lambda *_: {"artifacts": {}, "checkpoint_sha256": ""})
    monkeypatch.setattr(runner.records, "record", lambda *_, **others: None)
    progress = type("Quiet", (), {name: lambda self, *_: None for name in ("start", "end", "say")})()
    for round_ in range(1, 6):
        run._step(case, round_, progress)
    assert given == [None, 0.5, 0.5, 0.4, 0.4]
