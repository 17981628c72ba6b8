"""Measure SAM 3 under several inference runtimes, prove that they agree, and publish the figures."""

__version__ = "0.1.0"
