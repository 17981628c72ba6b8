"""The project's own files agree with each other."""

import re
import tomllib

from sam3lab import __version__
from sam3lab.paths import ROOT


def pins(text):
    return dict(re.findall(r"^\s*-?\s*([A-Za-z0-9_.-]+)==([^\s#]+)", text, re.MULTILINE))


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_and_the_pins_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    constraints = {canonical(name): version for name, version in pins((ROOT / "constraints.txt").read_text()).items()}
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {canonical(re.match(r"[A-Za-z0-9_.-]+", requirement)[0]) for requirement in wanted}
    assert names <= constraints.keys(), names - constraints.keys()
    conda = pins((ROOT / "environment.yml").read_text())
    assert len(conda) > 10
    assert {name: constraints[canonical(name)] for name in conda} == conda
    assert f"torch=={constraints['torch']}" in (ROOT / "Makefile").read_text()
    assert project["version"] == __version__


def test_the_owner_packages_are_in_the_gpu_environment():
    conda = pins((ROOT / "environment.yml").read_text())
    owner = "jupyterlab torch onnxruntime-gpu tensorrt pycuda matplotlib seaborn pandas papermill"
    assert set(owner.split()) <= conda.keys()
