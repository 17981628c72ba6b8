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


@pytest.mark.parametrize("between", [0.05, 0.0])
@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(rounds, between):
    rng = np.random.default_rng(11)
    found = [statistics.median_ci(samples(rounds, rng, between=between)) for _ in range(500)]
    assert np.mean([each.low <= 10 <= each.high for each in found]) == pytest.approx(
        0.95, abs=0.03
    )  # three standard errors


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_ratios_hold_the_truth_as_often_as_they_say(paired):
    rng = np.random.default_rng(12)
    found = []
    for _ in range(500):
        a, b = samples(4, rng, centre=5.0, between=0.03), samples(4, rng, centre=10.0, between=0.03)
        found.append(statistics.ratio_ci(a, b if paired else b.assign(round=b["round"] + 100)))
    assert np.mean([each.low <= 0.5 <= each.high for each in found]) == pytest.approx(0.95, abs=0.03)


def test_intervals_are_students_over_the_rounds_medians():
    data = pd.DataFrame({"round": [0, 0, 0, 1, 1, 1], "value": [9.0, 10.0, 30.0, 9.0, 12.0, 12.5]})
    found = statistics.median_ci(data)
    assert found.value == 11.0 and found.rounds == 2
    assert found.high / found.value == pytest.approx((12 / 10) ** (12.7062 / 2), rel=1e-4)  # t of one degree of freedom
    assert found.value / found.low == pytest.approx(found.high / found.value)


def test_what_may_be_negative_has_an_interval_around_it():
    data = pd.DataFrame({"round": [0, 1, 2], "value": [-1.0, 0.0, 1.0]})
    found = statistics.median_ci(data)
    assert found.value == 0 and found.high == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4) and found.low == -found.high


def test_samples_that_share_a_round_are_no_independent_evidence():
    rng = np.random.default_rng(2)
    data = samples(5, rng, between=0.1, within=0.001, count=200)
    loose = statistics.median_ci(data)
    alone = statistics.median_ci(data.assign(round=range(len(data))))  # as if each were a round of its own
    assert loose.high - loose.low > 3 * (alone.high - alone.low)


def test_ratio_of_interleaved_rounds_forgets_what_slowed_both():
    rng = np.random.default_rng(3)
    drift = np.exp(rng.normal(0, 0.2, 6))
    a, b = (samples(6, rng, centre=centre, within=0.005) for centre in (5.0, 10.0))
    for data in (a, b):
        data["value"] *= drift[data["round"]]
    ratio = statistics.ratio_ci(a, b)
    assert ratio.value == pytest.approx(0.5, rel=0.01)
    apart = statistics.ratio_ci(a, b.assign(round=b["round"] + 100))
    assert (ratio.high - ratio.low) < 0.1 * (apart.high - apart.low)


def test_a_ratio_has_the_fewer_rounds_of_the_two():
    assert statistics.ratio_ci(samples(5), samples(3)).rounds == 3


def test_times_stay_positive():
    data = pd.DataFrame({"round": [0, 0, 1, 1], "value": [1.0, 1.1, 30.0, 31.0]})
    assert statistics.median_ci(data).low >= 0


def test_uneven_rounds():
    data = pd.concat([samples(2, count=30), samples(1, count=7).assign(round=2)])
    found = statistics.median_ci(data)
    assert found.low < found.value < found.high and found.rounds == 3


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


def test_a_single_round_has_no_interval_and_is_never_faster_or_slower():
    one, other = samples(1, centre=5.0), samples(1, centre=10.0)
    alone = statistics.median_ci(one)
    assert alone.value == np.median(one["value"]) and np.isnan([alone.low, alone.high]).all() and alone.rounds == 1
    assert statistics.verdict(statistics.ratio_ci(one, other)) == "ambiguous"
    assert statistics.verdict(statistics.ratio_ci(one, samples(5, centre=10.0))) == "ambiguous"
    assert statistics.verdict(statistics.ratio_ci(samples(5, centre=5.0), samples(5, centre=10.0))) == "faster"
    assert statistics.aa_check(pd.concat([results(Case(), one), results(Case(replica=1), other)])).empty


def test_a_headline_may_use_what_agrees():
    rows = pd.concat(
        [results(Case(), samples(2), parity=state) for state in ("reference", "passed", "failed", "missing")]
    )
    assert set(statistics.agreeing(rows)["parity"]) == {"reference", "passed"}


def test_rounds_of_several_cases_are_several_rounds():
    rows = pd.concat([results(Case(), samples(2)), results(Case(prompts=("dog",)), samples(2))])
    assert statistics.median_ci(rows).rounds == 4


def twins(rng, factor, stages=("image", "text", "detect", "pipeline"), rounds=5):
    parts = []
    for stage in stages:
        parts.append(results(Case(), samples(rounds, rng, between=0.02), stage))
        parts.append(results(Case(replica=1), samples(rounds, rng, centre=10 * factor, between=0.02), stage))
    return pd.concat(parts)


