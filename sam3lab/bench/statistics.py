"""Medians, quantiles and ratios with intervals that know that samples of one round belong together.

Intervals are percentile intervals of a two-stage bootstrap (Davison & Hinkley 1997, section 3.8): rounds are drawn with
replacement, then samples within each drawn round. Percentiles take the noise between rounds as known, when it is
estimated from R rounds; as in a t interval, the distance from the estimate (on a logarithmic scale for what is always
positive) is therefore multiplied by the ratio of Student's quantile with R − 1 degrees of freedom to the normal one (1.4
for 5 rounds, 2.2 for 3, 6.5 for 2). A single round tells nothing of that noise, nor does its interval. Seeded: equal
data give equal intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from sam3lab.bench.case import FIELDS
from sam3lab.errors import UserError

RESAMPLES = 2000
LEVEL = 0.95
TOLERANCE = 0.02
LEAST_FOR_P90 = 20
_BLOCK = 1 << 22  # drawn values held at a time

AGREEING = ("passed", "reference")


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its interval; rounds: the fewest that any of its samples came in, None if unknown."""

    value: float
    low: float
    high: float
    rounds: int | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def median_ci(samples: pd.DataFrame, level: float = LEVEL, seed: int = 0) -> Estimate:
    """The median of `value` in rows of one quantity, with columns value and round (see `by_round`)."""
    return quantile_ci(samples, 0.5, level, seed)


def quantile_ci(samples: pd.DataFrame, q: float, level: float = LEVEL, seed: int = 0) -> Estimate:
    """The quantile q in 0..1, interpolated linearly. Raises UserError for no samples."""
    rounds = list(by_round(samples).values())
    rng = np.random.default_rng(seed)
    drawn = _replicates(rounds, _picks(len(rounds), rng), q, rng)
    return _estimate(float(np.quantile(np.concatenate(rounds), q)), drawn, len(rounds), level)


def ratio_ci(a: pd.DataFrame, b: pd.DataFrame, level: float = LEVEL, seed: int = 0) -> Estimate:
    """median(a) / median(b): under 1 where a is the smaller, for times the faster.

    Where both have the same rounds, which were measured one beside the other, the same rounds are drawn for both: what
    slowed a whole round slowed both.
    """
    rounds_a, rounds_b = by_round(a), by_round(b)
    rng = np.random.default_rng(seed)
    picks_a = _picks(len(rounds_a), rng)
    picks_b = picks_a if list(rounds_a) == list(rounds_b) else _picks(len(rounds_b), rng)
    drawn_a = _replicates(list(rounds_a.values()), picks_a, 0.5, rng)
    drawn_b = _replicates(list(rounds_b.values()), picks_b, 0.5, rng)
    value = np.median(a["value"]) / np.median(b["value"])
    return _estimate(float(value), drawn_a / drawn_b, min(len(rounds_a), len(rounds_b)), level)


def verdict(ratio: Estimate, tolerance: float = TOLERANCE) -> str:
    """What a ratio of times lets one say: "faster", "slower", "same" or "ambiguous".

    same        the whole interval lies within 1 ± tolerance: whatever the difference is, it does not matter
    faster      otherwise, the whole interval lies under 1
    slower      otherwise, the whole interval lies over 1
    ambiguous   otherwise: the interval holds 1 and more than the tolerance; the data cannot tell, more rounds might.
                Always of a single round, since its interval leaves out how rounds differ

    As in nvbench's comparison, what is neither faster nor slower is the same only if the data are good enough to say so.
    """
    if ratio.rounds == 1:
        return "ambiguous"
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


def summary(
    rows: pd.DataFrame,
    by: Sequence[str] = ("case", "label"),
    stage: str | None = None,
    metric: str = "wall",
    phase: str = "steady",
    seed: int = 0,
) -> pd.DataFrame:
    """One row a group, in order of appearance: the columns `by`, stage, unit, median, low, high, p90, p90_low, p90_high,
    n (samples), rounds, parity.

    rows: results.load's. stage: one, or None for each. p90 is NaN under LEAST_FOR_P90 samples. parity is the worst of the
    group: failed, missing, passed, reference. A/A twins are left out unless `by` has "case" or "replica".
    """
    chosen = rows[(rows["metric"] == metric) & (rows["phase"] == phase)]
    if stage is not None:
        chosen = chosen[chosen["stage"] == stage]
    if not {"case", "replica"} & set(by):
        chosen = chosen[chosen["replica"] == 0]
    keys = list(dict.fromkeys([*by, "stage"]))
    lines = []
    for values, group in chosen.groupby(keys, sort=False):
        median = median_ci(group, seed=seed)
        nothing = Estimate(math.nan, math.nan, math.nan)
        p90 = quantile_ci(group, 0.9, seed=seed) if len(group) >= LEAST_FOR_P90 else nothing
        parity = min(group["parity"], key=("failed", "missing", "passed", "reference").index)
        lines.append(
            dict(zip(keys, values, strict=True))
            | {"unit": group["unit"].iloc[0], "median": median.value, "low": median.low, "high": median.high}
            | {"p90": p90.value, "p90_low": p90.low, "p90_high": p90.high}
            | {"n": len(group), "rounds": len(by_round(group)), "parity": parity}
        )
    ends = ["unit", "median", "low", "high", "p90", "p90_low", "p90_high", "n", "rounds", "parity"]
    return pd.DataFrame(lines, columns=[*keys, *ends])


