"""The parts of the notebook on serving: each records its numbers for prose, and draws or tabulates them."""

from dataclasses import replace

from sam3lab.bench.statistics import Estimate
from sam3lab.serve.spec import Limits
from sam3lab.study import serving_figures as figures
from sam3lab.study import serving_numbers as numbers
from sam3lab.study import tables
from sam3lab.study.readings import quotient
from sam3lab.study.serving import Served
from sam3lab.study.serving_experiments import FAULT_LOAD, USERS
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
        for group, each in numbers.timed(rows, name).items():
            one = "request" if name == "preloaded" else "process" if name == "process" else "start"
            study.record(f"serving.count.{name}.{'.'.join(group)}", counted(len(each), one))
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
    starts = tables.scaled(starts, 1e-3) if absolute else _over(starts, served.idle)
    parts = numbers.parts(rows)
    if starts.empty or parts.empty:
        return study.say("*Starts, or requests to compare them with, could not be measured: see below.*")
    base = parts[parts["condition"] == "neither"].groupby(BY)["value"].sum()
    if not absolute:
        parts = parts.assign(value=[each.value / base[each.backend, each.precision] for each in parts.itertuples()])
    study.figure(
        figures.costs(starts, parts, absolute),
        "serving_costs",
        "Above: until the first answer, with 95% intervals where there were several starts. Below: what an answer is "
        "made of, means.",
        "Markers for four kinds of start on a logarithmic axis, above stacked bars of an answer's stages by what was cached.",
    )


def loads(served: Served) -> None:
    """Record, draw and tabulate what the services do under load."""
    study, absolute = served.study, served.absolute
    deadline = study.parameters["deadline"]
    curve = numbers.curve(served.records, deadline)
    if not absolute:
        curve = curve[[group in served.idle for group in zip(curve["backend"], curve["precision"], strict=True)]]
    if curve.empty:
        return study.say("*No load could be measured, or no idle request to compare it with: see below.*")
    whole = {kind: tables.column(numbers.capacities(served.records, kind), BY) for kind in KINDS}
    per_call, per_second = ("ms", "requests/s") if absolute else (f"{numbers.IDLE} time", f"{numbers.IDLE} rate")
    quickest = min(served.idle.values(), default=1.0)  # what can be compared between services
    for group, own in curve.groupby(BY, sort=False):
        row, idle = ".".join(group), served.idle.get(group, 1.0)
        both, in_time = {kind: own[own["experiment"] == kind] for kind in KINDS}, {}
        for kind, each in both.items():
            if group in whole[kind]:
                study.record(
                    f"serving.capacity.{kind}.{row}", _times(whole[kind][group], idle / 1e3, absolute), per_second
                )
            if each.empty:
                continue
            in_time[kind] = (each["rate"] * each["in_time"]).set_axis(each["load"])
            study.record(f"serving.refused.{kind}.{row}", float(each.loc[each["load"].idxmax(), "refused"]), "%")
            for half in each[each["load"] == HALF].to_dict("records"):
                study.record(f"serving.half.answers.{kind}.{row}", half["answered"])
                for name in ("p50", "p95"):
                    if half[name] is not None:
                        study.record(
                            f"serving.half.{name}.{kind}.{row}", _times(half[name], 1 / idle, absolute), per_call
                        )
                if kind == "batched" and half["p95"] is not None:
                    study.record(f"serving.half.{row}", _times(half["p95"], 1 / quickest, absolute), per_call)
        if "batched" in in_time and (most := in_time["batched"].max()):
            study.record(f"serving.goodput.{row}", float(most) * (1 if absolute else quickest / 1e3), per_second)
            if alone := in_time.get("single", {}).get(in_time["batched"].idxmax()):  # at the same load
                study.record(f"serving.gain.{row}", float(most / alone), "×")
        if all(group in whole[kind] for kind in KINDS):
            study.record(f"serving.batching.{row}", quotient(whole["batched"][group], whole["single"][group]), "×")
    study.record("serving.deadline", f"{deadline:g} s")
    study.record("serving.most", float(curve["share"].max()), "×")
    study.record("serving.users", USERS)
    study.record("serving.least", numbers.LEAST_FOR_ITS_INTERVAL)
    shown = curve if absolute else _relative(curve, served.idle)
    study.figure(
        figures.load(shown, f"{deadline:g} s", absolute),
        "serving_load",
        "Poisson arrivals, {parameter.seconds} seconds of each load, images and prompts that differ, caches off: latency of "
        "what is answered, what is answered in time, and what is refused, by the load offered. Whiskers, where there are "
        "any, are 95% intervals. From the capacity on latency is the length of a queue that grows.",
        "Line charts over the offered load: latency on a logarithmic axis, answers in time, and refusals; with and without batching.",
    )
    units = (
        "" if absolute else "Loads and answers are shares of the capacity without batching, latencies multiples of a "
    )
    units += "" if absolute else "request to the same service when idle. "
    study.table(
        _table(shown, absolute),
        "serving_load",
        "The services under load, each load once and for {parameter.seconds} seconds. "
        + units
        + "A p95 has an interval "
        "from {serving.least} answers on; from the capacity on nothing has, since the queue grows as long as the load lasts.",
    )


