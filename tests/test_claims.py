"""The article's claims get the verdict that this machine allows, and the reason."""

import pytest

from sam3lab.bench.statistics import Estimate
from sam3lab.study import claims, numbers

CPU = claims.Setting("cpu", "a CPU", "sam3-nano", 252, {"tensorrt": "there is no NVIDIA driver"})
GPU = claims.Setting("cuda", "a GPU", "sam3", 1008, {})


def judged(known, setting):
    return claims.table(known, setting).set_index("id")


def ratio(value):
    return numbers.number(Estimate(value, value * 0.98, value * 1.02), "×")


def words(verdict):
    return numbers.number(numbers.WORDS[verdict])


def test_every_claim_has_one_of_three_verdicts_and_a_reason():
    for setting in (CPU, GPU):
        table = judged({}, setting)
        assert len(table) == len(claims.load()) >= 30
        assert set(table["verdict"]) <= {claims.CONFIRMED, claims.REFUTED, claims.UNTESTED}
        assert table["why"].str.len().min() > 5


def test_where_nothing_was_measured_nothing_is_confirmed_or_refuted():
    assert set(judged({}, CPU)["verdict"]) == {claims.UNTESTED}


def test_absolute_figures_are_shown_but_not_judged_and_ratios_not_on_a_cpu():
    known = {"runtimes.latency.transformers": numbers.number(10.0, "ms"), "runtimes.speedup.onnxruntime": ratio(1.56)}
    table = judged(known, CPU)
    assert table.loc["L1", ["here", "verdict"]].tolist() == ["10.0 ms", claims.UNTESTED]
    assert table.loc["L4", "verdict"] == claims.UNTESTED and "CPU" in table.loc["L4", "why"]


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(1.56, claims.CONFIRMED), (1.45, claims.CONFIRMED), (1.1, claims.REFUTED), (3.0, claims.REFUTED)],
)
def test_a_ratio_on_a_gpu_is_held_against_the_measured_interval(value, verdict):
    known = {"runtimes.speedup.onnxruntime": ratio(value)}
    assert judged(known, GPU).loc["L4", "verdict"] == verdict
    nano = claims.Setting("cuda", "a GPU", "sam3-nano", 252, {})
    assert judged(known, nano).loc["L4", "verdict"] == claims.UNTESTED


def test_a_runtime_that_was_skipped_says_why():
    assert "no NVIDIA driver" in judged({}, CPU).loc["L3", "why"]


def test_the_articles_resolutions_stand_for_shares_of_the_checkpoints_own():
    by_id = {claim.id: claim for claim in claims.load()}
    assert claims.key(by_id["R1"], 252) == "resolution.latency.transformers.126"
    assert claims.key(by_id["R6"], 1008) == "resolution.latency.tensorrt.1512"
    assert claims.key(by_id["L2"], 252) == "runtimes.latency.onnxruntime"
    assert claims.key(by_id["Q1"], 252) == ""


@pytest.mark.parametrize(("verdict", "expected"), [("same", claims.REFUTED), ("ambiguous", claims.UNTESTED)])
def test_a_description_that_costs_the_same_as_a_word_refutes_its_claim(verdict, expected):
    key = "prompts.ratio.transformers.description"
    table = judged({key: ratio(1.0), f"{key}.words": words(verdict)}, CPU)
    assert table.loc["P2", "verdict"] == expected


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ("faster", claims.CONFIRMED),
        ("same", claims.REFUTED),
        ("slower", claims.REFUTED),
        ("ambiguous", claims.UNTESTED),
    ],
)
def test_caching_is_judged_by_what_it_saved(verdict, expected):
    key = "prompts.cached.transformers"
    assert judged({key: ratio(0.9), f"{key}.words": words(verdict)}, CPU).loc["C2", "verdict"] == expected


def test_the_articles_figures_can_be_named_in_prose_as_they_stand_there():
    assert numbers.fill("{claim.L1} and {claim.L5}", claims.records()) == "210 ms and 2.36×"
    assert claims.column("speedup", "1024") == {"onnxruntime": 1.56, "tensorrt": 2.36}
