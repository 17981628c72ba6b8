"""Stored results: one run, or the parts of a machine whose notebooks were run in several goes, and which is shown first."""

import dataclasses
import json

import pandas as pd
import pytest

from sam3lab import paths
from sam3lab.bench import environment, parity, results
from sam3lab.cli import main
from sam3lab.errors import UserError
from sam3lab.study import checks, numbers, published, render, run, stored
from sam3lab.study.notebook import Study
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
    assert stored.part(machine, "07_deployment") is None and stored.ran(machine / "b") == ["00_machine", "01_runtimes"]
    assert stored.parts(machine / "a") == [machine / "a"] and stored.parts(machine / "c") == [machine / "c"]
    assert "parameters.00_machine" in stored.facts(machine) and "parameters.02_resolution" in stored.facts(machine)
    assert stored.environment(machine)["version_torch"] == "2.1"


def opened(notebook, results, run_dir, **given):
    common = {"checkpoint": "", "device": "", "precision": "", "rounds": 3, "measure": False, "figures": ""}
    return Study(notebook, common | {"results": str(results), "run": str(run_dir)} | given)


def test_a_notebook_that_is_given_a_machine_shows_its_part(machine, tmp_path):
    assert opened("00_machine", machine, tmp_path / "run").source == machine / "b"
    study = opened("01_runtimes", machine, tmp_path / "run")
    assert study.source == machine / "a" and not study.measure(BASE).empty
    with pytest.raises(UserError, match="the parts b, a, none of which ran 07_deployment"):
        opened("07_deployment", machine, tmp_path / "run")
    assert opened("07_deployment", machine / "a", tmp_path / "run").source == machine / "a"


def test_results_are_found_from_here_or_from_the_clone_or_else_named(machine, tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    study = opened("01_runtimes", "m", "/nowhere", figures="m")
    assert study.source == machine / "a" and study.figures_dir == machine
    (tmp_path / "notebooks" / "m").symlink_to(machine / "b")
    assert opened("01_runtimes", "m", "/nowhere").source.resolve() == machine / "b"
    assert opened("01_runtimes", "m", "/nowhere", figures="new").figures_dir.absolute().parent.name == "notebooks"
    with pytest.raises(UserError, match=r"no directory nosuch \(from .*notebooks"):
        opened("01_runtimes", "nosuch", "/nowhere")
    with pytest.raises(UserError, match="no directory nosuch"):
        render.figures("nosuch", str(tmp_path / "figures"))


@pytest.mark.parametrize("notebook", ["80_claims", "90_report"])
def test_what_shows_the_numbers_of_others_is_refused_where_there_are_none_of_these_results(machine, tmp_path, notebook):
    own = tmp_path / "run" / "numbers.json"
    for recorded in ((), (notebook,)):
        for name in recorded:
            numbers.merge(own, name, {"claims.all": numbers.number(1)})
        with pytest.raises(UserError, match=r"numbers of 00_machine, 01_runtimes, 02_.* `sam3lab figures"):
            opened(notebook, machine, tmp_path / "run")
        with pytest.raises(UserError, match=r"numbers of the notebooks before it, and .* `sam3lab study`"):
            opened(notebook, "", tmp_path / "run", measure=True)
    assert not (tmp_path / "run" / "facts.json").exists()
    for name in ("00_machine", "02_resolution"):
        numbers.merge(own, name, {f"{name}.any": numbers.number(1)})
    with pytest.raises(UserError, match="numbers of 01_runtimes, and"):
        opened(notebook, machine, tmp_path / "run")
    numbers.merge(own, "01_runtimes", {"runtimes.fastest": numbers.number("PyTorch")})
    study = opened(notebook, machine, tmp_path / "run")
    assert study.source == machine and study.parameters["device"] == "cpu"
    assert opened(notebook, "", tmp_path / "run", measure=True).source == tmp_path / "run"
    (tmp_path / "run" / "facts.json").write_text("{}")  # it was measured, so that its numbers are its own
    with pytest.raises(UserError, match="were measured there, and are not of"):
        opened(notebook, machine, tmp_path / "run")
    assert opened(notebook, tmp_path / "run", tmp_path / "run").source == tmp_path / "run"


def test_what_measures_nothing_shows_what_the_last_notebook_was_asked_for(tmp_path):
    source = tmp_path / "stored"
    study_samples.store(source, study_samples.gpu_cases()[:4], notebooks=["01_runtimes"])
    numbers.merge(tmp_path / "run" / "numbers.json", "01_runtimes", {"runtimes.fastest": numbers.number("PyTorch")})
    found = opened("90_report", source, tmp_path / "run").parameters
    assert (found["checkpoint"], found["device"], found["precision"]) == ("sam3", "cuda", "fp16")


def test_what_the_parts_do_not_agree_in_is_told(machine):
    assert stored.differences(machine) == {"version_torch": ["2.0", "2.1"]}
    assert stored.differences(machine / "a") == {}


def test_the_goes_tell_what_they_hold_and_when_and_how_they_differ(machine):
    path = machine / "a" / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"git_commit": "abc", "git_dirty": True}))
    table = checks.goes(stored.goes(machine)).set_index("What")
    assert table.columns.tolist() == ["Go 1", "Go 2"] and table.loc["Folder"].tolist() == ["b", "a"]
    assert table.loc["Notebooks shown from it"].tolist() == ["00_machine", "01_runtimes, 02_resolution"]
    assert table.loc["When"].tolist() == ["2026-01-01", "2026-01-02"]
    assert table.loc["Commit of this project"].tolist() == ["", "abc, with uncommitted changes"]
    assert table.loc["version, torch"].tolist() == ["2.0", "2.1"]
    assert checks.goes(stored.goes(machine / "a")).empty
    store(machine / "c", "2025-01-01", ["01_runtimes"])  # of which nothing is shown
    assert stored.goes(machine)["notebooks"] == ["none", "00_machine", "01_runtimes, 02_resolution"]
    shown = checks.environment(stored.environment(machine)).set_index("What")["Value"]
    assert shown["Commit of this project"] == "abc, with uncommitted changes"


