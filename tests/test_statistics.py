import numpy as np
import pandas as pd
import pytest

from sam3lab.bench import statistics
from sam3lab.bench.case import Case
from sam3lab.bench.statistics import Estimate
from sam3lab.errors import UserError


def samples(rounds, rng=None, centre=10.0, between=0.0, within=0.02, count=12):
    """Log-normal samples: noise shared by a round, and each sample's own."""
    rng = rng or np.random.default_rng(0)
    shared = rng.normal(0, between, (rounds, 1))
    values = centre * np.exp(shared + rng.normal(0, within, (rounds, count)))
    return pd.DataFrame({"round": np.repeat(range(rounds), count), "value": values.ravel()})


def results(case, data, stage="pipeline", parity="passed"):
    """Rows as results.load gives them."""
    fixed = {"case": case.id, "label": case.label, "stage": stage, "phase": "steady", "metric": "wall", "unit": "ms"}
    rows = data.assign(**fixed, parity=parity)
    for name, value in case.to_json().items():
        rows[name] = [tuple(value) if isinstance(value, list) else value] * len(rows)
    return rows


def test_median_and_quantile_are_those_of_all_samples():
    data = samples(3)
    assert statistics.median_ci(data).value == np.median(data["value"])
    assert statistics.quantile_ci(data, 0.9).value == np.quantile(data["value"], 0.9)


def test_equal_data_give_equal_intervals_and_another_seed_nearly():
    data = samples(4, between=0.05, count=51)
    assert statistics.median_ci(data, seed=3) == statistics.median_ci(data, seed=3)
    one, other = statistics.median_ci(data, seed=3), statistics.median_ci(data, seed=4)
    assert one != other and one.low == pytest.approx(other.low, rel=0.01)


@pytest.mark.parametrize(("rounds", "between"), [(3, 0.05), (5, 0.05), (5, 0.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(rounds, between, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng = np.random.default_rng(11)
    held = [
        found.low <= 10 <= found.high
        for found in (statistics.median_ci(samples(rounds, rng, between=between)) for _ in range(150))
    ]
    assert np.mean(held) >= 0.9


def test_samples_that_share_a_round_are_no_independent_evidence():
    rng = np.random.default_rng(2)
    data = samples(5, rng, between=0.1, within=0.001, count=200)
    loose = statistics.median_ci(data)
    alone = statistics.median_ci(data.assign(round=0))  # as if all were one round's
    assert loose.high - loose.low > 3 * (alone.high - alone.low)


def test_ratio_of_interleaved_rounds_forgets_what_slowed_both():
    rng = np.random.default_rng(3)
    drift = np.exp(rng.normal(0, 0.2, 6))
    a, b = (samples(6, rng, centre=centre, within=0.005) for centre in (5.0, 10.0))
    for data in (a, b):
        data["value"] *= drift[data["round"]]
    ratio = statistics.ratio_ci(a, b)
    assert ratio.low < 0.5 < ratio.high
    apart = statistics.ratio_ci(a, b.assign(round=b["round"] + 100))
    assert (ratio.high - ratio.low) < 0.4 * (apart.high - apart.low)


def test_times_stay_positive():
    data = pd.DataFrame({"round": [0, 0, 1, 1], "value": [1.0, 1.1, 30.0, 31.0]})
    assert statistics.median_ci(data).low >= 0


def test_uneven_rounds():
    data = pd.concat([samples(2, count=30), samples(1, count=7).assign(round=2)])
    found = statistics.median_ci(data)
    assert found.low < found.value < found.high


def test_no_samples_are_refused():
    with pytest.raises(UserError, match="no samples"):
        statistics.median_ci(samples(1).iloc[:0])


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.985, 1.015, "same"),
        (0.985, 0.995, "same"),
        (0.80, 0.90, "faster"),
        (0.97, 0.99, "faster"),
        (1.05, 1.10, "slower"),
        (0.90, 1.10, "ambiguous"),
        (0.99, 1.05, "ambiguous"),
    ],
)
def test_verdict(low, high, said):
    assert statistics.verdict(Estimate((low + high) / 2, low, high)) == said


def test_a_single_round_is_never_faster_or_slower():
    one, other = samples(1, centre=5.0), samples(1, centre=10.0)
    assert statistics.verdict(statistics.ratio_ci(one, other)) == "ambiguous"
    assert statistics.verdict(statistics.ratio_ci(samples(5, centre=5.0), samples(5, centre=10.0))) == "faster"
    table = statistics.aa_check(pd.concat([results(Case(), one), results(Case(replica=1), other)]))
    assert table["verdict"].tolist() == ["ambiguous"]


def test_summary_counts_and_keeps_the_worst_parity():
    case, other = Case(), Case(backend="pytorch", resolution=504)
    rows = pd.concat(
        [results(case, samples(2), parity="reference"), results(other, samples(2, count=5), parity="failed")]
    )
    table = statistics.summary(rows, by=("backend",), stage="pipeline")
    assert list(table["backend"]) == ["transformers", "pytorch"]
    assert (
        list(table["n"]) == [24, 10]
        and list(table["rounds"]) == [2, 2]
        and list(table["parity"]) == ["reference", "failed"]
    )
    assert table["p90"].notna().tolist() == [True, False]
    assert (table["low"] <= table["median"]).all() and (table["median"] <= table["high"]).all()
    assert statistics.summary(rows, by=("checkpoint",))["parity"].tolist() == ["failed"]
    assert statistics.agreeing(table)["backend"].tolist() == ["transformers"]


def test_summary_leaves_out_twins_unless_they_are_asked_for():
    rows = pd.concat([results(Case(), samples(2)), results(Case(replica=1), samples(2, centre=99))])
    assert statistics.summary(rows, by=("backend",))["n"].tolist() == [24]
    assert len(statistics.summary(rows)) == 2
    assert len(statistics.summary(rows, by=("backend", "replica"))) == 2


def test_rounds_of_several_cases_are_several_rounds():
    rows = pd.concat([results(Case(), samples(2)), results(Case(prompts=("dog",)), samples(2))])
    assert statistics.summary(rows, by=("backend",))["rounds"].tolist() == [4]


def twins(rng, factor, stages=("image", "text", "detect", "pipeline")):
    parts = []
    for stage in stages:
        parts.append(results(Case(), samples(5, rng, between=0.02), stage))
        parts.append(results(Case(replica=1), samples(5, rng, centre=10 * factor, between=0.02), stage))
    return pd.concat(parts)


def test_twins_agree_unless_they_differ(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng = np.random.default_rng(4)
    agree = [statistics.aa_check(twins(rng, 1.0))["agrees"].all() for _ in range(30)]
    assert np.mean(agree) >= 0.8
    table = statistics.aa_check(twins(rng, 1.5))
    assert list(table["stage"]) == ["image", "text", "detect", "pipeline"]
    assert not table["agrees"].any() and set(table["verdict"]) == {"slower"} and (table["ratio"] > 1.3).all()
    assert statistics.aa_check(results(Case(), samples(2))).empty
