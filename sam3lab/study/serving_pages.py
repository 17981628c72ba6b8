"""The parts of the notebook on serving: each records its numbers for prose, and draws or tabulates them."""

from dataclasses import replace

from sam3lab.bench.statistics import Estimate
from sam3lab.study import serving_figures as figures
from sam3lab.study import serving_numbers as numbers
from sam3lab.study import tables
from sam3lab.study.answer import OF_NATIVE
from sam3lab.study.readings import quotient
from sam3lab.study.serving import Served
from sam3lab.study.style import look
from sam3lab.study.tables import BY, ENDS

HALF = 0.5  # of the capacity: the load at which services are compared
KINDS = {"single": "off", "batched": "on"}
_NOTHING = Estimate(*[float("nan")] * 3)


def starts(served: Served) -> None:
    """Record and draw what a start costs beside a request to a running service, and what cached features save."""
    import pandas as pd

    study, rows, absolute = served.study, served.records, served.absolute
    frames = {name: numbers.medians(rows, name) for name in numbers.STARTS}
    for name, frame in frames.items():
        if name != "preloaded":
            study.record(f"serving.times.{name}", numbers.ratios(rows, name, "preloaded").drop(columns="verdict"), "×")
        if absolute:
            key, unit, factor = ("idle", "ms", 1) if name == "preloaded" else (f"seconds.{name}", "s", 1e-3)
            study.record(f"serving.{key}", tables.scaled(frame, factor), unit)
    own = tables.column(tables.estimates(served.samples, by=BY), BY)
    idle = tables.column(frames["preloaded"], BY)
    for group in idle.keys() & own.keys():
        study.record(f"serving.over.{'.'.join(group)}", quotient(idle[group], own[group]), "×")
    for name in numbers.CACHED[1:]:
        study.record(f"serving.cached.{name}", numbers.ratios(rows, name, "neither"), "×")
    for stage in ("image", "text"):
        ran = numbers.calls(rows, stage)
        for name, hits in (("cached", (_cached(stage), "both")), ("new", ("neither", _cached(_other(stage))))):
            if ran:
                study.record(f"serving.calls.{stage}.{name}", sum(ran.get(each, 0) for each in hits))
    starts = pd.concat([frame.assign(condition=name) for name, frame in frames.items()], ignore_index=True)
    parts = numbers.parts(rows)
    if starts.empty or parts.empty:
        return study.say("*Starts, or requests with cached features, could not be measured: see below.*")
    base = parts[parts["condition"] == "neither"].groupby(BY)["value"].sum()
    if not absolute:
        starts = _over(starts, served.idle)
        parts = parts.assign(value=[each.value / base[each.backend, each.precision] for each in parts.itertuples()])
    else:
        starts = tables.scaled(starts, 1e-3)
    study.figure(
        figures.costs(starts, parts, absolute),
        "serving_costs",
        "Above: until the first right answer, with 95% intervals. Below: what an answer is made of, means.",
        "Markers for four kinds of start on a logarithmic axis, above stacked bars of an answer's stages by what was cached.",
    )


def loads(served: Served) -> None:
    """Record, draw and tabulate what the services do under load."""
    study, absolute, by = served.study, served.absolute, tables.BY
    deadline = study.parameters["deadline"]
    curve = numbers.curve(served.records, deadline)
    if curve.empty:
        return study.say("*No load could be measured: see below.*")
    whole = {kind: tables.column(numbers.capacities(served.records, kind), by) for kind in KINDS}
    per_call, rate = ("ms", "requests/s") if absolute else (f"{OF_NATIVE} time", f"{OF_NATIVE} rate")
    for group in dict.fromkeys(zip(curve["backend"], curve["precision"], strict=True)):
        row, own = ".".join(group), curve[(curve[by] == list(group)).all(axis=1)]
        best = {}
        for kind in KINDS:
            if group in whole[kind]:
                study.record(
                    f"serving.capacity.{kind}.{row}", _times(whole[kind][group], served.native / 1e3, absolute), rate
                )
            if len(each := own[own["experiment"] == kind]):
                best[kind] = max(each["goodput"], key=lambda estimate: estimate.value)
                most = each.loc[each["load"].idxmax()]
                study.record(f"serving.refused.{kind}.{row}", float(most["refused"]), "%")
                for name in ("p50", "p95"):
                    half = each.loc[each["load"] == HALF, name]
                    if len(half) and half.iloc[0] is not None:
                        study.record(
                            f"serving.half.{name}.{kind}.{row}",
                            _times(half.iloc[0], 1 / served.native, absolute),
                            per_call,
                        )
                        if (kind, name) == ("batched", "p95"):
                            study.record(
                                f"serving.half.{row}", _times(half.iloc[0], 1 / served.native, absolute), per_call
                            )
        if "batched" in best and best["batched"].value:
            study.record(f"serving.goodput.{row}", _times(best["batched"], served.native / 1e3, absolute), rate)
        if all(kind in best and best[kind].value for kind in KINDS):
            study.record(f"serving.gain.{row}", quotient(best["batched"], best["single"]), "×")
        if all(group in whole[kind] for kind in KINDS):
            study.record(f"serving.batching.{row}", quotient(whole["batched"][group], whole["single"][group]), "×")
    study.record("serving.deadline", f"{deadline:g} s")
    study.record("serving.most", float(curve["load"].max()), "×")
    shown = (
        curve
        if absolute
        else _relative(curve, served.idle, {group: each.value for group, each in whole["single"].items()})
    )
    study.figure(
        figures.load(shown, f"{deadline:g} s", absolute),
        "serving_load",
        "Poisson arrivals, images and prompts that differ, caches off: latency of what is answered, with 95% intervals, "
        "what is answered in time, and what is refused, by the load offered. Over the capacity latency is the queue's length.",
        "Line charts over the offered load: latency on a logarithmic axis, answers in time, and refusals; with and without batching.",
    )
    study.table(_table(shown, absolute), "serving_load", "The services under load.")


