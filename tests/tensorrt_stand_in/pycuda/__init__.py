"""What data/deployment/run_tensorrt.py takes of PyCUDA, in the host's memory."""
