"""The article's claims get the verdict that this machine allows, and the reason."""

import pandas as pd
import pytest

from sam3lab.bench.statistics import Estimate
from sam3lab.study import claims, deployment, judging, numbers, readings

CPU = readings.Setting("cpu", "a CPU", "sam3-nano", 252, "fp32")
GPU = readings.Setting("cuda", "a GPU", "sam3", 1008, "fp16")
NO_TENSORRT = {"absent.01_runtimes.tensorrt.fp16": numbers.number("not run here: there is no TensorRT")}
REPRODUCED, CONTRADICTED, UNTESTED = claims.VERDICTS


def judged(known, setting=GPU):
    return {each.claim.id: each for each in judging.judged(known, setting)}


def number(value, unit="×", width=0.02):
    return numbers.number(Estimate(value, value * (1 - width), value * (1 + width)), unit)


def verdicts(known, setting=GPU):
    return {name: each.verdict for name, each in judged(known, setting).items() if each.verdict != UNTESTED}


def test_every_claim_has_one_of_three_verdicts_and_a_reason():
    for setting in (CPU, GPU):
        table = claims.table(judging.judged({}, setting))
        assert table["id"].tolist() == [claim.id for claim in claims.load()] and len(table) >= 30
        assert set(table["verdict"]) == {UNTESTED}  # nothing was measured
        assert table["why"].str.len().min() > 5
    assert claims.counts(table) == {"reproduced": 0, "contradicted": 0, "not": len(table)}


@pytest.mark.parametrize(
    ("value", "verdict"), [(1.56, REPRODUCED), (1.45, REPRODUCED), (1.1, CONTRADICTED), (3.0, CONTRADICTED)]
)
def test_a_ratio_on_a_gpu_is_held_against_the_measured_interval(value, verdict):
    known = {"runtimes.speedup.onnxruntime.fp16": number(value)}
    assert judged(known)["L4"].verdict == verdict
    assert judged(known)["L4"].here.startswith("both in fp16: ")
    for elsewhere in (
        readings.Setting("cuda", "a GPU", "sam3-nano", 252, "fp16"),
        readings.Setting("cpu", "a CPU", "sam3", 1008, "fp16"),
    ):
        assert judged(known, elsewhere)["L4"].verdict == UNTESTED


def test_one_reading_that_holds_is_enough_and_all_are_shown():
    known = {"runtimes.speedup.onnxruntime.fp16": number(3.0), "precision.gain.onnxruntime.fp32": number(1.55)}
    found = judged(known)["L4"]
    assert found.verdict == REPRODUCED and "both in fp32" in found.why and "both in fp16" not in found.why
    assert "both in fp16: 3.00" in found.here and "both in fp32: 1.55" in found.here
    frame = judging.frame([found])
    assert frame["holds"].tolist() == [False, True]
    assert frame["value"].tolist() == pytest.approx([3 / 1.56, 1.55 / 1.56])


def test_absolute_figures_become_ratios_between_the_articles_own_rows():
    known = {
        "claims.article.onnxruntime.fp32": number(210 / 135),  # L2: PyTorch with the larger checkpoint, as it did
        "runtimes.latency.transformers.fp16": number(50.0, "ms"),
        "memory.peak.onnxruntime.fp16": number(3100.0, "MB"),
        "memory.peak.transformers.fp32": number(4000.0, "MB"),  # M2: 14.1 of 18.2
        "claims.huge.memory.fp32": number(5000.0, "MB"),  # M1: not 18.2 GB
        "runtimes.startup.onnxruntime.fp16": number(10.0, "s"),
        "runtimes.startup.transformers.fp16": number(10.0, "s"),
        "deployment.cold.onnxruntime.fp16": number(25.0, "s"),  # S2: 25 of 45 when nothing is there
        "deployment.cold.transformers.fp16": number(45.0, "s"),
        "resolution.relative.transformers.fp32.504": number(0.4),  # R1: 160 of 210
        "resolution.relative.onnxruntime.fp16.1512": number(240 / 135),  # R5
        "resolution.growth.transformers.fp16": number(2.375),  # R7
    }
    found = judged(known)
    assert {name: each.verdict for name, each in found.items() if each.verdict != UNTESTED} == {
        **dict.fromkeys(("L2", "M2", "S2", "R5", "R7", "C1"), REPRODUCED),
        **dict.fromkeys(("M1", "R1"), CONTRADICTED),
    }
    assert found["M1"].tested == "18.2 GB" and found["R1"].tested == "0.762×"
    assert found["L1"].here == "fp16: 50.0 [49.0, 51.0] ms" and "A100" in found["L1"].why
    assert "cold" in found["S2"].why and "warm" not in found["S2"].why