def lists(served: Served) -> None:
    """Record and tabulate what a list of things costs and finds, as one phrase and as a prompt each."""
    import pandas as pd

    study, rows = served.study, served.records
    own = rows[(rows["experiment"] == "list") & (rows["event"] == "")]
    study.record("serving.list.time", numbers.ratios(own, "several", "phrase"), "×")
    found = numbers.found_of_lists(rows)
    for name, each in found.items():
        study.note({f"serving.list.{name}": (each["share"], "%"), f"serving.list.extra.{name}": (each["extra"], "")})
        study.record("serving.list.objects", each["expected"])
    times = {name: tables.column(numbers.medians(own, name), BY) for name in numbers.LISTED}
    lines = []
    for group, name in [(group, name) for group in study.named for name in numbers.LISTED if group in times[name]]:
        each = times[name][group]
        base = 1.0 if served.absolute else served.idle.get(group, float("nan"))
        cells = {"Runtime": look(group[0]).label, "Precision": group[1]}
        cells["List as"] = "one phrase" if name == "phrase" else "a prompt each"
        cells["ms" if served.absolute else "Times an idle request"] = _times(each, 1 / base, False)
        lines.append(cells)
    if lines:
        study.table(pd.DataFrame(lines), "serving_lists", "A list of things, as one phrase and as a prompt each.")


def faults(served: Served) -> None:
    """Record and draw what a killed process of the first engine costs."""
    study, rows = served.study, served.records
    seen = numbers.faults(rows)
    units = {"requests": "", "answered": "%", "lost": "", "moved": "", "away": "s", "back": "s"}
    for group, each in seen.items():
        for name, value in each.items():
            if value is not None:
                study.record(f"serving.fault.{name}.{'.'.join(group)}", value, units[name])
    if not seen:
        return study.say("*The fault could not be measured: see below.*")
    own = rows[rows["experiment"] == "fault"]
    events = {
        group: dict(zip(each["event"], each["at"], strict=True))
        for group, each in own[own["condition"] == "event"].groupby(BY, sort=False)
    }
    asked = own[own["condition"] == "fault"]
    if not served.absolute:
        asked = asked.assign(
            latency=[each.latency / served.idle.get((each.backend, each.precision), 1.0) for each in asked.itertuples()]
        )
    study.figure(
        figures.fault(asked, events, served.absolute),
        "serving_fault",
        "A steady load; at the line the process of the first engine is killed. A marker an answer, in the colour of the engine that gave it.",
        "Latency of every answer over time on a logarithmic axis, with the moment of the fault and the time until the engine is back.",
    )


def _cached(stage: str) -> str:
    """The condition in which only what that stage makes is cached."""
    return {"image": "image", "text": "prompt"}[stage]


def _other(stage: str) -> str:
    return {"image": "text", "text": "image"}[stage]


def _times(estimate: Estimate, factor: float, absolute: bool) -> Estimate:
    """An estimate times a factor, unless it is shown as it is."""
    if absolute:
        return estimate
    return replace(estimate, **{end: getattr(estimate, end) * factor for end in ENDS})


def _over(frame, base: dict[tuple[str, str], float]):
    """A frame of estimates over each row's own base."""
    parts = [base.get(group, float("nan")) for group in frame[BY].itertuples(index=False, name=None)]
    return frame.assign(**{end: frame[end] / parts for end in ENDS}).dropna(subset="value")


def _relative(curve, idle: dict[tuple[str, str], float], whole: dict[tuple[str, str], float]):
    """serving_numbers.curve with latencies over idle ones, and rates over capacities."""
    lines = []
    for each in curve.to_dict("records"):
        group = each["backend"], each["precision"]
        for name in ("p50", "p95"):
            each[name] = None if each[name] is None else _times(each[name], 1 / idle[group], False)
        each["goodput"] = _times(each["goodput"], 1 / whole[group], False)
        lines.append(each | {"rate": each["load"]})
    return curve.iloc[:0].from_records(lines, columns=curve.columns)


def _table(curve, absolute: bool):
    import pandas as pd

    lines = []
    for each in curve.itertuples():
        line = {"Runtime": look(each.backend).label, "Precision": each.precision, "Batching": KINDS[each.experiment]}
        line |= {"Offered/s": each.rate} if absolute else {"Offered": each.rate}
        line |= {"Answered in time/s" if absolute else "Answered in time": each.goodput}
        line |= {
            "p50, ms" if absolute else "p50": each.p50 or _NOTHING,
            "p95, ms" if absolute else "p95": each.p95 or _NOTHING,
        }
        lines.append(
            line | {"Refused, %": each.refused, "Failed, %": each.failed, "Requests": each.count, "A batch": each.batch}
        )
    return pd.DataFrame(lines)
