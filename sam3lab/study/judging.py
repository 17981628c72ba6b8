"""The verdict on each of the article's claims, and why.

A reading of a claim holds where the measured interval, widened by TOLERANCE at both ends, holds the figure that it is
held against, and fails where it does not. Where the interval cannot tell the figure from no difference, is wider than
WIDEST, or does not exist, as of a single round, the reading is too noisy to tell. A claim is reproduced where one of its
readings holds, contradicted where all that were measured fail, and otherwise not testable here.
"""

from dataclasses import dataclass

from sam3lab import backends
from sam3lab.bench.statistics import Estimate
from sam3lab.study import claims, deployment, numbers
from sam3lab.study.claims import CONTRADICTED, REPRODUCED, UNTESTED, Claim
from sam3lab.study.readings import ADDED, EQUAL, MORE, MOST, Known, Question, Reading, Setting, question, quotient
from sam3lab.study.style import look, looks
from sam3lab.study.tables import ENDS, NATIVE

PUBLISHED = ("facebook/sam3", "sam3")  # checkpoints with the published architecture
TOLERANCE = 0.10
WIDEST = 2.0  # the upper end over the lower one: an interval that holds twice as much says nothing of a ratio
HOLDS, FAILS, NOISY = "holds", "fails", "too noisy"


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict. question: what of it was held against what was measured, None where there is none."""

    claim: Claim
    verdict: str
    why: str
    here: str = ""
    question: Question | None = None

    @property
    def tested(self) -> str:
        return "" if self.question is None else self.question.text


def judged(records: dict[str, dict], setting: Setting) -> list[Judged]:
    """Every claim, judged by what the run recorded (see sam3lab.study.numbers)."""
    known = Known(records, setting)
    return [_SPECIAL.get(claim.id, _SPECIAL.get(claim.metric, _ratio))(claim, known) for claim in claims.load()]


def held(judged: Judged) -> list[str]:
    """In which readings a claim that could be tested holds, in words."""
    return [] if judged.verdict == UNTESTED or judged.question is None else _by_state(judged.question)[HOLDS]


def frame(judged: list[Judged]):
    """The readings of the claims that could be tested, as multiples of the figure each is held against.

    claim (its id and short words), verdict, state (HOLDS, FAILS or NOISY), least and most (between which a reading's value
    is right), value, low, high; one row a reading.
    """
    import pandas as pd

    rows = []
    for each in judged:
        asked = each.question
        for reading in asked.readings if asked and each.verdict != UNTESTED else ():
            ends = (getattr(reading.estimate, end) / asked.target for end in ENDS)
            rows.append((each.claim.short, each.verdict, state(reading.estimate, asked), *_right(asked.how), *ends))
    return pd.DataFrame(rows, columns=["claim", "verdict", "state", "least", "most", *ENDS])


def state(estimate: Estimate, asked: Question) -> str:
    """HOLDS, FAILS or NOISY: what an estimate says of the figure."""
    low, high = estimate.low / asked.target, estimate.high / asked.target
    if not low <= high:  # there is no interval
        return NOISY
    least, most = _right(asked.how)
    if high < least or low > most:
        return FAILS
    if asked.how in (MOST, MORE):
        return HOLDS if least < low and high <= most else NOISY
    none = 1 / asked.target  # where there is no difference
    return NOISY if high > WIDEST * low or (low <= none * most and none * least <= high) else HOLDS


def _right(how: str) -> tuple[float, float]:
    """From what to what a value may be, as a multiple of the figure, to be right."""
    tolerated = {EQUAL: (1 / (1 + TOLERANCE), 1 / (1 - TOLERANCE)), ADDED: (1.0, 1.0)}
    return (tolerated | {MOST: (0.0, 1.0), MORE: (1.0, float("inf"))})[how]


def _by_state(asked: Question) -> dict[str, list[str]]:
    found = {HOLDS: [], FAILS: [], NOISY: []}
    for reading in asked.readings:
        found[state(reading.estimate, asked)].append(reading.words)
    return found


def _ratio(claim: Claim, known: Known) -> Judged:
    asked = question(claim, known)
    verdict, why = _weighed(claim, known, asked)
    return Judged(claim, verdict, why, "; ".join(each.text for each in asked.readings), asked)


def _weighed(claim: Claim, known: Known, asked: Question) -> tuple[str, str]:
    setting = known.setting
    if not asked.readings:
        return UNTESTED, _absence(claim, known)
    states = _by_state(asked)
    padded = ""
    if asked.how == ADDED and any(each.estimate.low <= 1 <= each.estimate.high for each in asked.readings):
        padded = "every phrase is padded to one length, so that a longer one adds nothing"
    if padded and claim.condition == "description" and not states[HOLDS] + states[NOISY]:
        return CONTRADICTED, padded
    if setting.device == "cpu":
        return UNTESTED, "the article's is of a GPU; this study ran on a CPU"
    if setting.checkpoint not in PUBLISHED:
        return UNTESTED, f"{setting.checkpoint} has not the published architecture"
    if states[HOLDS]:
        return REPRODUCED, f"holds on {setting.machine}{_among(states[HOLDS], asked)}"
    if states[NOISY]:
        return UNTESTED, f"too noisy: {_noise(asked)}{_among(states[NOISY], asked)}"
    failed = ", in any reading" if len(asked.readings) > 1 else f", in the only reading: {asked.readings[0].words}"
    return CONTRADICTED, f"does not hold on {setting.machine}{failed}{padded and f'; {padded}'}"


def _among(words: list[str], asked: Question) -> str:
    """Of which of several readings something is said."""
    whole = len(asked.readings)
    if len(words) == whole:
        return ", in every reading" if whole > 1 else f", in the only reading: {words[0]}"
    return f", in {len(words)} of {whole} readings: {'; '.join(words)}"


def _noise(asked: Question) -> str:
    """Why those readings of a question that are NOISY tell nothing."""
    noisy = [each.estimate for each in asked.readings if state(each.estimate, asked) == NOISY]
    known = [each for each in noisy if each.low <= each.high]
    found = [_WIDE[asked.how]] if known else []
    return " or ".join(found + ["a single round has no interval"] * (len(known) < len(noisy)))


def _difficulty(claim: Claim, known: Known) -> Judged:
    here, verdict, why = deployment.judged(claim.backend, deployment.scripted() | known.records)
    return Judged(claim, verdict, why, here)


def _baseline(claim: Claim, known: Known) -> Judged:
    key = {"L1": "runtimes.latency", "T1": "runtimes.throughput", "S1": "runtimes.startup", "M1": "memory.peak"}[
        claim.id
    ]
    texts = {each: known.text(f"{key}.{NATIVE}.{each}") for each in known.precisions()}
    if claim.metric in ("latency", "memory"):
        texts |= {f"sam3-huge, {each}": known.text(f"claims.huge.{claim.metric}.{each}") for each in known.precisions()}
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
    """By the time of a start over that of a request to what has started: of the services, or else of all runtimes."""
    served = numbers.rows(known.records, "serving.times.process")
    started = numbers.rows(known.records, "runtimes.startup")
    sources = {
        "a process for each request takes, beside a request to a running service": {
            row: known.get(f"serving.times.process.{'.'.join(row)}") for row in served
        },
        "a start takes, beside a call to what has started": {
            row: quotient(
                known.get(f"runtimes.startup.{'.'.join(row)}", factor=1e3),
                known.get(f"runtimes.latency.{'.'.join(row)}"),
            )
            for row in started
        },
    }
    last = Judged(claim, UNTESTED, _absence(claim, known))
    for words, found in sources.items():
        shown = looks(found).items()
        readings = tuple(Reading(seen.label, found[row]) for row, seen in shown if found[row] is not None)
        if not readings:
            continue
        asked = Question(1.0, readings, how=MORE)
        states, here = _by_state(asked), f"{words}: {', '.join(each.text for each in readings)}"
        if states[FAILS]:
            return Judged(claim, CONTRADICTED, f"a start takes no longer: {', '.join(states[FAILS])}", here)
        if not states[NOISY]:
            return Judged(claim, REPRODUCED, "what has loaded the weights answers sooner than a start is done", here)
        last = Judged(claim, UNTESTED, f"too noisy: {_noise(asked)}", here)
    return last


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
    if not here:
        return Judged(claim, UNTESTED, _absence(claim, known))
    said = {"faster": REPRODUCED, "same": CONTRADICTED, "slower": CONTRADICTED}
    verdicts = {numbers.WORDS[word]: verdict for word, verdict in said.items()}
    why = f"native PyTorch, one word, text features kept from an earlier call: {words} without a cache"
    return Judged(claim, verdicts.get(words, UNTESTED), why, f"{here} of the time without a cache")


def _absence(claim: Claim, known: Known) -> str:
    """Why nothing was measured of a claim, and what would measure it."""
    why = {key.split(".")[2]: each["text"] for key, each in known.records.items() if key.startswith("absent.")}
    name = claim.name
    if claim.condition == "int8" and (refused := backends.get(claim.backend).unavailable("cuda", "int8")):
        return refused
    if claim.backend in why:
        return f"{name} {why[claim.backend]}"
    if claim.runtime == "tensorrt" and known.setting.device == "cpu":
        return f"{name} needs a GPU; this study ran on a CPU"
    notebook = "02_resolution" if claim.section == "4.2" else _NOTEBOOKS[claim.metric]
    under, other = (f" under {name}", f" --backend {claim.backend}") if name else ("", "")
    return f"not measured{under} in this study: `sam3lab study --notebook {notebook}{other}`"


_NOTEBOOKS = {
    **dict.fromkeys(("latency", "speedup", "throughput", "startup"), "01_runtimes"),
    "memory": "04_memory",
    "added_latency": "03_prompts",
    "difficulty": "07_deployment",
}
_WIDE = {
    EQUAL: "the interval is too wide to tell the figure from no difference or from twice as much",
    ADDED: "the interval is too wide to tell the article's figure from nothing added or from twice the time",
    **dict.fromkeys((MOST, MORE), "the interval holds either answer"),
}
# By claim, or else by metric.
_SPECIAL = {
    **dict.fromkeys(("L1", "M1", "T1", "S1"), _baseline),
    **dict.fromkeys(("P1", "P4"), _word),
    "difficulty": _difficulty,
    "C1": _preloading,
    "C2": _caching,
}
