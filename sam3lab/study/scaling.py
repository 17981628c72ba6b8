"""Calls with several prompts, or with several images: what is recorded, said, drawn and tabulated of either alike."""

from dataclasses import dataclass

from sam3lab.study import limit_figures, tables


@dataclass(frozen=True)
class Several:
    """What a call has several of. over: the column of their number. name: the key of its numbers, calls.<name>.…"""

    over: str
    name: str
    title: str
    heading: str
    lines: tuple[str, ...]


PROMPTS = Several(
    "count",
    "prompts",
    "prompts in a call",
    "Prompts",
    (
        "- **{name.*}**: {calls.prompts.most} prompts take {calls.prompts.times.*.N} the time of the fewest, {calls.prompts.share.*} a prompt.",
    ),
)
IMAGES = Several(
    "batch",
    "images",
    "images in a call",
    "Images",
    (
        "- **{name.*}**: with {calls.images.most} images in a call, {calls.images.gain.*.N} the images per second of the fewest; at most {calls.images.rate.*|value}.",
    ),
)


def tell(study, samples, several: Several, floors: dict, absent: dict, caption: str) -> None:
    """Record, say, draw and tabulate the pipeline of `samples` by the number of prompts or images in a call.

    floors: work.floors by backend, precision and that number. absent: Study.absent's.

    Recorded by row: latency and share (ms) with the most, rate (per second) at its best; and by number too, times (over
    the fewest in a call) and gain (of the rate over that with the fewest).
    """
    over, by = several.over, [*tables.BY, several.over]
    latency = tables.estimates(samples, by=by)
    least, most = latency[over].min(), latency[over].max()
    times = tables.ratios(samples, by=by, to={over: least})
    rate, gain = tables.rates(latency, latency[over]), tables.turned(tables.divided(times, over, least))
    with_most = latency[latency[over] == most]
    found = {
        "latency": (with_most, "ms", tables.BY),
        "share": (tables.divided(with_most, over), "ms", tables.BY),
        "rate": (rate.loc[rate.groupby(tables.BY, sort=False)["value"].idxmax()], f"{several.name}/s", tables.BY),
        "times": (times, "×", by),
        "gain": (gain.drop(columns="verdict"), "×", by),
    }
    study.record(f"calls.{several.name}.most", int(most))
    for key, (frame, unit, keys) in found.items():
        study.record(f"calls.{several.name}.{key}", frame, unit, keys)
    study.say(*(line.replace("N", str(most)) for line in several.lines), each=[".".join(row) for row in study.named])
    units = f"{several.name}/s", "ms"
    shown = (rate, latency)
    if study.parameters["device"] == "cpu":
        units, shown = ("relative to the fewest",) * 2, (gain, times)
    words = ("Throughput", units[0], "Time of a call", units[1], several.title)
    alt = f"Two line charts over the number of {several.title}, one line a runtime: throughput and the time of a call."
    study.figure(limit_figures.scaling(*shown, over, words), f"calls_{several.name}", caption, alt)
    floor = tables.multiples(latency, floors, by)
    columns = {
        "A call, ms": latency,
        "Times the floor": floor,
        "Relative to the fewest": times,
        f"{several.heading}/s": rate,
    }
    cells = {heading: tables.column(frame, by) for heading, frame in columns.items() if len(frame)}
    table = tables.build(samples, cells, by, (*tables.HEADINGS, several.heading), absent)
    study.table(table, f"calls_{several.name}", caption)
