"""The article's claims get the verdict that this machine allows, and the reason."""

import math
import re

import pandas as pd
import pytest

from sam3lab.bench.statistics import Estimate
from sam3lab.study import claims, deployment, judging, numbers, readings, verdict_figures

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
    assert found.verdict == REPRODUCED and found.why.endswith("in 1 of 2 readings: both in fp32")
    assert "both in fp16: 3.00" in found.here and "both in fp32: 1.55" in found.here
    assert judging.held(found) == ["both in fp32"]
    frame = judging.frame([found])
    assert frame["state"].tolist() == [judging.FAILS, judging.HOLDS]
    assert frame["value"].tolist() == pytest.approx([3 / 1.56, 1.55 / 1.56])
    assert set(frame["claim"]) == {"L4 ONNX Runtime\nspeed"}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.18, 1.50, REPRODUCED),
        (1.08, 1.95, UNTESTED),  # a tenth wider, it holds that nothing is gained
        (0.20, 5.00, UNTESTED),
        (1.30, 2.90, UNTESTED),  # not the same, but anything else
        (0.50, 1.20, CONTRADICTED),  # wide, but it leaves the figure out
        (math.nan, math.nan, UNTESTED),  # of a single round
    ],
)
def test_an_interval_that_says_too_little_reproduces_nothing(low, high, verdict):
    speed = {"runtimes.speedup.onnxruntime.fp16": numbers.number(Estimate(1.5, low, high), "×")}
    found = judged(speed)["L4"]
    assert found.verdict == verdict and ("too noisy" in found.why) == (verdict == UNTESTED)
    # nor is a claim contradicted while one of its readings may yet hold
    found = judged(speed | {"runtimes.gain.onnxruntime.fp16": number(9.0)})["L4"]
    assert found.verdict == verdict


def test_a_single_round_counts_for_nothing_and_is_told():
    alone = numbers.number(Estimate(2.0, math.nan, math.nan), "×")
    known = {"resolution.growth.transformers.fp16": alone, "resolution.growth.transformers.fp32": number(5.0)}
    found = judged(known)["R7"]
    assert found.verdict == UNTESTED and found.why == (
        "too noisy: a single round has no interval, in 1 of 2 readings: in fp16"
    )
    assert "in fp16: 2.00×" in found.here
    assert judged(known | {"resolution.growth.transformers.fp16": number(2.4)})["R7"].verdict == REPRODUCED


def everything(runtime, speed, memory):
    """What a run records of a runtime's speed and memory, in each precision and under either checkpoint of PyTorch."""
    return {
        f"runtimes.speedup.{runtime}.fp16": number(speed),
        f"runtimes.gain.{runtime}.fp16": number(speed * 4),
        f"precision.gain.{runtime}.fp32": number(speed * 0.5),
        f"precision.gain.{runtime}.fp16": number(speed * 4),  # against fp32, so that it is not "both in fp16"
        f"claims.article.{runtime}.fp16": number(speed * 1.2),
        f"claims.article.{runtime}.fp32": number(speed * 5),
        "claims.huge.ratio.fp32": number(1.25),
        f"memory.peak.{runtime}.fp16": number(memory, "MB"),
        f"precision.peak.{runtime}.fp32": number(memory * 2, "MB"),
        "memory.peak.transformers.fp16": number(3000.0, "MB"),
        "memory.peak.transformers.fp32": number(5000.0, "MB"),
        "claims.huge.memory.fp16": number(4000.0, "MB"),
        "claims.huge.memory.fp32": number(6000.0, "MB"),
    }


