"""Medians, quantiles and ratios with intervals that know that samples of one round belong together.

What differs from round to round (a process's memory layout, clocks, a neighbour) does not average out within one, so
that a round counts as one observation, however many samples it has: the quantile of its samples. The interval is
Student's t over the logarithms of the rounds' quantiles, put around the estimate from all samples, in which each round
has the same weight (`quantile`): only the highest level of repetition counts (Kalibera & Jones 2013, "Rigorous
benchmarking in reasonable time"), and the noise of times is by factors. Few rounds tell little of their own noise; that of several cases of one kind can be pooled, as in an analysis
of variance (`pooled`). A single round tells nothing of it: its estimate has no interval (NaN), and nothing is concluded
from it. Where a run goes on until its intervals are narrow (runner's most_rounds), they are somewhat too narrow.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from sam3lab.bench.case import FIELDS
from sam3lab.errors import UserError

LEVEL = 0.95
TOLERANCE = 0.02
BLOCKS = 5

AGREEING = ("passed", "reference")


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its interval, NaN where there is none; rounds: the fewest that it came from, if known."""

    value: float
    low: float
    high: float
    rounds: int | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Noise:
    """The variance, from round to round, of the logarithm of a round's quantile or of a ratio, and its degrees of freedom."""

    variance: float
    freedom: int


def pooled(cases: Iterable[np.ndarray]) -> Noise | None:
    """The common noise of several cases, each given by its `logarithms`; None where none has two rounds."""
    return _noise((((values - values.mean()) ** 2).sum(), len(values) - 1) for values in cases if len(values) > 1)


def pooled_differences(blocks: Iterable[np.ndarray]) -> Noise | None:
    """The common noise of the `differences` of several cases from another; None where none has two rounds.

    blocks: [cases, rounds] for each other case. Its own noise is in all differences from it, so that they are no
    independent evidence: what is left is taken as in a randomised block design, the other case being one of its cases.
    """
    found = []
    for block in blocks:
        if block.shape[1] > 1:
            whole = np.vstack([np.zeros(block.shape[1]), block])
            rest = whole - whole.mean(0) - whole.mean(1, keepdims=True) + whole.mean()
            found.append((2 * (rest**2).sum(), len(block) * (block.shape[1] - 1)))
    return _noise(found)


def logarithms(samples: pd.DataFrame, q: float = 0.5) -> np.ndarray:
    """The logarithm of the quantile q of each round: [rounds]; empty where one is not positive."""
    each = np.array([np.quantile(values, q) for values in by_round(samples).values()])
    return np.log(each) if each.min() > 0 else np.empty(0)


def differences(a: pd.DataFrame, b: pd.DataFrame) -> np.ndarray:
    """The logarithms of median(a) / median(b) in each round: [rounds]; empty where they have not the same rounds."""
    logs_a, logs_b = logarithms(a), logarithms(b)
    same = list(by_round(a)) == list(by_round(b)) and len(logs_a) == len(logs_b)
    return logs_a - logs_b if same else np.empty(0)


def quantile(rounds: Iterable[np.ndarray], q: float) -> float:
    """The quantile q in 0..1 of the samples of all rounds, in which each round has the same weight, however many it has.

    Linear between the sorted samples, of which the k-th of n, with weight w_k, is at (k - 1) w_k + (n - 1) Σ_{i<k} w_i:
    with equal weights that is numpy's own (type 7 of Hyndman & Fan 1996, "Sample quantiles in statistical packages").
    """
    rounds = [np.asarray(values, np.float64) for values in rounds]
    values = np.concatenate(rounds)
    order = np.argsort(values, kind="stable")
    most = max(map(len, rounds))
    weights = np.concatenate([np.full(len(each), most / len(each)) for each in rounds])[order]
    before = np.cumsum(weights) - weights
    places = np.arange(len(values)) * weights + (len(values) - 1) * before
    return float(np.interp(q * places[-1], places, values[order]))


def median_ci(samples: pd.DataFrame, level: float = LEVEL) -> Estimate:
    """The median of `value` in rows of one quantity, with columns value and round (see `by_round`)."""
    return quantile_ci(samples, 0.5, level)


def quantile_ci(samples: pd.DataFrame, q: float, level: float = LEVEL, noise: Noise | None = None) -> Estimate:
    """The `quantile` q in 0..1. noise: of what is positive, that of its kind; its own if None.

    Raises UserError for no samples.
    """
    rounds = by_round(samples)
    value = quantile(rounds.values(), q)
    each = np.array([np.quantile(values, q) for values in rounds.values()])
    if value > 0 and each.min() > 0:
        return _by_factors(value, _half_width(np.log(each), level, noise), len(each))
    half = _half_width(each, level)
    return Estimate(value, value - half, value + half, len(each))


def ratio_ci(a: pd.DataFrame, b: pd.DataFrame, level: float = LEVEL, noise: Noise | None = None) -> Estimate:
    """median(a) / median(b), of what is positive: under 1 where a is the smaller, for times the faster.

    Where both have the same rounds, which were measured one beside the other, it is the ratios of the rounds that are
    compared, since what slowed a whole round slowed both, with their own noise or that of their kind (`differences`);
    otherwise the variances add (Welch).
    """
    value = quantile(by_round(a).values(), 0.5) / quantile(by_round(b).values(), 0.5)
    logs_a, logs_b, paired = logarithms(a), logarithms(b), differences(a, b)
    half = _half_width(paired, level, noise) if len(paired) else _welch(logs_a, logs_b, level)
    return _by_factors(value, half, min(len(logs_a), len(logs_b)))


