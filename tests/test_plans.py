"""How CUDA graphs are kept and reused, on a stand-in device whose memory is a dict of addresses."""

import itertools

import pytest

from sam3lab.backends import plans, torch_graphs
from sam3lab.backends.plans import Plan, Plans


class Device:
    """Memory by address, and a log of what was done on it."""

    def __init__(self):
        self.memory, self.log, self._next = {}, [], itertools.count()

    def value(self, content, shape=(1,)):
        address = next(self._next)
        self.memory[address] = content
        return Value(address, shape)


class Value:
    dtype = "float32"

    def __init__(self, address, shape):
        self.address, self.shape = address, shape


class Doubling(Plan):
    """Writes twice what it reads, always to the same place."""

    def __init__(self, device, values):
        super().__init__(tuple(value.address for value in values))
        self.device, self.input, self.output = device, values[0].address, device.value(None)
        device.log.append("capture")

    def enqueue(self):
        self.device.memory[self.output.address] = 2 * self.device.memory[self.input]
        self.device.log.append("run")
        return (Value(self.output.address, (1,)) for _ in range(1))

    def fill(self, values):
        self.device.memory[self.input] = self.device.memory[values[0].address]
        self.device.log.append("copy in")

    def move(self, value):
        value.address = self.device.value(self.device.memory[value.address]).address
        self.device.log.append("move")

    def close(self):
        self.device.log.append("close")


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def doubling(device):
    return Plans(
        make=lambda values, first: Doubling(device, values),
        copy=lambda value: device.value(device.memory[value.address], value.shape),
        address=lambda value: value.address,
    )


def test_the_same_memory_is_captured_once_and_never_copied(device, doubling):
    value = device.value(1)
    for content in (1, 5, 7):
        device.memory[value.address] = content
        (result,) = doubling.run(value)
        assert device.memory[result.address] == 2 * content
        del result
    assert device.log == ["capture", "run", "run", "run"]


def test_a_result_that_is_held_is_moved_and_one_that_is_not_is_overwritten(device, doubling):
    value = device.value(1)
    (held,) = doubling.run(value)
    place = held.address
    device.memory[value.address] = 10
    (later,) = doubling.run(value)
    assert (device.memory[held.address], device.memory[later.address]) == (2, 20)
    assert later.address == place and held.address != place
    del held, later
    device.log.clear()
    doubling.run(value)
    assert device.log == ["run"]


def test_only_the_first_few_memories_get_a_plan_of_their_own(device, doubling):
    values = [device.value(i) for i in range(plans.ZERO_COPY + 3)]
    results = [doubling.run(value)[0] for value in values]
    assert [device.memory[result.address] for result in results] == [2 * i for i in range(len(values))]
    assert device.log.count("capture") == plans.ZERO_COPY + 1
    assert device.log.count("copy in") == 2
    assert [device.memory[value.address] for value in values] == list(range(len(values)))  # no caller's own was written


def test_under_pytorch_other_strides_are_compiled_for_before_they_are_captured(monkeypatch):
    """To compile inside a capture would fail."""
    torch = pytest.importorskip("torch")
    made = []

    class Graph(Plan):
        def __init__(self, function, tensors, stream, warm_up):
            super().__init__(tuple(tensor.data_ptr() for tensor in tensors))
            made.append((tuple(tensors[0].shape), tensors[0].is_contiguous(), warm_up))

        def enqueue(self):
            return ()

        def fill(self, values):
            pass

        def move(self, value):
            pass

    monkeypatch.setattr(torch_graphs, "_Graph", Graph)
    stage = torch_graphs.graphs(None, None)
    rows = torch.zeros(2, 4, 3, 3)
    values = [rows, rows.clone(), rows.to(memory_format=torch.channels_last), rows[:1]]
    for value in values * 2:
        stage.run(value)
    assert made == [
        ((2, 4, 3, 3), True, True),
        ((2, 4, 3, 3), True, False),
        ((2, 4, 3, 3), False, True),
        ((1, 4, 3, 3), True, True),
    ]


def test_other_shapes_have_plans_of_their_own_and_the_oldest_go(device, doubling):
    for size in range(1, plans.SHAPES + 2):
        doubling.run(device.value(size, shape=(size,)))
    assert device.log.count("capture") == plans.SHAPES + 1
    assert device.log.count("close") == 1
    doubling.close()
    assert device.log.count("close") == plans.SHAPES + 1
