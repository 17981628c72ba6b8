"""A rival: Meta's own package `sam3` 0.1.4 (SAM License; the extra `meta`), through its public API.

Its model computes with the weights of any checkpoint of the published architecture, and only at 1008². Its API takes one
image and one prompt at a time, so that B images or N pairs are as many calls, and gives masks at the image's size of
what scores above 0.5; the raw outputs are those that it made them of. Where its parts differ from the other backends':

    image     Sam3Processor.set_image; no resize, since the pixels have the model's size
    text      tokenisation included: the API takes words
    detect    the model's forward_grounding, raw outputs, without the API's post-processing
    pipeline  set_image and set_text_prompt, its post-processing included: what a user of the package waits for

`pipeline_cached` has no counterpart in the API; it is image and detect with text features kept.

Importing the package turns TF32 on for the whole process: tf32 is what its README's lines give, and bf16 has it too
where autocast leaves float32; fp32 is measured with it off. bf16 is autocast entered once for the process, as the
package's own video predictor does, so that PyTorch keeps the cast weights.

Where there is no box, Meta's model still reads one prompt token of its geometry encoder, which transformers leaves out.
Its outputs are therefore compared with `TransformersGeometryBackend`.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam3lab import install
from sam3lab.backends.base import Artifacts, RawOutputs
from sam3lab.backends.torch_base import TorchBackend, no_compiler, unsupported
from sam3lab.backends.transformers import TransformersBackend
from sam3lab.errors import UserError

RESOLUTION = 1008  # the rotary tables of its image encoder are made for this one
PRECISIONS = {"cuda": ("fp32", "tf32", "bf16")}
# What importing it takes, declared by it or not, and the package whose wheel carries the vocabulary that its own lacks.
PACKAGES = (
    "sam3",
    "einops",
    "ftfy",
    "iopath",
    "psutil",
    "pycocotools",
    "regex",
    "timm",
    "torchvision",
    "triton",
    "open_clip",
)
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


@dataclass(frozen=True)
class Prompts:
    """What `ids` (int64 [P,32]) say in words."""

    ids: np.ndarray
    words: list[str]


@dataclass(frozen=True)
class Images:
    """One state of Sam3Processor for each image."""

    states: list[dict[str, Any]]

    def tensors(self) -> tuple:
        """The feature maps [B,256,·,·] at 4×, 2×, 1× the patch grid."""
        import torch

        levels = zip(*(state["backbone_out"]["backbone_fpn"] for state in self.states), strict=True)
        return tuple(torch.cat(level) for level in levels)


@dataclass(frozen=True)
class Texts:
    """What the backbone's forward_text gave for each prompt."""

    outputs: list[dict[str, Any]]

    def tensors(self) -> Any:
        """Text features [P,32,256]."""
        import torch

        return torch.cat([output["language_features"] for output in self.outputs], dim=1).transpose(0, 1)


