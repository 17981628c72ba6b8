"""What each of the article's claims is held against: a figure, and what was measured of it, in one reading or several.

The article's machine (an A100) is not the reader's, so that an absolute figure can hardly be tested; the ratios between
the article's own rows can. Where the article leaves open what was measured (the precision of either side, the checkpoint
under PyTorch, how several objects were passed), a claim has several readings.
"""

from dataclasses import dataclass

from sam3lab.bench.statistics import Estimate
from sam3lab.study import claims, numbers, presets
from sam3lab.study.claims import Claim
from sam3lab.study.tables import NATIVE

# How what was measured is held against a figure: it is to be the figure; to be the figure, of what is little added to
# much; to be at most the figure; or to be more than it.
EQUAL, ADDED, MOST, MORE = "", "added", "at most", "over"


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


@dataclass(frozen=True)
class Question:
    """What a claim says, mostly as a ratio: the figure, how it is meant (EQUAL, …), and what was measured of that."""

    target: float
    readings: tuple[Reading, ...]
    unit: str = "×"
    how: str = EQUAL

    @property
    def text(self) -> str:
        bound = f"{self.how} " if self.how in (MOST, MORE) else ""
        return bound + numbers.interval(self.target, unit=self.unit)


class Known:
    """What the run recorded (see sam3lab.study.numbers), by the keys that the study's rows have."""

    def __init__(self, records: dict[str, dict], setting: Setting):
        self.records, self.setting = records, setting

    def precision(self, backend: str) -> str:
        return presets.precision(backend, self.setting.precision)

    def precisions(self, backend: str = NATIVE) -> list[str]:
        """Those that a runtime may have had in the article: its own of `pairs`."""
        return list(dict.fromkeys([own for own, _ in self.pairs(backend)]))

    def pairs(self, backend: str) -> list[tuple[str, str]]:
        """Those that a runtime and native PyTorch may have had there: both the row's, the row's against fp32, both fp32.

        The article's TensorRT has --fp16. Its graphs of ONNX Runtime may be in float32, whose products the CUDA provider
        computes in TF32 unless it is told otherwise.
        """
        own = self.precision(backend)
        found = [(own, own), (own, "fp32")]
        if backend != "tensorrt":
            found.append(("fp32", "fp32"))
        if backend == "onnxruntime" and self.setting.device == "cuda":
            found += [("tf32", "fp32"), ("tf32", "tf32")]
        return list(dict.fromkeys(found))

    def get(self, *keys: str, factor: float = 1.0) -> Estimate | None:
        """The number under the first of these keys that was recorded, times a factor, as an estimate; None without one."""
        for key in keys:
            if record := self.records.get(key):
                found = numbers.estimate(record)
                return Estimate(*(factor * value for value in (found.value, found.low, found.high)))
        return None

    def peak(self, backend: str, precision: str) -> Estimate | None:
        """A runtime's peak memory in GB; that of what is no row is known from the notebook on precision."""
        row = f"{backend}.{precision}"
        return self.get(f"memory.peak.{row}", f"precision.peak.{row}", factor=1e-3)

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


def question(claim: Claim, known: Known) -> Question:
    """What the claim says of the runtime, and what was measured of that; no readings where nothing was.

    Not for claims of deployment, and not for those that are no comparison (L1, M1, T1, S1, P1, P4, C1, C2).
    """
    article = {each.id: each.value for each in claims.load()}
    return _KINDS[claim.metric](claim, known, article)


def _asked(target: float, found: list[tuple[str, Estimate | None]], unit: str = "×", how: str = EQUAL) -> Question:
    """A question with a reading for each (words, estimate) that was measured."""
    return Question(target, tuple(Reading(words, each, unit) for words, each in found if each is not None), unit, how)


def _latency(claim: Claim, known: Known, article: dict[str, float]) -> Question:
    if claim.condition == "1024":
        return _asked(article["L1"] / claim.value, _speeds(claim.backend, known))
    own = article[{NATIVE: "L1", "onnxruntime": "L2", "tensorrt": "L3"}[claim.backend]]
    key, side, native = f"resolution.relative.{claim.backend}", known.side(claim.condition), known.setting.native
    kinds = known.precisions(claim.backend)
    found = [(f"{side} pixels against {native}, in {each}", known.get(f"{key}.{each}.{side}")) for each in kinds]
    return _asked(claim.value / own, found)


