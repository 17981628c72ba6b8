"""What an engine's workers count, as totals that outlive each of them."""

from collections import Counter
from collections.abc import Mapping

_GAUGES = ("_entries", "_bytes")  # endings of what is how much there is now


class Tally:
    """counts: monotonic, over all workers. gauges: of the present one."""

    def __init__(self):
        self.counts: Counter = Counter()
        self.gauges: dict[str, int] = {}
        self._seen: Mapping[str, int] = {}

    def new_worker(self) -> None:
        """From now on another worker counts, from zero."""
        self._seen, self.gauges = {}, {}

    def add(self, counts: Mapping[str, int]) -> None:
        """What the worker has counted by now."""
        for name, value in counts.items():
            if name.endswith(_GAUGES):
                self.gauges[name] = value
            else:
                self.counts[name] += value - self._seen.get(name, 0)
        self._seen = counts

    def caches(self) -> dict[str, dict[str, int]]:
        """Entries and bytes of each of the caches, by its name."""
        found: dict[str, dict[str, int]] = {"image": {"entries": 0, "bytes": 0}, "text": {"entries": 0, "bytes": 0}}
        for name, value in self.gauges.items():
            kind, _, what = name.split("_")
            found[kind][what] = value
        return found
