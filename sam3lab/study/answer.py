"""The one-page answer: which runtime for which use, from the numbers that the notebooks recorded, and from those alone."""

from dataclasses import dataclass
from typing import NamedTuple

from sam3lab.bench.statistics import Estimate
from sam3lab.study import deployment, numbers
from sam3lab.study.serving_numbers import IDLE
from sam3lab.study.style import look, looks, ordered
from sam3lab.study.tables import NATIVE

Row = tuple[str, str]  # (backend, precision)


@dataclass(frozen=True)
class Use:
    """Something a runtime is wanted for. `number`: the key, without its row, of what decides, which `notebook` records;
    less of it is better, or more. title: in words, which may name numbers by their keys.
    """

    name: str
    title: str
    number: str
    notebook: str
    better: str = "less"


class Taken(NamedTuple):
    """The answer for one use, in words: its title, the runtime, what limits that (begins with a comma, or is empty), what
    was measured of it, and the same of native PyTorch.
    """

    title: str
    first: str
    limits: str
    measured: str
    native: str


USES = (
    Use("image", "One image, one prompt", "runtimes.latency", "01_runtimes"),
    Use("decoded", "From a JPEG's bytes, end to end", "runtimes.end_to_end", "01_runtimes"),
    Use("several", "One image, {prompts.objects} prompts", "prompts.several", "03_prompts"),
    Use("prompts", "One image, {calls.prompts.most} prompts", "calls.prompts.latency", "06_calls"),
    Use("images", "Many images, {calls.images.most} at most a call", "calls.images.rate", "06_calls", "more"),
    Use("memory", "Least memory", "memory.peak", "04_memory"),
    Use("energy", "Least energy an image", "runtimes.energy", "01_runtimes"),
    Use("warm", "Quickest start, all compiled before", "runtimes.startup", "01_runtimes"),
    Use("cold", "Quickest first start, nothing compiled", "deployment.cold", "07_deployment"),
    Use("served", "A service: most answered in {serving.deadline}", "serving.goodput", "08_serving", "more"),
    Use("half", "A service at half load, least p95", "serving.half", "08_serving"),
)


def placed(known: dict[str, dict], machine: str, device: str, checkpoint: str) -> dict[str, dict]:
    """The numbers, and where they were measured, which the notebook on the machine records too where it was run."""
    about = {"name": machine, "device": device, "checkpoint": checkpoint}
    return {f"machine.{key}": numbers.number(value) for key, value in about.items()} | known


def candidates(use: Use, known: dict[str, dict]) -> dict[Row, dict]:
    """{row: its record} of what was recorded for a use, of the runtimes that passed."""
    found = numbers.rows(known, use.number)
    return {row: found[row] for row in looks(found)}


def best(use: Use, known: dict[str, dict]) -> tuple[Row, list[Row]] | None:
    """The row that is best for a use, and those whose intervals overlap with its own; None where nothing is known.

    Of a row without an interval, as of a single round, nothing is said: `sentences` tells that there is none.
    """
    found = candidates(use, known)
    if not found:
        return None
    sign = 1 if use.better == "less" else -1
    first = min(found, key=lambda row: sign * found[row]["value"])
    ends = numbers.estimate(found[first])
    tied = [row for row in found if row != first and _overlap(ends, numbers.estimate(found[row]))]
    return first, tied


def sentences(known: dict[str, dict], of_a_cpu: dict[str, dict]) -> dict[str, Taken]:
    """{use: its answer}, of the uses that something was measured for.

    of_a_cpu: the numbers of a CPU, for who has nothing else; empty where this run was on one, or none is known.
    """
    names = {row: seen.label for row, seen in looks(_rows(known)).items()}
    found = {}
    for use in USES:
        chosen = best(use, known)
        if chosen is None or not numbers.keys(use.title) <= known.keys():
            continue
        row, tied = chosen
        records = candidates(use, known)
        native = records.get((NATIVE, row[1]))
        measured, compared = records[row]["text"], native["text"] if native and row[0] != NATIVE else "–"
        if native and _relative(known, records[row]):
            measured, compared = _of(records[row], native), "–"
        limits = _limits([names[each] for each in tied], records)
        found[use.name] = Taken(numbers.fill(use.title, known), names[row], limits, measured, compared)
    if easiest := _easiest(known):
        found["deploy"] = Taken("Least to do before the first mask", easiest[0], "", *easiest[1:])
    if of_a_cpu and (chosen := best(USES[0], of_a_cpu)):
        row, tied = chosen
        records = candidates(USES[0], of_a_cpu)
        labels = {row: seen.label for row, seen in looks(records).items()}
        limits = _limits([labels[each] for each in tied], records)
        speed = of_a_cpu[f"runtimes.speedup.{'.'.join(row)}"]["text"]
        where = numbers.fill("{machine.name}, `{machine.checkpoint}`", of_a_cpu)
        found["cpu"] = Taken("A CPU alone", labels[row], limits, f"{speed} native PyTorch's speed", where)
    return found


def listed(known: dict[str, dict], found: dict[str, Taken]) -> dict[str, str]:
    """What README.md quotes: headline, unproven, and {use: one line} for every use there is, from `sentences`, whether or
    not it was measured.
    """
    lines = {"headline": headline(known), "unproven": unproven(known) or "every runtime of this device was run"}
    lines |= {use.name: f"not measured on this machine: `sam3lab study --notebook {use.notebook}`" for use in USES}
    lines["deploy"] = "not measured on this machine: `sam3lab study --notebook 07_deployment`"
    lines["cpu"] = "no CPU was measured"
    for name, taken in found.items():
        beside = (
            "" if taken.native == "–" else f"; native PyTorch: {taken.native}" if name != "cpu" else f"; {taken.native}"
        )
        lines[name] = f"**{taken.first}**{taken.limits} ({taken.measured}{beside})"
    if known["machine.device"]["value"] == "cpu":
        lines["cpu"] = lines["image"]
    return lines


