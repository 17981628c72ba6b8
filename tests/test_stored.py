"""Stored results: one run, or the parts of a machine whose notebooks were run in several goes, and which is shown first."""

import json

import pytest

from sam3lab import paths
from sam3lab.bench import results
from sam3lab.errors import UserError
from sam3lab.study import checks, numbers, render, run, stored
from tests import study_samples

BASE = [case for case in study_samples.cases() if case.mode == "speed" and not case.replica]


def store(directory, collected, notebooks, **environment):
    study_samples.store(directory, BASE, notebooks=notebooks)
    path = directory / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"collected": collected} | environment))
    return directory


@pytest.fixture
def machine(tmp_path):
    """Two goes of one machine, the second of which ran 01_runtimes again."""
    store(tmp_path / "m" / "b", "2026-01-01", ["00_machine", "01_runtimes"])
    store(tmp_path / "m" / "a", "2026-01-02", ["01_runtimes", "02_resolution"], version_torch="2.1")
    return tmp_path / "m"


def test_a_notebook_is_shown_from_the_newest_part_that_ran_it(machine):
    assert [each.name for each in stored.parts(machine)] == ["b", "a"]
    assert stored.part(machine, "00_machine").name == "b" and stored.part(machine, "01_runtimes").name == "a"
    assert stored.part(machine, "07_deployment") is None
    assert stored.parts(machine / "a") == [machine / "a"] and stored.parts(machine / "c") == [machine / "c"]
    assert "parameters.00_machine" in stored.facts(machine) and "parameters.02_resolution" in stored.facts(machine)
    assert stored.environment(machine)["version_torch"] == "2.1"


def test_what_the_parts_do_not_agree_in_is_told(machine):
    assert stored.differences(machine) == {"version_torch": ["2.0", "2.1"]}
    assert checks.goes(stored.differences(machine)).to_numpy().tolist() == [["version, torch", "2.0", "2.1"]]
    assert stored.differences(machine / "a") == {}


def test_rows_of_parts_are_put_together_only_to_be_listed(machine):
    one = len(results.load(machine / "a"))
    assert len(stored.gathered(machine, results.load)) == 2 * one
    table = checks.parity(stored.gathered(machine, results.parity_rows), stored.gathered(machine, results.load))
    assert len(table) == len(BASE) - 1 and set(table["Verdict"]) == {"passed"}  # one row a case, the reference has none
    rows = stored.gathered(machine, results.parity_rows)
    rows.loc[rows["backend"].eq("onnxruntime").idxmax(), "passed"] = False  # in one part alone
    table = checks.parity(rows, stored.gathered(machine, results.load)).set_index("Runtime")
    assert table.loc["ONNX Runtime", "Verdict"] == "FAILED" and (table["Verdict"] == "FAILED").sum() == 1


def test_several_machines_are_never_shown_as_one(machine):
    stored.check_one_machine(machine)
    store(machine / "c", "2026-01-03", ["03_prompts"], cpu="another")
    with pytest.raises(UserError, match="another"):
        stored.check_one_machine(machine)


def test_publishing_hides_nothing_that_is_there(machine):
    with pytest.raises(UserError, match="the parts b, a"):
        stored.check_part(machine)
    with pytest.raises(UserError, match="holds a run itself"):
        stored.check_part(machine / "a" / "new")
    stored.check_part(machine / "a")  # the same part again
    stored.check_part(machine / "new")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Stored results of a GPU and of a newer CPU."""
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    store(tmp_path / "data" / "results" / "gpu" / "one", "2026-01-01", [], gpu="A GPU")
    store(tmp_path / "data" / "results" / "cpu", "2026-02-01", [])
    return tmp_path


def test_the_newest_machine_with_a_gpu_is_shown_first(project):
    figures = project / "figures"
    assert list(stored.machines()) == ["cpu", "gpu"]
    assert stored.folder("gpu", figures) == figures and stored.folder("cpu", figures) == figures / "cpu"


def test_numbers_are_found_by_key_and_by_machine(project):
    figures = project / "figures"
    (figures / "cpu").mkdir(parents=True)
    device = {place: {"machine.device": numbers.number(place)} for place in ("cpu", "cuda")}
    (figures / "numbers.json").write_text(json.dumps(device["cuda"]))
    (figures / "cpu" / "numbers.json").write_text(json.dumps(device["cpu"] | {"only.here": numbers.number(1.0)}))
    found = stored.published(figures)
    assert found["machine.device"]["value"] == "cuda" and found["cpu:machine.device"]["value"] == "cpu"
    assert found["gpu:machine.device"]["value"] == "cuda" and "only.here" not in found
    assert stored.of_a_cpu(figures)["only.here"]["value"] == 1.0
    assert stored.of_a_cpu(project) == {}


def test_every_machine_is_rendered_into_its_folder_and_the_readme_follows(project, monkeypatch, capfd):
    monkeypatch.setattr(paths, "ROOT", project)
    monkeypatch.setattr(paths, "FIGURES", project / "figures")
    rendered = []

    def execute(tasks, scratch):
        (name,) = {json.dumps(task["figures"]) for task in tasks.values()}
        rendered.append(tasks)
        key = "machine.device"
        numbers.merge(scratch / "numbers.json", "00_machine", {key: numbers.number("cpu" if "cpu" in name else "cuda")})
        return []

    monkeypatch.setattr(run, "execute", execute)
    (project / "README.md").write_text("<!-- machine.device --><!-- / --> <!-- cpu:machine.device --><!-- / -->")
    assert render.figures(None, str(project / "figures")) == 0
    text = (project / "README.md").read_text()
    assert text == "<!-- machine.device -->cuda<!-- / --> <!-- cpu:machine.device -->cpu<!-- / -->"
    assert (project / "figures" / "cpu" / "numbers.json").exists()
    # nothing was measured by these notebooks, so that only those are shown that measure nothing themselves
    assert [set(tasks) for tasks in rendered] == [{"80_claims", "90_report"}] * 2
    assert rendered[1]["90_report"]["results"].endswith("gpu")
