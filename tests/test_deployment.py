import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from packaging.requirements import Requirement
from PIL import Image

from sam3lab import cli
from sam3lab.bench import deployment
from sam3lab.paths import DATA
from sam3lab.scenes import store

SCRIPTS = sorted(deployment.SCRIPTS.glob("run_*.py"))
RESOLUTION, CHECKPOINT = 252, DATA / "checkpoints" / "sam3-nano"


def script(backend):
    return deployment.SCRIPTS / f"run_{backend}.py"


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A photograph on disk, a prompt that is answered in it, and the mask of all that answer it."""
    from sam3lab.backends import Artifacts
    from sam3lab.segment import segment

    artifacts = Artifacts(CHECKPOINT, RESOLUTION)
    for each in store.load_split("test"):
        image = np.asarray(Image.fromarray(each.image).resize((330, 270)))  # of another size and shape than the model's
        prompt = max(each.prompts, key=lambda prompt: len(prompt.answers)).text
        found = segment(image, [prompt], "pytorch", artifacts).found[0][1]
        if len(found) > 1:
            path = tmp_path_factory.mktemp("scene") / "scene.png"
            Image.fromarray(image).save(path)
            return path, prompt, found.masks.any(axis=0)
    raise AssertionError("no scene has several objects of one prompt")


@pytest.fixture(scope="module")
def graphs():
    from sam3lab.export import cache

    return cache.graphs(CHECKPOINT, RESOLUTION, "fp32")


@pytest.mark.parametrize("backend", ["transformers", "pytorch", "onnxruntime", "openvino", "tensorrt"])
def test_a_users_script_makes_the_mask_that_this_package_makes(backend, scene, graphs, tmp_path):
    if importlib.util.find_spec({"pytorch": "torch", "tensorrt": "onnxruntime"}.get(backend, backend)) is None:
        pytest.skip(f"{backend} is not installed")
    photograph, prompt, wanted = scene
    loaded = [str(CHECKPOINT)]
    if backend in ("onnxruntime", "openvino"):
        # compiled models are cached beside the graphs, which are not to be written beside
        (tmp_path / "graphs").symlink_to(graphs)
        loaded = [str(tmp_path / "graphs"), *loaded]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if backend == "tensorrt":  # no machine that tests this has it: stand-ins, whose engines are the graphs
        for graph in graphs.glob("*.onnx"):
            (tmp_path / f"{graph.stem}.engine").write_bytes(graph.read_bytes())
        loaded = [str(tmp_path), *loaded]
        environment["PYTHONPATH"] = str(Path(__file__).parent / "tensorrt_stand_in")
    target = tmp_path / "mask.png"
    # -P and an empty folder: nothing of the checkout is found that the script does not ask for
    command = [sys.executable, "-P", str(script(backend)), *loaded, str(photograph), prompt, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    mask = np.asarray(Image.open(target))
    assert mask.shape == wanted.shape and wanted.any()
    # Pillow resizes a little otherwise than torch does
    assert (mask & wanted).sum() / (mask | wanted).sum() > 0.98


def test_scripts_need_no_more_than_they_say():
    for each in SCRIPTS:
        compile(each.read_text(), each.name, "exec")
        own = "sam3lab" in each.read_text().split('"""')[2]
        assert own == each.stem.startswith("run_pytorch"), each
    named = {each.stem.removeprefix("run_").replace("_", "-") for each in SCRIPTS}
    from sam3lab import backends

    assert set(backends.names()) <= named


@pytest.mark.parametrize(
    "each", [path for path in SCRIPTS if "pip install ." not in path.read_text()], ids=lambda path: path.stem
)
def test_what_the_steps_install_is_all_that_a_script_imports(each):
    """From a bare Python; where a step installs this project, that brings the rest."""
    words = [shlex.split(step) for step in deployment.steps(each)]
    asked = [word for step in words if step[:2] == ["pip", "install"] for word in step[2:] if word[0] not in "-."]
    known = [name for name in asked if deployment.required([name]) is not None]
    if len(known) < len(asked):
        pytest.skip(f"not installed: {', '.join(name for name in asked if name not in known)}")
    brought = {deployment.canonical(name) for name in known}
    brought |= {deployment.canonical(one.name) for one in deployment.required(known)}
    asks = [Requirement(text) for one in deployment.required(known) for text in one.requires or ()]
    if any(each.name == "numpy" and (each.marker is None or each.marker.evaluate({"extra": ""})) for each in asks):
        brought.add("numpy")  # which is counted for no runtime
    needed = {deployment.canonical(name) for name in deployment.distributions(each, "cpu")} | {"numpy"}
    missing = needed - brought - {deployment.canonical(name) for name in asked}
    assert not missing