def test_another_measuring_code_than_the_one_that_renders_is_told(machine):
    assert stored.of_other_code(machine) == []  # it is not known
    for name, code in (("a", environment.code()), ("b", "older")):
        path = machine / name / "environment.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"code": code}))
    assert stored.of_other_code(machine) == ["older"] and stored.of_other_code(machine / "a") == []


def test_the_runs_of_the_newest_code_are_known(machine):
    def made_by(**codes):
        for name, code in codes.items():
            path = machine / name / "environment.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"code": code}))

    made_by(a="one", b="one")
    assert stored.of_newest_code(machine) == {1: machine / "b", 2: machine / "a"}  # the older first
    made_by(b="another")
    assert stored.of_newest_code(machine) == {2: machine / "a"}
    assert stored.of_newest_code(machine / "a") == {1: machine / "a"}


def test_a_case_with_fewer_rounds_than_asked_for_is_told(tmp_path):
    source = store(tmp_path / "stored", "2026-01-01", ["01_runtimes"])
    rows = pd.read_parquet(source / "results.parquet")
    lost = BASE[1]
    rows = rows[(rows["case"] != lost.id) | (rows["round"] == 0)]
    rows.to_parquet(source / "results.parquet", index=False)
    given = {"checkpoint": "sam3-nano", "device": "cpu", "rounds": 3, "measure": False, "figures": ""}
    study = Study("01_runtimes", given | {"results": str(source), "run": str(tmp_path / "run")})
    study.measure(BASE, rounds=1)
    assert checks.short(study.numbers, study.samples()) == []
    study.measure(BASE)
    fewer = checks.short(study.numbers, study.samples())
    assert fewer == [(lost.label, "fewer rounds", "only 1 of 3 rounds was measured")]
    assert checks.failures(results.failures(source), fewer).to_numpy().tolist()[-1] == list(fewer[0])


def test_a_case_that_failed_after_a_round_stands_once_in_tables_and_its_round_is_told(tmp_path):
    source = store(tmp_path / "stored", "2026-01-01", ["01_runtimes"])
    failed = {"round": 1, "status": "failed", "reason": "killed by SIGKILL", "log": None}
    more = [failed | {"case": case.id, "label": case.label} | case.to_json() for case in BASE[1:2]]
    missing = [case for case in study_samples.cases() if case.resolution == 378][1]
    more.append(failed | {"round": 0, "case": missing.id, "label": missing.label} | missing.to_json())
    known = pd.read_parquet(source / "failures.parquet")
    pd.concat([known, pd.DataFrame(more)]).to_parquet(source / "failures.parquet", index=False)
    given = {"checkpoint": "sam3-nano", "device": "cpu", "rounds": 3, "measure": False, "figures": ""}
    study = Study("01_runtimes", given | {"results": str(source), "run": str(tmp_path / "run")})
    tensorrt = dataclasses.replace(BASE[0], backend="tensorrt")
    group = BASE[1].backend, "fp32"
    assert set(study.absent([*BASE, tensorrt])) == {("tensorrt", "fp32")}
    # at a size of its own it gave nothing: the table says so, prose does not call the runtime absent
    assert set(study.absent([*BASE, tensorrt, missing])) == {("tensorrt", "fp32"), group}
    assert [key for key in study.numbers if key.startswith("absent.")] == ["absent.01_runtimes.tensorrt.fp32"]
    table = checks.failures(results.failures(source)).set_index("Case")["Why"]
    assert table[BASE[1].label] == "in round 2: killed by SIGKILL" and table[missing.label] == "killed by SIGKILL"
    twice = pd.concat([results.failures(source), results.failures(source).assign(case="of another prompt")])
    assert len(checks.failures(twice)) == len(table)  # which reads the same


