"""One step of training: the model, its average, its optimiser, and what they need to go on exactly as they were."""

import copy
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from sam3lab.errors import UserError
from sam3lab.model.config import check_resolution
from sam3lab.model.detector import corners
from sam3lab.model.sam3 import Sam3
from sam3lab.train import losses, matching
from sam3lab.train.architecture import build, decays
from sam3lab.train.batches import Batch


@dataclass(frozen=True)
class Settings:
    """What makes a training run; two runs with the same settings take the same steps. Raises UserError for bad ones.

    steps: length of the schedule. batch: scenes a step, each with four prompts. learning_rate: its peak, after `warmup`
    steps; it then falls along a cosine to `floor` times the peak. average: decay of the weights' moving average.
    precision: "bf16" (autocast) or "fp32". resolution: None for the configuration's own.
    """

    steps: int = 14000
    batch: int = 64
    learning_rate: float = 8e-4
    weight_decay: float = 0.03
    warmup: int = 600
    floor: float = 0.01
    clip: float = 1.0
    average: float = 0.9995
    precision: str = "bf16"
    resolution: int | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"the learning rate is {self.learning_rate}: give one above 0")
        if self.resolution is not None:
            check_resolution(self.resolution)


def forward(model: Sam3, pixels: Tensor, ids: Tensor, mask: Tensor, image_index: Tensor) -> dict[str, Tensor]:
    """The outputs of every decoder layer, as `losses.terms` takes them; prompt n belongs to image image_index[n]."""
    detector, text_index = model.detector, torch.arange(len(ids), device=ids.device)
    features, text = model.image_encoder(pixels), model.text_encoder(ids, mask)
    states, maps, text, mask = detector.trunk(*features, text, mask, image_index, text_index)
    queries, tokens, boxes = zip(*states, strict=True)
    return {
        "logits": torch.stack([detector.scoring(q, text, mask) for q in queries]),
        "presence": torch.stack([detector.decoder.presence(token)[:, 0] for token in tokens]),
        "boxes": corners(torch.stack(boxes)),
        "masks": torch.stack([detector.mask_decoder.masks(q, maps) for q in queries]),
        "semantic": detector.mask_decoder.semantic_projection(maps)[:, 0],
    }


class Learner:
    """Takes steps. `model` is what learns and `average` what is published, an exponential moving average of it."""

    def __init__(self, raw: dict, settings: Settings, device: str, compiled: bool = False):
        self.settings, self.device, self.step = settings, device, 0
        self.model = build(raw, settings.seed, settings.resolution).to(device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        groups: dict[bool, list] = {True: [], False: []}
        for name, parameter in self.model.named_parameters():
            groups[decays(name, parameter)].append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": groups[True], "weight_decay": settings.weight_decay},
                {"params": groups[False], "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
            fused=device.startswith("cuda"),
        )
        self.parameters = list(self.model.parameters())
        self.forward = torch.compile(forward, dynamic=False) if compiled else forward
        self.precision = {"bf16": torch.bfloat16, "fp32": None}[settings.precision]

    def learning_rate(self) -> float:
        """The learning rate of the step to come: a linear rise, then a cosine."""
        s = self.settings
        if self.step < s.warmup:
            return s.learning_rate * (self.step + 1) / s.warmup
        progress = min(1.0, (self.step - s.warmup) / max(1, s.steps - s.warmup))
        return s.learning_rate * (s.floor + (1 - s.floor) * (1 + math.cos(math.pi * progress)) / 2)

    def take(self, batch: Batch, meanwhile=lambda: None) -> Tensor:
        """One step; returns the unweighted loss terms and the gradient's norm, [len(losses.WEIGHTS) + 1].

        `meanwhile` is called while the device still computes what the matching on the host waits for.
        """
        with torch.autocast(self.device.split(":")[0], self.precision, enabled=self.precision is not None):
            outputs = self.forward(self.model, batch.pixels, batch.ids, batch.mask, batch.image_index)
        targets = batch.boxes.index_select(0, batch.image_index)
        cost = matching.costs(outputs["logits"].detach().float(), outputs["boxes"].detach(), targets)
        cost, relevant = _to_host(cost, batch.relevant)
        meanwhile()
        matches = matching.assign(cost().numpy(), relevant().numpy())
        matches = tuple(_to_device(torch.from_numpy(array), self.device) for array in matches)
        terms = losses.terms(outputs, matches, batch)
        losses.total(terms).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.settings.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), [p.detach() for p in self.parameters], 1 - decay)
        return torch.stack([*(terms[name].detach() for name in losses.WEIGHTS), norm])

    def save(self, path: Path, **notes) -> None:
        """Write everything a later `restore` needs, whole or not at all; `notes` are kept beside it."""
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "notes": notes,
        }
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)

    def restore(self, path: Path) -> dict:
        """Go on from a saved state; returns its notes. Raises UserError where it is damaged or of other settings."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises nearly anything on a damaged file
            raise UserError(f"cannot read {path} ({error}): start again without --resume") from error
        changed = {k for k, v in asdict(self.settings).items() if state["settings"].get(k) != v}
        if changed:
            raise UserError(f"{path} is of a run with another {', '.join(sorted(changed))}: give the same options")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return state["notes"]


def _to_host(*tensors: Tensor):
    """Begin to copy tensors to the host; for each a function that waits for the copy and gives it."""
    if tensors[0].device.type != "cuda":
        return [lambda tensor=tensor: tensor for tensor in tensors]
    copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
    done = torch.cuda.Event()
    done.record()

    def wait(copied: Tensor) -> Tensor:
        done.synchronize()
        return copied

    return [lambda copied=copied: wait(copied) for copied in copies]


def _to_device(tensor: Tensor, device: str) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor
