"""What an engine's workers count, as totals that outlive each of them."""

from collections import Counter
from collections.abc import Mapping

_GAUGES = ("_entries", "_bytes")  # endings of what is how much there is now

# What is counted, at zero until it happens: of each engine, and of the service.
OF_ENGINES = {
    "image_cache_hits": "images whose features were there already",
    "image_cache_misses": "images whose features were not there",
    "image_cache_evictions": "images whose features went to make room for others",
    "text_cache_hits": "prompts whose features were there already",
    "text_cache_misses": "prompts whose features were not there",
    "text_cache_evictions": "prompts whose features went to make room for others",
    "image_stage_calls": "calls of the image encoder",
    "text_stage_calls": "calls of the text encoder",
    "detect_stage_calls": "calls of the detector",
    "images_encoded": "images that went through the image encoder",
    "prompts_encoded": "prompts that went through the text encoder",
    "pairs_detected": "pairs of an image and a prompt that went through the detector",
    "batches": "batches that were computed",
    "batched_requests": "requests in these batches",
    "memory_failures": "times that memory was given back because none was left",
    "trials": "trials of an engine that had failed",
}
OF_SERVICE = {
    "requests_accepted": "requests that were put into the queue",
    "requests_answered": "accepted requests that were answered",
    "requests_failed": "accepted requests on which the engines failed",
    "requests_cancelled": "accepted requests whose client went before an engine had them",
    "requests_late": "accepted requests whose time ran out",
    "requests_worker_lost": "accepted requests that died with their engine's process",
    "requests_busy": "requests refused because too many waited",
    "requests_not_ready": "requests refused, or accepted and not answered, because no engine was there",
    "worker_restarts": "starts of engines' processes in place of lost ones",
    "moved": "requests that another engine got after one had failed on them",
    "switches": "changes of the engine that answers",
}


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