def lists(served: Served) -> None:
    """Record and tabulate what a list of things costs and finds, as one phrase and as a prompt each."""
    import pandas as pd

    study, rows = served.study, served.records
    own = rows[(rows["experiment"] == "list") & (rows["event"] == "")]
    study.record("serving.list.time", numbers.ratios(own, "several", "phrase"), "×")
    found = numbers.found_of_lists(rows)
    if found and study.scored != study.parameters["checkpoint"]:
        study.record("serving.list.scored", study.scored)
    for name, each in found.items():
        study.note({f"serving.list.{name}": (each["share"], "%"), f"serving.list.extra.{name}": (each["extra"], "")})
        study.record("serving.list.objects", each["expected"])
    times = {name: tables.column(numbers.medians(own, name), BY) for name in numbers.LISTED}
    lines = []
    for group, name in [(group, name) for group in study.named for name in numbers.LISTED if group in times[name]]:
        each = times[name][group]
        base = served.idle.get(group, float("nan"))
        cells = {"Runtime": look(group[0]).label, "Precision": group[1]}
        cells["List as"] = "one phrase" if name == "phrase" else "a prompt each"
        cells["ms" if served.absolute else "× an idle request"] = _times(each, 1 / base, served.absolute)
        lines.append(cells)
    if lines:
        study.table(pd.DataFrame(lines), "serving_lists", "A list of things, as one phrase and as a prompt each.")


def faults(served: Served) -> None:
    """Record and draw what a killed process of the first engine costs."""
    study, rows = served.study, served.records
    seen = numbers.faults(rows)
    units = {"requests": "", "answered": "%", "refused": "", "lost": "", "moved": "", "away": "s", "back": "s"}
    for group, each in seen.items():
        for name, value in each.items():
            if value is not None:
                study.record(f"serving.fault.{name}.{'.'.join(group)}", value, units[name])
        if each["moved"]:
            study.record(f"serving.fault.trial.{'.'.join(group)}", f"{Limits().recovery:g} s")
    study.record("serving.fault.load", f"{FAULT_LOAD:.0%}")
    own = rows[rows["experiment"] == "fault"]
    if not served.absolute:
        own = own[[group in served.idle for group in zip(own["backend"], own["precision"], strict=True)]]
    if own.empty:
        return study.say("*The fault could not be measured, or no idle request to compare it with: see below.*")
    events = {
        group: dict(zip(each["event"], each["at"], strict=True))
        for group, each in own[own["condition"] == "event"].groupby(BY, sort=False)
    }
    asked = own[own["condition"] == "fault"]
    if not served.absolute:
        asked = asked.assign(
            latency=[each.latency / served.idle[each.backend, each.precision] for each in asked.itertuples()]
        )
    study.figure(
        figures.fault(asked, events, served.absolute),
        "serving_fault",
        "A steady load; at the line the process of the first engine is killed. A marker an answer, in the colour of the engine that gave it.",
        "Latency of every answer over time on a logarithmic axis, with the moment of the fault and the time until the engine is back.",
    )


def counted(number: int, one: str) -> str:
    """ "1 start", "2 starts", "3 processes"."""
    return f"{number} {one}{'' if number == 1 else 'es' if one.endswith('s') else 's'}"


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


def _relative(curve, idle: dict[tuple[str, str], float]):
    """serving_numbers.curve with latencies over idle ones, and rates over the capacity without batching."""
    lines = []
    for each in curve.to_dict("records"):
        factor = 1 / idle[each["backend"], each["precision"]]
        for name in ("p50", "p95"):
            each[name] = None if each[name] is None else _times(each[name], factor, False)
        lines.append(each | {"rate": each["share"]})
    return curve.iloc[:0].from_records(lines, columns=curve.columns)


def _table(curve, absolute: bool):
    import pandas as pd

    many, long = ("requests/s", "ms") if absolute else ("of capacity", "× idle")
    lines = []
    for each in curve.sort_values([*BY, "experiment"], ascending=[True, True, False], kind="stable").itertuples():
        line = {"Runtime": look(each.backend).label, "Precision": each.precision, "Batching": KINDS[each.experiment]}
        line |= {f"Offered, {many}": each.rate, f"In time, {many}": each.rate * each.in_time}
        line |= {f"{name}, {long}": getattr(each, name) or _NOTHING for name in ("p50", "p95")}
        line |= {"Answered": f"{each.answered} of {each.asked}", "Refused, %": each.refused, "Failed, %": each.failed}
        lines.append(line | {"Requests a batch": each.batch})
    return pd.DataFrame(lines)