def test_twins_of_several_goes_are_told_apart(tmp_path):
    machine = tmp_path / "m"
    for name in "ab":
        study_samples.store(machine / name, [BASE[0], dataclasses.replace(BASE[0], replica=1)])
    one = checks.alike(machine / "a")
    assert len(one) and checks.twins(one).columns[0] == "Case"
    both = checks.twins(stored.gathered(machine, checks.alike))
    assert both.groupby("Folder").size().to_dict() == {"a": len(one), "b": len(one)}


def test_checkpoints_are_told_apart_in_the_table_of_parity(machine):
    rows, samples = (stored.gathered(machine, read) for read in (results.parity_rows, results.load))
    assert "Checkpoint" not in checks.parity(rows, samples)
    samples.loc[samples["case"] == BASE[1].id, "checkpoint"] = "sam3-huge"
    assert set(checks.parity(rows, samples)["Checkpoint"]) == {"sam3-nano", "sam3-huge"}


def test_values_that_are_not_finite_are_a_failure_in_any_precision(machine):
    rows, samples = results.parity_rows(machine / "a"), results.load(machine / "a")
    ours = rows["case"] == BASE[1].id
    samples.loc[samples["case"] == BASE[1].id, "precision"] = "int8"
    found = ours & (rows["output"] == "detections")
    rows.loc[found, ["expected", "passed", "reason"]] = 0.0, False, parity.NOTHING
    assert checks.parity(rows, samples).set_index("Precision").loc["int8", "Verdict"] == "not judged"
    rows.loc[ours & (rows["output"] == "masks"), ["passed", "reason"]] = False, "there are values that are not finite"
    assert checks.parity(rows, samples).set_index("Precision").loc["int8", "Verdict"] == "FAILED"


def test_a_part_that_lost_a_file_is_named(machine):
    (machine / "a" / "facts.json").unlink()
    with pytest.raises(UserError, match=r"m/a holds stored results without facts\.json"):
        stored.facts(machine)
    (machine / "b" / "environment.json").unlink()
    with pytest.raises(UserError, match=r"m/b holds stored results without environment\.json"):
        stored.check_one_machine(machine)
    (machine / "a" / "environment.json").write_text("{")
    with pytest.raises(UserError, match=r"m/a/environment\.json cannot be read"):
        stored.parts(machine)


def test_rows_of_parts_are_put_together_only_to_be_listed(machine):
    one = len(results.load(machine / "a"))
    assert len(stored.gathered(machine, results.load)) == 2 * one
    table = checks.parity(stored.gathered(machine, results.parity_rows), stored.gathered(machine, results.load))
    assert len(table) == len(BASE) - 1 and set(table["Verdict"]) == {"passed"}  # the reference has none
    samples = stored.gathered(machine, results.load)
    again = samples[samples["case"] == BASE[1].id].assign(case="other", mode="pipeline")  # fewer of its stages timed
    rows = stored.gathered(machine, results.parity_rows)
    other = rows[rows["case"] == BASE[1].id].assign(case="other", relative_error=0.5)
    pooled = checks.parity(pd.concat([rows, other], ignore_index=True), pd.concat([samples, again]))
    assert len(pooled) == len(table) and pooled["Relative error"].max() == 0.5
    rows.loc[rows["backend"].eq("onnxruntime").idxmax(), "passed"] = False  # in one part alone
    table = checks.parity(rows, stored.gathered(machine, results.load)).set_index("Runtime")
    assert table.loc["ONNX Runtime", "Verdict"] == "FAILED" and (table["Verdict"] == "FAILED").sum() == 1


