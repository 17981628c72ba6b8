"""The article's claims (data/claims.csv) beside what was measured here, each with a verdict and the reason for it."""

import csv
from dataclasses import dataclass

from sam3lab import paths
from sam3lab.study import numbers

CONFIRMED, REFUTED, UNTESTED = "confirmed", "refuted", "not tested here"
BACKENDS = {"pytorch": "transformers"}  # the article's PyTorch is native PyTorch
PUBLISHED = ("facebook/sam3", "sam3", "sam3-huge")  # checkpoints with the published architecture, or the article's
TOLERANCE = 0.10  # a ratio is confirmed where the measured interval, widened by this share, holds the article's


@dataclass(frozen=True)
class Claim:
    """One row of claims.csv; `condition` is a resolution, a kind of prompt, or another circumstance of the claim."""

    id: str
    section: str
    claim: str
    metric: str
    runtime: str
    condition: str
    value: float
    unit: str

    @property
    def backend(self) -> str:
        return BACKENDS.get(self.runtime, self.runtime)

    @property
    def stated(self) -> dict:
        """The article's figure, as it stands there, as a record of numbers.json."""
        unit = "×" if self.unit == "ratio" else self.unit
        return numbers.number(self.value, unit) | {"text": f"{self.value:g}{unit if unit == '×' else ' ' + unit}"}


@dataclass(frozen=True)
class Setting:
    """Where this run was made: device "cpu" or "cuda", the machine in words, the checkpoint and its own resolution.

    skipped: {backend: why it was not run}.
    """

    device: str
    machine: str
    checkpoint: str
    native: int
    skipped: dict[str, str]


def load() -> list[Claim]:
    with (paths.DATA / "claims.csv").open(newline="", encoding="utf-8") as file:
        return [Claim(**row | {"value": float(row["value"])}) for row in csv.DictReader(file)]


def records() -> dict[str, dict]:
    """The article's figures under the keys that prose may name: `claim.L1`, …"""
    return {f"claim.{claim.id}": claim.stated for claim in load()}


def column(metric: str, condition: str) -> dict[str, float]:
    """{runtime: the article's figure} for one metric."""
    return {each.backend: each.value for each in load() if (each.metric, each.condition) == (metric, condition)}


def key(claim: Claim, native: int) -> str:
    """The key in numbers.json of what a claim is about; the article's 1024 is the checkpoint's own resolution."""
    side = round(native * float(claim.condition) / 1024 / 14) * 14 if claim.condition.isdigit() else 0
    own = side == round(native / 14) * 14
    if claim.metric in ("latency", "speedup"):
        return (
            f"runtimes.{claim.metric}.{claim.backend}" if own else f"resolution.{claim.metric}.{claim.backend}.{side}"
        )
    return {
        "memory": f"memory.peak.{claim.backend}" if own else "",
        "throughput": f"runtimes.throughput.{claim.backend}",
        "startup": f"runtimes.startup.{claim.backend}",
        "growth": f"resolution.growth.{claim.backend}",
    }.get(claim.metric, "")


def table(known: dict[str, dict], setting: Setting):
    """All claims as a frame: id, section, claim, article, here, verdict, why.

    known: what the run recorded (see sam3lab.study.numbers).
    """
    import pandas as pd

    rows = []
    for claim in load():
        here, verdict, why = judge(claim, known, setting)
        rows.append((claim.id, claim.section, claim.claim, claim.stated["text"], here or "–", verdict, why))
    return pd.DataFrame(rows, columns=["id", "section", "claim", "article", "here", "verdict", "why"])


def shown(judged):
    """The frame of `table` under headings for people."""
    return judged.set_axis(["Id", "Section", "Claim", "Article", "Here", "Verdict", "Why"], axis="columns")


def skipped(failures) -> dict[str, str]:
    """{backend: why} of the runtimes that the machine cannot run in fp32, from results.failures' frame."""
    those = failures[(failures["status"] == "skipped") & (failures["precision"] == "fp32")]
    return dict(zip(those["backend"], those["reason"], strict=True))


def judge(claim: Claim, known: dict[str, dict], setting: Setting) -> tuple[str, str, str]:
    """(what was measured here, verdict, why). Absolute figures are the article's machine's; ratios can be tested."""
    special = {"P1": _word, "P2": _description, "P3": _objects, "C1": _preloading, "C2": _caching}.get(claim.id)
    if special:
        return special(known)
    measured = known.get(key(claim, setting.native))
    here = measured["text"] if measured else ""
    if claim.metric == "difficulty":
        return "", UNTESTED, "a judgement in stars, not a measurement"
    if measured is None:
        return "", UNTESTED, _absent(claim, setting)
    if claim.unit != "ratio":
        return here, UNTESTED, f"an absolute figure of the article's machine and checkpoint; this is {setting.machine}"
    if setting.device == "cpu":
        return here, UNTESTED, "a ratio on a GPU; this study ran on a CPU"
    if setting.checkpoint not in PUBLISHED:
        return here, UNTESTED, f"{setting.checkpoint} has not the published architecture"
    low, high = measured["low"] * (1 - TOLERANCE), measured["high"] * (1 + TOLERANCE)
    held = low <= claim.value <= high
    return (
        here,
        CONFIRMED if held else REFUTED,
        f"measured on {setting.machine}, the same checkpoint under both runtimes",
    )


def _absent(claim: Claim, setting: Setting) -> str:
    name = {"tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime"}.get(claim.runtime, "PyTorch")
    if claim.backend in setting.skipped:
        return f"{name} was not run: {setting.skipped[claim.backend]}"
    if claim.runtime == "tensorrt":
        return "TensorRT is not among the runtimes of this study"
    return f"not measured under {name} in this study"


def _text(known: dict[str, dict], key: str) -> str:
    return known[key]["text"] if key in known else ""


def _words(known: dict[str, dict], condition: str) -> str:
    return _text(known, f"prompts.ratio.transformers.{condition}.words")


def _word(known):
    here = _text(known, "prompts.text.transformers")
    here = here and f"the text encoder takes {here} of the pipeline"
    return here, UNTESTED, "the article does not say what the word was added to"


def _description(known):
    here, words = _text(known, "prompts.ratio.transformers.description"), _words(known, "description")
    if words == numbers.WORDS["same"]:
        why = "a description takes as long as one word: the text encoder pads both to the same number of tokens"
        return f"{here} of one word's time", REFUTED, why
    return (
        here and f"{here} of one word's time",
        UNTESTED,
        "the two could not be told apart well enough, or differ otherwise",
    )


def _objects(known):
    one, several = (_text(known, f"prompts.ratio.transformers.{kind}") for kind in ("phrase", "several"))
    here = f"{one} of one word's time as one phrase, {several} as a prompt each" if one and several else ""
    return here, UNTESTED, "the article does not say which of the two it timed"


def _preloading(known):
    start, call = _text(known, "runtimes.startup.transformers"), _text(known, "runtimes.latency.transformers")
    if not (start and call):
        return "", UNTESTED, "start-up was not measured in this study"
    here = f"start-up {start}; then {call} a call"
    return here, CONFIRMED, "calls to a process that has loaded the model read no weights"


def _caching(known):
    here, words = _text(known, "prompts.cached.transformers"), _text(known, "prompts.cached.transformers.words")
    here = here and f"{here} of the time without a cache"
    verdicts = {numbers.WORDS["faster"]: CONFIRMED, numbers.WORDS["same"]: REFUTED, numbers.WORDS["slower"]: REFUTED}
    return here, verdicts.get(words, UNTESTED), "native PyTorch, one word, text features kept from an earlier call"
