"""SAM 3 under OpenVINO: a mask of what a prompt names in a photograph.

$ pip install .
$ hf download facebook/sam3 --local-dir checkpoint
$ sam3lab export --model-name checkpoint --output-dir graphs
$ pip install openvino tokenizers pillow
$ python run_openvino.py graphs checkpoint photograph.jpg cat mask.png
"""

import sys

import numpy as np
import openvino
from PIL import Image
from tokenizers import Tokenizer

graphs, checkpoint, photograph, prompt, target = sys.argv[1:]
core = openvino.Core()
settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": f"{graphs}-compiled"}
encode_image, encode_text, detect = (
    core.compile_model(f"{graphs}/{stage}.onnx", "CPU", settings) for stage in ("image", "text", "detect")
)
tokenizer = Tokenizer.from_file(f"{checkpoint}/tokenizer.json")
tokenizer.enable_truncation(32)
tokenizer.enable_padding(length=32)

image = Image.open(photograph).convert("RGB")
side = encode_image.input(0).get_partial_shape()[3].get_length()
pixels = np.array(image.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)[None]
text = tokenizer.encode(prompt)
ids, mask, first = np.array([text.ids]), np.array([text.attention_mask], bool), np.zeros(1, int)
features = encode_image([np.ascontiguousarray(pixels)]).values()
found = detect([*features, *encode_text([ids, mask]).values(), mask, first, first])
logits, presence, _, masks, _ = found.values()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


scores = (sigmoid(logits) * sigmoid(presence))[0]
union = np.zeros((image.height, image.width), bool)
for probability in sigmoid(masks[0, scores > 0.5]):
    union |= np.array(Image.fromarray(probability).resize(image.size, Image.Resampling.BILINEAR)) > 0.5
Image.fromarray(union).save(target)
