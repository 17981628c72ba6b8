"""What a larger checkpoint under native PyTorch alone is worth: the article timed "huge" there and "large" elsewhere."""

from sam3lab.study import tables


def cases(study) -> list:
    """Native PyTorch with the study's larger checkpoint, in the precision of the rows and in fp32; none without one."""
    name = study.parameters["huge"]
    chosen = dict.fromkeys([study.parameters["precision"], "fp32"]) if name else ()
    return [study.case(tables.NATIVE, each, checkpoint=name) for each in chosen]


def record(study, samples) -> None:
    """Record, by the precision of native PyTorch, `claims.huge.latency`, `.memory` and `.ratio`, its latency over that
    with the study's own checkpoint; and by runtime too `claims.article`: how many times as fast as it each runtime is.

    samples: of `cases` and of the rows, measured together, with peaks (tables.with_peaks).
    """
    own, huge = study.parameters["checkpoint"], study.parameters["huge"]
    samples = samples[samples["backend"].isin(study.parameters["backends"])]
    native = samples[samples["backend"] == tables.NATIVE]
    if native[native["checkpoint"] == huge].empty:
        return
    only = native[native["checkpoint"] == huge]
    study.record("claims.huge.latency", tables.estimates(only, by=["precision"]), "ms", ["precision"])
    study.record("claims.huge.memory", tables.estimates(only, by=["precision"], **tables.PEAK), "MB", ["precision"])
    both = ["checkpoint", "precision"]
    ratio = tables.ratios(native, by=both, to={"checkpoint": own})
    study.record("claims.huge.ratio", ratio[ratio["checkpoint"] == huge], "×", ["precision"])
    for each in only["precision"].unique():
        to = {"checkpoint": huge, "backend": tables.NATIVE, "precision": each}
        frame = tables.ratios(samples, by=["checkpoint", *tables.BY], to=to, invert=True)
        others = frame[(frame["checkpoint"] == own) & (frame["backend"] != tables.NATIVE)]
        study.record("claims.article", others.assign(precision=each), "×")
