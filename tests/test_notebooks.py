"""The notebooks: their shape, their prose, their parameters, and that each runs from stored results."""

import ast
import os
import re

import nbformat
import pytest

from sam3lab import paths
from sam3lab.errors import UserError
from sam3lab.study import numbers, parameters, presets, render, run
from sam3lab.study.notebook import Study
from tests import bench_run, study_samples

NAMES = run.names()
MORE = ("precision", "gallery", "learning_curve")  # figures that are there where the checkpoint was trained here
BOOKS = {name: nbformat.read(paths.NOTEBOOKS / f"{name}.ipynb", as_version=4) for name in NAMES}


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def strings(source):
    """Every text in a cell's code that is shown to a reader: those with a space in them."""
    nodes = ast.walk(ast.parse(source))
    return [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    ]


def test_the_study_runs_the_notebooks_in_order_and_the_report_last():
    assert NAMES[:5] == ["00_machine", "01_runtimes", "02_resolution", "03_prompts", "04_memory"]
    assert NAMES[-1] == "90_report" and sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_clean(name):
    book = BOOKS[name]
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert all(not cell.outputs and cell.execution_count is None for cell in code(book))
    ids = [cell.id for cell in book.cells]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z-]+", each) for each in ids)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_asks_a_question_and_is_short(name):
    book = BOOKS[name]
    assert book.cells[0].cell_type == "markdown"
    assert any(re.match(r"# .+\?", cell.source) for cell in book.cells if cell.cell_type == "markdown")
    own = [cell for cell in code(book) if "parameters" not in cell.metadata.get("tags", ())]
    lines = [line.strip() for cell in own for line in cell.source.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(('"', 'f"'))]) <= 54  # the rest is prose


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_are_literals_with_usable_defaults(name):
    (cell,) = [cell for cell in code(BOOKS[name]) if "parameters" in cell.metadata.get("tags", ())]
    values = parameters.assigned(cell.source)
    assert len(values) == len(cell.source.splitlines())
    assert {*parameters.OURS, "checkpoint", "device"} <= set(values) <= set(parameters.PARAMETERS)
    assert {key: parameters.converted(key, value) for key, value in values.items()} == values
    assert run.defaults(name) == {key: value for key, value in values.items() if key not in parameters.OURS}


def test_what_shows_the_numbers_of_others_reads_the_run_of_a_study():
    for name in set(NAMES) - set(presets.OWN["cpu"]):
        (cell,) = [cell for cell in code(BOOKS[name]) if "parameters" in cell.metadata.get("tags", ())]
        assert parameters.assigned(cell.source)["run"] == "study"


@pytest.mark.parametrize("name", NAMES)
def test_no_measurement_is_typed_into_the_prose(name):
    for cell in BOOKS[name].cells:
        for text in [cell.source] if cell.cell_type == "markdown" else strings(cell.source):
            assert numbers.measurements(text) == [], text


@pytest.mark.parametrize("device", presets.DEVICES)
def test_notebooks_share_their_cases(device):
    known = {name: presets.resolved(name, run.defaults(name) | {"device": device}, {}) for name in NAMES}
    scored = {name: known["01_runtimes"].pop(name) for name in ("accuracy", "scenes")}
    for name in ("huge", "most_rounds"):
        known["01_runtimes"].pop(name)
    assert known["00_machine"] == known["01_runtimes"]
    assert scored == {name: known["05_precision"][name] for name in scored}
    assert known["02_resolution"] == known["04_memory"]
    for key in ("checkpoint", "device", "precision", "image", "prompt", "seed", "min_samples"):
        assert len({known[name][key] for name in NAMES if key in known[name]}) == 1, key


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("resolutions", "126, 252", [126, 252]),
        ("resolutions", "[126]", [126]),
        ("resolutions", 126, [126]),
        ("backends", "['pytorch', 'openvino']", ["pytorch", "openvino"]),
        ("objects", ("a cat", "dog"), ["a cat", "dog"]),
        ("precisions", "fp32,int8", ["fp32", "int8"]),
        ("accuracy", "False", False),
        ("scenes", "0", 0),
        ("rounds", "3", 3),
        ("rounds", 0, 0),
        ("counts", "1,16", [1, 16]),
        ("device", "", ""),
        ("min_seconds", 1, 1.0),
        ("measure", "False", False),
        ("run", 7, "7"),
    ],
)
def test_a_parameter_is_read_as_papermill_passes_it(name, given, value):
    made = parameters.converted(name, given)
    assert made == value and type(made) is type(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resolution", 250),
        ("resolution", -14),
        ("resolution", 252.0),
        ("resolutions", [126, 130]),
        ("resolutions", [126, 126]),
        ("resolutions", "abc"),
        ("precisions", ["int4"]),
        ("scenes", -1),
        ("rounds", -1),
        ("rounds", True),
        ("counts", [0, 1]),
        ("batches", [4, 4]),
        ("min_seconds", "nan"),
        ("min_seconds", "inf"),
        ("measure", "maybe"),
        ("device", "gpu"),
        ("precision", "half"),
        ("backends", ["pytorch", ""]),
        ("objects", ["cat", ""]),
        ("prompt", ""),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=name):
        parameters.converted(name, value)


def test_a_misspelt_parameter_under_papermill_is_refused_with_the_nearest_name():
    history = ["", "rounds = 3\nseed = 0", "# Parameters\nround = 5\n", "study = …"]
    with pytest.raises(UserError, match=r"'round'; did you mean 'rounds'\? \(it has: rounds, seed\)"):
        parameters.check_injected("02_resolution", history)
    parameters.check_injected("02_resolution", ["", "rounds = 3", "# Parameters\nrounds = 5\n"])
    parameters.check_injected("02_resolution", ["", "rounds = 3", "%matplotlib inline", "# Parameters\n# rounds = 5"])


def test_plain_papermill_from_anywhere_renders_one_notebook_and_refuses_a_misspelt_parameter(tmp_path, monkeypatch):
    import papermill

    for name in ("torch", "transformers"):
        (tmp_path / "blocked" / name).mkdir(parents=True)
        (tmp_path / "blocked" / name / "__init__.py").write_text("raise ImportError('it is not installed')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "blocked"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    study_samples.store(tmp_path / "stored", study_samples.cases())
    source, how = paths.NOTEBOOKS / "01_runtimes.ipynb", {"progress_bar": False, "kernel_name": "python3"}
    given = {"measure": False, "results": "stored", "run": str(tmp_path / "run"), "backends": "onnxruntime,openvino"}
    papermill.execute_notebook(source, "out.ipynb", given, **how)
    assert run.is_complete(tmp_path / "out.ipynb") and "Nothing can be said" not in (tmp_path / "out.ipynb").read_text()
    known = numbers.load(tmp_path / "run" / "numbers.json")
    assert known["runtimes.speedup.openvino.fp32"]["value"] == pytest.approx(2, rel=0.1)
    assert known["runtimes.speedup.openvino.fp32.words"]["value"] == "faster than"
    assert "runtimes.speedup.pytorch.fp32" not in known
    assert (tmp_path / "run" / "tables" / "runtimes.csv").read_text().startswith("Runtime,")
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {"runtimes.svg", "runtimes.png"}
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean 'rounds'"):
        papermill.execute_notebook(source, "bad.ipynb", {"roundz": 3}, **how)


def rendered(folder):
    names = {path.name for path in folder.iterdir()}
    assert {name.replace(".svg", ".png") for name in names} == {name for name in names if not name.endswith(".svg")}
    return {path.stem for path in folder.glob("*.svg")}


def test_all_figures_are_rendered_from_stored_results_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "execute", study_samples.execute)
    backends = ("transformers", "onnxruntime", "openvino")  # what could not be run is left out, not an error
    stored = study_samples.store(tmp_path / "stored", study_samples.cases("cpu", backends), failed=("openvino",))
    assert render.figures(str(stored), str(tmp_path / "figures")) == 0
    names = {"machine", "runtimes", "resolution", "prompts", "memory", *MORE, "answer"}
    assert rendered(tmp_path / "figures") >= names | {"floors", "calls_images", "startup"}
    known = numbers.load(tmp_path / "figures" / "numbers.json")
    assert known["runtimes.fastest"]["value"] == "ONNX Runtime"  # OpenVINO is faster, but computes something else
    assert known["report.failed"]["value"] > 0
    assert known["runtimes.cgf1.onnxruntime.fp32"]["value"] == 91 and known["runtimes.scenes"]["value"] == 32
    # int8 finds something else: its reason and its accuracy are told, its speed is not.
    assert "scores differ" in known["precision.why.onnxruntime.int8"]["value"]
    assert known["precision.cgf1.onnxruntime.int8"]["value"] == 89
    assert known["precision.smaller.onnxruntime.int8"]["value"] == pytest.approx(25 / 8)
    assert "precision.own.onnxruntime.int8" not in known
    assert known["precision.own.transformers.bf16.words"]["value"] == "slower than"
    assert known["calls.images.gain.onnxruntime.fp32.4"]["value"] == pytest.approx(4**0.2, rel=0.15)
    assert known["deployment.cold.onnxruntime.fp32"]["value"] == pytest.approx(25 * 0.55, rel=0.1)
    assert known["claims.reproduced"]["value"] + known["claims.contradicted"]["value"] <= 5