@pytest.mark.parametrize(
    ("runtime", "names"), [("onnxruntime", ("L2", "L4", "T2", "M2")), ("tensorrt", ("L3", "L5", "T3", "M3"))]
)
def test_claims_of_one_kind_have_the_same_readings(runtime, names):
    found = judged(everything(runtime, 2.0, 3000.0))
    words = {name: [reading.words for reading in found[name].question.readings] for name in names}
    kinds = ["both in fp16", "fp16 against PyTorch's fp32", *(["both in fp32"] if runtime == "onnxruntime" else [])]
    assert words[names[0]] == [*kinds, *(f"{kind}, sam3-huge under PyTorch" for kind in kinds)]
    assert all(each == words[names[0]] for each in words.values())
    values = {name: [reading.estimate.value for reading in found[name].question.readings] for name in names}
    times, peaks = [2, 8, 1, 2.4, 10, 1.25], [1, 0.6, 1.2, 0.75, 0.5, 1]
    if runtime == "tensorrt":  # the article's has --fp16
        del times[5], times[2], peaks[5], peaks[2]
    assert values[names[0]] == values[names[1]] == pytest.approx(times)
    assert values[names[3]] == pytest.approx(peaks)
    both = everything(runtime, 2.0, 3000.0) | {"runtimes.speedup.onnxruntime.fp32": number(1.5)}
    on_a_cpu = judged(both, CPU)[names[0]].question.readings
    if runtime == "onnxruntime":  # the row is in fp32, and so is all
        assert [reading.words for reading in on_a_cpu] == ["both in fp32", "both in fp32, sam3-huge under PyTorch"]
        assert [reading.estimate.value for reading in on_a_cpu] == pytest.approx([1.5, 10])


def test_onnx_runtimes_own_default_on_a_gpu_is_a_reading_too():
    known = {
        "precision.gain.onnxruntime.tf32": number(3.36),
        "precision.speedup.onnxruntime.tf32": number(1.56),
        "precision.peak.onnxruntime.tf32": number(6000.0, "MB"),
        "precision.peak.transformers.tf32": number(5000.0, "MB"),
    }
    found = judged(known)
    readings = {reading.words: reading.estimate.value for reading in found["L4"].question.readings}
    assert readings == {"tf32 against PyTorch's fp32": 3.36, "both in tf32": 1.56}
    assert found["L4"].verdict == REPRODUCED and found["L4"].why.endswith("in 1 of 2 readings: both in tf32")
    assert [(each.words, each.estimate.value) for each in found["M2"].question.readings] == [("both in tf32", 1.2)]
    assert not judged({"precision.gain.tensorrt.tf32": number(3.36)})["L5"].question.readings


def test_absolute_figures_become_ratios_between_the_articles_own_rows():
    known = {
        "claims.article.onnxruntime.fp32": number(210 / 135),  # L2: PyTorch with the larger checkpoint, as it did
        "runtimes.latency.transformers.fp16": number(50.0, "ms"),
        "memory.peak.onnxruntime.fp16": number(3100.0, "MB"),
        "memory.peak.transformers.fp32": number(4000.0, "MB"),  # M2: 14.1 of 18.2
        "claims.huge.memory.fp32": number(5000.0, "MB"),
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
        **dict.fromkeys(("L2", "L4", "T2", "M2", "S2", "R5", "R7", "C1"), REPRODUCED),
        "R1": CONTRADICTED,
    }
    assert found["R1"].tested == "0.762×"
    assert found["R1"].why == "does not hold on a GPU, in the only reading: 504 pixels against 1008, in fp32"
    assert found["S2"].why.endswith("in 1 of 2 readings: cold, both in fp16")
    assert found["L1"].here == "fp16: 50.0 [49.0, 51.0] ms"
    assert found["M1"].here == "fp32: 4.00 [3.92, 4.08] GB; sam3-huge, fp32: 5.00 [4.90, 5.10] GB"
    for name in ("L1", "M1", "S1"):  # an absolute figure of another machine, of time or of memory, is nothing to test
        assert found[name].verdict == UNTESTED and "A100" in found[name].why, name