def test_several_machines_are_never_shown_as_one(machine):
    stored.check_one_machine(machine)
    store(machine / "c", "2026-01-03", ["03_prompts"], cpu="another")
    with pytest.raises(UserError, match="another"):
        stored.check_one_machine(machine)


def test_machines_with_parts_are_never_shown_as_one(machine, capsys):
    with pytest.raises(UserError, match=r"holds machines with parts of their own \(m\): name one of them"):
        stored.check_no_machines(machine.parent)
    store(machine.parent / "n", "2026-01-03", ["03_prompts"])
    assert main(["figures", "--results", str(machine.parent), "--out", str(machine.parent / "f")]) == 2
    assert "machines with parts of their own (m)" in capsys.readouterr().err


def test_what_cannot_be_rendered_is_told_before_anything_is(machine, monkeypatch, capsys):
    monkeypatch.setattr(run, "execute", lambda *_: pytest.fail("a notebook was run"))
    unfinished = store(machine / "c", "2026-01-03", [])
    assert main(["figures", "--results", str(unfinished), "--out", str(machine / "f")]) == 2
    assert f"no notebook was run to its end in {unfinished}" in capsys.readouterr().err
    (machine.parent / "file").touch()
    assert main(["figures", "--results", str(machine), "--out", str(machine.parent / "file")]) == 2
    assert f"nothing can be stored in {machine.parent / 'file'}" in capsys.readouterr().err


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


def test_of_machines_with_a_gpu_that_with_most_case_rounds_and_then_the_newest_is_shown_first(project):
    figures = project / "figures"
    assert list(stored.machines()) == ["cpu", "gpu"]
    assert stored.folder("gpu", figures) == figures and stored.folder("cpu", figures) == figures / "cpu"
    there = project / "data" / "results"
    store(there / "another" / "new", "2026-03-01", [], gpu="B GPU")
    assert list(stored.machines()) == ["cpu", "gpu", "another"]
    store(there / "gpu" / "two", "2026-01-02", ["01_runtimes"], gpu="A GPU")
    assert list(stored.machines()) == ["cpu", "another", "gpu"]  # with an older part more
    store(there / "another" / "newer", "2026-03-02", ["01_runtimes"], gpu="B GPU")
    assert list(stored.machines()) == ["cpu", "gpu", "another"]
    store(there / "gpu" / "again", "2026-01-03", [], gpu="A GPU")
    assert list(stored.machines()) == ["cpu", "gpu", "another"]  # what no notebook is shown from does not count


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


def test_what_is_no_longer_rendered_is_deleted_and_nothing_else(project, monkeypatch):
    figures = project / "figures"
    made = {"answer", "claims"}

    def execute(tasks, scratch):
        return []

    def write(scratch, target, source):
        lines = [f"# Results of `{source.name}`", *(f"![Alt (a) of {name}]({name}.png)" for name in sorted(made))]
        for name in made:
            for suffix in ("svg", "png"):
                (target / f"{name}.{suffix}").touch()
        (target / "report.md").write_text("\n\n".join(lines) + "\n")

    def lying(folder):
        return {path.name for path in folder.iterdir() if path.is_file()}

    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(published, "write", write)
    for folder in (figures, figures / "cpu", figures / "theirs"):
        folder.mkdir(exist_ok=True)
        (folder / "page.png").touch()
    (figures / "theirs" / "report.md").write_text("# Ours\n\n![It](page.png)\n")
    assert render.figures(None, str(figures)) == 0
    whole = {"page.png", "report.md", "numbers.json", "answer.png", "answer.svg"}
    assert lying(figures) == lying(figures / "cpu") == whole | {"claims.png", "claims.svg"}
    made.remove("claims")
    monkeypatch.setattr(run, "execute", lambda tasks, scratch: ["90_report"])
    monkeypatch.setattr(run, "problems", lambda scratch, failed: [])
    assert render.figures(None, str(figures)) == 1
    assert "claims.png" in lying(figures)  # of a notebook that failed it is not known
    for folder in (figures, figures / "cpu"):
        made.add("claims")
        write(None, folder, folder)
        made.remove("claims")
    monkeypatch.setattr(run, "execute", execute)
    assert render.figures(None, str(figures)) == 0
    assert lying(figures) == lying(figures / "cpu") == whole
    (project / "data" / "results" / "cpu").rename(project / "elsewhere")
    assert render.figures(None, str(figures)) == 0
    assert lying(figures) == whole and lying(figures / "cpu") == {"page.png"}
    assert lying(figures / "theirs") == {"page.png", "report.md"}
