"""SAM 3 as sam3lab's lean model in PyTorch, compiled ahead of time: a mask of what a prompt names in a photograph.

$ pip install torch safetensors tokenizers pillow
$ pip install --no-deps .
$ hf download facebook/sam3 --local-dir checkpoint
$ python run_pytorch_aot.py checkpoint photograph.jpg cat mask.png
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from sam3lab.model.checkpoint import image_size, load_model

checkpoint, photograph, prompt, target = sys.argv[1:]
device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
tokenizer = Tokenizer.from_file(f"{checkpoint}/tokenizer.json")
tokenizer.enable_truncation(32)
tokenizer.enable_padding(length=32)

image = Image.open(photograph).convert("RGB")
side = image_size(Path(checkpoint))
pixels = torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.BILINEAR)))
text = tokenizer.encode(prompt)
ids, mask = torch.tensor([text.ids]), torch.tensor([text.attention_mask]).bool()
first = torch.zeros(1, dtype=torch.long)
inputs = [value.to(device) for value in (pixels.permute(2, 0, 1)[None].contiguous(), ids, mask, first, first)]

library = Path(target).with_name(f"sam3-{device}.pt2")  # with the weights in it: later runs read nothing else
if not library.exists():
    model = load_model(Path(checkpoint), dtype=dtype, device=device)
    with torch.no_grad():
        program = torch.export.export(model, tuple(inputs), strict=False)
        torch._inductor.aoti_compile_and_package(program, package_path=str(library))
logits, presence, _, masks, _ = torch._inductor.aoti_load_package(str(library))(*inputs)

scores = (logits.sigmoid() * presence.sigmoid())[0]
union = np.zeros((image.height, image.width), bool)
for probability in masks[0, scores > 0.5].float().sigmoid().cpu().numpy():
    union |= np.array(Image.fromarray(probability).resize(image.size, Image.Resampling.BILINEAR)) > 0.5
Image.fromarray(union).save(target)
