"""Lets torchvision be imported beside a PyTorch it was not built for.

PyPI's torchvision is built for CUDA: beside PyTorch for CPUs it cannot load its operators. Its
networks need none of them, but importing it asks for the name of one.
"""

import importlib.util

if importlib.util.find_spec("torch"):
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):
        OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
