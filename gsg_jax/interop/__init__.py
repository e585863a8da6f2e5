"""Weights from and to PyTorch checkpoints, every float32 tensor exactly."""
