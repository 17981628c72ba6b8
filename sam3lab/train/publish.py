"""A trained model as a directory in facebook/sam3's format, with a model card that says where it came from."""

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from sam3lab.model.sam3 import Sam3
from sam3lab.model.weights import to_reference
from sam3lab.train import log, vocabulary
from sam3lab.train.learner import Settings
from sam3lab.train.losses import WEIGHTS


def publish(model: Sam3, raw: dict, settings: Settings, log_file: Path, target: Path, hardware: str) -> None:
    """Write `target`: config.json, model.safetensors (float16), the tokenizer, README.md and the log as training.csv;
    whole or not at all.

    The weights are all those of transformers' Sam3Model. Those that text prompts do not use (the geometry encoder …)
    are untrained: what transformers draws for them.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    content, tensors = reference(model, raw)
    (work / "config.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    save_file(tensors, work / "model.safetensors", metadata={"format": "pt"})
    vocabulary.write(work)
    shutil.copyfile(log_file, work / "training.csv")
    (work / "README.md").write_text(card(model, settings, log_file, work / "model.safetensors", hardware))
    work.chmod(0o755)  # mkdtemp's and save_file's files are their owner's alone
    (work / "model.safetensors").chmod(0o644)
    shutil.rmtree(target, ignore_errors=True)
    work.rename(target)


def reference(model: Sam3, raw: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    """The content of config.json and the tensors of transformers' Sam3Model, floats as float16."""
    from transformers import Sam3Config, Sam3Model

    full = Sam3Config(**raw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors = Sam3Model(full).state_dict()
    trained = {name: value.cpu() for name, value in to_reference(model).items()}
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous().clone()
        for name, value in (tensors | trained).items()
    }
    # dtype: what a reader computes in, not what the file holds
    return full.to_dict() | {"architectures": ["Sam3Model"], "dtype": "float32"}, tensors


def card(model: Sam3, settings: Settings, log_file: Path, weights: Path, hardware: str) -> str:
    """The model card: what the model is, what it was trained on and how, and how it scored while it was."""
    from sam3lab.scenes.grammar import COLOURS, HELD_OUT, SHAPES, SIZES, TEXTURES
    from sam3lab.scenes.specification import MAX_OBJECTS

    attributes = (("shape", SHAPES), ("colour", COLOURS), ("texture", TEXTURES), ("size", SIZES))

    rows = log.read(log_file)
    scored = log.validations(rows)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    parameters = sum(p.numel() for p in model.parameters())
    facts = {
        "parameters (text prompts)": f"{parameters / 1e6:.2f} M",
        "native resolution": f"{model.resolution} × {model.resolution}",
        "SHA-256 of model.safetensors": f"`{digest}`",
        "steps": f"{rows[-1]['step']} of a schedule of {settings.steps}" if rows else "0",
        "scenes seen": f"{int(rows[-1]['step']) * settings.batch:,}" if rows else "0",
        "wall time": f"{float(rows[-1]['seconds']) / 60:.1f} minutes" if rows else "none",
        "hardware": hardware,
        "torch": torch.__version__,
    }
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: transformers",
        "pipeline_tag: mask-generation",
        "tags: [sam3, segmentation, synthetic]",
        "---",
        "",
        "# sam3-nano",
        "",
        "A small SAM 3 (text-prompted instance segmentation), trained from nothing on rendered scenes by",
        "`sam3lab train`. It is made for measuring runtimes with accuracy beside speed. It knows the objects below",
        "and nothing else.",
        "",
        *table(("fact", "value"), facts.items()),
        "",
        "## Data",
        "",
        f"Scenes of `sam3lab.scenes`, rendered during training: up to {MAX_OBJECTS} objects over crops of",
        "scikit-image's photographs or over gradients. A prompt names a size, a texture, a colour and a shape in any subset, or lists",
        "several such phrases.",
        "",
        *table(("attribute", "values"), [(name, ", ".join(words)) for name, words in attributes]),
        "",
        f"{len(HELD_OUT)} of the {len(SHAPES) * len(COLOURS) * len(TEXTURES)} combinations of shape,",
        "colour and texture occur in no training scene and no training prompt; the compositional split asks for them.",
        "Training used the seeds from 0 on, which no other split has.",
        "",
        "## Training",
        "",
        *table(("setting", "value"), asdict(settings).items()),
        "",
        *table(("loss term", "weight"), WEIGHTS.items()),
        "",
        "## Validation during training",
        "",
        "The averaged weights on the validation split, detections above a score of 0.5.",
        "",
    ]
    if scored:
        names = [name for name in scored[-1] if name != "seconds"]
        shown = scored[-1:] if len(scored) < 2 else [scored[i * (len(scored) - 1) // 4] for i in range(5)]
        shown = list({row["step"]: row for row in shown}.values())
        lines += table([n.removeprefix("val_") for n in names], [[f"{row[n]:.5g}" for n in names] for row in shown])
    else:
        lines.append("None: the run ended before the first validation.")
    return "\n".join(lines) + "\n"


def table(head, rows) -> list[str]:
    """The lines of a Markdown table."""
    line = "| " + " | ".join("---" for _ in head) + " |"
    return ["| " + " | ".join(map(str, cells)) + " |" if cells else line for cells in (head, (), *rows)]
