"""The command line. Each command's module, and what it imports, is loaded only when that command runs."""

import argparse
import errno
import importlib
import os
import sys
from pathlib import Path

from sam3lab import __version__
from sam3lab.errors import UserError

# name: (module, function that adds its options, function that runs it, one line of help)
COMMANDS = {
    "doctor": (
        "sam3lab.bench.cli",
        "add_doctor_arguments",
        "doctor",
        "what this machine can run, and why not the rest",
    ),
    "study": ("sam3lab.study.cli", "add_study_arguments", "study", "run every notebook and write the report"),
    "measure": ("sam3lab.bench.cli", "add_measure_arguments", "measure", "measure a list of cases"),
    "segment": ("sam3lab.segment", "add_arguments", "run", "find what prompts name in an image of your own"),
    "export": ("sam3lab.export.cli", "add_arguments", "run", "write a checkpoint's ONNX graphs"),
    "build-engine": (
        "sam3lab.export.engine_cli",
        "add_arguments",
        "run",
        "build TensorRT engines of a checkpoint's graphs",
    ),
    "triton-repository": (
        "sam3lab.serve.triton.cli",
        "add_arguments",
        "run",
        "write a model repository for Triton Inference Server",
    ),
    "train": ("sam3lab.train.cli", "add_arguments", "run", "train sam3-nano on rendered scenes"),
    "serve": ("sam3lab.serve.cli", "add_arguments", "run", "start the web page and the HTTP API"),
    "figures": ("sam3lab.study.cli", "add_figures_arguments", "figures", "render all figures from stored results"),
}
# Errors of a disk that is full, found in the middle of a file, whose name is no more told.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status: 2 for bad input, with one line that says what to do."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="sam3lab", description=sys.modules["sam3lab"].__doc__)
    parser.add_argument("--version", action="version", version=f"sam3lab {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, add_arguments, _, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:
            getattr(importlib.import_module(module), add_arguments)(subparser)
    args = parser.parse_args(argv)
    module, _, run, _ = COMMANDS[args.command]
    try:
        status = getattr(importlib.import_module(module), run)(args)
        _tell_random(args)
        return status
    except UserError as error:
        print(f"sam3lab {args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _FULL and not _of_the_user(error):
            raise
        place = "a file" if error.filename is None else os.fsdecode(error.filename)
        print(
            f"sam3lab {args.command}: cannot read or write {place} ({error.strerror}): name "
            "another place in the options; SAM3LAB_CACHE moves the cache, and SAM3LAB_ROOT what lies in runs/",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 130


def _tell_random(args: argparse.Namespace) -> None:
    """Say on stderr that weights are random, for the commands whose own output does not tell."""
    name = getattr(args, "checkpoint", None) or getattr(args, "model_name", None)
    if name is None or args.command not in ("export", "build-engine", "measure", "triton-repository"):
        return
    from sam3lab.model.checkpoint import is_random

    if is_random(name):
        print(f"The weights of {name} are random: what it finds means nothing.", file=sys.stderr)


def _of_the_user(error: OSError) -> bool:
    """Whether it is about a named file outside this package: one that is missing in it is a mistake of ours."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return False
    place = Path(os.path.realpath(os.fsdecode(error.filename)))
    return not place.is_relative_to(Path(__file__).resolve().parent)


if __name__ == "__main__":
    sys.exit(main())
