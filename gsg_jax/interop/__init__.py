"""Weights in and out of PyTorch's checkpoints, every float32 tensor exactly."""
