"""SAM 3 as sam3lab's lean model in PyTorch, compiled: a mask of what a prompt names in a photograph.

$ pip install torch numpy safetensors tokenizers pillow
$ pip install --no-deps .
$ hf download facebook/sam3 --local-dir checkpoint
$ python run_pytorch_compiled.py checkpoint photograph.jpg cat mask.png
"""

import sys

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from sam3lab.model.checkpoint import load_model

checkpoint, photograph, prompt, target = sys.argv[1:]
device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
model = load_model(checkpoint, dtype=dtype, device=device)
compiled = torch.compile(model, mode="reduce-overhead" if device == "cuda" else "default", dynamic=False)
tokenizer = Tokenizer.from_file(f"{checkpoint}/tokenizer.json")
tokenizer.enable_truncation(32)
tokenizer.enable_padding(length=32)

image = Image.open(photograph).convert("RGB")
side = model.resolution
pixels = torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.BILINEAR)))
text = tokenizer.encode(prompt)
ids, mask = torch.tensor([text.ids]), torch.tensor([text.attention_mask]).bool()
first = torch.zeros(1, dtype=torch.long)
inputs = [value.to(device) for value in (pixels.permute(2, 0, 1)[None].contiguous(), ids, mask, first, first)]
with torch.inference_mode():
    logits, presence, _, masks, _ = compiled(*inputs)

scores = (logits.sigmoid() * presence.sigmoid())[0]
union = np.zeros((image.height, image.width), bool)
for probability in masks[0, scores > 0.5].float().sigmoid().cpu().numpy():
    union |= np.array(Image.fromarray(probability).resize(image.size, Image.Resampling.BILINEAR)) > 0.5
Image.fromarray(union).save(target)
