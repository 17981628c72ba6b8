"""What deploying a runtime takes, counted: packages, megabytes, commands, seconds of making, lines of code.

For each backend data/deployment has the script that its user writes: complete, with neither more nor less than it takes
to load what is deployed and to turn a photograph and a prompt into a mask. The commands that come before and after are
in its docstring, one a line that begins with "$ ".
"""

import ast
import importlib.metadata
import io
import re
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lab.paths import DATA

if TYPE_CHECKING:
    import pandas as pd

SCRIPTS = DATA / "deployment"
COLUMNS = ["backend", "packages", "installed_mb", "steps", "export_s", "build_s", "lines"]
# Where a module's name is not its distribution's. The lean model is a folder of this project that needs these two.
_DISTRIBUTIONS = {"PIL": ("pillow",), "sam3lab": ("torch", "safetensors")}
_COUNTED_FROM = "numpy"  # every runtime has it, and it is not counted
_BLANK = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def table(device: str = "", samples: "pd.DataFrame | None" = None) -> "pd.DataFrame":
    """One row for each backend that has a script; COLUMNS. What is not known here is None. device: "cpu" or "cuda", empty
    for cuda where there is a GPU.

    packages: distributions that the script's imports need beyond NumPy, those that they require in turn among them.
    installed_mb: their files, MB (10^6 bytes). None for both where one of the imports is not installed. steps: commands
    from a bare Python to the mask. lines: of the script, that hold code. What no package index has is not counted: the
    GPU's driver, and the C++ compiler that torch.compile asks for.
    samples: rows of results.load with cold cases of one configuration, and those of the same started warm. export_s: the
    seconds until the graphs were on disk. build_s: what else is made before the first result, in `prepare` and, over what
    a warm start takes for it, in the first call. Medians over the rounds.
    """
    import pandas as pd

    from sam3lab.nvml import gpu

    device = device or ("cuda" if gpu() else "cpu")
    rows = []
    for backend, script in scripts().items():
        found = required(distributions(script, device))
        size = None if found is None else round(sum(map(installed_bytes, found)) / 1e6, 1)
        export, build = (None, None) if samples is None else made(samples, backend)
        packages = None if found is None else len(found)
        measured = {
            "backend": backend,
            "packages": packages,
            "installed_mb": size,
            "export_s": export,
            "build_s": build,
        }
        rows.append(measured | counted(script))
    frame = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
    return frame.where(frame.notna(), None)


def scripts() -> dict[str, Path]:
    """{backend: its script}, by name."""
    found = sorted(SCRIPTS.glob("run_*.py"))
    return {script.stem.removeprefix("run_").replace("_", "-"): script for script in found}


def counted(script: Path) -> dict[str, int]:
    """What of a row needs no machine."""
    return {"steps": len(steps(script)), "lines": code_lines(script)}


def steps(script: Path) -> list[str]:
    """The commands in a script's docstring."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


def code_lines(script: Path) -> int:
    """How many lines hold code: no comment, no blank line, no docstring of the script."""
    source = script.read_text(encoding="utf-8")
    body = ast.parse(source).body
    first = body[1].lineno if ast.get_docstring(ast.parse(source)) else 1
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _BLANK and token.start[0] >= first:
            held.update(range(token.start[0], token.end[0] + 1))
    return len(held)


def distributions(script: Path, device: str) -> list[str]:
    """The distributions, as requirements, that a script's imports come from, but NumPy and the standard library."""
    import sys

    modules = set()
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.partition(".")[0])
    named = [
        name
        for module in sorted(modules - sys.stdlib_module_names - {_COUNTED_FROM})
        for name in _DISTRIBUTIONS.get(module, (module,))
    ]
    # on a GPU it is another distribution, and the libraries that it computes with are an extra of it
    gpu = {"onnxruntime": "onnxruntime-gpu[cuda,cudnn]"} if device == "cuda" else {}
    return list(dict.fromkeys(gpu.get(name, name) for name in named))


def required(requirements: Iterable[str]) -> list[importlib.metadata.Distribution] | None:
    """The installed distributions that these requirements need on this machine, each once, NumPy left out.

    None where one of the requirements themselves is not installed. Of what they require in turn, what is installed
    counts: a library of NVIDIA's also under another CUDA's name, since that is what is loaded then.
    """
    from packaging.requirements import Requirement

    found: dict[str, importlib.metadata.Distribution] = {}
    asked: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), True) for text in requirements]
    while waiting:
        requirement, own = waiting.pop()
        distribution = _installed(requirement.name)
        if distribution is None:
            if own:
                return None
            continue
        name = canonical(distribution.name)
        found[name] = distribution
        for extra in ("", *requirement.extras):
            if (name, extra) not in asked:
                asked.add((name, extra))
                inner = map(Requirement, distribution.requires or ())
                waiting += [(r, False) for r in inner if r.marker is None or r.marker.evaluate({"extra": extra})]
    found.pop(_COUNTED_FROM, None)
    return [found[name] for name in sorted(found)]


def installed_bytes(distribution: importlib.metadata.Distribution) -> int:
    """The size of the files that a distribution's RECORD lists."""
    return sum(file.size or 0 for file in distribution.files or ())


def made(samples: "pd.DataFrame", backend: str) -> tuple[float | None, float | None]:
    """(export_s, build_s) of a backend, see `table`; (None, None) where it has no cold case among the samples."""
    own = samples[(samples["backend"] == backend) & (samples["replica"] == 0)]

    def median(stage: str, phase: str, metric: str) -> float | None:
        chosen = own[(own["stage"] == stage) & (own["phase"] == phase) & (own["metric"] == metric)]["value"]
        return float(chosen.median()) if len(chosen) else None

    export, build, first = (median("process", "cold", metric) for metric in ("export", "build", "first"))
    if export is None:
        return None, None
    warm = median("pipeline", "first", "wall")
    return export, build + (0.0 if warm is None else max(first - warm / 1e3, 0.0))


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(name: str) -> importlib.metadata.Distribution | None:
    stem = re.sub(r"-cu\d+$", "", canonical(name))
    others = (stem, *(f"{stem}-cu{version}" for version in (13, 12))) if stem.startswith("nvidia-") else ()
    for each in (name, *others):
        try:
            return importlib.metadata.distribution(each)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
