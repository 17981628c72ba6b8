"""The same case in several goes: what is found of it, and how it is shown."""

import pytest

from sam3lab.bench import results
from sam3lab.study import again, tables
from tests import study_samples

CASES = [case for case in study_samples.cases() if case.mode in ("speed", "cold")]  # an A/A twin among them
STAGE, ROW = "pipeline", "onnxruntime.fp32"


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    place = tmp_path_factory.mktemp("go")
    study_samples.store(place, CASES)
    return results.load(place)


def slower(samples, backend, factor):
    """The samples as another go would give them in which one runtime takes `factor` times as long."""
    here = (samples["backend"] == backend) & (samples["metric"] == "wall")
    return samples.assign(value=samples["value"].where(~here, samples["value"] * factor))


def test_what_one_go_alone_measured_is_not_repeated(go):
    assert again.repeated({1: go}).empty and again.numbers(again.repeated({1: go})) == {}
    other = go[go["backend"] != "onnxruntime"]
    assert "onnxruntime" not in set(again.repeated({1: go, 2: other})["backend"])


def test_medians_of_each_go_and_how_far_they_are_apart(go):
    frame = again.repeated({1: go, 2: slower(go, "onnxruntime", 1.5), 3: slower(go, "onnxruntime", 1.2)})
    assert set(frame["quantity"]) == {"pipeline", "end_to_end", "startup", "cold"} and set(frame["go"]) == {1, 2, 3}
    found = again.numbers(frame)
    own = tables.estimates(go, STAGE, tables.BY).set_index(tables.BY)["value"]
    newest, unit = found[f"again.{STAGE}.{ROW}"]
    assert newest.value == pytest.approx(1.2 * own["onnxruntime", "fp32"]) and unit == "ms"
    assert found[f"again.within.{STAGE}.{ROW}"] == (pytest.approx(50.0), "%")
    assert found["again.within.pipeline.transformers.fp32"] == (pytest.approx(0.0), "%")
    assert found["again.most.pipeline"] == (pytest.approx(50.0), "%")
    assert found["again.count.pipeline"] == (frame.loc[frame["quantity"] == STAGE, "case"].nunique(), "cases")
    assert again.rows(frame)[0] == "transformers.fp32" and ROW in again.rows(frame)


def test_a_shared_processors_times_are_told_as_multiples(go):
    frame = again.repeated({1: go, 2: slower(go, "onnxruntime", 1.5)})
    for device, first in (("cuda", None), ("cpu", 1.0)):
        shown = again.table(frame, device)
        row = shown[shown["Case"].str.contains("onnxruntime") & shown["Quantity"].str.startswith(STAGE)].iloc[0]
        one, other = row.iloc[2], row.iloc[3]
        assert other.value == pytest.approx(1.5 * one.value) and row["Apart, %"] == pytest.approx(50.0)
        assert one.value == pytest.approx(first or one.value) and ("ms" in row["Quantity"]) == (device == "cuda")
        assert shown.columns[2] == ("Go 1" if device == "cuda" else "Go 1, × the oldest")


def test_starts_are_compared_too_by_whether_anything_was_compiled(go):
    frame = again.repeated({1: go, 2: go.assign(value=go["value"].where(go["phase"] != "cold", 3.0 * go["value"]))})
    found = again.numbers(frame)
    newest, unit = found[f"again.cold.{ROW}"]
    own = tables.estimates(go, "process", tables.BY, "startup", "cold").set_index(tables.BY)["value"]
    assert newest.value == pytest.approx(3.0 * own["onnxruntime", "fp32"]) and unit == "s"
    assert found["again.most.cold"] == (pytest.approx(200.0), "%")
    assert found["again.most.startup"] == (pytest.approx(0.0), "%")
    shown = again.table(frame, "cuda").set_index(["Quantity"])
    assert set(shown.loc["cold, s", "Apart, %"].round(6)) == {200.0}


def test_the_same_notebook_in_several_goes_is_told_by_itself(go):
    goes = {2: go, 3: slower(go, "onnxruntime", 1.5), 5: slower(go, "onnxruntime", 1.2)}
    ran = {2: ["00_machine", "01_runtimes"], 3: ["07_deployment"], 5: ["01_runtimes"]}
    found = again.of_notebooks(again.repeated(goes), ran)
    assert found["again.most.01_runtimes.pipeline"] == (pytest.approx(20.0), "%")
    assert found["again.count.01_runtimes.pipeline"] == again.numbers(again.repeated(goes))["again.count.pipeline"]
    assert {key.split(".")[2] for key in found} == {"01_runtimes"}
    shown = again.table(again.repeated(goes | {2: go.iloc[:0]}), "cuda")
    assert [name for name in shown.columns if name.startswith("Go")] == ["Go 3", "Go 5"]


def test_a_page_tells_of_it_only_where_something_was_repeated(go):
    page = Page()
    for goes in ({1: go}, {1: go, 2: go.iloc[:0]}, {1: go.iloc[:0]}):
        again.tell(page, goes, {number: ["01_runtimes"] for number in goes})
    assert not page.said
    again.tell(page, {1: go, 2: slower(go, "onnxruntime", 1.5)}, {1: ["01_runtimes"], 2: ["07_deployment"]})
    assert "again" in page.said and page.known["again.name.onnxruntime.fp32"] == ("ONNX Runtime fp32", "")
    assert f"again.within.end_to_end.{ROW}" in page.known


class Page:
    """What a notebook's Study is to `tell`."""

    def __init__(self):
        self.said, self.known, self.parameters = [], {}, {"device": "cpu"}

    def note(self, found):
        self.known |= found

    def say(self, *lines, each=None):
        assert all("{again.name.*}" in line for line in lines) and ROW in each if each else "again.most" in lines[0]

    def table(self, frame, name, caption):
        assert len(frame) and caption
        self.said.append(name)