def table(found: dict[str, Taken]):
    """`sentences` as a table for people."""
    import pandas as pd

    rows = [(each.title, each.first + each.limits, each.measured, each.native) for each in found.values()]
    return pd.DataFrame(rows, columns=["Use", "Take", "Measured", "Native PyTorch"])


def unproven(known: dict[str, dict]) -> str:
    """What could not be run here, with the reasons, in one line; empty where all ran."""
    why: dict[str, str] = {}
    for key, record in known.items():
        if key.startswith("absent."):
            why.setdefault(key.split(".")[2], record["text"])
    on_a_gpu = ["any GPU"] if known["machine.device"]["value"] == "cpu" else []
    return "; ".join(
        on_a_gpu + [f"{look(name).label} ({why[name].removeprefix('not run here: ')})" for name in ordered(why)]
    )


def headline(known: dict[str, dict]) -> str:
    """The one sentence: on what, which runtime is the fastest, and by how much."""
    chosen = best(USES[0], known)
    if chosen is None:
        return "The runtimes were not compared yet, which the notebook 01_runtimes does."
    group = ".".join(chosen[0])
    names = {row: seen.label for row, seen in looks(_rows(known)).items()}
    tied = ", not to be told apart from " + " or ".join(names[row] for row in chosen[1]) if chosen[1] else ""
    among = "fastest of the runtimes measured" if any(key.startswith("absent.") for key in known) else "fastest runtime"
    start = f"On {{machine.name}}, with `{{machine.checkpoint}}`, **{names[chosen[0]]}** is the {among}{tied}"
    parts = ["{runtimes.latency.*} a call"] if known["machine.device"]["value"] == "cuda" else []
    parts += ["{runtimes.speedup.*} native PyTorch's speed"] if chosen[0][0] != NATIVE else []
    parts += ["{runtimes.gain.*} that of native PyTorch in fp32"] if chosen[0][1] != "fp32" else []
    shown = [part for part in (each.replace("*", group) for each in parts) if numbers.keys(part) <= known.keys()]
    return numbers.fill(f"{start}: {', '.join(shown)}." if shown else f"{start}.", known)


def frame(known: dict[str, dict]):
    """How many times the best each row is, for a figure: use (its title), best (its value in words), backend,
    precision, value, low, high; one row a use and candidate.
    """
    import pandas as pd

    lines = []
    for use in USES:
        chosen = best(use, known)
        if chosen is None or not numbers.keys(use.title) <= known.keys():
            continue
        found = candidates(use, known)
        least = found[chosen[0]]["value"]
        text, native = numbers.interval(least, unit=found[chosen[0]]["unit"]), found.get((NATIVE, chosen[0][1]))
        if native and _relative(known, found[chosen[0]]):
            text = f"{numbers.digits(least / native['value'], 2)} of native"
        if found[chosen[0]]["unit"].startswith(IDLE):
            text = f"{numbers.digits(least, 2)}× idle"
        for row, record in found.items():
            ends = numbers.estimate(record)
            times = [ends.value / least, ends.low / least, ends.high / least]
            if use.better == "more":
                times = [least / ends.value, least / ends.high, least / ends.low]
            lines.append((numbers.fill(use.title, known), text, *row, *times))
    return pd.DataFrame(lines, columns=["use", "best", "backend", "precision", "value", "low", "high"])


def _relative(known: dict[str, dict], record: dict) -> bool:
    """Whether a number is shown as a share of native PyTorch's: times on a processor that others share say little."""
    return known["machine.device"]["value"] == "cpu" and record["unit"] in ("ms", "s", "images/s")


def _of(record: dict, native: dict) -> str:
    ends = numbers.estimate(record)
    parts = [each / native["value"] for each in (ends.value, ends.low, ends.high)]
    return f"{numbers.interval(*parts)} of native PyTorch's {'rate' if record['unit'] == 'images/s' else 'time'}"


def _rows(known: dict[str, dict]) -> set[Row]:
    return {row for use in USES for row in candidates(use, known)}


def _easiest(known: dict[str, dict]) -> tuple[str, str, str] | None:
    """The runtime with the fewest steps, of those the one with the fewest lines of code, then of packages."""
    respects = ("steps", "lines", "packages")
    names = {key.rsplit(".", 1)[-1] for key in known if key.startswith("deployment.steps.")}
    rated = {name: deployment.of(name, known) for name in names}
    rated = {name: found for name, found in rated.items() if set(respects) <= set(found)}
    if not rated:
        return None

    def text(name: str) -> str:
        parts = [f"{{deployment.{each}.{name}|text}} {deployment.WORDS[each]}" for each in respects]
        return numbers.fill(", ".join(parts), known)

    first = min(ordered(rated), key=lambda name: [rated[name][each] for each in respects])
    native = text(NATIVE) if NATIVE in rated and first != NATIVE else "–"
    return look(first).label, text(first), native


def _overlap(one: Estimate, other: Estimate) -> bool:
    return one.low <= other.high and other.low <= one.high


def _limits(tied: list[str], records: dict[Row, dict]) -> str:
    """What is to be said after the best of `records`: what is as good, and what makes it no choice at all."""
    others = f", or within the noise {', '.join(tied)}" if tied else ""
    if len(records) == 1:
        others = ", the only one measured"
    return others + (", going by a single round" if any(each["low"] is None for each in records.values()) else "")
