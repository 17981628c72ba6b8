"""Measure SAM 3 under several inference runtimes, prove that they agree, and publish the figures."""

import os

os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as NVML counts: device 0 is the same GPU to both

__version__ = "0.1.0"
