"""What each of the article's claims is held against: a figure, and what was measured of it, in one reading or several.

The article's machine (an A100) is not the reader's, so that an absolute figure can hardly be tested; the ratios between
the article's own rows can. Where the article leaves open what was measured (the precision of PyTorch, how several objects
were passed), a claim has several readings.
"""

from dataclasses import dataclass

from sam3lab.bench.statistics import Estimate
from sam3lab.study import claims, numbers, presets
from sam3lab.study.claims import Claim
from sam3lab.study.tables import NATIVE


@dataclass(frozen=True)
class Setting:
    """Where this run was made: device "cpu" or "cuda", the machine in words, the checkpoint and its own resolution in
    pixels, and the precision of its rows.
    """

    device: str
    machine: str
    checkpoint: str
    native: int
    precision: str


@dataclass(frozen=True)
class Reading:
    """One way to understand a claim: in words, and what was measured of it."""

    words: str
    estimate: Estimate
    unit: str = "×"

    @property
    def text(self) -> str:
        found = numbers.interval(self.estimate.value, self.estimate.low, self.estimate.high, self.unit)
        return f"{self.words}: {found}"


class Known:
    """What the run recorded (see sam3lab.study.numbers), by the keys that the study's rows have."""

    def __init__(self, records: dict[str, dict], setting: Setting):
        self.records, self.setting = records, setting

    def precision(self, backend: str) -> str:
        return presets.precision(backend, self.setting.precision)

    @property
    def precisions(self) -> list[str]:
        """Those that native PyTorch may have had in the article: that of the other rows, and fp32."""
        return list(dict.fromkeys([self.setting.precision, "fp32"]))

    def own(self, key: str, backend: str, end: str = "") -> Estimate | None:
        """The number of a runtime's row: `<key>.<backend>.<precision><end>`."""
        return self.get(f"{key}.{backend}.{self.precision(backend)}{end}")

    def get(self, key: str, factor: float = 1.0) -> Estimate | None:
        """The number under a key, times a factor, as an estimate; None where it was not recorded."""
        record = self.records.get(key)
        if record is None:
            return None
        low, high = (record["value"] if record[end] is None else record[end] for end in ("low", "high"))
        return Estimate(*(factor * value for value in (record["value"], low, high)))

    def text(self, key: str) -> str:
        return self.records[key]["text"] if key in self.records else ""

    def side(self, condition: str) -> int:
        """The side in pixels that stands for one of the article's, whose 1024 is the checkpoint's own."""
        return round(self.setting.native * float(condition) / 1024 / 14) * 14


def quotient(one: Estimate | None, other: Estimate | None) -> Estimate | None:
    """one / other with an interval no narrower than that of their ratio; None where one of them is not known."""
    if one is None or other is None:
        return None
    return Estimate(one.value / other.value, one.low / other.high, one.high / other.low)


def readings(claim: Claim, known: Known) -> tuple[float, str, tuple[Reading, ...]]:
    """(figure, unit, readings): what the claim says of the runtime, mostly as a ratio, and what was measured of that.

    Not for claims of deployment, and not for those that are no comparison (L1, T1, S1, P1, C1, C2).
    """
    article = {each.id: each.value for each in claims.load()}
    target, unit, found = _KINDS[claim.metric](claim, known, article)
    return target, unit, tuple(Reading(words, each, unit) for words, each in found if each is not None)


def _latency(claim: Claim, known: Known, article: dict[str, float]):
    if claim.condition == "1024":  # L2, L3: as the article did it, with a larger checkpoint under PyTorch alone
        key = f"claims.article.{claim.backend}"
        found = [(f"PyTorch with sam3-huge in {each}", known.get(f"{key}.{each}")) for each in known.precisions]
        return article["L1"] / claim.value, "×", found
    own = article[{NATIVE: "L1", "onnxruntime": "L2", "tensorrt": "L3"}[claim.backend]]
    kinds = known.precisions if claim.backend == NATIVE else [known.precision(claim.backend)]
    key, side = f"resolution.relative.{claim.backend}", known.side(claim.condition)
    words = f"of {known.setting.native} pixels"
    return claim.value / own, "×", [(f"{words}, {each}", known.get(f"{key}.{each}.{side}")) for each in kinds]


