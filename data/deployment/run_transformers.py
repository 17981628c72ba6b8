"""SAM 3 under transformers: a mask of what a prompt names in a photograph.

$ pip install torch transformers pillow
$ hf download facebook/sam3 --local-dir checkpoint
$ python run_transformers.py checkpoint photograph.jpg cat mask.png
"""

import sys

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, Sam3Model

checkpoint, photograph, prompt, target = sys.argv[1:]
device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
model = Sam3Model.from_pretrained(checkpoint, dtype=dtype).eval().to(device)
tokenizer = AutoTokenizer.from_pretrained(checkpoint)

image = Image.open(photograph).convert("RGB")
side = model.config.image_size
pixels = torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.BILINEAR)))
pixels = (pixels.permute(2, 0, 1)[None] / 127.5 - 1).to(device, dtype)
text = tokenizer([prompt], padding="max_length", max_length=32, truncation=True, return_tensors="pt").to(device)
with torch.inference_mode():
    found = model(pixel_values=pixels, **text)

scores = (found.pred_logits.sigmoid() * found.presence_logits.sigmoid())[0]
union = np.zeros((image.height, image.width), bool)
for probability in found.pred_masks[0, scores > 0.5].float().sigmoid().cpu().numpy():
    union |= np.array(Image.fromarray(probability).resize(image.size, Image.Resampling.BILINEAR)) > 0.5
Image.fromarray(union).save(target)
