"""From samples to tables: what counts, what is compared with what, and how a cell is written."""

import io

import pandas as pd
import pytest

from sam3lab.bench.statistics import Estimate
from sam3lab.errors import UserError
from sam3lab.study import markup, tables
from tests import study_samples


@pytest.fixture(scope="module")
def samples():
    """Of the notebooks on runtimes and resolution: single images in fp32."""
    kept = [
        case for case in study_samples.cases() if (case.batch, case.precision, case.prompts) == (1, "fp32", ("cat",))
    ]
    return study_samples.frame([case for case in kept if case.mode != "cold"], failed=("openvino",))


@pytest.fixture(scope="module")
def on_gpu():
    return study_samples.frame([case for case in study_samples.gpu_cases() if case.mode == "speed"])


def test_ratios_are_against_native_pytorch_in_the_same_group(samples):
    by = ["backend", "resolution"]
    relative = tables.ratios(samples, by=by).set_index(by)
    for side in (126, 252, 378):
        assert relative.loc[("transformers", side), tables.ENDS].tolist() == [1, 1, 1]
        row = relative.loc[("onnxruntime", side)]
        assert row["low"] <= 0.55 <= row["high"] and row["verdict"] == "faster"
    inverse = tables.ratios(samples, by=by, invert=True).set_index(by)
    assert inverse.loc[("onnxruntime", 252), "value"] == pytest.approx(1 / 0.55, rel=0.05)
    assert inverse.loc[("onnxruntime", 252), "verdict"] == "faster"


def test_a_case_without_parity_is_in_no_comparison_but_stands_in_the_table(samples):
    for frame in (
        tables.ratios(samples),
        tables.estimates(samples),
        tables.estimates(tables.with_peaks(samples, "cpu"), **tables.PEAK),
    ):
        assert "openvino" not in set(frame["backend"])
    table = tables.build(samples, {"Pipeline, ms": tables.column(tables.estimates(samples))}).set_index("Runtime")
    assert table.loc["OpenVINO", "Parity"] == "FAILED"
    assert not isinstance(table.loc["OpenVINO", "Pipeline, ms"], Estimate)
    assert table["Parity"].tolist() == ["reference", "passed", "passed", "passed", "FAILED"]
    assert '<tr class="failed">' in markup.to_html(table.reset_index(), "x")


def test_growth_is_against_the_same_runtime(samples):
    growth = tables.ratios(samples, by=["backend", "resolution"], to={"resolution": 126}).set_index(
        ["backend", "resolution"]
    )
    assert growth.loc[("pytorch", 378), "value"] == pytest.approx(growth.loc[("transformers", 378), "value"], rel=0.05)
    assert growth.loc[("pytorch", 378), "verdict"] == "slower"


def test_without_native_pytorch_nothing_is_compared(samples):
    with pytest.raises(UserError, match="transformers"):
        tables.ratios(samples[samples["backend"] != "transformers"])


def test_twins_do_not_count_as_samples(samples):
    alone = samples[samples["replica"] == 0]
    assert tables.estimates(samples).equals(tables.estimates(alone))


def test_the_peak_is_the_greatest_of_the_process_and_the_gpus_on_a_gpu(samples, on_gpu):
    peak = tables.estimates(tables.with_peaks(samples, "cpu"), by=["backend", "resolution"], **tables.PEAK)
    peak = peak.set_index(["backend", "resolution"])["value"]
    assert peak["transformers", 252] == 702 and peak["transformers", 126] == 576
    peak = tables.column(tables.estimates(tables.with_peaks(on_gpu, "cuda"), by=tables.BY, **tables.PEAK), tables.BY)
    assert peak["transformers", "fp32"].value == 1308
    own = samples[samples["resolution"] == 252]
    less = tables.ratios(tables.with_peaks(own, "cpu"), **tables.PEAK).set_index("backend")
    assert less.loc["pytorch", "verdict"] == "less" and less.loc["transformers", "verdict"] == "equal"


def test_figures_show_ratios_on_a_cpu_and_milliseconds_on_a_gpu(samples, on_gpu):
    assert tables.times(samples, "cpu").set_index("backend").loc["transformers", "value"] == 1
    parts = tables.times(samples, "cpu", ("image", "text", "detect"))
    assert parts[parts["backend"] == "transformers"]["value"].sum() == pytest.approx(1, abs=0.03)
    whole = tables.times(on_gpu, "cuda", by=tables.BY).set_index(tables.BY)["value"]
    assert whole["transformers", "fp32"] == pytest.approx(19.6, rel=0.03)


def test_on_a_gpu_a_runtime_is_compared_with_native_pytorch_in_its_own_precision_and_in_fp32(on_gpu):
    same = tables.column(tables.ratios(on_gpu, by=tables.BY, invert=True), tables.BY)
    assert same["onnxruntime", "fp16"].value == pytest.approx(1 / 0.55, rel=0.05)
    assert same["meta", "bf16"].value == pytest.approx(1 / 0.9, rel=0.05)  # native PyTorch in bf16, not in fp16
    whole = tables.column(tables.against_fp32(on_gpu), tables.BY)
    assert whole["onnxruntime", "fp16"].value == pytest.approx(4 / 0.55, rel=0.05)
    assert tables.best(tables.scaled(tables.estimates(on_gpu, by=tables.BY), -1)) == "ONNX Runtime fp16"


