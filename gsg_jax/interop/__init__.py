"""Weights that travel: PyTorch's checkpoints in and out, float32 tensor by tensor, exactly."""