def test_twins_agree_unless_they_differ():
    rng = np.random.default_rng(4)
    agree = [statistics.aa_check(twins(rng, 1.0))["agrees"].all() for _ in range(100)]
    assert np.mean(agree) >= 0.9  # 0.95 by the level that all stages share; 0.87 without it
    table = statistics.aa_check(twins(rng, 1.5))
    assert list(table["stage"]) == ["image", "text", "detect", "pipeline"]
    assert not table["agrees"].any() and set(table["verdict"]) == {"slower"} and (table["ratio"] > 1.3).all()
    assert statistics.aa_check(results(Case(), samples(2))).empty


def test_twins_are_compared_in_the_rounds_that_both_have():
    rng = np.random.default_rng(4)
    both = twins(rng, 1.0, rounds=3)
    more = results(Case(), samples(1, rng, centre=50.0), "pipeline").assign(round=3)  # a round that went on alone
    pd.testing.assert_frame_equal(statistics.aa_check(pd.concat([both, more])), statistics.aa_check(both))
    assert statistics.aa_check(both[(both["replica"] == 0) | (both["round"] == 0)]).empty  # one concludes nothing


def test_a_round_counts_once_however_many_samples_it_has():
    rng = np.random.default_rng(7)
    for count in (1, 2, 5, 40):
        rounds = [rng.normal(10, 1, count) for _ in range(3)]
        for q in (0.0, 0.1, 0.5, 0.9, 1.0):
            assert statistics.quantile(rounds, q) == pytest.approx(np.quantile(np.concatenate(rounds), q))
    quiet, slow = np.full(200, 10.0), np.full(5, 20.0)
    assert (
        statistics.quantile([quiet, slow, slow], 0.5) == 20.0 and statistics.quantile([quiet, quiet, slow], 0.5) == 10
    )
    # as if each round had as many as the others
    rounds = [rng.normal(10, 1, 4), rng.normal(12, 1, 12), rng.normal(14, 1, 6)]
    same = np.concatenate([np.repeat(values, 1200 // len(values)) for values in rounds])
    for q in (0.2, 0.5, 0.8):
        assert statistics.quantile(rounds, q) == pytest.approx(np.quantile(same, q), abs=0.5)
    frame = pd.DataFrame({"round": [0] * 200 + [1] * 5 + [2] * 5, "value": np.concatenate([quiet, slow, slow])})
    assert statistics.median_ci(frame).value == 20.0
    other = frame.assign(value=10.0)
    assert statistics.ratio_ci(frame, other).value == 2.0


def test_three_rounds_show_a_twin_that_differs_by_a_fifth():
    rng = np.random.default_rng(5)
    told = [not statistics.aa_check(twins(rng, 1.2, rounds=3))["agrees"].any() for _ in range(30)]
    assert np.mean(told) > 0.9  # half of the runs, were a stage's noise its own alone


def test_pooled_noise_is_that_of_all_cases_of_a_kind():
    rng = np.random.default_rng(5)
    several = [
        statistics.logarithms(samples(2, rng, centre=centre, between=0.1, within=0.0)) for centre in range(1, 41)
    ]
    noise = statistics.pooled(several)
    assert noise.freedom == 40 and np.sqrt(noise.variance) == pytest.approx(0.1, rel=0.25)
    data = pd.DataFrame({"round": [0, 1], "value": [8.0, 12.5]})
    found = statistics.quantile_ci(data, 0.5, noise=noise)
    half = 2.0211 * np.sqrt(noise.variance / 2)  # t of forty degrees of freedom
    assert np.log(found.high / found.value) == pytest.approx(half, rel=1e-4)
    assert found.high < statistics.median_ci(data).high / 5
    assert statistics.pooled([np.array([1.0]), np.empty(0)]) is None
    assert np.isnan(statistics.quantile_ci(data.iloc[:1], 0.5, noise=noise).high)  # one round concludes nothing


def test_differences_from_one_case_share_its_noise():
    """The intervals of ratios to one case, with the noise pooled over them, hold the truth as often as they say."""
    rng, held = np.random.default_rng(6), []
    for _ in range(300):
        base, *others = (samples(2, rng, between=0.05, within=0.001, count=5) for _ in range(6))
        found = np.array([statistics.differences(each, base) for each in others])
        noise = statistics.pooled_differences([found])
        assert noise.freedom == 5
        held += [
            each.low <= 1 <= each.high for each in (statistics.ratio_ci(other, base, noise=noise) for other in others)
        ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_differences_of_a_single_pair_have_their_own_noise():
    rng = np.random.default_rng(7)
    a, b = samples(4, rng), samples(4, rng, centre=5.0)
    noise = statistics.pooled_differences([statistics.differences(a, b)[None]])
    assert noise.freedom == 3 and noise.variance == pytest.approx(statistics.differences(a, b).var(ddof=1))
    assert statistics.differences(a, b.assign(round=b["round"] + 9)).size == 0
    assert statistics.logarithms(a.assign(value=0.0)).size == 0
