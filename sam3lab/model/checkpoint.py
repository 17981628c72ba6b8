"""Checkpoints: by name to a directory in facebook/sam3's format, and from there to the lean model."""

import hashlib
import json
import re
from pathlib import Path

from sam3lab import atomic
from sam3lab.errors import UserError
from sam3lab.model.config import ARCHITECTURES, config_file, read_config
from sam3lab.paths import DATA, cache_dir

HUB = "facebook/sam3"
TRAINED = ("sam3-nano",)  # random weights do not stand in for these
FILES = [
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special*",
]


def resolve(name: str) -> Path:
    """The directory of a checkpoint in facebook/sam3's format (config.json, safetensors, its tokenizer if it has one).

    `name` is a directory; `facebook/sam3`, fetched from the hub with the user's own access; `sam3-nano`, which lies in
    data/checkpoints; or `sam3`, `sam3-huge`: the one in data/checkpoints if there is one, else that architecture with
    seeded random weights, written to the cache once. Raises UserError that says what to do where there is no such
    checkpoint.
    """
    if name in ARCHITECTURES:
        if shipped := _shipped(name):
            return shipped
        if name in TRAINED:
            raise UserError(
                f"{DATA / 'checkpoints'} has no {name}, whose weights come with a clone of sam3lab: install that (pip "
                "install -e), name it in SAM3LAB_ROOT, or give another checkpoint (sam3 has random weights)"
            )
        from sam3lab.model.random import cached

        return cached(name)
    if Path(name).is_dir():
        return Path(name).resolve()
    if name == HUB:
        return _from_hub(name)
    raise UserError(f"no checkpoint {name!r}: give {HUB}, {', '.join(ARCHITECTURES)}, or an existing directory")


def is_random(name: str) -> bool:
    """Whether there are no trained weights of that name here; `resolve` then gives seeded random ones, or refuses.

    Nothing is made for the answer.
    """
    return name in ARCHITECTURES and not _shipped(name)


def _shipped(name: str) -> Path | None:
    """Its directory in data/checkpoints, None where there is none: an installed wheel has no data."""
    place = DATA / "checkpoints" / name
    return place if (place / "config.json").exists() else None


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except GatedRepoError:
        why = "is gated"
    except Exception as error:  # the hub client raises whatever its transport does; the remedy is the same
        why = f"cannot be fetched ({type(error).__name__})"
    raise UserError(
        f"{name} {why}: accept its licence on huggingface.co/{name} and run `hf auth login`, "
        "or give a directory that holds it, or use --checkpoint sam3 (the same architecture, random weights)"
    ) from None


def image_size(directory: Path) -> int:
    """The native resolution of a checkpoint in pixels, from its config.json."""
    return read_config(directory).image_size


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sharded or not, or both: then the single one, as transformers reads it.

    Raises UserError where there are none or only pickles.
    """
    directory = Path(directory)
    if (directory / "model.safetensors").exists():
        return [directory / "model.safetensors"]
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{index} is damaged ({error}): download the checkpoint again") from error
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise UserError(f"{index} names files outside its directory: {', '.join(outside[:3])}")
        files = [directory / name for name in names]
        absent = [path.name for path in files if not path.exists()]
        if absent:
            raise UserError(f"{directory} lacks the weights {', '.join(absent)}: download the checkpoint again")
        return files
    pickles = sorted(p.name for p in directory.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"))
    if pickles:
        raise UserError(
            f"{directory} has its weights in {pickles[0]}, a pickle, which can run code when read: convert it to safetensors"
        )
    raise UserError(f"{directory} has no model.safetensors: give a directory in {HUB}'s format")


def weight_bytes(directory: Path) -> int:
    """How large those files are together."""
    return sum(path.stat().st_size for path in weight_files(directory))


def read_tensors(directory: Path, device: str = "cpu", dtype=None) -> dict:
    """The tensors of a checkpoint by the reference's names, without the prefix that the video model gives its detector.

    dtype: a torch dtype that each is given as soon as it is read; None for the file's own. Those that this code never
    reads (`weights.unused`) stay on disk, and leave their names with None in their place. Raises UserError for a damaged
    file.
    """
    from safetensors import SafetensorError, safe_open

    from sam3lab.model.weights import unused

    tensors = {}
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt", device=device) as file:
                for stored in file.keys():  # noqa: SIM118 (not a mapping)
                    name = stored.removeprefix("detector_model.")
                    tensors[name] = None if unused(name) else file.get_tensor(stored).to(dtype)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a whole safetensors file ({error}): download it again") from error
    return tensors


def load_model(directory: Path, resolution: int | None = None, dtype=None, device: str = "cpu"):
    """The lean model (`Sam3`, in evaluation mode) with the weights of a checkpoint.

    resolution: image side in pixels, a multiple of 14; None for the checkpoint's own. dtype: a torch dtype, float32
    where it is None, whatever the file holds. Raises UserError as read_config, read_tensors and from_reference do.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    from sam3lab.model.sam3 import Sam3
    from sam3lab.model.weights import from_reference

    class Undrawn(TorchFunctionMode):
        """Leaves weights as they are: to draw them even on the meta device, PyTorch would import its compiler."""

        def __torch_function__(self, function, types, args=(), kwargs=None):
            if getattr(function, "__module__", "") == "torch.nn.init":
                return args[0] if args else kwargs["tensor"]
            return function(*args, **kwargs or {})

    with torch.device("meta"), Undrawn():
        model = Sam3(read_config(directory), resolution)
    dtype = dtype or torch.float32
    model.load_state_dict(from_reference(model, read_tensors(directory, device, dtype)), assign=True)
    return model.eval().requires_grad_(False).to(device=device, dtype=dtype)


def fingerprint(directory: Path) -> str:
    """SHA-256 (hex) over a checkpoint's config.json and weights; remembered while size and time of change stay.

    Raises UserError where one of them is absent.
    """
    files = [config_file(directory), *weight_files(directory)]
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    note = cache_dir("fingerprints") / hashlib.sha256(repr(stats).encode()).hexdigest()
    if note.exists() and re.fullmatch(b"[0-9a-f]{64}", known := note.read_bytes()):
        return known.decode()
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    atomic.write(note, whole.hexdigest().encode())
    return whole.hexdigest()
