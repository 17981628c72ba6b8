"""A cache of what lies on a device, bounded by entries and by bytes."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class LruCache:
    """Least recently used goes first. No entries: it keeps nothing and counts nothing.

    Counts of its whole life: hits, misses, evictions. Not for several threads.
    """

    def __init__(self, entries: int, most_bytes: int):
        self._entries, self._most = entries, most_bytes
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.hits = self.misses = self.evictions = self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def on(self) -> bool:
        """Whether it can keep anything."""
        return self._entries > 0 and self._most > 0

    def get(self, key: Hashable) -> Any:
        """What is kept under a key, None where nothing is."""
        if not self.on:
            return None
        if key not in self._kept:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, value: Any, nbytes: int) -> None:
        """Keep a value of `nbytes` bytes, unless it alone is more than there is room for."""
        if not self.on or nbytes > self._most:
            return
        self._drop(key)
        self._kept[key] = value, nbytes
        self.nbytes += nbytes
        while len(self._kept) > self._entries or self.nbytes > self._most:
            self._drop(next(iter(self._kept)))
            self.evictions += 1

    def clear(self) -> None:
        """Let go of everything; counted as evicted."""
        self.evictions += len(self._kept)
        self._kept.clear()
        self.nbytes = 0

    def _drop(self, key: Hashable) -> None:
        _, nbytes = self._kept.pop(key, (None, 0))
        self.nbytes -= nbytes
