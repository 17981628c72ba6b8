import argparse
import importlib.util
import io

import pytest

from sam3lab.bench import graph_doctor
from sam3lab.bench.case import Case
from sam3lab.bench.graph_doctor import Node
from sam3lab.cli import main
from sam3lab.errors import UserError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="ONNX Runtime is not installed")
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.fixture(scope="module")
def nodes():
    return graph_doctor.profile(Case("sam3-nano", "onnxruntime", resolution=252), runs=3)


def test_every_node_of_the_optimised_graphs_is_told_once(nodes, tmp_path):
    import onnx
    import onnxruntime as ort

    from sam3lab.export import cache
    from sam3lab.model import checkpoint

    graphs = cache.graphs(checkpoint.resolve("sam3-nano"), 252, "fp32")
    for stage in ("image", "text", "detect"):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{stage}.onnx")
        ort.InferenceSession(graphs / f"{stage}.onnx", options, providers=[CPU])
        executed = onnx.load(tmp_path / f"{stage}.onnx", load_external_data=False).graph.node
        own = [node for node in nodes if node.stage == stage]
        assert sorted(node.operator for node in own) == sorted(node.op_type for node in executed)
    assert {node.provider for node in nodes} == {CPU}
    assert all(node.milliseconds >= 0 for node in nodes) and sum(node.milliseconds for node in nodes) > 0.1
    assert any("uint8[1,3,252,252]" in node.inputs for node in nodes if node.stage == "image")


def test_the_profiler_is_gone_afterwards(nodes):
    import onnxruntime as ort

    assert ort.InferenceSession.__name__ == "InferenceSession"


def test_what_is_off_the_device_is_told():
    def node(operator, provider):
        return Node("image", operator.lower(), operator, provider, 1.0, "")

    device = [node("MatMul", CUDA), node("Add", CUDA)]
    assert graph_doctor.elsewhere(device, "cuda") == [
        f"every node is on {CUDA}, and none copies between host and device"
    ]
    mixed = [*device, *[node("Gather", CPU)] * 2, node("Shape", CPU), node("MemcpyToHost", CUDA)]
    assert graph_doctor.elsewhere(mixed, "cuda") == [
        f"on {CPU}: 3 nodes (2 Gather, 1 Shape)",
        "copies between host and device: 1 nodes (1 MemcpyToHost)",
    ]


def test_operators_are_summed_and_ranked_and_nothing_is_lost():
    many = [Node("image", f"n{k}", f"Op{k % 20}", CUDA, 1.0 + k % 20, "") for k in range(60)]
    rows = graph_doctor.by_operator(many)
    assert rows[0] == {"operator": "Op19", "provider": CUDA, "nodes": 3, "ms": "60.000", "share": "9.5%"}
    assert rows[-1]["operator"] == "8 others" and sum(row["nodes"] for row in rows) == 60
    assert sum(float(row["ms"]) for row in rows) == pytest.approx(sum(node.milliseconds for node in many))
    assert [row["ms"] for row in graph_doctor.slowest(many)[:3]] == ["20.000"] * 3


def test_the_command_prints_it_and_names_what_cannot_run(nodes):
    from rich.console import Console

    parser = argparse.ArgumentParser()
    graph_doctor.add_arguments(parser)
    given = ["--graph", "--device", "cpu"]
    console = Console(width=200, record=True, file=io.StringIO())
    graph_doctor.report(console, parser.parse_args(given))
    text = console.export_text()
    assert "MatMul" in text and "Slowest nodes" in text and f"every node is on {CPU}" in text
    for stage in ("image", "text", "detect"):
        assert f"{stage}: {sum(node.stage == stage for node in nodes)} nodes" in text
    with pytest.raises(UserError, match="fp8"):
        graph_doctor.report(console, parser.parse_args([*given, "--precision", "fp8"]))


@pytest.mark.parametrize("option", [["--precision", "fp16"], ["--resolution", "250"], ["--checkpoint", "x"]])
def test_options_without_graph_are_refused(option, capsys):
    assert main(["doctor", *option]) == 2
    assert f"{option[0]} says whose graphs are looked into: add --graph" in capsys.readouterr().err
