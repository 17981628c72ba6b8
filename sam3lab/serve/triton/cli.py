"""`sam3lab triton-repository`: a model repository for Triton."""

import argparse
from pathlib import Path

from sam3lab.errors import UserError
from sam3lab.serve.triton.settings import BACKENDS, RUNTIMES, Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add(
        "--out", required=True, type=Path, metavar="DIR", help="an empty or new directory, which becomes the repository"
    )
    add("--backend", default="onnxruntime", choices=BACKENDS, help="Triton's back end (default: %(default)s)")
    add("--checkpoint", default="sam3-nano", help="name or directory (default: %(default)s)")
    add("--resolution", type=int, help="image side in pixels, a multiple of 14 (default: the checkpoint's own)")
    add("--precision", help="fp32, tf32, fp16 or bf16 (default: fp16 for tensorrt, else fp32)")
    add("--device", choices=("cpu", "cuda"), help="default: cuda for tensorrt, else cpu")
    add("--runtime", choices=RUNTIMES, help="what the models of --backend python compute with (default: pytorch)")
    add("--max-batch", type=int, default=8, metavar="N", help="images computed at once (default: %(default)s)")
    add(
        "--max-prompts",
        type=int,
        default=16,
        metavar="N",
        help="prompts that a request may have (default: %(default)s)",
    )
    add("--instances", type=int, default=1, metavar="N", help="of each model, on each device (default: %(default)s)")
    add(
        "--queue",
        type=int,
        default=64,
        metavar="N",
        help="requests that wait for a model, 0 for any number (default: %(default)s)",
    )
    add("--queue-delay", type=float, default=2.0, metavar="MS", help="milliseconds that a request waits for others "
        "(default: %(default)s)")  # fmt: skip
    add(
        "--queue-timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds that it waits at all (default: %(default)s)",
    )
    add("--threads", type=int, default=0, metavar="N", help="CPU threads of one instance (default: every core)")


def run(args: argparse.Namespace) -> int:
    """Write the repository; prints what lies where."""
    from sam3lab.model.checkpoint import image_size, resolve
    from sam3lab.model.config import check_resolution
    from sam3lab.serve.triton import repository

    if args.runtime and args.backend != "python":
        raise UserError(f"--runtime is for --backend python alone, and {args.backend} is its own: leave it out")
    checkpoint = resolve(args.checkpoint)
    tensorrt = args.backend == "tensorrt"
    settings = Settings(
        checkpoint=checkpoint,
        name=args.checkpoint,
        resolution=check_resolution(image_size(checkpoint) if args.resolution is None else args.resolution),
        backend=args.backend,
        precision=args.precision or ("fp16" if tensorrt else "fp32"),
        device=args.device or ("cuda" if tensorrt else "cpu"),
        runtime=args.runtime or "pytorch",
        max_batch=args.max_batch,
        max_prompts=args.max_prompts,
        instances=args.instances,
        queue=args.queue,
        queue_delay=args.queue_delay / 1000,
        queue_timeout=args.queue_timeout,
        threads=args.threads,
    )
    repository.write(args.out, settings)
    print(f"{args.checkpoint} at {settings.resolution}², {settings.backend} {settings.precision} on {settings.device}")
    for path in sorted(args.out.rglob("*")):
        if path.is_file():
            print(f"  {path}  {path.stat().st_size / 1e6:.2f} MB")
    print(f"{args.out / 'README.md'} says how to serve it.")
    return 0
