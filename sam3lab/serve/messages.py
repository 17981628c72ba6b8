"""What a server and its worker tell each other before the first batch."""

from dataclasses import dataclass

from sam3lab.backends import Artifacts
from sam3lab.serve.spec import Limits


@dataclass(frozen=True)
class Order:
    """What to load. prepared: whether `artifacts` are as a backend's `prepare` gave them already."""

    backend: str
    artifacts: Artifacts
    limits: Limits
    prepared: bool = False


@dataclass(frozen=True)
class Facts:
    """What a worker that is ready says of itself. artifacts: prepared, for the next worker.

    seconds: how long a batch of one image and one prompt takes; most_seconds: one as large as can be, perhaps less.
    """

    artifacts: Artifacts
    checkpoint_sha256: str
    seconds: float
    most_seconds: float
