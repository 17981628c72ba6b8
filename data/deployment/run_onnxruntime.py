"""SAM 3 under ONNX Runtime: a mask of what a prompt names in a photograph. Values stay on the device between the stages.

$ pip install .
$ hf download facebook/sam3 --local-dir checkpoint
$ sam3lab export --model-name checkpoint --output-dir graphs --precision fp16
$ pip install onnxruntime-gpu[cuda,cudnn] tokenizers pillow
$ python run_onnxruntime.py graphs checkpoint photograph.jpg cat mask.png
"""

import sys

import numpy as np
import onnxruntime as ort
from PIL import Image
from tokenizers import Tokenizer

graphs, checkpoint, photograph, prompt, target = sys.argv[1:]
device = "cuda" if "CUDAExecutionProvider" in ort.get_available_providers() else "cpu"
if device == "cuda":
    ort.preload_dlls()
stages = {
    stage: ort.InferenceSession(f"{graphs}/{stage}.onnx", providers=[f"{device.upper()}ExecutionProvider"])
    for stage in ("image", "text", "detect")
}
tokenizer = Tokenizer.from_file(f"{checkpoint}/tokenizer.json")
tokenizer.enable_truncation(32)
tokenizer.enable_padding(length=32)


def upload(array):
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)


def run(stage, *values):
    session = stages[stage]
    binding = session.io_binding()
    for port, value in zip(session.get_inputs(), values, strict=True):
        binding.bind_ortvalue_input(port.name, value)
    for port in session.get_outputs():
        binding.bind_output(port.name, device)
    session.run_with_iobinding(binding)
    return binding.get_outputs()


image = Image.open(photograph).convert("RGB")
side = stages["image"].get_inputs()[0].shape[-1]
pixels = np.array(image.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)[None]
text = tokenizer.encode(prompt)
ids, mask, first = upload(np.array([text.ids])), upload(np.array([text.attention_mask], bool)), upload(np.zeros(1, int))
found = run("detect", *run("image", upload(pixels)), *run("text", ids, mask), mask, first, first)
logits, presence, _, masks, _ = (value.numpy().astype(np.float32) for value in found)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


scores = (sigmoid(logits) * sigmoid(presence))[0]
union = np.zeros((image.height, image.width), bool)
for probability in sigmoid(masks[0, scores > 0.5]):
    union |= np.array(Image.fromarray(probability).resize(image.size, Image.Resampling.BILINEAR)) > 0.5
Image.fromarray(union).save(target)
