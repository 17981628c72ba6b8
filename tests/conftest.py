"""What several test files share: a SAM 3 small enough to compare on, and a cache of the tests' own."""

import os
import signal
import tempfile

# before anything of sam3lab is imported, so that worker processes inherit it too
os.environ.setdefault("SAM3LAB_CACHE", os.path.join(tempfile.gettempdir(), "sam3lab-tests"))

import pytest

# A shell starts jobs in the background with interrupts ignored, which children inherit: some tests interrupt theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DETR = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "dropout": 0.0}
SMALL = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "window_size": 3,
            "global_attn_indexes": [1, 3],
            "image_size": 84,
            "pretrain_image_size": 56,
        },
        "fpn_hidden_size": 32,
    },
    "text_config": {
        "model_type": "clip_text_model",
        "vocab_size": 60,
        "hidden_size": 24,
        "intermediate_size": 40,
        "projection_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "hidden_act": "gelu",
    },
    "geometry_encoder_config": DETR | {"num_layers": 1, "roi_size": 2},
    "detr_encoder_config": DETR,
    "detr_decoder_config": DETR | {"num_queries": 7},
    "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 4},
}


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory):
    """A directory in facebook/sam3's format with a small architecture and random weights. Do not write into it."""
    from sam3lab.model.random import write_random

    directory = tmp_path_factory.mktemp("small")
    write_random(directory, SMALL, seed=3)
    return directory