@pytest.mark.parametrize(
    ("small", "large", "verdict"),
    [(3.0, 5.0, REPRODUCED), (7.1, 2.44, CONTRADICTED), (2.4, 2.41, UNTESTED)],  # the last may grow or shrink
)
def test_that_a_speedup_grows_is_tested_as_a_trend(small, large, verdict):
    key = "resolution.speedup.tensorrt.fp16"
    found = judged({f"{key}.504": number(small), f"{key}.1512": number(large)})["R8"]
    assert found.verdict == verdict and found.tested == "over 1.00×"
    assert "that at 1512 pixels over that at 504, both in fp16" in found.here
    assert "TensorRT" in judged({f"{key}.1512": number(2.44)})["R8"].why  # the end alone is no trend


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(2300, 2500, REPRODUCED), (7000, 7100, CONTRADICTED), (5500, 6500, UNTESTED)]
)
def test_what_fits_in_so_much_memory_is_an_upper_bound(low, high, verdict):
    peak = numbers.number(Estimate((low + high) / 2, low, high), "MB")
    found = judged({"precision.peak.tensorrt.int8": peak})["Q1"]
    assert found.verdict == verdict and found.tested == "at most 6.00 GB"
    frame = judging.frame([found])
    assert len(frame) == (verdict != UNTESTED) and (frame["most"] == 1).all()


def test_images_per_second_are_also_those_of_several_images_a_call():
    known = {"runtimes.speedup.onnxruntime.fp16": number(3.0)}
    assert judged(known)["T2"].verdict == CONTRADICTED
    rates = {"onnxruntime": 7.4, "transformers": 4.8}
    known |= {f"calls.images.rate.{name}.fp16": number(rate, "images/s") for name, rate in rates.items()}
    assert judged(known)["T2"].verdict == REPRODUCED


def test_a_runtime_that_was_skipped_says_why():
    found = judged(NO_TENSORRT)
    for name in ("L3", "L5", "M3", "T3", "S3", "R3", "R8", "P4", "P6"):
        assert found[name].verdict == UNTESTED and "no TensorRT" in found[name].why, name
    assert "INT8" in found["Q1"].why  # which would be so with TensorRT, too
    assert "TensorRT needs a GPU" in judged({}, CPU)["L3"].why


def test_what_was_not_measured_says_which_notebook_measures_it():
    found = judged({})
    ends = {"L4": "01_runtimes --backend onnxruntime", "R1": "02_resolution --backend transformers"}
    ends |= {"M2": "04_memory --backend onnxruntime", "P2": "03_prompts --backend transformers", "C2": "03_prompts"}
    for name, end in ends.items():
        assert found[name].why.endswith(f"`sam3lab study --notebook {end}`"), found[name].why
    # on a CPU the rows are there, and what is missing is the GPU
    known = {"runtimes.speedup.onnxruntime.fp32": number(2.0), "memory.peak.transformers.fp32": number(486.0, "MB")}
    found = judged(known, CPU)
    assert "on a CPU" in found["L2"].why and "486" in found["M1"].here and "A100" in found["M1"].why


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
    found = judged({key.format("fp16"): record})["P2"]
    assert found.verdict == verdict and ("too noisy" in found.why) == (verdict == UNTESTED)
    # the padding is the same on a CPU; how much more text is worth beside the rest is not
    on_a_cpu = judged({key.format("fp32"): record}, CPU)["P2"].verdict
    assert on_a_cpu == (CONTRADICTED if low < 1 and verdict == CONTRADICTED else UNTESTED)


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


@pytest.mark.parametrize("setting", [CPU, GPU])
@pytest.mark.parametrize(("start", "verdict"), [(2.0, REPRODUCED), (0.05, UNTESTED), (0.01, CONTRADICTED)])
def test_preloading_is_judged_by_what_a_start_takes_beside_a_call(setting, start, verdict):
    row = f"transformers.{setting.precision}"
    known = {f"runtimes.startup.{row}": number(start, "s"), f"runtimes.latency.{row}": number(50.0, "ms")}
    assert judged(known, setting)["C1"].verdict == verdict
    known |= {f"serving.times.process.{row}": number(start / 0.05)}
    assert judged(known, setting)["C1"].verdict == verdict
    assert "running service" in judged(known, setting)["C1"].here or verdict == UNTESTED
    # one start alone tells nothing, but the starts of the runtimes may
    known[f"serving.times.process.{row}"] = numbers.number(Estimate(40.0, math.nan, math.nan), "×")
    assert judged(known, setting)["C1"].verdict == verdict
    alone = {key: each for key, each in known.items() if key.startswith("serving")}
    assert judged(alone, setting)["C1"].verdict == UNTESTED and "single round" in judged(alone, setting)["C1"].why


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


