"""The reference: transformers' own Sam3Model, untouched, in eager mode. The "native PyTorch" row of every table."""

from typing import Any

from sam3lab.backends.base import Artifacts, RawOutputs
from sam3lab.backends.torch_base import TorchBackend


class TransformersBackend(TorchBackend):
    """`Sam3Model.from_pretrained` with the image and text features passed between its own methods."""

    name = "transformers"
    packages = ("torch", "transformers")

    def load(self, artifacts: Artifacts) -> None:
        dtype = self.configure(artifacts)
        from transformers import Sam3Config, Sam3Model
        from transformers.utils import logging

        logging.disable_progress_bar()
        config = Sam3Config.from_pretrained(artifacts.checkpoint)
        config = getattr(config, "detector_config", None) or config
        config.image_size = artifacts.resolution
        model = Sam3Model.from_pretrained(artifacts.checkpoint, config=config, dtype=dtype, local_files_only=True)
        self.model = model.eval().requires_grad_(False).to(self.device)

    def image(self, pixels: Any) -> Any:
        import torch

        with torch.inference_mode():
            values = (pixels.float() / 255 - 0.5) / 0.5  # as its image processor rescales and normalises
            vision = self.model.get_vision_features(values)
        return (*vision.fpn_hidden_states, *vision.fpn_position_encoding)

    def text(self, ids: Any, mask: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self.model.get_text_features(ids, attention_mask=mask).pooler_output

    def detect(self, features: Any, text: Any, mask: Any, image_index: Any, text_index: Any) -> RawOutputs:
        import torch
        from transformers.modeling_outputs import BaseModelOutputWithPooling
        from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

        with torch.inference_mode():
            picked = [level[image_index] for level in features]
            maps, positions = picked[: len(picked) // 2], picked[len(picked) // 2 :]
            vision = Sam3VisionEncoderOutput(fpn_hidden_states=tuple(maps), fpn_position_encoding=tuple(positions))
            out = self.model(
                vision_embeds=vision,
                text_embeds=BaseModelOutputWithPooling(pooler_output=text[text_index]),
                attention_mask=mask[text_index],
            )
        return RawOutputs(out.pred_logits, out.presence_logits, out.pred_boxes, out.pred_masks, out.semantic_seg)
