"""Which case-rounds there are, and in what order: a function of the cases, the rounds and the seed alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from sam3lab.bench.case import Case

REFERENCE = "transformers"
# Meta's own model reads one prompt token more than transformers' does where there is no box (see backends.meta).
REFERENCES = dict.fromkeys(("meta", "meta-compiled", "transformers-geometry"), "transformers-geometry")


def reference_of(case: Case, cases: Sequence[Case], reference: str = REFERENCE) -> Case | None:
    """The case among `cases` that this one's outputs are compared with, or None.

    It is the reference backend, or that of REFERENCES, in fp32 on the same inputs, no A/A twin, and on the same device
    if there is a choice.
    """
    reference = REFERENCES.get(case.backend, reference)
    found = [
        other
        for other in cases
        if (other.backend, other.precision, other.replica) == (reference, "fp32", 0)
        and other.inputs_id == case.inputs_id
        and (other.mode == "accuracy") == (case.mode == "accuracy")
    ]
    return min(found, key=lambda other: other.device != case.device, default=None)


def with_references(cases: Sequence[Case], reference: str = REFERENCE) -> list[Case]:
    """The cases, each once, and for every set of inputs whose reference is not among them that one: a case of mode
    "reference", or of mode "accuracy" for a split.
    """
    whole = list(dict.fromkeys(cases))
    for case in cases:
        if reference_of(case, whole, reference) is None:
            mode = "accuracy" if case.mode == "accuracy" else "reference"
            backend = REFERENCES.get(case.backend, reference)
            whole.append(replace(case, backend=backend, precision="fp32", mode=mode, replica=0))
    return whole


def twin(case: Case) -> Case:
    """The same measured as if it were another: what differs between the two is noise."""
    return replace(case, replica=case.replica + 1)


def steps(cases: Sequence[Case], rounds: int, seed: int, first: int = 0) -> list[tuple[Case, int]]:
    """Case-rounds, round by round from the first to before `rounds`, each round in an order of its own; references and
    accuracy cases answer once, in round 0.

    Sorting by a hash of seed, round and case makes a random order in which no case's place depends on the others'.
    """

    def key(case: Case, round_: int) -> bytes:
        return hashlib.sha256(f"{seed} {round_} {case.id}".encode()).digest()

    return [
        (case, round_)
        for round_ in range(first, rounds)
        for case in sorted(cases, key=lambda case: key(case, round_))
        if round_ == 0 or not case.once
    ]
