"""The libraries of `pytorch-aot`: made once for a set of shapes, loaded by whoever comes later, with the model's weights."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sam3lab import backends
from sam3lab.backends import Artifacts, aotinductor
from sam3lab.backends.aotinductor import Libraries
from sam3lab.model.random import write_random
from tests.conftest import SMALL
from tests.test_backends import PARITY, RESOLUTION, make_inputs, relative_error


class Stage(torch.nn.Module):
    """Small, with what a stage has: parameters, a buffer that no checkpoint holds, and several outputs."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, x, index):
        y = self.linear(x).index_select(0, index)
        return y + self.table, y.sum(dim=-1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path))
    return tmp_path / "aotinductor"


def test_a_library_is_made_once_and_shares_the_weights_of_the_module(cache, monkeypatch):
    stage, x, index = Stage().requires_grad_(False), torch.randn(2, 4), torch.tensor([1, 0, 1])
    made = Libraries(stage, ["stage", 1])
    for one, other in zip(made(x, index), stage(x, index), strict=True):
        torch.testing.assert_close(one, other)
    assert len(list(cache.glob("*/stage.pt2"))) == 1

    monkeypatch.setattr(Libraries, "_make", lambda *_: pytest.fail("it was there already"))
    again = Stage().requires_grad_(False)  # as in another process, with the same checkpoint
    again.load_state_dict(stage.state_dict())
    loaded = Libraries(again, ["stage", 1])
    torch.testing.assert_close(loaded(x, index)[0], stage(x, index)[0])
    again.linear.weight.add_(1)
    torch.testing.assert_close(loaded(x, index)[0], again(x, index)[0])
    torch.testing.assert_close(made(x, index)[0], stage(x, index)[0])


def test_what_is_made_for_one_checkpoint_is_not_loaded_for_another(small_checkpoint, tmp_path):
    """Small vectors, as the bias of a head, are in the code."""
    other = tmp_path / "other"
    write_random(other, SMALL, seed=4)
    about = [aotinductor._about(Artifacts(place, RESOLUTION)) for place in (small_checkpoint, other)]
    assert about[0] != about[1] and aotinductor._about(Artifacts(small_checkpoint, RESOLUTION)) == about[0]
    assert aotinductor._about(Artifacts(small_checkpoint, RESOLUTION, "bf16")) != about[0]


@pytest.mark.parametrize(
    ("values", "about"),
    [
        ((torch.zeros(3, 4), torch.tensor([0])), ["stage"]),  # shapes
        ((torch.zeros(4, 2).T, torch.tensor([0])), ["stage"]),  # strides
        ((torch.zeros(2, 4).double(), torch.tensor([0])), ["stage"]),  # types
        ((torch.zeros(2, 4), torch.tensor([0])), ["another stage"]),
    ],
    ids=["shape", "strides", "type", "about"],
)
def test_another_set_of_shapes_or_another_stage_has_a_library_of_its_own(cache, monkeypatch, values, about):
    made = []

    def make(libraries, folder, values):
        made.append(values)
        raise InterruptedError("as by a kill")

    monkeypatch.setattr(Libraries, "_make", make)
    first = (torch.zeros(2, 4), torch.tensor([0]))
    whole = Libraries(Stage(), ["stage"])
    for given, libraries in ((first, whole), (values, Libraries(Stage(), about))):
        with pytest.raises(InterruptedError):
            libraries(*given)
    assert len(made) == 2 and not list(cache.iterdir())  # nothing half-made is left, and so neither is loaded

    monkeypatch.setattr(Libraries, "_make", lambda libraries, folder, values: (folder / "stage.pt2").touch())
    loads = []
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path, **how: loads.append((path, how)) or Fake())
    for given, libraries in (
        (first, whole),
        (values, Libraries(Stage(), about)),
        (first, Libraries(Stage(), ["stage"])),
    ):
        libraries(*given), libraries(*given)
    paths = [path for path, _ in loads]
    assert paths[0] == paths[2] != paths[1] and all(how["run_single_threaded"] for _, how in loads)


class Fake:
    """A library that was loaded."""

    def __call__(self, *values):
        return values

    def get_constant_fqns(self):
        return ["linear.weight", "table"]

    def load_constants(self, weights, check_full_update, user_managed):
        assert set(weights) == {"linear.weight", "table"} and check_full_update and user_managed


def test_without_the_cuda_toolkit_it_says_so(monkeypatch, tmp_path):
    for home in (None, str(tmp_path)):
        monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", home)
        assert "name its folder in CUDA_HOME" in aotinductor.no_toolkit()
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda.h").touch()
    assert aotinductor.no_toolkit() is None
    kind = backends.get("pytorch-aot")
    assert kind.unavailable("cpu", "fp32") is None and "int8" in kind.unavailable("cpu", "int8")


START = """
import sys
from pathlib import Path
import numpy as np
from sam3lab import backends
from sam3lab.backends.aotinductor import Libraries
from tests.test_aotinductor import text

Libraries._make = None  # it was made by another process
np.save(sys.argv[2], text("pytorch-aot", Path(sys.argv[1])))
"""


def text(name, checkpoint):
    """Text features as a backend computes them: the stage that is made the soonest."""
    backend, inputs = backends.get(name)(), make_inputs()
    backend.load(backend.prepare(Artifacts(checkpoint, RESOLUTION, threads=2)))
    found = backend.download(backend.text(backend.upload(inputs["ids"]), backend.upload(inputs["mask"]))).copy()
    backend.close()
    return found


def test_a_stage_is_that_of_the_model_and_another_process_only_loads_it(small_checkpoint, tmp_path):
    """All stages, and all that a backend must do, are test_backends', which makes their libraries where -m slow is given."""
    found, wanted = text("pytorch-aot", small_checkpoint), text("pytorch", small_checkpoint)
    assert relative_error(found, wanted) <= PARITY
    target = tmp_path / "text.npy"
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", START, str(small_checkpoint), str(target)], check=True, cwd=root)
    np.testing.assert_array_equal(np.load(target), found)
