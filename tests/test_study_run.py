"""`sam3lab study`: order, progress, resume, and an exit status that tells the truth. With toy notebooks."""

import json

import nbformat
import pytest

from sam3lab import atomic, paths
from sam3lab.cli import main
from sam3lab.errors import UserError
from sam3lab.study import report, run, serving_store

PARAMETERS = 'rounds = 1\ncheckpoint = ""\nbackends = []\nrun = ""\nresults = ""\nmeasure = True\nfigures = ""'
PUBLISHED = ("facts.json", "results.parquet", "environment.json")
COUNT = (
    "import pathlib\nlog = pathlib.Path(run) / 'log'\nlog.open('a').write(f'{name} {rounds}\\n')\nprint('so far', name)"
)


def notebook(name, *sources):
    cells = [nbformat.v4.new_markdown_cell(f"# Is {name} run?"), nbformat.v4.new_code_cell(PARAMETERS)]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [nbformat.v4.new_code_cell(source) for source in (f"name = {name!r}", COUNT, *sources)]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), paths.NOTEBOOKS / f"{name}.ipynb")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two toy notebooks; what was run is in runs/toy/log."""
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    paths.NOTEBOOKS.mkdir()
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    notebook("00_one")
    notebook("01_two")
    return tmp_path / "runs" / "toy"


def ran(study):
    log = study / "log"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_a_study_runs_in_order_then_resumes_then_notices_what_changed(study, capfd):
    assert main(["study", "--name", "toy"]) == 0
    out = capfd.readouterr().out
    assert ran(study) == ["00_one 1", "01_two 1"]
    assert out.splitlines()[-1] == str(study / "report.html") and (study / "report.html").exists()
    assert "[1/2] 00_one" in out and "    so far 01_two" in out

    assert run.study("toy") == 0  # complete: nothing runs again
    assert ran(study) == [] and "[2/2] 01_two: done before" in capfd.readouterr().out

    copy = study / "notebooks" / "01_two.ipynb"
    copy.write_text(copy.read_text().replace("so far", "so fat"))  # its checksum is wrong now
    assert run.study("toy") == 0
    assert ran(study) == ["01_two 1"]

    notebook("00_one", "1 + 1")  # its source changed, and the later one may read what it wrote
    assert run.study("toy") == 0
    assert ran(study) == ["00_one 1", "01_two 1"]

    assert run.study("toy", parameters=run.options([("rounds", "2")])) == 0
    assert ran(study) == ["00_one 2", "01_two 2"]

    assert run.study("toy", notebooks=["01_two"], parameters={"rounds": 3}) == 0
    assert ran(study) == ["01_two 3"]


def test_what_failed_is_tried_again_by_the_same_command(study, monkeypatch, capfd):
    from sam3lab.bench import runner

    assert run.study("toy") == 0
    ran(study)
    monkeypatch.setattr(runner, "release", lambda run_dir: ["onnxruntime fp16"])
    assert run.study("toy") == 0
    assert ran(study) == ["00_one 1", "01_two 1"]
    assert "tried again, since it failed or was skipped: onnxruntime fp16" in capfd.readouterr().out

    def refuse(run_dir):
        raise UserError("another environment")

    monkeypatch.setattr(runner, "release", refuse)
    assert run.study("toy") == 0
    assert ran(study) == [] and "not tried again: another environment" in capfd.readouterr().out


def test_a_serving_experiment_that_failed_is_tried_again_too(study, capfd):
    assert run.study("toy") == 0
    ran(study)
    serving_store.keep(study, "single.onnxruntime.fp32-abc", {}, lambda: [{"status": 200}])
    assert run.study("toy") == 0 and ran(study) == []
    serving_store.keep(study, "fault.onnxruntime.fp32-abc", {}, list)
    assert run.study("toy") == 0
    assert ran(study) == ["00_one 1", "01_two 1"] and "fault.onnxruntime.fp32" in capfd.readouterr().out


def consolidated(run_dir, directory):
    directory.mkdir()
    for name in ("results.parquet", "environment.json"):
        (directory / name).write_text("new")


def publish(study, directory, monkeypatch, *asked):
    """Publish what the toy notebooks left, had these been asked to measure."""
    from sam3lab.bench import results

    (study / "facts.json").write_text(json.dumps({"ceilings": 1} | {f"parameters.{name}": {} for name in asked}))
    monkeypatch.setattr(results, "consolidate", consolidated)
    run.publish_results(study, directory)
    return set(json.loads((directory / "facts.json").read_text()))


def test_a_notebook_that_merely_began_is_not_published_as_one_that_ran(study, tmp_path, monkeypatch, capsys):
    notebook("01_two", "raise ValueError")
    assert run.study("toy") == 1
    found = publish(study, tmp_path / "part", monkeypatch, "00_one", "01_two")
    assert found == {"ceilings", "parameters.00_one"}
    assert "not run to their end: 01_two" in capsys.readouterr().out
    notebook("01_two")
    assert run.study("toy") == 0
    whole = publish(study, tmp_path / "part", monkeypatch, "00_one", "01_two")
    assert whole == {"ceilings", "parameters.00_one", "parameters.01_two"}
    (study / "notebooks" / "01_two.done.json").unlink()
    with pytest.raises(UserError, match="holds results of 01_two, which this run did not complete"):
        publish(study, tmp_path / "part", monkeypatch, "00_one", "01_two")
    assert set(json.loads((tmp_path / "part" / "facts.json").read_text())) == whole


def test_publishing_again_mixes_no_files_of_two_runs(study, tmp_path, monkeypatch):
    from sam3lab.bench import results

    assert run.study("toy") == 0
    directory = tmp_path / "part"
    publish(study, directory, monkeypatch, "00_one")
    (directory / serving_store.PUBLISHED).write_text("of the run before")
    (directory / "notes.txt").touch()
    publish(study, directory, monkeypatch, "00_one")
    assert {path.name for path in directory.iterdir()} == {*PUBLISHED, "notes.txt"}
    (directory / "facts.json").write_text("{")  # damaged: publishing again mends it
    publish(study, directory, monkeypatch, "00_one")

    def damaged(run_dir, directory):
        raise UserError("damaged")

    monkeypatch.setattr(results, "consolidate", damaged)
    with pytest.raises(UserError):
        run.publish_results(study, directory)
    assert {path.name for path in directory.iterdir()} == {*PUBLISHED, "notes.txt"}

    def killed(path, data):
        if path.name == "results.parquet":
            raise KeyboardInterrupt

    (directory / "results.parquet").write_text("old")
    monkeypatch.setattr(results, "consolidate", consolidated)
    monkeypatch.setattr(atomic, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run.publish_results(study, directory)
    assert {path.name for path in directory.iterdir()} == {"notes.txt"}


def test_a_study_that_was_killed_in_a_notebook_runs_that_one_again(study):
    notebook("01_two", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    import subprocess
    import sys

    code = (
        "from sam3lab import paths; from sam3lab.study import run; import pathlib;"
        f"paths.NOTEBOOKS = pathlib.Path({str(paths.NOTEBOOKS)!r}); paths.RUNS = pathlib.Path({str(paths.RUNS)!r});"
        "run.study('toy')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert ran(study) == ["00_one 1", "01_two 1"]
    assert not (study / "notebooks" / "01_two.done.json").exists()
    notebook("01_two")
    assert run.study("toy") == 0
    assert ran(study) == ["01_two 1"]


def test_a_notebook_that_fails_is_told_and_the_rest_is_run(study, capfd):
    notebook("00_one", "raise ValueError('<b>broken</b>')", "print('never')")
    assert run.study("toy") == 1
    out = capfd.readouterr().out
    assert ran(study) == ["00_one 1", "01_two 1"]
    assert "00_one: FAILED" in out and "broken" in out and "not completed: 00_one" in out
    page = (study / "report.html").read_text()
    assert "ValueError: &lt;b&gt;broken&lt;/b&gt;" in page and "<b>broken" not in page
    assert report.problem(study / "notebooks" / "01_two.ipynb") == ""
    assert run.study("toy") == 1  # it is tried again, not taken for done
    assert ran(study)[0] == "00_one 1"


def test_a_kernel_that_dies_is_a_failure(study, capfd):
    notebook("01_two", "import os\nos._exit(3)")
    assert run.study("toy") == 1
    assert "not completed: 01_two" in capfd.readouterr().out
    assert "01_two" in (study / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "roundz", "3"], "did you mean 'rounds'"),
        (["-p", "seed", "3"], "no parameter 'seed'"),  # known, but these notebooks do not have it
        (["-p", "rounds", "many"], "rounds = 'many'"),
        (["-p", "run", "elsewhere"], "--name"),
        (["--notebook", "07_nothing"], "00_one, 01_two"),
        (["--rounds", "-1"], "rounds = -1"),
        (["--backend", "pytroch"], "no backend is named 'pytroch'"),
        (["--checkpoint", "nope"], "no checkpoint 'nope'"),
        (["--publish", "/dev/null/x"], "nothing can be stored in /dev/null/x"),
        (["--name", "../toy"], "'../toy' is no plain name"),
        (["--name", ".."], "'..' is no plain name"),
        (["--name", ""], "'' is no plain name"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(study, arguments, message, capsys):
    assert main(["study", "--name", "toy", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert ran(study) == [] and not (study / "notebooks").exists()
    assert [path.name for path in study.parent.rglob("*")] == ["toy"]


def test_random_weights_are_not_made_to_see_whether_a_checkpoint_is_there(monkeypatch):
    monkeypatch.setattr("sam3lab.model.random.cached", None)
    run._check_there({"checkpoint": "sam3-nano", "huge": "sam3-huge", "backends": ["pytorch"]})


def test_results_are_stored_after_the_summary_and_only_where_something_was_measured(
    study, tmp_path, monkeypatch, capfd
):
    from sam3lab.bench import results

    monkeypatch.setattr(results, "consolidate", consolidated)
    notebook("01_two", "raise ValueError")
    assert run.study("toy", publish=str(tmp_path / "part")) == 1
    *_, failed, page, last = capfd.readouterr().out.splitlines()
    assert "not completed: 01_two" in failed and page == str(study / "report.html") and "nothing was measured" in last
    assert list((tmp_path / "part").iterdir()) == []
    (study / "results").mkdir()
    (study / "results" / "abc-r0.parquet").touch()
    (study / "facts.json").write_text('{"parameters.00_one": {}}')
    assert run.study("toy", publish=str(tmp_path / "part")) == 1
    assert {path.name for path in (tmp_path / "part").iterdir()} == set(PUBLISHED)
    out = capfd.readouterr().out
    assert out.index("not completed: 01_two") < out.index("report.html") < out.index("results stored in")


def test_done_needs_every_cell_and_no_error(study):
    run.study("toy")
    copy = study / "notebooks" / "00_one.ipynb"
    book = nbformat.read(copy, as_version=4)
    assert run.is_complete(copy)
    book.cells[-1].execution_count = None
    nbformat.write(book, copy)
    assert not run.is_complete(copy)
    mark = study / "notebooks" / "00_one.done.json"
    state = json.loads(mark.read_text())
    assert run.is_done(study, "01_two", state["parameters"])
    assert not run.is_done(study, "01_two", state["parameters"] | {"rounds": 9})


def test_options_are_read_as_the_notebooks_need_them():
    given = run.options([("resolutions", "126,252")], checkpoint="sam3-nano", backends=["pytorch"], rounds=None)
    assert given == {"resolutions": [126, 252], "checkpoint": "sam3-nano", "backends": ["pytorch"]}
    with pytest.raises(UserError, match="no parameter 'resolutionz'"):
        run.options([("resolutionz", "126")])
