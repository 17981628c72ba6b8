"""What a case costs by itself: the floor of its stages, and the bytes that its runtime loads. Nothing is timed for it."""


def ceilings(study) -> list[dict]:
    """The rows of bench.ceilings for the study's device, measured by the first notebook that asks and then kept; none
    where stored results have none.
    """
    from sam3lab.bench import ceilings

    device = study.parameters["device"]
    rows = study.optional(f"ceilings.{device}", lambda: ceilings.ceilings(device).to_dict("records"))
    return rows or []


def flops(study, case) -> int:
    """Floating-point operations of one call of the case's whole pipeline; kept among the facts of the study."""
    from sam3lab.bench import floor

    key = f"flops.{case.checkpoint}.{case.resolution}"
    return study.fact(key, lambda: sum(each.operations for each in floor.work(case).values()))


def floors(study, cases, key=lambda case: (case.backend, case.precision)) -> dict[tuple, dict[str, float]]:
    """{key(case): {stage: ms}}: what the machine's ceilings leave of each case at least (bench.floor).

    Kept among the facts of the study; a case is absent where its precision has no ceiling or nothing was stored.
    """
    from sam3lab.bench import floor

    highest, found = ceilings(study), {}
    for case in cases:
        known = study.optional(f"floor.{case.id}", lambda case=case: floor.milliseconds(case, highest))
        if known:
            found[key(case)] = known
    return found


def loaded_bytes(case) -> int:
    """Bytes on disk of what the case's runtime reads: the weights of the checkpoint, or the graphs made of them."""
    from sam3lab import backends
    from sam3lab.backends.base import Artifacts
    from sam3lab.model import checkpoint

    wanted = Artifacts(checkpoint.resolve(case.checkpoint), case.resolution, case.precision, case.device, case.threads)
    made = backends.get(case.backend).prepare(wanted)
    if made.graphs is None:
        return checkpoint.weight_bytes(made.checkpoint)
    return sum(path.stat().st_size for path in made.graphs.iterdir())


def sizes(study, cases) -> dict[tuple[str, str], float]:
    """{(backend, precision): MB on disk} of what each case loads; kept among the facts of the study."""
    return {
        (case.backend, case.precision): study.fact(f"size.{case.id}", lambda case=case: loaded_bytes(case)) / 1e6
        for case in cases
    }
