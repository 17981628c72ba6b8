"""SAM 3 in three stages, after transformers' models/sam3, lean and exact."""

from torch import nn

from sam3lab.model.config import Config, check_resolution
from sam3lab.model.detector import Detector
from sam3lab.model.image_encoder import ImageEncoder
from sam3lab.model.text_encoder import TextEncoder


class Sam3(nn.Module):
    """The three stages at one resolution: `image_encoder`, `text_encoder` and `detector`, each a module of its own.

    Shapes are fixed by the resolution, and no stage branches on data or waits for the device. Raises UserError where
    the resolution is not a positive multiple of 14.
    """

    def __init__(self, config: Config, resolution: int | None = None):
        super().__init__()
        side = config.image_size if resolution is None else resolution
        self.config, self.resolution = config, check_resolution(side)
        self.image_encoder = ImageEncoder(config, self.resolution)
        self.text_encoder = TextEncoder(config)
        self.detector = Detector(config, self.resolution)

    def forward(self, pixels, ids, mask, image_index, text_index):
        """Raw detections of the pairs: the detector's outputs for uint8 pixels [B,3,S,S] and token ids [P,32]."""
        text = self.text_encoder(ids, mask)
        return self.detector(*self.image_encoder(pixels), text, mask, image_index, text_index)