def test_a_fraction_of_a_second_makes_no_runtime_harder():
    native, other = (38, 863.0, 3, 0.0, 0.06, 21), (20, 131.0, 5, 15.9, 0.03, 41)
    found = judged(counted(transformers=native, onnxruntime=other))
    assert found["D1"].verdict == found["D2"].verdict == REPRODUCED
    assert (
        "in 3 of 6 respects, the other way in 2; too little is known here of TensorRT" in found["D2"].why
        and "under 1 s of building" in found["D2"].here
    )
    native = (38, 863.0, 3, 0.0, 2.03, 21)  # two seconds are something
    assert judged(counted(transformers=native, onnxruntime=other))["D1"].verdict == UNTESTED


def test_steps_and_lines_are_known_without_a_machine_and_do_not_decide_alone():
    found = judged({})
    assert re.fullmatch(r"\d steps, \d+ lines", found["D3"].here)
    assert found["D3"].verdict == UNTESTED and "07_deployment" in found["D3"].why
    # what is known of a machine goes before, and seconds that nobody measured are not missed
    parts = (None, None)
    known = counted(transformers=(9, 500.0, 8, *parts, 70), onnxruntime=(5, 100.0, 7, *parts, 60))
    assert judged(known)["D2"].verdict == CONTRADICTED and judged(known)["D2"].here.endswith("7 steps, 60 lines")


def test_what_was_not_counted_is_not_recorded():
    rows = [{"backend": "tensorrt", "packages": None, "installed_mb": float("nan"), "steps": 3}]
    assert deployment.numbers(rows) == {"deployment.steps.tensorrt": (3, "")}
    table = deployment.table([*rows, {"backend": "transformers", "packages": 9}])
    assert table["Runtime"].tolist() == ["PyTorch (transformers)", "TensorRT"] and pd.isna(
        table.loc[1, "Packages to run"]
    )


def test_the_articles_figures_can_be_named_in_prose_as_they_stand_there():
    assert numbers.fill("{claim.L1} and {claim.L5}", claims.records()) == "210 ms and 2.36×"
    assert claims.column("speedup", "1024") == {"onnxruntime": 1.56, "tensorrt": 2.36}


def test_the_figure_names_each_claim_and_fills_what_holds_in_its_band():
    known = {
        "runtimes.speedup.onnxruntime.fp16": number(3.0),
        "precision.gain.onnxruntime.fp32": number(1.33, width=0.1),
    }
    known |= {f"resolution.speedup.tensorrt.fp16.{side}": number(side / 400) for side in (504, 1512)}
    frame = judging.frame([judged(known)[name] for name in ("L4", "R8")])
    axis = verdict_figures.claims(frame).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "L4 ONNX Runtime\nspeed",
        "R8 TensorRT\nspeed-up by size",
    ]
    points = [line for line in axis.lines if line.get_linestyle() == "None" and len(line.get_xdata()) == 1]
    filled = {round(float(line.get_xdata()[0]), 3): line.get_markerfacecolor() != "white" for line in points}
    assert filled == {round(3 / 1.56, 3): False, round(1.33 / 1.56, 3): True, 3.0: True}
    bands = [band.get_datalim(axis.transData) for band in axis.collections if band.get_zorder() < 0]
    assert (bands[0].x0, bands[0].x1) == pytest.approx((1 / 1.1, 1 / 0.9))  # where the interval of 1.33 ends
    assert (bands[1].x0, bands[1].x1) == pytest.approx((1, axis.get_xlim()[1]))  # all that grows


def test_every_claim_that_is_held_against_a_figure_has_short_words():
    for each in judging.judged({}, GPU):
        assert each.question is None or each.claim.short.startswith(f"{each.claim.id} {each.claim.name}\n")
