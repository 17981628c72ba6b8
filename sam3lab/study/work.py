"""What a case costs by itself: the arithmetic of one call, and the bytes that a runtime loads. Nothing is run for it."""

from pathlib import Path


def flops(directory: Path, resolution: int, prompts: int = 1) -> int:
    """Floating-point operations of one image of that side and so many prompts, a multiply-add being two.

    Products of matrices and convolutions are counted, as torch.utils.flop_counter does, on a model without weights;
    everything else is a small part of them in a transformer of this kind.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from sam3lab.model.config import CONTEXT, read_config
    from sam3lab.model.sam3 import Sam3

    with torch.device("meta"):
        model = Sam3(read_config(directory), resolution).eval().to("meta")
        pixels = torch.zeros(1, 3, resolution, resolution, dtype=torch.uint8)
        ids, pairs = torch.zeros(prompts, CONTEXT, dtype=torch.long), torch.zeros(prompts, dtype=torch.long)
        # The fused attention kernels of some devices are not counted; the plain one is two products.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(pixels, ids, ids == 0, pairs, pairs)
    return counter.get_total_flops()


def loaded_bytes(case) -> int:
    """Bytes on disk of what the case's runtime reads: the weights of the checkpoint, or the graphs made of them."""
    from sam3lab import backends
    from sam3lab.backends.base import Artifacts
    from sam3lab.model import checkpoint

    wanted = Artifacts(checkpoint.resolve(case.checkpoint), case.resolution, case.precision, case.device, case.threads)
    made = backends.get(case.backend).prepare(wanted)
    files = checkpoint.weight_files(made.checkpoint) if made.graphs is None else sorted(made.graphs.iterdir())
    return sum(path.stat().st_size for path in files)


def sizes(study, cases) -> dict[tuple[str, str], float]:
    """{(backend, precision): MB on disk} of what each case loads; kept among the facts of the study."""
    return {
        (case.backend, case.precision): study.fact(f"size.{case.id}", lambda case=case: loaded_bytes(case)) / 1e6
        for case in cases
    }