def agreeing(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows, of results.load's or summary's, that a headline may use: those whose parity was shown."""
    return frame[frame["parity"].isin(AGREEING)]


def aa_check(rows: pd.DataFrame, tolerance: float = TOLERANCE, seed: int = 0) -> pd.DataFrame:
    """The A/A twins beside each other, one row a couple and stage: case, label, stage, ratio, low, high, verdict,
    agrees, resolution.

    agrees: the verdict is neither faster nor slower. The level is raised so that all stages of a couple together err in
    5% of runs (Bonferroni). resolution: the farther bound's distance from 1; differences under it, this run cannot see.
    """
    steady = rows[(rows["metric"] == "wall") & (rows["phase"] == "steady")]
    others = [name for name in FIELDS if name != "replica"]
    lines = []
    for _, couple in steady[steady["mode"] != "reference"].groupby(others, sort=False):
        replicas = sorted(couple["replica"].unique())
        first = couple[couple["replica"] == replicas[0]]
        for replica in replicas[1:]:
            second = couple[couple["replica"] == replica]
            stages = [stage for stage in first["stage"].unique() if (second["stage"] == stage).any()]
            for stage in stages:
                level = 1 - (1 - LEVEL) / len(stages)
                ratio = ratio_ci(second[second["stage"] == stage], first[first["stage"] == stage], level, seed)
                said = verdict(ratio, tolerance)
                line = {"case": first["case"].iloc[0], "label": first["label"].iloc[0], "stage": stage}
                line |= {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "verdict": said}
                line |= {"agrees": said in ("same", "ambiguous"), "resolution": max(1 - ratio.low, ratio.high - 1)}
                lines.append(line)
    columns = ["case", "label", "stage", "ratio", "low", "high", "verdict", "agrees", "resolution"]
    return pd.DataFrame(lines, columns=columns)


def by_round(samples: pd.DataFrame) -> dict[tuple, np.ndarray]:
    """Values by round, sorted; rounds of several cases are different rounds. Raises UserError for no samples."""
    if samples.empty:
        raise UserError("there are no samples to estimate from; was that stage measured?")
    keys = ["case", "round"] if "case" in samples and samples["case"].nunique() > 1 else ["round"]
    return {key: group["value"].to_numpy(np.float64) for key, group in samples.groupby(keys)}


def _picks(rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Which rounds each resample has: [RESAMPLES, rounds]."""
    return rng.integers(rounds, size=(RESAMPLES, rounds))


def _replicates(rounds: list[np.ndarray], picks: np.ndarray, q: float, rng: np.random.Generator) -> np.ndarray:
    """The quantile in each resample: [RESAMPLES]. Each drawn round gives the mean number of samples of a round."""
    counts = np.array([len(values) for values in rounds])
    padded = np.zeros((len(rounds), counts.max()))
    for row, values in zip(padded, rounds, strict=True):
        row[: len(values)] = values
    width = math.ceil(counts.mean())
    step = max(1, _BLOCK // (len(rounds) * width))
    drawn = []
    for start in range(0, len(picks), step):
        chosen = picks[start : start + step, :, None]
        index = (rng.random((*chosen.shape[:2], width)) * counts[chosen]).astype(np.intp)
        drawn.append(np.quantile(padded[chosen, index].reshape(len(chosen), -1), q, axis=1))
    return np.concatenate(drawn)


def _estimate(value: float, drawn: np.ndarray, rounds: int, level: float) -> Estimate:
    upper = (1 + level) / 2
    low, high = np.quantile(drawn, [1 - upper, upper])
    # where rounds have unlike numbers of samples, the median of all may lie outside of what is drawn round by round
    low, high = min(low, value), max(high, value)
    if rounds > 1:
        widening = stdtrit(rounds - 1, upper) / ndtri(upper)
        if drawn.min() > 0:  # times, sizes and ratios: widened by factors, they stay positive
            low, high = value * (low / value) ** widening, value * (high / value) ** widening
        else:
            low, high = value + (low - value) * widening, value + (high - value) * widening
    return Estimate(value, float(low), float(high), rounds)
