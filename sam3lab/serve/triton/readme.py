"""The README that a model repository carries: what is in it, what serves it, and how it is asked."""

from math import ceil, prod
from textwrap import fill

from sam3lab.serve.triton.config import ENSEMBLE, model_name
from sam3lab.serve.triton.settings import Settings
from sam3lab.serve.triton.signature import OPEN, Signature

CONTAINER = "nvcr.io/nvidia/tritonserver:26.08-py3"
_BYTES = {"TYPE_BOOL": 1, "TYPE_UINT8": 1, "TYPE_INT64": 8, "TYPE_FP16": 2, "TYPE_BF16": 2, "TYPE_FP32": 4}

_TEXT = """# SAM 3 for Triton

Written by `sam3lab triton-repository`: `{name}` at {resolution}², {precision}, for Triton's back end `{backend}` on
{device}. {status}

| model | takes | gives |
|---|---|---|
{models}

B images, each with P prompts of its own; B is at most {max_batch}, P at most {max_prompts}. `ids` and `mask` are a
prompt's tokens, padded to 32, as `sam3lab.model.tokenizer` makes them. `masks` and `semantic` are logits, `boxes` x1 y1 x2 y2 in
units of the image's sides. `{ensemble}` is the model to ask; the others are its stages, and can be asked too: a text's
features can be kept, and be given to `{detect}` with the features of any image.

## Start

    {start}

{needs}

## Ask

With `pip install -e '.[triton]'` in a clone of sam3lab, as `python client.py localhost:8001 photograph.jpg "red star" circle`:

```python
import sys

import tritonclient.grpc as triton

from sam3lab import images
from sam3lab.model.checkpoint import resolve
from sam3lab.model.tokenizer import load_tokenizer
from sam3lab.postprocess import detections

url, photograph, *prompts = sys.argv[1:]
photograph = images.load(photograph)
ids, mask = load_tokenizer(resolve({name!r})).encode(prompts)
values = {{"pixels": images.pixels(photograph, {resolution}), "ids": ids, "mask": mask}}
inputs = []
for name, kind in (("pixels", "UINT8"), ("ids", "INT64"), ("mask", "BOOL")):
    inputs.append(triton.InferInput(name, [1, *values[name].shape], kind))
    inputs[-1].set_data_from_numpy(values[name][None])
wanted = ["logits", "presence", "boxes", "masks"]
outputs = [triton.InferRequestedOutput(name) for name in wanted]
answer = triton.InferenceServerClient(url).infer("{ensemble}", inputs, outputs=outputs)
raw = {{name: answer.as_numpy(name)[0] for name in wanted}}
for prompt, found in zip(prompts, detections(raw, photograph.shape[:2]), strict=True):
    for score, box in zip(found.scores, found.boxes, strict=True):
        print(f"{{prompt}}: {{score:.2f}} at", " ".join(f"{{value:.0f}}" for value in box))
```

## How requests are batched

Each stage joins requests that wait together, up to {max_batch} images, and waits at most {delay:g} ms for more.
{joined}
{queue} answered UNAVAILABLE at once, and may be sent again later. A client can set a shorter timeout on its own request.

Use 26.05 or newer. Before it, Triton's ensembles do not survive that a stage refuses or fails while another works: the
server crashes (seen with 2.51) or keeps the request for ever. With an older one, write the repository with `--queue 0`, limit
what is sent, and send nothing wrong; or ask the stages one by one.

An image is encoded once for all prompts of its request: send prompts together, not one by one.
"""

_STATUS = {
    "python": "sam3lab's tests run such a repository, with the runtime pytorch on a CPU, on tritonserver 2.51.",
    "onnxruntime": "sam3lab's tests check such a repository against Triton's protobuf and its graphs, and run the graphs, "
    "but have not run it on a server.",
    "tensorrt": "sam3lab's tests check such a repository against Triton's protobuf and its graphs, but have not run it on "
    "a server.",
}
_JOINED = {
    True: "They may have different numbers of prompts.",
    False: "Triton joins only requests with the same number of prompts in the stages that read them.",
}
_QUEUE = {
    True: "At most {queue} requests wait for a stage. A further one, and one that has waited {timeout:g} s, is",
    False: "Any number of requests wait for a stage. One that has waited {timeout:g} s is",
}
_ONNXRUNTIME = """Needs nothing but the container. The graphs are of opset 23, which ONNX Runtime takes from 1.23 on. Its
releases in Triton's containers: 25.09 has 1.23.0, 26.01 has 1.23.2, 26.04 to 26.06 have 1.24.4, 26.07 has 1.27.0, 26.08
has 1.28.0. {seen}"""
_SEEN = {
    "cpu": "Outside Triton, on a CPU, the graphs gave the same values under 1.23.2, 1.24.4, 1.27.0, 1.28.0 and 1.32.0; 1.22 "
    "refuses them. Nothing here limits P, since Triton itself does not: what asks it must.",
    "cuda": "These graphs hold operators of ONNX Runtime's own, for its CUDA provider, and were measured under "
    "onnxruntime-gpu 1.31; older releases may take them and may not. Nothing here limits P, since Triton itself does not: "
    "what asks it must.",
}
_TENSORRT = """An engine is read by the TensorRT that built it, on the kind of GPU that it was built on, and by no other.
These were built by TensorRT {tensorrt} for: {gpu} (compute capability {gpu_capability}).{unfit} Which container has which
TensorRT is said by https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html, and by the container itself:

    docker run --rm {container} sh -c 'dpkg -l | grep libnvinfer'

Where it is another one, `pip install tensorrt==` that version, and write the repository again on that machine. Requests
with more than {max_prompts} prompts to an image are refused."""
_PYTHON = """Each stage is a process of its own, and imports sam3lab, its runtime ({runtime}) and NumPy below 2, which
Triton's Python back end needs, in the server's own Python. What stages hand each other lies in shared memory: some {size}
GiB for a full batch with one prompt to each image. `{ensemble}/checkpoint`{graphs} is read by all stages, so that the
repository must be on a file system, as a whole. Requests with more than {max_prompts} prompts are refused, one with a wrong
token fails alone, and a batch that fails as a whole is computed again request by request.{copies}"""
_PACKAGES = {"pytorch": "torch safetensors", "onnxruntime": "onnxruntime onnx", "openvino": "openvino onnx"}


