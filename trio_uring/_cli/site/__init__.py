"""The folder that `python -m trio_uring run` puts in front of PYTHONPATH; not to be imported."""
