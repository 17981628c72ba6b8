"""What the serving experiments on one engine are to do, and under which names their records are kept."""

from dataclasses import asdict, dataclass

from sam3lab.model.checkpoint import is_random
from sam3lab.study import serving_store as store

CANDIDATES = 10  # that a prompt may have with random weights, by which every query is one: as many as in a real image


@dataclass(frozen=True)
class Plan:
    """What the experiments on one engine are to do.

    side: of the model's images, pixels. fallback: the backend that answers on the CPU while the engine cannot, or empty.
    scored: the trained checkpoint by which what lists find is judged, or empty. loads: offered loads as shares of the
    capacity without batching, each for `seconds`. requests: how many are timed one by one of each kind. rounds: starts.
    """

    checkpoint: str
    side: int
    device: str
    backend: str
    precision: str
    fallback: str
    scored: str
    loads: tuple[float, ...]
    seconds: float
    requests: int
    rounds: int
    seed: int

    def definition(self, experiment: str) -> dict:
        """What decides the experiment's records."""
        always = ("checkpoint", "side", "device", "backend", "precision", "seed")
        return {name: value for name, value in asdict(self).items() if name in (*always, *EXPERIMENTS[experiment])}

    def key(self, experiment: str) -> str:
        """Its name in storage."""
        return store.key(experiment, self.backend, self.precision, self.definition(experiment))

    @property
    def keys(self) -> list[str]:
        return [self.key(experiment) for experiment in EXPERIMENTS]

    def options(self, *more: str) -> list[str]:
        """Arguments of `sam3lab serve`, with no fallback unless one of `more` says which."""
        fixed = ["--checkpoint", self.checkpoint, "--backend", self.backend, "--device", self.device]
        fixed += ["--precision", self.precision]
        if is_random(self.checkpoint):
            fixed += ["--candidates", str(CANDIDATES)]
        return [*fixed, *([] if "--fallback" in more else ["--fallback", "none"]), *more]


# The experiments, and what of the plan each depends on beside what all do.
EXPERIMENTS = {
    "cold": (),
    "process": ("rounds",),
    "start": ("rounds", "requests"),
    "caches": ("requests",),
    "list": ("requests", "scored"),
    "single": ("loads", "seconds"),
    "batched": ("loads", "seconds"),
    "fault": ("fallback", "seconds"),
}
