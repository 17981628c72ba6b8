"""What the page keeps for its visitors between two clicks: pictures and answers, not many and not for ever."""

import secrets
import threading
import time
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Something that knows how much memory it takes."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class Shelf(Generic[T]):
    """Things by a key that cannot be guessed, so that whoever has the key may have the thing.

    What has not been used for longest goes when `capacity` bytes are full, and `life` seconds after it was put there
    everything does. A thing larger than the capacity is not kept, and pushes nothing out. Safe to use from several threads.
    """

    def __init__(self, capacity: int, life: float):
        self.capacity, self.life, self.used = capacity, life, 0
        self._things: OrderedDict[str, tuple[T, int, float]] = OrderedDict()  # with its size and when it goes
        self._lock = threading.Lock()

    def put(self, thing: T) -> str:
        """Keep it; returns its key."""
        key, size, now = secrets.token_urlsafe(16), thing.nbytes, time.monotonic()
        with self._lock:
            for old in [each for each, (_, _, ends) in self._things.items() if ends < now]:
                self._remove(old)
            if size <= self.capacity:
                while self.used + size > self.capacity:
                    self._remove(next(iter(self._things)))
                self._things[key] = thing, size, now + self.life
                self.used += size
        return key

    def get(self, key: object) -> T | None:
        """The thing of that key, or None where it is gone or there never was one."""
        with self._lock:
            if not isinstance(key, str) or key not in self._things:
                return None
            thing, _, ends = self._things[key]
            if ends < time.monotonic():
                self._remove(key)
                return None
            self._things.move_to_end(key)
            return thing

    def drop(self, key: object) -> None:
        """Keep it no longer; a key of nothing is fine."""
        with self._lock:
            if isinstance(key, str) and key in self._things:
                self._remove(key)

    def __len__(self) -> int:
        return len(self._things)

    def _remove(self, key: str) -> None:
        self.used -= self._things.pop(key)[1]