def _speedup(claim: Claim, known: Known, article: dict[str, float]):
    if claim.condition == "1024":
        return claim.value, "×", _speeds(claim.backend, known)
    precision, end = known.precision(claim.backend), f".{known.side(claim.condition)}"
    found = [(f"both in {precision}", known.own("resolution.speedup", claim.backend, end))]
    return claim.value, "×", [*found, (f"{precision} against fp32", known.own("resolution.gain", claim.backend, end))]


def _speeds(backend: str, known: Known) -> list[tuple[str, Estimate | None]]:
    precision = known.precision(backend)
    found = [(f"both in {precision}", known.own("runtimes.speedup", backend))]
    if precision != "fp32":
        found.append((f"{precision} against fp32", known.own("runtimes.gain", backend)))
        found.append(("both in fp32", known.get(f"precision.gain.{backend}.fp32")))
    return found


def _throughput(claim: Claim, known: Known, article: dict[str, float]):
    several = quotient(*(known.own("calls.images.rate", each) for each in (claim.backend, NATIVE)))
    found = [*_speeds(claim.backend, known), ("several images a call", several)]
    return claim.value / article["T1"], "×", found


def _memory(claim: Claim, known: Known, article: dict[str, float]):
    huge = {each: known.get(f"claims.huge.memory.{each}", 1e-3) for each in known.precisions}
    if claim.backend == NATIVE:  # M1: memory is no matter of the card's speed
        return claim.value, "GB", [(f"sam3-huge in {each}", found) for each, found in huge.items()]
    if claim.condition == "int8":  # Q1
        return claim.value, "GB", [("its peak", known.get(f"memory.peak.{claim.backend}.int8", 1e-3))]
    own = known.get(f"memory.peak.{claim.backend}.{known.precision(claim.backend)}", 1e-3)
    same = {each: known.get(f"memory.peak.{NATIVE}.{each}", 1e-3) for each in known.precisions}
    found = [(f"of PyTorch's in {each}", quotient(own, other)) for each, other in same.items()]
    found += [(f"of PyTorch's with sam3-huge in {each}", quotient(own, other)) for each, other in huge.items()]
    return claim.value / article["M1"], "×", found


def _startup(claim: Claim, known: Known, article: dict[str, float]):
    kinds = {"warm": "runtimes.startup", "cold": "deployment.cold"}
    found = [(words, quotient(known.own(key, claim.backend), known.own(key, NATIVE))) for words, key in kinds.items()]
    return claim.value / article["S1"], "×", found


def _growth(claim: Claim, known: Known, article: dict[str, float]):
    key = f"resolution.growth.{claim.backend}"
    return claim.value, "×", [(f"in {each}", known.get(f"{key}.{each}")) for each in known.precisions]


def _added_latency(claim: Claim, known: Known, article: dict[str, float]):
    word, whole = {NATIVE: ("P1", "L1"), "tensorrt": ("P4", "L3")}[claim.backend]
    base = article[whole] + (article[word] if claim.id != word else 0)  # a word is added to the article's latency
    kinds = {"word": {}, "description": {"over one word": "description"}}.get(
        claim.condition, {"as one phrase": "phrase", "as a prompt each": "several"}
    )
    found = [(words, known.own("prompts.ratio", claim.backend, f".{kind}")) for words, kind in kinds.items()]
    return (article[whole] + claim.value) / base, "×", found


_KINDS = {
    "latency": _latency,
    "speedup": _speedup,
    "throughput": _throughput,
    "memory": _memory,
    "startup": _startup,
    "growth": _growth,
    "added_latency": _added_latency,
}