class MetaBackend(TorchBackend):
    """Sam3Processor around build_sam3_image_model. Raw outputs are lists with one tensor a pair until they are downloaded."""

    name = "meta"
    compiled = False

    @classmethod
    def unavailable(cls, device: str = "cpu", precision: str = "fp32") -> str | None:
        reason = unsupported(device, precision, PRECISIONS)
        absent = next((name for name in PACKAGES if importlib.util.find_spec(name) is None), None)
        if reason is None and absent:
            reason = f"Meta's package needs {absent}, which is not installed: {install.META}"
        return reason or super().unavailable(device, precision)

    def load(self, artifacts: Artifacts) -> None:
        """Raises UserError for another resolution or architecture than Meta's package computes."""
        if artifacts.resolution != RESOLUTION:
            raise UserError(f"Meta's package computes at {RESOLUTION} only, not at {artifacts.resolution}")
        self.configure(artifacts)
        import sam3
        import torch
        from sam3.model.sam3_image_processor import Sam3Processor

        from sam3lab.backends import meta_weights

        tf32 = artifacts.precision != "fp32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        tensors = meta_weights.read(artifacts.checkpoint)
        self.model = sam3.build_sam3_image_model(
            bpe_path=str(vocabulary()), device=artifacts.device, load_from_HF=False, compile=self.compiled
        )
        self.model.load_state_dict(meta_weights.from_reference(self.model.state_dict(), tensors))
        self._forward, self.model.forward_grounding = self.model.forward_grounding, self._kept
        self.processor = Sam3Processor(self.model, resolution=RESOLUTION, device=artifacts.device)
        self.autocast = torch.autocast(artifacts.device, torch.bfloat16, enabled=artifacts.precision == "bf16")
        self.autocast.__enter__()

    def upload(self, array: np.ndarray) -> Any:
        """Token ids as the words that the API takes, indices as they are, the rest on the device.

        Raises UserError for ids that Meta's tokenizer does not make of any words.
        """
        if array.dtype != np.int64:
            return super().upload(array)
        return Prompts(array.copy(), [self._words(row) for row in array.tolist()]) if array.ndim == 2 else array.copy()

    def download(self, value: Any) -> Any:
        import torch

        if isinstance(value, np.ndarray | Prompts):
            return value if isinstance(value, np.ndarray) else value.ids
        if isinstance(value, Images | Texts):
            value = value.tensors()
        return super().download(torch.cat(value) if isinstance(value, list) else value)

    def gather(self, parts: Sequence[tuple[Any, tuple[int, ...]]]) -> Any:
        import torch

        first = parts[0][0]
        if isinstance(first, Images):
            return Images([value.states[image] for value, (image,) in parts])
        if isinstance(first, Texts):
            return Texts([value.outputs[prompt] for value, (prompt,) in parts])
        return torch.stack([value[index[0]][(0, *index[1:])] for value, index in parts])  # a list, one tensor a pair

    def nbytes(self, value: Any) -> int:
        if isinstance(value, Images):
            return sum(_tensor_bytes(state) for state in value.states)
        return sum(map(_tensor_bytes, value.outputs if isinstance(value, Texts) else value))

    def image(self, pixels: Any) -> Images:
        return Images([self.processor.set_image(image) for image in pixels])

    def text(self, ids: Prompts, mask: Any) -> Texts:
        import torch

        with torch.inference_mode():
            return Texts([self.model.backbone.forward_text([words], device=self.device) for words in ids.words])

    def detect(self, features: Images, text: Texts, mask: Any, image_index: Any, text_index: Any) -> RawOutputs:
        import torch

        outputs = []
        with torch.inference_mode():
            for image, prompt in zip(image_index, text_index, strict=True):
                self.model.forward_grounding(
                    backbone_out=features.states[image]["backbone_out"] | text.outputs[prompt],
                    find_input=self.processor.find_stage,
                    geometric_prompt=self.model._get_dummy_prompt(),
                    find_target=None,
                )
                outputs.append(self.outputs)
        return _of_pairs(outputs)

    def pipeline(self, pixels: Any, ids: Prompts, mask: Any, image_index: Any, text_index: Any) -> RawOutputs:
        """What the API does for the N pairs, and the raw outputs that it made its masks, boxes and scores of."""
        features, outputs = self.image(pixels), []
        for image, prompt in zip(image_index, text_index, strict=True):
            self.processor.set_text_prompt(ids.words[prompt], features.states[image])
            outputs.append(self.outputs)
        return _of_pairs(outputs)

    def close(self) -> None:
        if hasattr(self, "autocast"):
            self.autocast.__exit__(None, None, None)
        super().close()

    def _kept(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The model's forward_grounding, whose raw outputs the API gives to no one."""
        out = self._forward(*args, **kwargs)
        self.outputs = RawOutputs(
            out["pred_logits"].squeeze(-1),
            out["presence_logit_dec"],
            out["pred_boxes_xyxy"],
            out["pred_masks"],
            out["semantic_seg"],
        )
        return out

    def _words(self, ids: list[int]) -> str:
        tokenizer = self.model.backbone.language_backbone.tokenizer
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        tokens = ids[1 : ids.index(end)] if end in ids else ids
        words = tokenizer.decode(tokens).strip() if set(tokens) <= tokenizer.decoder.keys() else ""
        if [start, *tokenizer.encode(words), end] != ids[: len(tokens) + 2]:
            raise UserError(f"Meta's tokenizer makes other tokens of the prompt {words!r}: write it in plain words")
        return words


class CompiledMetaBackend(MetaBackend):
    """The same with `compile=True`, which compiles the image encoder's trunk and the pixel decoder."""

    name = "meta-compiled"
    compiles = True
    compiled = True

    @classmethod
    def unavailable(cls, device: str = "cpu", precision: str = "fp32") -> str | None:
        return super().unavailable(device, precision) or no_compiler()


class TransformersGeometryBackend(TransformersBackend):
    """The reference for Meta's package: transformers' model, with the geometry encoder's token for no boxes at all.

    The token attends to the image, and is appended to the text features, as Meta's model does for every text prompt.
    """

    name = "transformers-geometry"

    def detect(self, features: Any, text: Any, mask: Any, image_index: Any, text_index: Any) -> RawOutputs:
        import torch

        with torch.inference_mode():
            token = self._token(features)[image_index]
            text = torch.cat([text[text_index], token], dim=1)
            mask = torch.nn.functional.pad(mask[text_index], (0, 1), value=True)
        return super().detect(features, text, mask, image_index, torch.arange(len(text), device=text.device))

    def _token(self, features: Any) -> Any:
        """The geometry encoder's output [B,1,C] where there are no boxes: its class token alone."""
        encoder = self.model.geometry_encoder
        # the coarsest map that the detector reads; a fourth follows, which it drops
        image, position = (
            levels[-2].flatten(2).transpose(1, 2)
            for levels in (features.fpn_hidden_states, features.fpn_position_encoding)
        )
        token = encoder.prompt_layer_norm(encoder.final_proj(encoder.cls_embed.weight)).expand(len(image), 1, -1)
        for layer in encoder.layers:
            token = layer(prompt_feats=token, vision_feats=image, vision_pos_encoding=position, prompt_mask=None)
        return encoder.output_layer_norm(token)


def vocabulary() -> Path:
    """The vocabulary of CLIP's tokenizer in open_clip_torch, which is not imported. Raises UserError if there is none."""
    spec = importlib.util.find_spec("open_clip")
    for place in spec.submodule_search_locations or () if spec else ():
        if (Path(place) / VOCABULARY).exists():
            return Path(place) / VOCABULARY
    raise UserError(f"Meta's package comes without {VOCABULARY}, and open_clip_torch has it: {install.META}")


def _of_pairs(outputs: list[RawOutputs]) -> RawOutputs:
    return RawOutputs(*map(list, zip(*outputs, strict=True)))


def _tensor_bytes(value: Any) -> int:
    """Of the tensors in a dict or list of dicts, lists and tensors."""
    if isinstance(value, dict | list | tuple):
        return sum(map(_tensor_bytes, value.values() if isinstance(value, dict) else value))
    return getattr(value, "nbytes", 0)