@pytest.mark.parametrize("each", SCRIPTS, ids=lambda path: path.stem)
def test_steps_end_with_the_script_and_their_commands_are_understood(each):
    steps = deployment.steps(each)
    assert steps[0].startswith("pip install") and steps[-1].startswith(f"python {each.name} ")
    arguments = each.read_text().split("= sys.argv[1:]")[0].rsplit("\n", 1)[1]
    assert len(shlex.split(steps[-1])) == 2 + len(arguments.split(","))
    for step in steps:
        command, *words = shlex.split(step)
        if command == "sam3lab":
            module, add_arguments, _, _ = cli.COMMANDS[words[0]]
            parser = argparse.ArgumentParser()
            getattr(importlib.import_module(module), add_arguments)(parser)
            parser.parse_args(words[1:])  # exits where it does not know one


def test_lines_of_code_are_counted_without_comments_and_docstrings(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(
        '"""Says.\n\n$ pip install a\n$ python some.py\n"""\n\nimport a  # it\n\n# why\nx = [\n    1,\n]\n"""no"""\n'
    )
    assert deployment.code_lines(path) == 5
    assert deployment.steps(path) == ["pip install a", "python some.py"]
    path.write_text("import a\nimport b\n")
    assert deployment.code_lines(path) == 2 and deployment.steps(path) == []


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Makes an installed distribution of given requirements, whose RECORD lists a file of given size."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name, *requires, size=1000, extras=()):
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        lines = [f"Requires-Dist: {text}" for text in requires] + [f"Provides-Extra: {text}" for text in extras]
        (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *lines]))
        (folder / "RECORD").write_text(f"{name}.so,sha256=0,{size}\n{folder.name}/RECORD,,\n")

    return make


def names(*requirements):
    found = deployment.required(requirements)
    return None if found is None else [each.name for each in found]


def test_what_is_required_in_turn_is_counted_once_and_numpy_is_not(distribution):
    distribution("zz-a", "zz_b>=1", "numpy", "zz-c; python_version < '3'", "zz-d; extra == 'gpu'", extras=["gpu"])
    distribution("zz-b", "ZZ.A", size=500)
    distribution("zz-c")
    distribution("zz-d", "zz-b", "zz-not-there")
    assert names("zz-a") == ["zz-a", "zz-b"] and names("zz-a", "zz-b") == ["zz-a", "zz-b"]
    assert names("zz-a[gpu]") == ["zz-a", "zz-b", "zz-d"]
    assert names("zz-a", "zz-a[gpu]") == ["zz-a", "zz-b", "zz-d"]
    assert names("zz-a", "zz-absent") is None and names("numpy") == []
    assert sum(map(deployment.installed_bytes, deployment.required(["zz-a"]))) == 1500


def test_a_library_of_nvidias_counts_under_another_cudas_name(distribution):
    distribution("zz-runtime", "nvidia-zz-cu12; extra == 'cuda'", extras=["cuda"])
    distribution("nvidia-zz", size=10)
    assert names("zz-runtime[cuda]") == ["nvidia-zz", "zz-runtime"]


def test_the_distributions_are_those_of_the_imports():
    assert deployment.distributions(script("onnxruntime"), "cpu") == ["pillow", "onnxruntime", "tokenizers"]
    assert "onnxruntime-gpu[cuda,cudnn]" in deployment.distributions(script("onnxruntime"), "cuda")
    assert {"torch", "safetensors"} <= set(deployment.distributions(script("pytorch"), "cpu"))


def test_the_table_has_every_script_and_can_be_kept_as_json():
    frame = deployment.table("cpu")
    assert list(frame.columns) == deployment.COLUMNS and len(frame) == len(SCRIPTS)
    assert json.loads(json.dumps(frame.to_dict("records"), allow_nan=False)) == frame.to_dict("records")
    rows = frame.set_index("backend")
    # transformers stands on torch and more; the runtimes that read graphs do not need torch at all
    assert rows.loc["transformers", "packages"] > rows.loc["pytorch", "packages"] > 5
    assert rows.loc["transformers", "installed_mb"] > rows.loc["pytorch", "installed_mb"] > 300
    assert (rows["steps"] >= 3).all() and rows["lines"].between(10, 80).all()
    assert rows["export_s"].isna().all()


def test_seconds_of_making_are_what_a_cold_start_has_and_a_warm_one_has_not():
    def rows(mode, stage, phase, metric, *values):
        common = {"backend": "onnxruntime", "replica": 0, "mode": mode, "stage": stage, "phase": phase}
        return [common | {"metric": metric, "value": value} for value in values]

    cold = [("export", 10, 12, 11), ("build", 3, 3, 4), ("first", 2.5, 2.5, 2.5)]
    samples = [row for metric, *values in cold for row in rows("cold", "process", "cold", metric, *values)]
    frame = pd.DataFrame([*samples, *rows("speed", "pipeline", "first", "wall", 500.0)])
    assert deployment.made(frame, "onnxruntime") == (11, 5)
    assert deployment.made(pd.DataFrame(samples), "onnxruntime") == (11, 3)
    assert deployment.made(frame, "openvino") == (None, None)
    known = deployment.table("cpu", frame).set_index("backend")
    assert known.loc["onnxruntime", "export_s"] == 11 and known.loc["openvino", "export_s"] is None
