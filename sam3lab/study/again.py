"""What several goes on one machine, of the same code, measured of the same case: how much a figure owes to the go that it
comes from."""

from sam3lab.study import tables
from sam3lab.study.style import look, ordered
from sam3lab.study.tables import Estimate

STAGES = ("pipeline", "end_to_end")


def tell(study, goes: list) -> None:
    """Record and show on a study's page what several goes measured, see `repeated`; nothing where nothing was."""
    if len(goes) > 1 and len(frame := repeated(goes)):
        study.note(numbers(frame))
        study.say(
            "- Of {again.count.pipeline} that several goes measured, the medians of the pipeline are up to {again.most.pipeline} apart.",
            "- From a JPEG's bytes to masks, those of {again.count.end_to_end} are up to {again.most.end_to_end} apart.",
        )
        study.say(
            "- **{again.name.*}**: from go to go the medians of the pipeline are up to {again.within.pipeline.*} apart, and {again.within.end_to_end.*} from a JPEG's bytes to masks.",
            each=rows(frame),
        )
        study.table(
            table(frame, len(goes), study.parameters["device"]),
            "again",
            "The same case in several goes of the same code: medians with 95% intervals, and how far the greatest is above the least.",
        )


def repeated(goes: list):
    """The medians of the cases that several goes measured: a frame with case, label, mode, backend, precision, stage, go
    (from 1, the oldest), value, low and high (ms).

    goes: results.load's samples of each, oldest first.
    """
    import pandas as pd

    by = ["case", "label", "mode", *tables.BY]
    found = pd.concat(
        [
            tables.estimates(samples, stage, by).assign(stage=stage, go=number)
            for number, samples in enumerate(goes, 1)
            for stage in STAGES
        ],
        ignore_index=True,
    )
    return found[found.groupby(["case", "stage"])["go"].transform("size") > 1]


def table(frame, goes: int, device: str):
    """`repeated` for people: a row a case and stage, a column a go, and how far the greatest median is above the least.

    In ms where device is cuda; elsewhere over the oldest go's median, as the times of a processor that others share say
    little.
    """
    import pandas as pd

    rows = []
    for (_, stage), group in frame.groupby(["case", "stage"], sort=False):
        ms = 1.0 if device == "cuda" else group["value"].iloc[0]
        of_go = {each.go: Estimate(each.value / ms, each.low / ms, each.high / ms) for each in group.itertuples()}
        rows.append(
            (group["label"].iloc[0], stage, *(of_go.get(number) for number in range(1, goes + 1)), _within(group))
        )
    unit = "ms" if device == "cuda" else "× the oldest"
    heads = [f"Go {number}, {unit}" for number in range(1, goes + 1)]
    return pd.DataFrame(rows, columns=["Case", "Stage", *heads, "Apart, %"], dtype=object)


def numbers(frame) -> dict[str, tuple]:
    """What `Study.note` takes, of the cases that are measured stage by stage: `again.<stage>.<backend>.<precision>`, the
    newest go's median, and `again.within.<…>`, how far apart all of them are; and `again.name.<backend>.<precision>`.
    Of all cases: `again.most.<stage>`, how far the medians of one are apart at most, and `again.count.<stage>`.
    """
    found = {}
    for stage, group in frame.groupby("stage", sort=False):
        apart = [_within(case) for _, case in group.groupby("case")]
        found |= {f"again.most.{stage}": (max(apart), "%"), f"again.count.{stage}": (len(apart), "cases")}
    for (stage, *row), group in frame[frame["mode"] == "speed"].groupby(["stage", *tables.BY], sort=False):
        place, newest = ".".join([stage, *row]), group.loc[group["go"].idxmax()]
        found[f"again.{place}"] = Estimate(*(newest[end] for end in tables.ENDS)), "ms"
        found[f"again.within.{place}"] = _within(group), "%"
        found[f"again.name.{'.'.join(row)}"] = f"{look(row[0]).label} {row[1]}", ""
    return found


def rows(frame) -> list[str]:
    """<backend>.<precision> of the cases in `numbers`, in the order of the runtimes."""
    found = frame[frame["mode"] == "speed"].drop_duplicates(tables.BY)
    return [
        f"{name}.{each}" for name in ordered(found["backend"]) for each in found[found["backend"] == name]["precision"]
    ]


def _within(group) -> float:
    """How far the greatest median is above the least, in percent."""
    return 100 * (group["value"].max() / group["value"].min() - 1)