def _speedup(claim: Claim, known: Known, article: dict[str, float]) -> Question:
    if claim.condition == "1024":
        return _asked(claim.value, _speeds(claim.backend, known))
    first, last = known.side("512"), known.side(claim.condition)  # R8 says that the speed-up grows, and not to what
    found = []
    for own, native in known.pairs(claim.backend):
        key = f"resolution.{'speedup' if own == native else 'gain'}.{claim.backend}.{own}"
        grown = quotient(known.get(f"{key}.{last}"), known.get(f"{key}.{first}"))
        found.append((f"that at {last} pixels over that at {first}, {_words(own, native)}", grown))
    return _asked(1.0, found, how=MORE)


def _speeds(backend: str, known: Known) -> list[tuple[str, Estimate | None]]:
    """How many times as fast as native PyTorch a runtime is, in every precision and under either checkpoint there."""
    found, huge = [], []
    for own, native in known.pairs(backend):
        keys = [f"runtimes.{'speedup' if own == native else 'gain'}.{backend}.{own}"]
        keys += [f"precision.speedup.{backend}.{own}"] if own == native else []
        if native == "fp32":  # which the notebook on precision compares all with
            keys.append(f"precision.gain.{backend}.{own}")
        speed = known.get(*keys)
        larger = known.get(f"claims.huge.ratio.{native}")
        slower = None if speed is None or larger is None else _product(speed, larger)
        if own == known.precision(backend):  # measured as one ratio
            slower = known.get(f"claims.article.{backend}.{native}")
        found.append((_words(own, native), speed))
        huge.append((_words(own, native, huge=True), slower))
    return found + huge


def _throughput(claim: Claim, known: Known, article: dict[str, float]) -> Question:
    rates = [known.get(f"calls.images.rate.{each}.{known.precision(each)}") for each in (claim.backend, NATIVE)]
    own, native = (known.precision(each) for each in (claim.backend, NATIVE))
    several = (f"several images a call, {_words(own, native)}", quotient(*rates))
    return _asked(claim.value / article["T1"], [*_speeds(claim.backend, known), several])


def _memory(claim: Claim, known: Known, article: dict[str, float]) -> Question:
    if claim.condition == "int8":  # Q1
        return _asked(claim.value, [("its peak", known.peak(claim.backend, "int8"))], "GB", MOST)
    found, huge = [], []
    for own, native in known.pairs(claim.backend):
        peak, larger = known.peak(claim.backend, own), known.get(f"claims.huge.memory.{native}", factor=1e-3)
        found.append((_words(own, native), quotient(peak, known.peak(NATIVE, native))))
        huge.append((_words(own, native, huge=True), quotient(peak, larger)))
    return _asked(claim.value / article["M1"], found + huge)


def _startup(claim: Claim, known: Known, article: dict[str, float]) -> Question:
    found = []
    for words, key in {"warm": "runtimes.startup", "cold": "deployment.cold"}.items():
        for own, native in known.pairs(claim.backend):
            ratio = quotient(known.get(f"{key}.{claim.backend}.{own}"), known.get(f"{key}.{NATIVE}.{native}"))
            found.append((f"{words}, {_words(own, native)}", ratio))
    return _asked(claim.value / article["S1"], found)


def _growth(claim: Claim, known: Known, article: dict[str, float]) -> Question:
    key = f"resolution.growth.{claim.backend}"
    found = [(f"in {each}", known.get(f"{key}.{each}")) for each in known.precisions(claim.backend)]
    return _asked(claim.value, found)


def _added_latency(claim: Claim, known: Known, article: dict[str, float]) -> Question:
    word, whole = {NATIVE: ("P1", "L1"), "tensorrt": ("P4", "L3")}[claim.backend]
    base = article[whole] + article[word]  # a word is added to the article's latency
    kinds = {"description": "over one word"}
    if claim.condition == "objects":
        kinds = {"phrase": "as one phrase", "several": "as a prompt each"}
    own = known.precision(claim.backend)
    key = f"prompts.ratio.{claim.backend}.{own}"
    found = [(f"{words}, in {own}", known.get(f"{key}.{kind}")) for kind, words in kinds.items()]
    return _asked((article[whole] + claim.value) / base, found, how=ADDED)


def _words(own: str, native: str, huge: bool = False) -> str:
    both = f"both in {own}" if own == native else f"{own} against PyTorch's {native}"
    return f"{both}, sam3-huge under PyTorch" if huge else both


def _product(one: Estimate, other: Estimate) -> Estimate:
    """one · other with an interval no narrower than its own."""
    return Estimate(one.value * other.value, one.low * other.low, one.high * other.high)


_KINDS = {
    "latency": _latency,
    "speedup": _speedup,
    "throughput": _throughput,
    "memory": _memory,
    "startup": _startup,
    "growth": _growth,
    "added_latency": _added_latency,
}
