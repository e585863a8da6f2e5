"""Weights that travel: PyTorch's checkpoints in and out, tensor by tensor, exactly."""
