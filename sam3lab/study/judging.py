"""The verdict on each of the article's claims, and why.

A claim is reproduced where one of its readings holds, and contradicted where none of those that were measured does. A
reading holds where the measured interval, widened by TOLERANCE at both ends, holds the figure it is held against.
"""

from dataclasses import dataclass

from sam3lab.bench.statistics import Estimate
from sam3lab.study import claims, deployment, numbers
from sam3lab.study.claims import CONTRADICTED, REPRODUCED, UNTESTED, Claim
from sam3lab.study.readings import Known, Reading, Setting, readings
from sam3lab.study.style import look
from sam3lab.study.tables import ENDS, NATIVE

PUBLISHED = ("facebook/sam3", "sam3")  # checkpoints with the published architecture
TOLERANCE = 0.10
NAMES = {"tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime"}


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict. target: the figure that the readings are held against, None where there is none."""

    claim: Claim
    verdict: str
    why: str
    here: str = ""
    target: float | None = None
    unit: str = "×"
    readings: tuple[Reading, ...] = ()

    @property
    def tested(self) -> str:
        return "" if self.target is None else numbers.interval(self.target, unit=self.unit)


def judged(records: dict[str, dict], setting: Setting) -> list[Judged]:
    """Every claim, judged by what the run recorded (see sam3lab.study.numbers)."""
    known = Known(records, setting)
    return [_SPECIAL.get(claim.id, _ratio)(claim, known) for claim in claims.load()]


def frame(judged: list[Judged]):
    """The readings of the claims that could be tested, as multiples of the article's figure: id, verdict, holds (whether
    that reading does), value, low, high; one row a reading.
    """
    import pandas as pd

    rows = []
    for each in judged:
        for reading in each.readings if each.verdict != UNTESTED else ():
            right = holds(reading.estimate, each.target, _tolerance(each.claim))
            ends = (getattr(reading.estimate, end) / each.target for end in ENDS)
            rows.append((each.claim.id, each.verdict, right, *ends))
    return pd.DataFrame(rows, columns=["id", "verdict", "holds", *ENDS])


def holds(estimate: Estimate, target: float, tolerance: float = TOLERANCE) -> bool:
    """Whether an interval, widened by that share of its ends, holds a figure."""
    return estimate.low * (1 - tolerance) <= target <= estimate.high * (1 + tolerance)


def _tolerance(claim: Claim) -> float:
    """None for what is said to add little to much, of which the interval alone has to decide."""
    return 0.0 if claim.metric == "added_latency" else TOLERANCE


def _ratio(claim: Claim, known: Known) -> Judged:
    if claim.metric == "difficulty":
        here, verdict, why = deployment.judged(claim.backend, known.records)
        return Judged(claim, verdict or UNTESTED, why or _absence(claim, known), here)
    target, unit, found = readings(claim, known)
    verdict, why = _weighed(claim, known, target, found)
    return Judged(claim, verdict, why, "; ".join(reading.text for reading in found), target, unit, found)


def _weighed(claim: Claim, known: Known, target: float, found: tuple[Reading, ...]) -> tuple[str, str]:
    setting = known.setting
    if not found:
        return UNTESTED, _absence(claim, known)
    if claim.condition == "description":  # a matter of the text encoder's fixed length, on every machine
        return _told_apart(target, found)
    if setting.device == "cpu":
        return UNTESTED, "a ratio on a GPU; this study ran on a CPU"
    if setting.checkpoint not in PUBLISHED:
        return UNTESTED, f"{setting.checkpoint} has not the published architecture"
    if claim.metric == "added_latency":
        return _told_apart(target, found)
    if held := [reading.words for reading in found if holds(reading.estimate, target)]:
        return REPRODUCED, f"holds on {setting.machine}, {' and '.join(held)}"
    return CONTRADICTED, f"does not hold on {setting.machine}{', in any reading' if len(found) > 1 else ''}"


def _told_apart(target: float, found: tuple[Reading, ...]) -> tuple[str, str]:
    """Where little is said to be added to much, an interval also has to exclude that nothing is added."""
    inside = [each.estimate for each in found if holds(each.estimate, target, 0.0)]
    if any(not holds(estimate, 1.0, 0.0) for estimate in inside):
        return REPRODUCED, "the interval holds the article's figure, and not that nothing is added"
    if inside:
        return UNTESTED, "the interval holds both the article's figure and that nothing is added"
    nothing = any(holds(each.estimate, 1.0, 0.0) for each in found)
    why = "; every phrase is padded to one length, so that a longer one adds nothing" if nothing else ""
    return CONTRADICTED, f"no interval holds the article's figure{why}"


def _baseline(claim: Claim, known: Known) -> Judged:
    kind = {"L1": "latency", "T1": "throughput", "S1": "startup"}[claim.id]
    texts = {each: known.text(f"runtimes.{kind}.{NATIVE}.{each}") for each in known.precisions}
    if claim.id == "L1":
        texts |= {f"sam3-huge, {each}": known.text(f"claims.huge.latency.{each}") for each in known.precisions}
    here = "; ".join(f"{words}: {text}" for words, text in texts.items() if text)
    why = "an absolute figure of an A100 and of a checkpoint that nobody published; its ratios to the others are tested"
    return Judged(claim, UNTESTED, why if here else _absence(claim, known), here)


def _word(claim: Claim, known: Known) -> Judged:
    share = known.text(f"prompts.text.{claim.backend}.{known.precision(claim.backend)}")
    if not share:
        return Judged(claim, UNTESTED, _absence(claim, known))
    here = f"the text encoder takes {share} of the pipeline"
    return Judged(claim, UNTESTED, "the article does not say what the word was added to", here)


def _preloading(claim: Claim, known: Known) -> Judged:
    if served := numbers.rows(known.records, "serving.times.process"):
        texts = [f"{look(row[0]).label} {record['text']}" for row, record in served.items()]
        least = min(known.get(f"serving.times.process.{'.'.join(row)}").low for row in served)
        here = f"a process for each request takes, beside a request to a running service: {'; '.join(texts)}"
        why = "requests to a process that has loaded the model read no weights"
        return Judged(claim, REPRODUCED if least > 1 else UNTESTED, why, here)
    group = f"{NATIVE}.{known.precision(NATIVE)}"
    start, call = known.text(f"runtimes.startup.{group}"), known.text(f"runtimes.latency.{group}")
    if not (start and call):
        return Judged(claim, UNTESTED, "start-up was not measured in this study")
    here = f"start-up {start}; then {call} a call"
    return Judged(claim, REPRODUCED, "calls to a process that has loaded the model read no weights", here)


def _caching(claim: Claim, known: Known) -> Judged:
    calls = [known.get(f"serving.calls.text.{kind}") for kind in ("new", "cached")]
    if None not in calls and calls[0].value:
        new, cached = (int(each.value) for each in calls)
        times = numbers.rows(known.records, "serving.cached.prompt")
        here = "; ".join(
            f"{look(row[0]).label}: {each['text']} the time of a new prompt" for row, each in times.items()
        )
        why = f"the text stage ran {cached} times for requests with a cached prompt, {new} times for as many without"
        return Judged(claim, REPRODUCED if not cached else CONTRADICTED, why, here)
    key = f"prompts.cached.{NATIVE}.{known.precision(NATIVE)}"
    here, words = known.text(key), known.text(f"{key}.words")
    said = {"faster": REPRODUCED, "same": CONTRADICTED, "slower": CONTRADICTED}
    verdicts = {numbers.WORDS[word]: verdict for word, verdict in said.items()}
    why = "native PyTorch, one word, text features kept from an earlier call"
    return Judged(claim, verdicts.get(words, UNTESTED), why, here and f"{here} of the time without a cache")


def _absence(claim: Claim, known: Known) -> str:
    name = NAMES.get(claim.runtime, "PyTorch")
    why = {key.split(".")[2]: each["text"] for key, each in known.records.items() if key.startswith("absent.")}
    if claim.backend in why:
        return f"{name} {why[claim.backend]}"
    if claim.runtime == "tensorrt":
        return "TensorRT is not among the runtimes of this study"
    return f"not measured under {name} in this study"


_SPECIAL = {
    **dict.fromkeys(("L1", "T1", "S1"), _baseline),
    **dict.fromkeys(("P1", "P4"), _word),
    "C1": _preloading,
    "C2": _caching,
}