def test_images_per_second_are_also_those_of_several_images_a_call():
    known = {"runtimes.speedup.onnxruntime.fp16": number(3.0)}
    assert judged(known)["T2"].verdict == CONTRADICTED
    rates = {"onnxruntime": 7.4, "transformers": 4.8}
    known |= {f"calls.images.rate.{name}.fp16": number(rate, "images/s") for name, rate in rates.items()}
    assert judged(known)["T2"].verdict == REPRODUCED


def test_a_runtime_that_was_skipped_says_why():
    found = judged(NO_TENSORRT)
    for name in ("L3", "L5", "M3", "T3", "S3", "R3", "R8", "P4", "P6", "Q1"):
        assert found[name].verdict == UNTESTED and "no TensorRT" in found[name].why, name
    assert "not measured under ONNX Runtime" in found["L4"].why


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.99, 1.01, CONTRADICTED),  # nothing is added, where the article adds six per cent
        (1.03, 1.09, REPRODUCED),
        (0.95, 1.10, UNTESTED),  # it may be either
        (1.20, 1.30, CONTRADICTED),
    ],
)
def test_what_a_description_adds_must_be_told_apart_from_nothing(low, high, verdict):
    record = numbers.number(Estimate((low + high) / 2, low, high), "×")
    key = "prompts.ratio.transformers.{}.description"
    assert judged({key.format("fp16"): record})["P2"].verdict == verdict
    assert judged({key.format("fp32"): record}, CPU)["P2"].verdict == verdict  # the padding is the same on a CPU


def test_several_objects_are_read_as_one_phrase_and_as_a_prompt_each():
    key = "prompts.ratio.transformers.fp16"
    known = {f"{key}.phrase": number(1.0, width=0.005), f"{key}.several": number(1.8)}
    assert judged(known)["P3"].verdict == CONTRADICTED
    assert judged(known | {f"{key}.several": number(242 / 215)})["P3"].verdict == REPRODUCED
    assert judged({key.replace("16", "32") + ".several": number(242 / 215)}, CPU)["P3"].verdict == UNTESTED


@pytest.mark.parametrize(
    ("words", "expected"),
    [("faster", REPRODUCED), ("same", CONTRADICTED), ("slower", CONTRADICTED), ("ambiguous", UNTESTED)],
)
def test_caching_is_judged_by_what_it_saved(words, expected):
    key = "prompts.cached.transformers.fp32"
    known = {key: number(0.9), f"{key}.words": numbers.number(numbers.WORDS[words])}
    assert judged(known, CPU)["C2"].verdict == expected


def counted(**runtimes):
    rows = [
        {"backend": name, **dict(zip(deployment.RESPECTS, values, strict=True))} for name, values in runtimes.items()
    ]
    return {key: numbers.number(*what) for key, what in deployment.numbers(rows).items()}


def test_stars_are_an_order_which_what_was_counted_holds_or_not():
    easy, hard = (10, 500.0, 1, 0.0, 0.0, 10), (20, 400.0, 3, 30.0, 0.0, 20)
    known = counted(transformers=easy, onnxruntime=hard)
    assert verdicts(known) == {"D1": REPRODUCED, "D2": REPRODUCED}
    assert "20 packages" in judged(known)["D2"].here and "in 4 of 6 respects" in judged(known)["D2"].why
    assert verdicts(counted(transformers=hard, onnxruntime=easy)) == {"D1": CONTRADICTED, "D2": CONTRADICTED}
    assert verdicts(counted(transformers=easy, onnxruntime=easy)) == {}  # neither is harder
    assert verdicts(counted(transformers=easy)) == {}
    # TensorRT has the most stars: it must be harder than both
    known = counted(transformers=easy, onnxruntime=hard, tensorrt=(5, 900.0, 2, 20.0, 0.0, 15))
    assert verdicts(known)["D3"] == CONTRADICTED
    few = known | counted(tensorrt=(None, None, 5, None, None, 50))  # not installed here: its script alone is known
    few = {key: each for key, each in few.items() if "tensorrt" not in key or "steps" in key or "lines" in key}
    assert "D3" not in verdicts(few) and "too little" in judged(few)["D3"].why


def test_what_was_not_counted_is_not_recorded():
    rows = [{"backend": "tensorrt", "packages": None, "installed_mb": float("nan"), "steps": 3}]
    assert deployment.numbers(rows) == {"deployment.steps.tensorrt": (3, "")}
    table = deployment.table([*rows, {"backend": "transformers", "packages": 9}])
    assert table["Runtime"].tolist() == ["PyTorch (transformers)", "TensorRT"] and pd.isna(table.loc[1, "Packages"])


def test_the_articles_figures_can_be_named_in_prose_as_they_stand_there():
    assert numbers.fill("{claim.L1} and {claim.L5}", claims.records()) == "210 ms and 2.36×"
    assert claims.column("speedup", "1024") == {"onnxruntime": 1.56, "tensorrt": 2.36}
