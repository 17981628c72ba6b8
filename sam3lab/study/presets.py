"""What a study measures where its user does not say: the defaults of each device, and of each notebook on it.

A parameter of a notebook that is left empty ("", [] or 0) takes the value given here. A CPU gets the small checkpoint in
fp32, so that a laptop is done within minutes; an NVIDIA GPU gets the published architecture in the precision that is
deployed there.
"""

from sam3lab.study.tables import NATIVE

DEVICES = ("cpu", "cuda")
# Runtimes that have one precision, and one architecture, as their own interface does.
ONLY = {"meta": "bf16", "meta-compiled": "bf16"}
STAND_IN = "sam3-nano"  # what is scored in place of a checkpoint with random weights, which finds nothing

COMMON = {
    "cpu": {"checkpoint": "sam3-nano", "precision": "fp32", "rounds": 3},
    "cuda": {"checkpoint": "sam3", "precision": "fp16", "rounds": 3},
}
_ALL = {
    "cpu": [NATIVE, "pytorch", "pytorch-compiled", "onnxruntime", "openvino"],
    "cuda": [NATIVE, "pytorch", "pytorch-compiled", "onnxruntime", "tensorrt", "meta", "meta-compiled"],
}
_SOME = {
    "cpu": [NATIVE, "pytorch", "onnxruntime", "openvino"],
    "cuda": [NATIVE, "pytorch-compiled", "onnxruntime", "tensorrt"],
}
_FEW = {"cpu": [NATIVE, "onnxruntime", "openvino"], "cuda": _SOME["cuda"]}
_SERVED = {"fallback": "openvino"}
OWN = {
    "cpu": {
        "00_machine": {"backends": _ALL["cpu"]},
        "01_runtimes": {"backends": _ALL["cpu"], "most_rounds": 3, "huge": ""},
        "02_resolution": {"backends": _SOME["cpu"]},
        "03_prompts": {"backends": _FEW["cpu"]},
        "04_memory": {"backends": _SOME["cpu"]},
        "05_precision": {"backends": _SOME["cpu"], "precisions": ["fp32", "bf16", "fp16", "int8"]},
        "06_calls": {"backends": _FEW["cpu"], "counts": [1], "batches": [1, 4]},
        "07_deployment": {"backends": [NATIVE, "pytorch", "onnxruntime", "openvino"], "rounds": 1},
        "08_serving": _SERVED
        | {"backends": [NATIVE, "onnxruntime"], "rounds": 2, "loads": [0.5, 1.0, 1.5]}
        | {"seconds": 3.5, "deadline": 0.5},
    },
    "cuda": {
        "00_machine": {"backends": _ALL["cuda"], "rounds": 4},
        "01_runtimes": {"backends": _ALL["cuda"], "rounds": 4, "most_rounds": 12, "huge": "sam3-huge"},
        "02_resolution": {"backends": _SOME["cuda"]},
        "03_prompts": {"backends": _FEW["cuda"]},
        "04_memory": {"backends": _SOME["cuda"]},
        "05_precision": {
            "backends": [NATIVE, "pytorch", "pytorch-compiled", "onnxruntime", "tensorrt"],
            "precisions": ["fp32", "tf32", "bf16", "fp16"],
        },
        "06_calls": {"backends": _FEW["cuda"], "counts": [1, 2, 4, 8, 16], "batches": [1, 4, 8]},
        "07_deployment": {"backends": _ALL["cuda"]},
        "08_serving": _SERVED
        | {"backends": [NATIVE, "pytorch-compiled", "onnxruntime"], "rounds": 3}
        | {"loads": [0.25, 0.5, 1.0, 1.5], "seconds": 16.0, "deadline": 0.25},
    },
}
# The parameters that a device has a default for; of the others an empty value is a value.
NAMES = ("device", "checkpoint", "backends", "precision", "precisions", "rounds", "most_rounds", "counts", "batches")
NAMES += ("huge", "fallback", "loads", "seconds", "deadline")


def device() -> str:
    """ "cuda" where NVIDIA's management library shows a GPU that CUDA would use, else "cpu"."""
    from sam3lab.nvml import gpu

    return "cuda" if gpu() else "cpu"


def resolved(notebook: str, given: dict, stored: dict) -> dict:
    """The parameters `given` to a notebook, with a value for each of NAMES that is among them and empty.

    stored: the parameters that the notebook had when the results to be shown were measured; they come before the
    device's defaults, so that what is shown is what was measured. Where `rounds` is given, most_rounds is no more unless
    it is given too.
    """
    chosen = {name: value for name, value in given.items() if value or name not in NAMES}
    if "most_rounds" in given and "rounds" in chosen:
        chosen.setdefault("most_rounds", chosen["rounds"])
    where = chosen.get("device") or stored.get("device") or device()
    defaults = COMMON[where] | OWN[where].get(notebook, {}) | {"device": where}
    for name in set(given) - set(chosen):
        chosen[name] = stored.get(name) or defaults.get(name, given[name])
    return {name: chosen[name] for name in given}


def precision(backend: str, headline: str) -> str:
    """The precision of a runtime's row where the study's is `headline`."""
    return ONLY.get(backend, headline)


def rows(backends: list[str], headline: str, reference: bool = True) -> list[tuple[str, str]]:
    """(backend, precision) of each row: native PyTorch first, in fp32 if `reference`, which nobody deploys on a GPU but
    all others are checked against, and in every precision that another row has; then each other runtime in its own.
    """
    others = [(backend, precision(backend, headline)) for backend in backends if backend != NATIVE]
    native = dict.fromkeys([*(["fp32"] if reference else []), headline, *(each for _, each in others)])
    return [*((NATIVE, each) for each in native), *others]


def is_base(backend: str, chosen: str, headline: str) -> bool:
    """Whether a runtime in that precision may be a row of the notebook on runtimes, and is measured stage by stage."""
    if backend == NATIVE and headline != "fp32":
        return chosen in {"fp32", headline, *ONLY.values()}
    return chosen == precision(backend, headline)
