"""The weights of a run for PyTorch, with a card that describes them.

    python -m gsg_jax.main --config=configs/export.py --config.pretrained=DIR \
        --config.output=FILE --config.layout=torchvision

FILE ends in .safetensors or .pth (detectron2: .pkl, onnx: .onnx); FILE.json is its card. With
layout timm a name without a dot becomes a folder in the format of the Hugging Face Hub.

Source: the layouts are those of torchvision, timm, detectron2 and the papers' own checkpoints.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config of the job."""
    return ConfigDict(
        {
            "job": "export",
            "pretrained": "",  # the --workdir of a run
            "output": "",
            "layout": "torchvision",  # or "timm", "reference" (heads too), "detectron2", "onnx"
        }
    )
