"""What is measured: one frozen record, whose canonical JSON is its name."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from sam3lab.errors import UserError
from sam3lab.model.config import PATCH

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8", "fp8")
DEVICES = ("cpu", "cuda")
MODES = ("speed", "model", "pipeline", "reference", "accuracy", "cold")
_SCENES = re.compile(r"scenes/([^/:]+)(?::([1-9]\d*))?")


@dataclass(frozen=True)
class Case:
    """One configuration of one backend.

    checkpoint: name or directory (see model.checkpoint.resolve). resolution: image side in pixels, a multiple of 14.
    batch: images a call; the images are used cyclically, and those beyond the batch not at all. prompts: each is asked
    of each image, so that a call has N = batch × len(prompts) image–prompt pairs. threads: CPU threads, 0 for every
    core the process may use. replica: tells apart A/A twins, which are otherwise equal.

    mode: "speed" measures every stage; "model" leaves out end_to_end; "pipeline" measures that stage alone; "cold"
    measures starting up alone, once a round, with nothing compiled, exported or built before (see bench.cold);
    "reference" measures nothing and only keeps the raw outputs that others are compared with; "accuracy" measures no
    time, but what is found in a stored split of scenes (see `accuracy_case`), which is its only image, "scenes/test" or
    "scenes/test:64", and brings prompts of its own, so that prompts is ("*",) and batch 1. Raises UserError, naming the
    field and the remedy, for bad values.
    """

    checkpoint: str = "sam3-nano"
    backend: str = "transformers"
    precision: str = "fp32"
    resolution: int = 252
    batch: int = 1
    prompts: tuple[str, ...] = ("cat",)
    images: tuple[str, ...] = ("astronaut",)
    mode: str = "speed"
    device: str = "cpu"
    threads: int = 0
    replica: int = 0

    def __post_init__(self):
        for name in ("prompts", "images"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
                example = repr(value) if isinstance(value, str) else "'text'"
                raise UserError(f"{name} must be a list of texts, not {value!r}; write [{example}] for a single one")
            if not value or not all(item.strip() for item in value):
                raise UserError(f"{name} {list(value)!r} is empty or has an empty entry; give at least one text")
            object.__setattr__(self, name, tuple(value))
        for name in ("checkpoint", "backend"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UserError(f"{name} must be a name, not {getattr(self, name)!r}")
        for name, allowed in (("precision", PRECISIONS), ("device", DEVICES), ("mode", MODES)):
            if getattr(self, name) not in allowed:
                raise UserError(f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(allowed)}")
        for name, least in (("resolution", PATCH), ("batch", 1), ("threads", 0), ("replica", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if self.resolution % PATCH:
            near = round(self.resolution / PATCH) * PATCH
            raise UserError(f"resolution {self.resolution} is not a multiple of {PATCH}; use {near}")
        if self.mode == "accuracy":
            if self.prompts != ("*",) or self.batch != 1:
                raise UserError(
                    'an accuracy case has the prompts of its split and batch 1; use prompts=("*",), batch=1'
                )
            if len(self.images) != 1 or not _SCENES.fullmatch(self.images[0]):
                raise UserError(f"images {list(self.images)} name no split; write scenes/test, or scenes/test:64")

    @property
    def id(self) -> str:
        """12 hex digits of the canonical JSON's SHA-256: equal cases have equal ids, in every process and run."""
        return _digest(self.to_json())

    @property
    def inputs_id(self) -> str:
        """12 hex digits for what the model is fed. Cases that share them must give the same outputs."""
        return _digest([self.checkpoint, self.resolution, self.batch, self.prompts, self.images])

    @property
    def once(self) -> bool:
        """Whether it answers in round 0 only, because a second answer would be the same."""
        return self.mode in ("reference", "accuracy")

    @property
    def split(self) -> tuple[str, int | None]:
        """The name of an accuracy case's split, and how many of its scenes count, None for all."""
        name, scenes = _SCENES.fullmatch(self.images[0]).groups()
        return name, scenes and int(scenes)

    @property
    def pairs(self) -> int:
        """N, the image–prompt pairs of one call."""
        return self.batch * len(self.prompts)

    @property
    def label(self) -> str:
        """Short text for tables and progress; names what is unusual, and is not always unique."""
        parts = [self.backend, self.precision, f"{self.resolution}²"]
        if self.checkpoint != Case.checkpoint:
            parts.insert(0, self.checkpoint.rstrip("/").rsplit("/", 1)[-1])
        if self.device != Case.device:
            parts.append(self.device)
        if self.batch > 1:
            parts.append(f"batch {self.batch}")
        if len(self.prompts) > 1:
            parts.append(f"{len(self.prompts)} prompts")
        if self.threads:
            parts.append(f"{self.threads} threads")
        if self.mode in ("reference", "cold"):
            parts.append(f"({self.mode})")
        if self.mode == "accuracy":
            parts.append(f"on {self.images[0]}")
        if self.replica:
            parts.append("(A/A twin)" if self.replica == 1 else f"(A/A twin {self.replica})")
        return " ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them (lists for tuples)."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Case":
        """The case of a dict of fields; absent ones take their defaults. Raises UserError for an unknown field."""
        if not isinstance(fields, dict):
            raise UserError(f"a case is a table of fields, not {fields!r}")
        unknown = set(fields) - set(FIELDS)
        if unknown:
            raise UserError(f"a case has no field {', '.join(sorted(unknown))}; the fields are {', '.join(FIELDS)}")
        return cls(**fields)


FIELDS = tuple(field.name for field in dataclasses.fields(Case))


def accuracy_case(case: Case, split: str = "test", scenes: int | None = None) -> Case:
    """The accuracy twin of a case: the same checkpoint, backend, precision, resolution, device and threads, on the first
    `scenes` scenes of a stored split, None for all of them. Raises UserError for a bad name or number.
    """
    if scenes is not None and scenes < 1:
        raise UserError(f"scenes must be a whole number of at least 1, not {scenes}")
    images = (f"scenes/{split}" + ("" if scenes is None else f":{scenes}"),)
    return dataclasses.replace(case, mode="accuracy", batch=1, prompts=("*",), images=images, replica=0)


def _digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
