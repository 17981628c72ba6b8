"""What several goes on one machine, of the same code, measured of the same case: how much a figure owes to the go that it
comes from."""

import math

from sam3lab.study import tables
from sam3lab.study.style import look, ordered
from sam3lab.study.tables import Estimate

# {quantity: its stage, metric and phase in results.load, and its unit}
QUANTITIES = {
    "pipeline": ("pipeline", "wall", "steady", "ms"),
    "end_to_end": ("end_to_end", "wall", "steady", "ms"),
    "startup": ("process", "startup", "load", "s"),
    "cold": ("process", "startup", "cold", "s"),
}


def tell(study, goes: dict, ran: dict) -> None:
    """Record and show on a study's page what several goes measured, see `repeated`; nothing where nothing was.

    ran: of each go, by its number, the notebooks that it ran to their end.
    """
    if len(goes) > 1 and len(frame := repeated(goes)):
        study.note(numbers(frame) | (twice := of_notebooks(frame, ran)))
        study.say(
            "- Of {again.count.pipeline} that several goes measured, the medians of the pipeline are up to {again.most.pipeline} apart.",
            "- From a JPEG's bytes on, end to end, those of {again.count.end_to_end} are up to {again.most.end_to_end} apart.",
            "- From the start of a process to its first masks, those of {again.count.startup} are up to {again.most.startup} apart with all compiled before.",
            "- With nothing compiled before, those of {again.count.cold} are up to {again.most.cold} apart.",
        )
        for notebook in dict.fromkeys(key.split(".")[2] for key in twice):
            study.say(
                f"- Of the goes of {notebook} alone, those of the pipeline are up to {{again.most.{notebook}.pipeline}} apart in {{again.count.{notebook}.pipeline}}."
            )
        study.say(
            "- **{again.name.*}**: from go to go the medians of the pipeline are up to {again.within.pipeline.*} apart, and {again.within.end_to_end.*} end to end.",
            each=rows(frame),
        )
        study.table(
            table(frame, study.parameters["device"]),
            "again",
            "The same case in several goes of the same code: medians with 95% intervals, and how far the greatest is above the least.",
        )


def repeated(goes: dict):
    """The medians of the cases that several goes measured: a frame with case, label, mode, backend, precision, quantity (of
    QUANTITIES), go, value, low and high.

    goes: {number: results.load's samples}, oldest first.
    """
    import pandas as pd

    by = ["case", "label", "mode", *tables.BY]
    found = pd.concat(
        [
            tables.estimates(samples, stage, by, metric, phase).assign(quantity=quantity, go=number)
            for number, samples in goes.items()
            for quantity, (stage, metric, phase, _) in QUANTITIES.items()
        ],
        ignore_index=True,
    )
    return _several(found)


def table(frame, device: str):
    """`repeated` for people: a row a case and quantity, a column a go that repeated some, and how far the greatest median
    is above the least.

    Times where device is cuda; elsewhere multiples of the oldest go's median, as the times of a processor that others
    share say little.
    """
    import pandas as pd

    rows, goes, absolute = [], sorted(frame["go"].unique()), device == "cuda"
    for (_, quantity), group in frame.groupby(["case", "quantity"], sort=False):
        over = 1.0 if absolute else group["value"].iloc[0]
        ends = tables.scaled(group, 1 / over).set_index("go")[tables.ENDS]
        of_go = [Estimate(*ends.loc[go]) if go in ends.index else math.nan for go in goes]
        what = f"{quantity}, {QUANTITIES[quantity][-1]}" if absolute else quantity
        rows.append((group["label"].iloc[0], what, *of_go, _apart(group)))
    heads = [f"Go {go}" if absolute else f"Go {go}, × the oldest" for go in goes]
    return pd.DataFrame(rows, columns=["Case", "Quantity", *heads, "Apart, %"], dtype=object)


def numbers(frame) -> dict[str, tuple]:
    """What `Study.note` takes, of the cases that are measured stage by stage, or cold: `again.<quantity>.<backend>.
    <precision>`, the newest go's median, and `again.within.<…>`, how far apart all of them are; and `again.name.<backend>.
    <precision>`. Of all cases: `again.most.<quantity>`, how far the medians of one are apart at most, and
    `again.count.<quantity>`.
    """
    found = _most(frame)
    own = frame[frame["mode"].isin(["speed", "cold"])]
    for (quantity, *row), group in own.groupby(["quantity", *tables.BY], sort=False):
        place, newest = ".".join([quantity, *row]), group.loc[group["go"].idxmax()]
        found[f"again.{place}"] = Estimate(*(newest[end] for end in tables.ENDS)), QUANTITIES[quantity][-1]
        found[f"again.within.{place}"] = _apart(group), "%"
        found[f"again.name.{'.'.join(row)}"] = f"{look(row[0]).label} {row[1]}", ""
    return found


def of_notebooks(frame, ran: dict) -> dict[str, tuple]:
    """What `Study.note` takes, of each notebook that several goes ran: `again.most.<notebook>.<quantity>` and
    `again.count.<notebook>.<quantity>`, as `numbers` has them of all goes.
    """
    found = {}
    for notebook in dict.fromkeys(name for names in ran.values() for name in names):
        own = frame[frame["go"].isin([number for number, names in ran.items() if notebook in names])]
        found |= _most(_several(own), f"{notebook}.")
    return found


def rows(frame) -> list[str]:
    """<backend>.<precision> of the cases in `numbers`, in the order of the runtimes."""
    found = frame[frame["mode"] == "speed"].drop_duplicates(tables.BY)
    return [
        f"{name}.{each}" for name in ordered(found["backend"]) for each in found[found["backend"] == name]["precision"]
    ]


def _several(frame):
    """What was measured in more than one go."""
    return frame[frame.groupby(["case", "quantity"])["go"].transform("size") > 1]


def _most(frame, of: str = "") -> dict[str, tuple]:
    """How far apart the medians of one case are at most, and of how many cases, by quantity."""
    found = {}
    for quantity, group in frame.groupby("quantity", sort=False):
        apart = [_apart(case) for _, case in group.groupby("case")]
        found |= {f"again.most.{of}{quantity}": (max(apart), "%"), f"again.count.{of}{quantity}": (len(apart), "cases")}
    return found


def _apart(group) -> float:
    """How far the greatest median is above the least, in percent."""
    return 100 * (group["value"].max() / group["value"].min() - 1)