def test_in_fp32_alone_the_ratio_to_fp32_is_not_told_twice(samples):
    assert tables.against_fp32(samples).empty
    assert tables.best(tables.scaled(tables.estimates(samples, by=tables.BY), -1)) == "ONNX Runtime"


def test_what_was_not_run_has_a_row_that_says_so(samples):
    cells = {"Pipeline, ms": tables.column(tables.estimates(samples, by=tables.BY), tables.BY)}
    table = tables.build(samples, cells, tables.BY, tables.HEADINGS, {("tensorrt", "fp32"): "not run here: no driver"})
    last = table.iloc[-1]
    assert last["Runtime"] == "TensorRT" and last["Parity"] == "not run here: no driver"
    assert last["Pipeline, ms"] != last["Pipeline, ms"] and "not run here" in markup.to_html(table, "x")


def test_rates_shares_and_multiples_are_those_of_the_row():
    ends = {"value": [10.0, 5.0], "low": [8.0, 5.0], "high": [20.0, 5.0]}
    latency = pd.DataFrame({"backend": ["a", "b"], "precision": ["fp16", "int8"], "batch": [1, 4], **ends})
    rate = tables.rates(latency, latency["batch"])
    assert rate.loc[0, tables.ENDS].tolist() == [100, 50, 125] and rate.loc[1, "value"] == 800
    share = tables.shares(latency, 1e8, {"fp16": 100.0})
    assert share["value"].tolist() == [pytest.approx(10)]  # of a precision without a ceiling nothing is said
    multiple = tables.multiples(latency, {("a", "fp16"): {"pipeline": 4.0, "text": 1.0}})
    assert multiple[tables.ENDS].to_numpy().tolist() == [[2.5, 2.0, 5.0]]
    assert tables.turned(tables.divided(latency, "batch")).loc[1, "value"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        ((1, 0.9, 1.1), (1.3, 1.2, 1.4), "grows"),
        ((1, 0.9, 1.1), (0.7, 0.6, 0.8), "shrinks"),
        ((1, 0.9, 1.1), (1.05, 1, 1.1), "does not change"),
    ],
)
def test_a_trend_is_told_only_where_the_intervals_part(first, last, said):
    assert tables.trend(Estimate(*first), Estimate(*last)).startswith(said)


def test_a_table_is_escaped_aligned_and_read_back_as_numbers():
    frame = pd.DataFrame({"Name <b>": ["a & b", "c"], "Time, ms": [Estimate(1.0, 0.9, 1.1), float("nan")], "n": [3, 4]})
    page = markup.to_html(frame, "A <caption>")
    assert "a &amp; b" in page and "<b>" not in page and "A &lt;caption&gt;" in page
    assert '<td class="number" style="text-align:right">1.00 [0.90, 1.10]</td>' in page
    assert page.count('scope="col"') == 3 and page.count('scope="row"') == 2
    text = markup.to_markdown(frame.assign(why="x|y"), "A <caption>").split("\n")
    assert text[0] == "*A &lt;caption&gt;*" and text[2] == "| Name &lt;b&gt; | Time, ms | n | why |"
    assert text[3:5] == ["| :-- | --: | --: | :-- |", "| a &amp; b | 1.00 [0.90, 1.10] | 3 | x\\|y |"]
    back = pd.read_csv(io.StringIO(markup.to_csv(frame)))
    assert back["Time, ms low"].iloc[0] == 0.9 and back["n"].tolist() == [3, 4] and back["Time, ms"].isna().iloc[1]


def test_an_empty_table_is_a_table():
    frame = pd.DataFrame(columns=["Case", "Why"])
    assert "<tbody>" in markup.to_html(frame, "x") and markup.to_csv(frame) == "Case,Why\n"


def test_a_percentile_of_all_calls_has_those_too_that_were_kept_apart(samples):
    own = samples[(samples["backend"] == "onnxruntime") & (samples["resolution"] == 252) & (samples["replica"] == 0)]
    timed = own[(own["stage"] == "pipeline") & (own["metric"] == "wall") & (own["phase"] == "steady")]
    slowed = timed.assign(phase="disturbed", value=100 * timed["value"])
    both = pd.concat([own, slowed], ignore_index=True)
    pd.testing.assert_frame_equal(tables.estimates(both, q=0.9), tables.estimates(own, q=0.9))
    assert tables.estimates(tables.with_disturbed(both), q=0.9)["value"].item() > 50 * timed["value"].max()
    group = ("onnxruntime", "fp32")
    assert tables.counted(both) == {group: f"{len(timed)} of {2 * len(timed)}"}
    assert tables.counted(own) == {group: f"{len(timed)} of {len(timed)}"}