def verdict(ratio: Estimate, tolerance: float = TOLERANCE) -> str:
    """What a ratio of times lets one say: "faster", "slower", "same" or "ambiguous".

    same        the whole interval lies within 1 ± tolerance: whatever the difference is, it does not matter
    faster      otherwise, the whole interval lies under 1
    slower      otherwise, the whole interval lies over 1
    ambiguous   otherwise: the interval holds 1 and more than the tolerance, or there is none, as of a single round;
                the data cannot tell, more rounds might

    As in nvbench's comparison, what is neither faster nor slower is the same only if the data are good enough to say so.
    """
    if 1 - tolerance <= ratio.low and ratio.high <= 1 + tolerance:
        return "same"
    if ratio.high < 1:
        return "faster"
    if ratio.low > 1:
        return "slower"
    return "ambiguous"


def select(rows: pd.DataFrame, stage: str, metric: str = "wall", phase: str = "steady") -> pd.DataFrame:
    """The rows of one quantity, of results.load's."""
    return rows[(rows["stage"] == stage) & (rows["metric"] == metric) & (rows["phase"] == phase)]


def agreeing(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows, of results.load's, that a headline may use: those whose parity was shown."""
    return frame[frame["parity"].isin(AGREEING)]


def aa_check(rows: pd.DataFrame, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """The A/A twins beside each other, one row a couple and stage: case, label, stage, ratio, low, high, verdict,
    agrees, resolution.

    Compared in the rounds that both have; those that share less than two are left out, as nothing could be concluded.
    agrees: the verdict is neither faster nor slower. The noise is that of all stages of a couple, and the level is raised
    so that these together err in 5% of runs (Bonferroni); in up to 10% of those with three rounds, where what slows a
    process slows all its stages. resolution: the farther bound's distance from 1; differences under it, this run cannot
    see.
    """
    steady = rows[(rows["metric"] == "wall") & (rows["phase"] == "steady")]
    others = [name for name in FIELDS if name != "replica"]
    lines = []
    for _, couple in steady[steady["mode"] != "reference"].groupby(others, sort=False):
        replicas = sorted(couple["replica"].unique())
        first = couple[couple["replica"] == replicas[0]]
        for replica in replicas[1:]:
            second = couple[couple["replica"] == replica]
            pairs = {
                stage: _shared(second[second["stage"] == stage], first[first["stage"] == stage])
                for stage in first["stage"].unique()
            }
            pairs = {stage: pair for stage, pair in pairs.items() if pair[0]["round"].nunique() > 1}
            noise = pooled(itertools.starmap(differences, pairs.values()))
            for stage, pair in pairs.items():
                ratio = ratio_ci(*pair, 1 - (1 - LEVEL) / len(pairs), noise)
                said = verdict(ratio, tolerance)
                line = {"case": first["case"].iloc[0], "label": first["label"].iloc[0], "stage": stage}
                line |= {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "verdict": said}
                line |= {"agrees": said in ("same", "ambiguous"), "resolution": max(1 - ratio.low, ratio.high - 1)}
                lines.append(line)
    columns = ["case", "label", "stage", "ratio", "low", "high", "verdict", "agrees", "resolution"]
    return pd.DataFrame(lines, columns=columns)


def in_blocks(values, blocks: int = BLOCKS) -> pd.DataFrame:
    """Repetitions in one process, in order, as `value` and `round`: so many blocks in time, each to stand for a round."""
    return pd.DataFrame({"round": np.arange(len(values)) * blocks // len(values), "value": values})


def by_round(samples: pd.DataFrame) -> dict[tuple, np.ndarray]:
    """Values by round, sorted; rounds of several cases are different rounds. Raises UserError for no samples."""
    if samples.empty:
        raise UserError("there are no samples to estimate from; was that stage measured?")
    keys = ["case", "round"] if "case" in samples and samples["case"].nunique() > 1 else ["round"]
    return {key: group["value"].to_numpy(np.float64) for key, group in samples.groupby(keys)}


def _shared(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both, in the rounds that both have."""
    return a[a["round"].isin(b["round"])], b[b["round"].isin(a["round"])]


def _noise(found: Iterable[tuple[float, int]]) -> Noise | None:
    """From sums of squares, each with its degrees of freedom."""
    squares, freedom = np.sum([*found, (0.0, 0)], axis=0)
    return Noise(float(squares / freedom), int(freedom)) if freedom else None


def _half_width(values: np.ndarray, level: float, noise: Noise | None = None) -> float:
    """Half of Student's interval for the mean of `values`, of their own noise or of that given; NaN for a single one."""
    if len(values) < 2:
        return math.nan
    noise = noise or Noise(float(values.var(ddof=1)), len(values) - 1)
    return float(stdtrit(noise.freedom, (1 + level) / 2)) * math.sqrt(noise.variance / len(values))


def _by_factors(value: float, half: float, rounds: int) -> Estimate:
    """An estimate whose interval is `half` to either side on the logarithmic scale."""
    return Estimate(value, float(value * np.exp(-half)), float(value * np.exp(half)), rounds)


def _welch(a: np.ndarray, b: np.ndarray, level: float) -> float:
    """Half of Welch's interval for the difference of the means of `a` and `b`; NaN where one has a single value."""
    if min(len(a), len(b)) < 2:
        return math.nan
    errors = [values.var(ddof=1) / len(values) for values in (a, b)]
    total = sum(errors)
    if not total:
        return 0.0
    freedom = total**2 / sum(error**2 / (len(values) - 1) for error, values in zip(errors, (a, b), strict=True))
    return float(stdtrit(freedom, (1 + level) / 2) * math.sqrt(total))
