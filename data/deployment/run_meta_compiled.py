"""SAM 3 by Meta's own package, compiled: a mask of what a prompt names in a photograph.

$ pip install sam3 torch torchvision psutil pillow
$ pip download --no-deps open-clip-torch
$ unzip open_clip_torch-*.whl open_clip/bpe_simple_vocab_16e6.txt.gz
$ hf download facebook/sam3 --local-dir checkpoint
$ python run_meta_compiled.py checkpoint photograph.jpg cat mask.png
"""

import sys

import numpy as np
import torch
from PIL import Image
from sam3.model.sam3_image_processor import Sam3Processor
from sam3.model_builder import build_sam3_image_model

checkpoint, photograph, prompt, target = sys.argv[1:]
model = build_sam3_image_model(
    bpe_path="open_clip/bpe_simple_vocab_16e6.txt.gz",
    checkpoint_path=f"{checkpoint}/sam3.pt",
    load_from_HF=False,
    compile=True,
)
processor = Sam3Processor(model)

image = Image.open(photograph).convert("RGB")
with torch.autocast("cuda", torch.bfloat16):
    found = processor.set_text_prompt(prompt, processor.set_image(image))
union = np.zeros((image.height, image.width), bool)
for mask in found["masks"].cpu().numpy():
    union |= mask[0]
Image.fromarray(union).save(target)
