"""`sam3lab train`: sam3-nano from nothing, or on from where a run stopped."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--output", required=True, type=Path, help="folder for the state, the log and the checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    parser.add_argument("--device", help="cuda, cuda:1, cpu … (default: cuda where there is one)")
    parser.add_argument("--steps", type=int, default=14000, help="length of the schedule (default %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="scenes a step, 4 prompts each (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=8e-4, help="its peak (default %(default)s)")
    parser.add_argument("--resolution", type=int, help="image side in pixels (default: the native one)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights (default %(default)s)")
    parser.add_argument("--workers", type=int, help="processes that draw scenes (default: by the cores; 0 for none)")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="fuse the model with torch.compile (default: on cuda)",
    )
    parser.add_argument("--stop", type=int, help="stop after this step of the schedule")
    parser.add_argument("--limit-seconds", type=float, help="stop after this wall time; --resume goes on exactly")
    parser.add_argument("--log-every", type=int, default=50, help="steps a row of the log (default %(default)s)")
    parser.add_argument("--validate-every", type=int, default=1000, help="steps (default %(default)s)")
    parser.add_argument("--hardware", help="what the model card says it was trained on (default: the device's name)")


def run(args: argparse.Namespace) -> int:
    """Train; then publish the averaged weights, whether or not the schedule was finished; 130 after Ctrl-C, which saves.

    Raises UserError for options that cannot be, before anything is written.
    """
    import os
    import sys

    import torch

    from sam3lab.errors import UserError
    from sam3lab.train.architecture import nano
    from sam3lab.train.learner import Settings
    from sam3lab.train.loop import LOG, STATE, train
    from sam3lab.train.publish import publish

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check(args, device)
    cuda = device.startswith("cuda")
    settings = Settings(
        steps=args.steps,
        batch=args.batch,
        learning_rate=args.learning_rate,
        precision=args.precision,
        resolution=args.resolution,
        seed=args.seed,
    )
    torch.backends.cudnn.benchmark = cuda  # shapes never change: it pays to try every algorithm once
    raw = nano()
    try:
        learner = train(
            raw,
            settings,
            args.output,
            device,
            workers=min(6, (os.cpu_count() or 2) // 2) if args.workers is None else args.workers,
            compiled=cuda if args.compile is None else args.compile,
            resume=args.resume,
            stop=args.stop,
            seconds=args.limit_seconds,
            log_every=args.log_every,
            validate_every=args.validate_every,
        )
    except KeyboardInterrupt:
        saved = (args.output / STATE).exists()
        again = "with --resume goes on from what was saved" if saved else "starts again: nothing was saved yet"
        print(f"interrupted; the same command {again}", file=sys.stderr)
        return 130
    if not learner.step:
        raise UserError(
            f"--limit-seconds {args.limit_seconds:g} was over before the first step: give more, with --resume"
        )
    hardware = args.hardware or (torch.cuda.get_device_name(device) if cuda else "CPU")
    checkpoint = args.output / "sam3-nano"
    publish(learner.average, raw, settings, args.output / LOG, checkpoint, hardware)
    print(f"step {learner.step} of {settings.steps}: {checkpoint}")
    return 0


def _check(args: argparse.Namespace, device: str) -> None:
    """Raises UserError for what is no setting of the run itself, which Settings checks."""
    import torch

    from sam3lab.errors import UserError

    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and (kind == "cpu" or not number.isdecimal())):
        raise UserError(f"--device {device} is none of cpu, cuda, cuda:0, cuda:1 …")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        raise UserError(
            f"--device {device}: PyTorch sees {seen or 'no'} GPU{'s' * (seen > 1)} here; give --device cpu, or another"
        )
    for name, least in {"workers": 0, "stop": 1, "log_every": 1, "validate_every": 1}.items():
        if (value := getattr(args, name)) is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}: give at least {least}")
    if args.limit_seconds is not None and not args.limit_seconds > 0:
        raise UserError(f"--limit-seconds is {args.limit_seconds}: give more than 0")
