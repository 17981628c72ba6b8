"""`sam3lab export`: the ONNX graphs of a checkpoint."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--model-name", required=True, help="facebook/sam3, sam3, sam3-huge, sam3-nano or a directory")
    parser.add_argument("--output-dir", required=True, type=Path, help="where the graphs and their manifest go")
    parser.add_argument(
        "--resolution", type=int, help="image side in pixels, a multiple of 14 (default: the native one)"
    )
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "fp16-mixed", "bf16-mixed"))
    parser.add_argument(
        "--target",
        default="portable",
        choices=("portable", "onnxruntime-cuda"),
        help="standard operators alone (default), or ONNX Runtime's own, for its CUDA provider: features are [B,h,w,C] "
        "there, and the detector takes as many prompts of every image, text_index [images, prompts of each]",
    )
    parser.add_argument("--opset", type=int, help="ONNX opset (default: the one chosen in sam3lab/export/onnx.py)")


def run(args: argparse.Namespace) -> int:
    """Export (or find in the cache) and copy; prints what lies where."""
    from sam3lab.export import cache, manifest
    from sam3lab.model.checkpoint import image_size, resolve

    checkpoint = resolve(args.model_name)
    resolution = image_size(checkpoint) if args.resolution is None else args.resolution
    source = cache.graphs(checkpoint, resolution, args.precision, args.opset, args.target)
    fresh = cache.copy(source, args.output_dir)
    facts = manifest.verify(args.output_dir)
    print(
        f"{args.model_name} at {facts['resolution']}², {facts['precision']}, {facts['target']}, opset {facts['opset']}",
        end="",
    )
    print("" if fresh else " (was there already)")
    for name, entry in facts["files"].items():
        print(f"  {args.output_dir / name}  {entry['bytes'] / 1e6:.1f} MB  sha256 {entry['sha256'][:12]}")
    return 0
