"""The reference: transformers' own Sam3Model, untouched, in eager mode. The "native PyTorch" row of every table."""

from collections.abc import Sequence
from typing import Any

from sam3lab.backends.base import Artifacts, RawOutputs
from sam3lab.backends.torch_base import TorchBackend
from sam3lab.errors import UserError


class TransformersBackend(TorchBackend):
    """`Sam3Model.from_pretrained` with the image and text features passed between its own methods."""

    name = "transformers"
    packages = ("torch", "transformers")

    def load(self, artifacts: Artifacts) -> None:
        """Raises UserError for a damaged checkpoint, and for one whose tensors are not all that its config.json asks for."""
        dtype = self.configure(artifacts)
        from safetensors import SafetensorError
        from transformers import Sam3Config, Sam3Model
        from transformers.utils import logging

        from sam3lab.model.weights import refuse

        logging.disable_progress_bar()
        config = Sam3Config.from_pretrained(artifacts.checkpoint)
        config = getattr(config, "detector_config", None) or config
        config.image_size = artifacts.resolution
        try:
            model, report = Sam3Model.from_pretrained(
                artifacts.checkpoint,
                config=config,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
        except SafetensorError as error:
            raise UserError(
                f"the weights in {artifacts.checkpoint} are no whole safetensors files ({error}): download them again"
            ) from error
        # it warns of these, and draws random numbers in their place
        refuse("lacks", report["missing_keys"])
        refuse("has tensors of other shapes", (name for name, *_ in report["mismatched_keys"]))
        self.model = model.eval().requires_grad_(False).to(self.device)

    def image(self, pixels: Any) -> Any:
        import torch

        with torch.inference_mode():
            # rescaled and normalised as its image processor does
            return self.model.get_vision_features((pixels.float() / 255 - 0.5) / 0.5)

    def text(self, ids: Any, mask: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self.model.get_text_features(ids, attention_mask=mask).pooler_output

    def detect(self, features: Any, text: Any, mask: Any, image_index: Any, text_index: Any) -> RawOutputs:
        import torch
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        with torch.inference_mode():
            vision = type(features)(
                fpn_hidden_states=tuple(level[image_index] for level in features.fpn_hidden_states),
                fpn_position_encoding=tuple(level[image_index] for level in features.fpn_position_encoding),
            )
            out = self.model(
                vision_embeds=vision,
                text_embeds=BaseModelOutputWithPooling(pooler_output=text[text_index]),
                attention_mask=mask[text_index],
            )
        return RawOutputs(out.pred_logits, out.presence_logits, out.pred_boxes, out.pred_masks, out.semantic_seg)

    def gather(self, parts: Sequence[tuple[Any, tuple[int, ...]]]) -> Any:
        if not hasattr(parts[0][0], "fpn_hidden_states"):
            return super().gather(parts)
        maps, positions = super().gather([(self._parts(value), index) for value, index in parts])
        return type(parts[0][0])(fpn_hidden_states=maps, fpn_position_encoding=positions)

    def nbytes(self, value: Any) -> int:
        return super().nbytes(self._parts(value) if hasattr(value, "fpn_hidden_states") else value)

    @staticmethod
    def _parts(features: Any) -> tuple:
        return tuple(features.fpn_hidden_states), tuple(features.fpn_position_encoding)

    def download(self, value: Any) -> Any:
        # its features also hold a fourth map, which it drops, and position encodings
        return super().download(tuple(value.fpn_hidden_states[:3]) if hasattr(value, "fpn_hidden_states") else value)
