"""SAM 3 under TensorRT: a mask of what a prompt names in a photograph. Values stay on the GPU between the stages.

$ pip install .[gpu]
$ hf download facebook/sam3 --local-dir checkpoint
$ sam3lab build-engine --checkpoint checkpoint --precision fp16 --saveEngine engines
$ pip install tensorrt pycuda tokenizers pillow
$ python run_tensorrt.py engines checkpoint photograph.jpg cat mask.png
"""

import sys
from pathlib import Path

import numpy as np
import pycuda.autoinit  # noqa: F401 (makes the context)
import pycuda.driver as cuda
import tensorrt as trt
from PIL import Image
from pycuda import gpuarray
from tokenizers import Tokenizer

engines, checkpoint, photograph, prompt, target = sys.argv[1:]
runtime, stream = trt.Runtime(trt.Logger(trt.Logger.WARNING)), cuda.Stream()
stages = {
    stage: runtime.deserialize_cuda_engine(Path(engines, f"{stage}.engine").read_bytes())
    for stage in ("image", "text", "detect")
}
contexts = {stage: engine.create_execution_context() for stage, engine in stages.items()}
tokenizer = Tokenizer.from_file(f"{checkpoint}/tokenizer.json")
tokenizer.enable_truncation(32)
tokenizer.enable_padding(length=32)


def run(stage, **inputs):
    engine, context, outputs = stages[stage], contexts[stage], {}
    for name, value in inputs.items():
        if not context.set_input_shape(name, value.shape):
            sys.exit(f"{stage}: {name} cannot have the shape {value.shape}")
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
            dtype = trt.nptype(engine.get_tensor_dtype(name))
            outputs[name] = gpuarray.empty(tuple(context.get_tensor_shape(name)), dtype)
    for name, value in (inputs | outputs).items():
        context.set_tensor_address(name, int(value.gpudata))
    if not context.execute_async_v3(stream.handle):
        sys.exit(f"{stage} does not run")
    stream.synchronize()
    return outputs


def upload(array):
    return gpuarray.to_gpu(np.ascontiguousarray(array))


image = Image.open(photograph).convert("RGB")
side = stages["image"].get_tensor_shape("pixels")[-1]
pixels = np.array(image.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)[None]
text = tokenizer.encode(prompt)
ids, mask, first = upload(np.array([text.ids])), upload(np.array([text.attention_mask], bool)), upload(np.zeros(1, int))
known = run("image", pixels=upload(pixels)) | run("text", ids=ids, mask=mask)
found = run("detect", **known, mask=mask, image_index=first, text_index=first)
logits, presence, masks = (found[name].get().astype(np.float32) for name in ("logits", "presence", "masks"))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


scores = (sigmoid(logits) * sigmoid(presence))[0]
union = np.zeros((image.height, image.width), bool)
for probability in sigmoid(masks[0, scores > 0.5]):
    union |= np.array(Image.fromarray(probability).resize(image.size, Image.Resampling.BILINEAR)) > 0.5
Image.fromarray(union).save(target)
contexts = stages = runtime = None  # they must go before PyCUDA's context does, which ends at exit
