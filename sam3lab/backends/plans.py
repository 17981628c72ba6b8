"""How backends that replay CUDA graphs keep them: one a set of shapes and addresses, with no copy where none is needed.

A graph reads and writes fixed addresses. It is therefore made on the very values of its first call, and run again, with
no copy, whenever the same memory comes in again, as the features that another stage's graph wrote do. The first ZERO_COPY
sets of values of one set of shapes get a plan each; all others are copied into inputs of one plan's own.
"""

import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

ZERO_COPY = 3
SHAPES = 16  # sets of shapes that keep their plans; the one unused for longest goes first


class Plan(ABC):
    """One stage at one set of shapes and addresses.

    `run` enqueues it. Its results lie where it will write again: what the caller still holds by then is moved before.
    """

    def __init__(self, addresses: tuple[int, ...]):
        self.addresses = addresses
        self._given: list[weakref.ref] = []

    def run(self) -> tuple:
        for given in self._given:
            if (value := given()) is not None:
                self.move(value)
        results = tuple(self.enqueue())
        self._given = [weakref.ref(value) for value in results]
        return results

    @abstractmethod
    def enqueue(self) -> Iterable[Any]:
        """Enqueue the work; new objects, that allow weak references, for the values that it writes."""

    @abstractmethod
    def fill(self, values: Sequence[Any]) -> None:
        """Copy these values to where the plan reads."""

    @abstractmethod
    def move(self, value: Any) -> None:
        """Give a value that `enqueue` made memory of its own, with what it holds."""

    def close(self) -> None:  # noqa: B027 (most have nothing to give back)
        """Give back what no garbage collector frees. The plan is not running, and is not used again."""


class Plans:
    """The plans of one stage.

    make(values, first): a plan that reads these values; first: whether it is the first of its shapes. copy(value): a value
    of the same content with memory of its own. Values have shape, dtype, and their address as `address(value)`.
    """

    def __init__(
        self, make: Callable[[Sequence[Any], bool], Plan], copy: Callable[[Any], Any], address: Callable[[Any], int]
    ):
        self._make, self._copy, self._address = make, copy, address
        self._plans: OrderedDict[tuple, list[Plan]] = OrderedDict()

    def run(self, *values: Any) -> tuple:
        """What the stage gives for these values; a view that a caller takes of a result is overwritten by later calls."""
        shapes = tuple((tuple(value.shape), value.dtype) for value in values)
        if shapes not in self._plans and len(self._plans) == SHAPES:
            self._drop(self._plans.popitem(last=False)[1])
        plans = self._plans.setdefault(shapes, [])
        self._plans.move_to_end(shapes)
        return self._plan(plans, values).run()

    def _plan(self, plans: list[Plan], values: Sequence[Any]) -> Plan:
        addresses = tuple(map(self._address, values))
        for plan in plans:
            if plan.addresses == addresses:
                return plan
        if len(plans) > ZERO_COPY:
            plans[-1].fill(values)
        else:
            own = values if len(plans) < ZERO_COPY else [self._copy(value) for value in values]
            plans.append(self._make(own, not plans))
        return plans[-1]

    def close(self) -> None:
        for plans in self._plans.values():
            self._drop(plans)
        self._plans.clear()

    @staticmethod
    def _drop(plans: list[Plan]) -> None:
        for plan in plans:
            plan.close()
