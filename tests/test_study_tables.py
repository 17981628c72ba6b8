"""From samples to tables: what counts, what is compared with what, and how a cell is written."""

import io

import pandas as pd
import pytest

from sam3lab.bench.statistics import Estimate
from sam3lab.errors import UserError
from sam3lab.study import tables
from tests import study_samples


@pytest.fixture(scope="module")
def samples():
    return study_samples.frame(study_samples.cases(), failed=("openvino",))


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
    assert '<tr class="failed">' in tables.to_html(table.reset_index(), "x")


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


def test_the_peak_is_the_greatest_of_the_process_and_the_gpus_on_a_gpu(samples):
    peak = tables.estimates(tables.with_peaks(samples, "cpu"), by=["backend", "resolution"], **tables.PEAK)
    peak = peak.set_index(["backend", "resolution"])["value"]
    assert peak["transformers", 252] == 702 and peak["transformers", 126] == 576
    on_gpu = study_samples.frame(study_samples.cases("cuda", ("transformers",)))
    peak = tables.estimates(tables.with_peaks(on_gpu, "cuda"), by=["resolution"], **tables.PEAK).set_index("resolution")
    assert peak.loc[252, "value"] == 552
    less = tables.ratios(tables.with_peaks(samples, "cpu"), **tables.PEAK).set_index("backend")
    assert less.loc["pytorch", "verdict"] == "less" and less.loc["transformers", "verdict"] == "equal"


def test_figures_show_ratios_on_a_cpu_and_milliseconds_on_a_gpu(samples):
    assert tables.times(samples, "cpu").set_index("backend").loc["transformers", "value"] == 1
    parts = tables.times(samples, "cpu", ("image", "text", "detect"))
    assert parts[parts["backend"] == "transformers"]["value"].sum() == pytest.approx(1, abs=0.03)
    on_gpu = study_samples.frame(study_samples.cases("cuda", ("transformers",)))
    assert tables.times(on_gpu, "cuda", by=["resolution"]).set_index("resolution").loc[252, "value"] == pytest.approx(
        19.6, rel=0.03
    )


def test_rates_and_shares_turn_their_intervals_around():
    latency = pd.DataFrame({"backend": ["a"], "value": [10.0], "low": [8.0], "high": [20.0]})
    rate = tables.rates(latency).iloc[0]
    assert (rate["low"], rate["value"], rate["high"]) == (50, 100, 125)
    assert tables.shares(latency, 1e8, 100.0)["value"].iloc[0] == pytest.approx(10)


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        ((1, 0.9, 1.1), (1.3, 1.2, 1.4), "grows"),
        ((1, 0.9, 1.1), (0.7, 0.6, 0.8), "shrinks"),
        ((1, 0.9, 1.1), (1.05, 1, 1.1), "stays"),
    ],
)
def test_a_trend_is_told_only_where_the_intervals_part(first, last, said):
    assert tables.trend(Estimate(*first), Estimate(*last)).startswith(said)


def test_a_table_is_escaped_aligned_and_read_back_as_numbers():
    frame = pd.DataFrame({"Name <b>": ["a & b", "c"], "Time, ms": [Estimate(1.0, 0.9, 1.1), float("nan")], "n": [3, 4]})
    page = tables.to_html(frame, "A <caption>")
    assert "a &amp; b" in page and "<b>" not in page and "A &lt;caption&gt;" in page
    assert '<td class="number" style="text-align:right">1.00 [0.90, 1.10]</td>' in page
    assert page.count('scope="col"') == 3 and page.count('scope="row"') == 2
    back = pd.read_csv(io.StringIO(tables.to_csv(frame)))
    assert back["Time, ms low"].iloc[0] == 0.9 and back["n"].tolist() == [3, 4] and back["Time, ms"].isna().iloc[1]


def test_an_empty_table_is_a_table():
    frame = pd.DataFrame(columns=["Case", "Why"])
    assert "<tbody>" in tables.to_html(frame, "x") and tables.to_csv(frame) == "Case,Why\n"