def text(settings: Settings, signatures: dict[str, Signature], machine: dict[str, str]) -> str:
    """The README. machine: what engines are bound to, as export.engine.machine says it; empty where there are none."""
    whole = Signature(
        tuple(t for name in ("image", "text") for t in signatures[name].inputs), signatures["detect"].outputs
    )
    rows = {ENSEMBLE: whole} | {model_name(stage): signature for stage, signature in signatures.items()}
    size = max(1, ceil(_shared_bytes(signatures, settings.max_batch) / 2**30))
    filled = _TEXT.format(
        name=settings.name,
        backend=settings.backend,
        resolution=settings.resolution,
        precision=settings.precision,
        device={"cpu": "a CPU", "cuda": "a GPU"}[settings.device],
        max_batch=settings.max_batch,
        max_prompts=settings.max_prompts,
        status=_STATUS[settings.backend],
        models="\n".join(
            f"| `{name}` | {_row(signature.inputs)} | {_row(signature.outputs)} |" for name, signature in rows.items()
        ),
        ensemble=ENSEMBLE,
        detect=model_name("detect"),
        start=_start(settings, size),
        needs=_needs(settings, machine, size),
        joined=_JOINED[settings.backend == "python"],
        queue=_QUEUE[settings.queue > 0].format(queue=settings.queue, timeout=settings.queue_timeout),
        delay=settings.queue_delay * 1e3,
    )
    return _broken_anew(filled)


def _broken_anew(markdown: str) -> str:
    """With even lines in its paragraphs, whatever was put into them."""
    parts = markdown.split("```")
    for number in range(0, len(parts), 2):  # every other one is code
        parts[number] = "\n\n".join(
            paragraph if paragraph.startswith((" ", "|", "#")) else fill(paragraph, 100, break_on_hyphens=False)
            for paragraph in parts[number].split("\n\n")
        )
    return "```".join(parts) + "\n"


def _row(tensors) -> str:
    return ", ".join(
        f"`{name}` {kind.removeprefix('TYPE_')} [B,{','.join('P' if size == OPEN else str(size) for size in dims)}]"
        for name, kind, dims in tensors
    )


def _shared_bytes(signatures: dict[str, Signature], images: int) -> int:
    """Of all tensors of a batch with one prompt to each image; what a stage gives is there twice, since the next takes it."""
    return images * sum(
        _BYTES[kind] * prod(1 if size == OPEN else size for size in dims)
        for signature in signatures.values()
        for _, kind, dims in (*signature.inputs, *signature.outputs)
    )


def _start(settings: Settings, size: int) -> str:
    gpu = "--gpus all " if settings.device == "cuda" else ""
    serve = "tritonserver --model-repository=/models"
    if settings.backend != "python":
        return f'docker run --rm {gpu}-p 8000-8002:8000-8002 -v "$PWD:/models:ro" {CONTAINER} \\\n      {serve}'
    packages = f"pip install 'numpy<2' {_PACKAGES[settings.runtime]} && pip install --no-deps /sam3lab"
    return (
        f'docker run --rm {gpu}--shm-size={size}g -p 8000-8002:8000-8002 -v "$PWD:/models:ro" \\\n'
        f"      -v /path/to/sam3lab:/sam3lab {CONTAINER} \\\n"
        f'      sh -c "{packages} && exec {serve}"'
    )


def _needs(settings: Settings, machine: dict[str, str], size: int) -> str:
    if settings.backend == "onnxruntime":
        return _ONNXRUNTIME.format(seen=_SEEN[settings.device])
    if settings.backend == "tensorrt":
        from sam3lab.export.engine import NO_GPU

        unfit = " Built without a GPU, they show that the graphs build, and can be served nowhere."
        return _TENSORRT.format(
            **machine,
            unfit=unfit if machine["gpu"] == NO_GPU else "",
            container=CONTAINER,
            max_prompts=settings.max_prompts,
        )
    own_graphs = settings.runtime != "pytorch"
    return _PYTHON.format(
        runtime=settings.runtime,
        size=size,
        ensemble=ENSEMBLE,
        graphs=f" with `{ENSEMBLE}/graphs`" if own_graphs else "",
        max_prompts=settings.max_prompts,
        copies=" Each process loads all three stages' graphs, of which it runs one." if own_graphs else "",
    )