def test_what_is_not_scored_has_no_accuracy_and_no_figure_of_it(tmp_path):
    import papermill

    backends = ("transformers", "onnxruntime")
    study_samples.store(tmp_path / "stored", study_samples.cases("cpu", backends), notebooks=["05_precision"])
    given = {"measure": False, "results": str(tmp_path / "stored"), "run": str(tmp_path / "run"), "accuracy": False}
    how = {"progress_bar": False, "kernel_name": "python3"}
    papermill.execute_notebook(paths.NOTEBOOKS / "05_precision.ipynb", tmp_path / "out.ipynb", given, **how)
    known = numbers.load(tmp_path / "run" / "numbers.json")
    assert known["precision.own.onnxruntime.int8.words"]["value"] == "faster than"  # its tensors passed
    assert "precision.scenes" not in known and not (tmp_path / "run" / "figures").exists()
    assert "cgF1" not in (tmp_path / "run" / "tables" / "precision.csv").read_text().splitlines()[0]


def test_results_of_a_gpu_are_rendered_too(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(run, "execute", study_samples.execute)
    monkeypatch.setattr("IPython.display.display", shown.append)
    stored = study_samples.store(tmp_path / "stored", study_samples.gpu_cases())
    assert render.figures(str(stored), str(tmp_path / "figures")) == 0
    names = {"floors", "calls_prompts", "calls_images", "startup", "claims", "answer"}
    assert rendered(tmp_path / "figures") >= names | {"machine", "runtimes", "resolution", "prompts", "memory", *MORE}
    known = {key: each["value"] for key, each in numbers.load(tmp_path / "figures" / "numbers.json").items()}
    assert known["memory.peak.transformers.fp16"] == 1308  # the GPU's, not the host's
    assert known["runtimes.speedup.onnxruntime.fp16"] == pytest.approx(1 / 0.55, rel=0.1)  # both in fp16
    assert known["runtimes.gain.onnxruntime.fp16"] == pytest.approx(4 / 0.55, rel=0.1)  # over PyTorch in fp32
    assert known["runtimes.end_to_end.onnxruntime.fp16"] == pytest.approx((19.6 + 15) / 4 * 0.55, rel=0.1)
    assert known["runtimes.end_to_end_speedup.onnxruntime.fp16.words"] == "faster than"
    assert known["machine.limited.onnxruntime.fp16"] == pytest.approx(50, rel=0.1)
    assert "machine.limited.transformers.fp16" not in known  # it never was
    assert 0.5 < known["report.apart"] < 5  # one sample of a round, of a dozen or more a stage
    assert 2 * known["report.slowed"] == known["report.looked"] > 2
    assert known["memory.host.onnxruntime.fp16"] == pytest.approx(500 * 0.55)
    assert known["prompts.surest.several"] in {known[key] for key in known if re.match(r"prompts.ratio.*several$", key)}
    assert known["runtimes.speedup.meta.bf16"] == pytest.approx(1 / 0.9, rel=0.1)  # both in bf16
    assert known["precision.gain.onnxruntime.fp32"] == pytest.approx(1 / 0.55, rel=0.1)
    assert known["claims.huge.ratio.fp16"] == pytest.approx(1.5, rel=0.1)
    assert known["claims.article.onnxruntime.fp32"] == pytest.approx(1.5 * 4 / 0.55, rel=0.1)
    assert known["machine.floor.transformers.fp16"] == pytest.approx(2, rel=0.1)
    assert known["runtimes.energy.onnxruntime.fp16"] == pytest.approx(5 * 0.55 / 4, rel=0.1)
    assert known["calls.prompts.times.onnxruntime.fp16.16"] == pytest.approx((12 + 16 * 7.6) / 19.6, rel=0.1)
    call = known["calls.images.latency.onnxruntime.fp16"]
    assert known["calls.images.rate.onnxruntime.fp16"] == pytest.approx(1e3 * known["calls.images.most"] / call)
    assert known["levels.speed.onnxruntime-unoptimised"] == pytest.approx(0.5, rel=0.1)
    assert not [key for key in known if key.startswith(("runtimes.", "claims.")) and "onnxruntime-basic" in key]
    assert known["deployment.steps.meta"] > known["deployment.steps.transformers"]
    assert "tensorrt is not installed" in known["absent.01_runtimes.tensorrt.fp16"]
    assert "TensorRT" in known["answer.unproven"] and "**ONNX Runtime fp16**" in known["answer.image"]
    assert known["claims.reproduced"] > 0 and known["claims.contradicted"] > 0
    said = "\n".join(getattr(each, "data", repr(each)) for each in shown)
    assert "**ONNX Runtime fp16** is faster" in said and "**PyTorch (transformers) fp16** is as fast" not in said
    assert (
        "90th percentile of all calls, ms" in said and "Clocks held down" in said and "Host's memory to start" in said
    )


def test_figures_without_stored_results_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    with pytest.raises(UserError, match="sam3lab study"):
        render.figures(None, str(tmp_path / "figures"))
    with pytest.raises(UserError, match=r"facts\.json"):
        render.figures(str(tmp_path), str(tmp_path / "figures"))


def test_what_one_notebook_measured_the_next_one_finds_and_stored_results_give_it_too(tmp_path):
    given = {"checkpoint": bench_run.make_checkpoint(tmp_path / "checkpoint"), "device": "cpu", "resolution": 28}
    given |= {"image": "chelsea", "prompt": "cat", "rounds": 1, "min_samples": 3, "min_seconds": 0.0, "seed": 0}
    given |= {"run": str(tmp_path / "run"), "results": "", "measure": True, "figures": ""}
    how = {"reference": bench_run.REFERENCE, "progress": False}
    first = Study("01_runtimes", dict(given))
    case = first.case(backend=bench_run.REFERENCE, mode="model")
    samples = first.measure([case], **how)
    assert set(samples["case"]) == {case.id} and (samples["phase"] == "steady").sum() >= 15
    assert Study("02_resolution", dict(given)).measure([case], **how)["value"].tolist() == samples["value"].tolist()
    elsewhere = given | {"run": str(tmp_path / "other"), "results": str(tmp_path / "run"), "measure": False}
    stored = Study("01_runtimes", elsewhere)
    assert stored.measure([case])["value"].tolist() == samples["value"].tolist()
    with pytest.raises(UserError, match="holds no samples"):
        stored.measure([stored.case(backend="pytorch")])
    with pytest.raises(UserError, match="no 'ceilings'"):
        stored.fact("ceilings", dict)


def test_a_page_says_where_more_rounds_than_asked_for_made_a_median_sure(tmp_path, monkeypatch, capsys):
    (tmp_path / "drift").mkdir()
    monkeypatch.setenv("SAM3LAB_TEST_DRIFT", str(tmp_path / "drift"))
    given = {"checkpoint": bench_run.make_checkpoint(tmp_path / "checkpoint"), "device": "cpu", "resolution": 28}
    given |= {"image": "chelsea", "prompt": "cat", "rounds": 2, "most_rounds": 3, "min_samples": 3, "min_seconds": 0.0}
    given |= {"seed": 0, "run": str(tmp_path / "run"), "results": "", "measure": True, "figures": ""}
    said = []
    monkeypatch.setattr("IPython.display.display", lambda shown: said.append(getattr(shown, "data", "")))
    study = Study("01_runtimes", dict(given))
    case = study.case(backend="tests.fakes:Drifts", mode="model")
    samples = study.measure([case], reference="sleep", progress=False)
    assert set(samples["round"]) == {0, 1, 2}
    assert any("have more rounds, up to 3 rounds." in text for text in said)
    said.clear()
    fixed = {name: value for name, value in given.items() if name != "most_rounds"} | {"measure": False}
    fixed |= {"run": str(tmp_path / "other"), "results": str(tmp_path / "run")}
    Study("02_resolution", fixed).measure([case])  # another notebook, which asked for fewer of the same case
    assert not any("more rounds" in text for text in said)


def test_lists_of_prompts_begin_with_the_notebooks_own_word():
    given = {"checkpoint": "sam3-nano", "device": "cpu", "image": "chelsea", "prompt": "dog"}
    study = Study("06_calls", given | {"run": "/nowhere", "results": "", "measure": False, "figures": ""})
    lists = study.lists([4, 1])
    assert lists[1] == ("dog",) and lists[4][0] == "dog" and len(set(lists[4])) == 4
    with pytest.raises(UserError, match="counts"):
        study.lists([1, 500])


def test_a_base_case_is_measured_beside_those_that_are_compared_with_it(tmp_path):
    given = {"checkpoint": "sam3-nano", "device": "cpu", "resolution": 252, "image": "chelsea", "prompt": "cat"}
    given |= {"run": str(tmp_path / "run"), "results": "", "figures": ""}
    study = Study("03_prompts", given | {"measure": True})
    cases = [study.case(), study.case(prompts=("cat", "dog"))]
    assert [case.mode for case in study.apart(cases, "model")] == ["model", "model"]
    for kept, modes in ((cases, ["speed", "model"]), (study.apart(cases, "model"), ["model", "model"])):
        study_samples.store(tmp_path / modes[0], kept, notebooks=["03_prompts"])
        shown = Study("03_prompts", given | {"measure": False, "results": str(tmp_path / modes[0])})
        assert [case.mode for case in shown.apart(cases, "model")] == modes


def test_only_the_base_case_is_measured_end_to_end():
    given = {"checkpoint": "sam3-nano", "device": "cpu", "resolution": 252, "image": "chelsea", "prompt": "cat"}
    study = Study("03_prompts", given | {"run": "/nowhere", "results": "", "measure": False, "figures": ""})
    assert study.case("pytorch", resolution=252).mode == study.case(prompts=("cat",)).mode == "speed"
    assert study.case(resolution=126).mode == study.case(precision="bf16").mode == "pipeline"
    assert study.case(prompts=("cat", "dog")).mode == "model"
