"""The article's claims (data/claims.csv): their figures, for prose, and the table of what became of each."""

import csv
from dataclasses import dataclass

from sam3lab import paths
from sam3lab.study import numbers

REPRODUCED, CONTRADICTED, UNTESTED = "reproduced", "contradicted", "not testable here"
BACKENDS = {"pytorch": "transformers"}  # the article's PyTorch is native PyTorch
NAMES = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "any": ""}
# What a claim is of, in the two or three words that a figure has room for.
_SHORT = {
    ("latency", "1024"): "time",
    ("latency", "512"): "time at 512",
    ("latency", "1536"): "time at 1536",
    ("speedup", "1024"): "speed",
    ("speedup", "1536"): "speed-up by size",
    ("growth", "1536/512"): "time by size",
    ("memory", "1024"): "memory",
    ("memory", "int8"): "memory in int8",
    ("throughput", "1024"): "images per s",
    ("startup", ""): "start-up",
    ("added_latency", "description"): "description",
    ("added_latency", "objects"): "several objects",
}


@dataclass(frozen=True)
class Claim:
    """One row of claims.csv; `condition` is a resolution, a kind of prompt, or another circumstance of the claim."""

    id: str
    section: str
    claim: str
    metric: str
    runtime: str
    condition: str
    value: float
    unit: str

    @property
    def backend(self) -> str:
        return BACKENDS.get(self.runtime, self.runtime)

    @property
    def name(self) -> str:
        """Of the runtime, as the article calls it; empty where it is none in particular."""
        return NAMES[self.runtime]

    @property
    def short(self) -> str:
        """Its id, and on a second line what it is of, for a row of a figure."""
        return f"{self.id} {self.name}\n{_SHORT[self.metric, self.condition]}"

    @property
    def stated(self) -> dict:
        """The article's figure, as it stands there, as a record of numbers.json."""
        unit = "×" if self.unit == "ratio" else self.unit
        return numbers.number(self.value, unit) | {"text": f"{self.value:g}{unit if unit == '×' else ' ' + unit}"}


def load() -> list[Claim]:
    with (paths.DATA / "claims.csv").open(newline="", encoding="utf-8") as file:
        return [Claim(**row | {"value": float(row["value"])}) for row in csv.DictReader(file)]


def records() -> dict[str, dict]:
    """The article's figures under the keys that prose may name: `claim.L1`, …"""
    return {f"claim.{claim.id}": claim.stated for claim in load()}


def column(metric: str, condition: str) -> dict[str, float]:
    """{runtime: the article's figure} for one metric."""
    return {each.backend: each.value for each in load() if (each.metric, each.condition) == (metric, condition)}


def table(judged):
    """The verdicts of sam3lab.study.judging as a frame: id, section, claim, article, tested, here, verdict, why.

    tested: the figure that is held against what was measured here, which of an absolute figure is a ratio to another.
    """
    import pandas as pd

    rows = [
        (
            each.claim.id,
            each.claim.section,
            each.claim.claim,
            each.claim.stated["text"] if each.claim.value else "–",  # a sentence without a figure
            each.tested or "–",
            each.here or "–",
            each.verdict,
            each.why,
        )
        for each in judged
    ]
    return pd.DataFrame(rows, columns=["id", "section", "claim", "article", "tested", "here", "verdict", "why"])


def shown(table):
    """The frame of `table` under headings for people."""
    return table.set_axis(["Id", "Section", "Claim", "Article", "Tested", "Here", "Verdict", "Why"], axis="columns")


def counts(table) -> dict[str, int]:
    """How many claims have each verdict, by its first word."""
    return {verdict.split()[0]: int((table["verdict"] == verdict).sum()) for verdict in VERDICTS}


VERDICTS = (REPRODUCED, CONTRADICTED, UNTESTED)
