"""The detection example begins with the exported weights, all of them, and trains them."""

import json
import math
import runpy

import pytest
import safetensors.numpy

from tests.interop.networks import torch, torchvision
from tests.runs import ROOT

pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),  # inside PyTorch
]
MAIN = runpy.run_path(str(ROOT / "examples" / "detection.py"))["main"]


def plain_nms(boxes, scores, iou_threshold):
    """A plain loop: a box is kept unless a kept one of a higher score covers it."""
    overlap = torchvision.ops.box_iou(boxes, boxes).numpy()
    kept, covered = [], torch.zeros(len(boxes), dtype=torch.bool).numpy()
    for index in torch.argsort(scores, descending=True).tolist():
        if not covered[index]:
            kept.append(index)
            covered |= overlap[index] > iou_threshold
    return torch.tensor(kept, dtype=torch.int64)


@pytest.fixture
def operators(monkeypatch):
    """Stands in for the operators that torchvision lacks beside another PyTorch."""
    if torchvision.extension._has_ops():
        yield
        return
    monkeypatch.setattr(torchvision.ops.boxes, "nms", plain_nms)
    with torch.compiler.set_stance("force_eager"):  # of its own stand-in for RoIAlign
        yield


def exported(path):
    """Writes a file and its card, as the export job does; returns the tensors."""
    state_dict = torchvision.models.resnet18().state_dict()
    tensors = {name: tensor.numpy() for name, tensor in state_dict.items()}
    safetensors.numpy.save_file(tensors, path)
    card = {"architecture": "resnet18", "mean": [0.485, 0.456, 0.406], "std": [0.2, 0.2, 0.2]}
    path.with_name(f"{path.name}.json").write_text(json.dumps(card))
    return state_dict


def test_two_steps_on_generated_boxes_move_every_layer(operators, tmp_path):
    weights = tmp_path / "weights.safetensors"
    before = exported(weights)
    output = tmp_path / "detector.pt"
    command = [f"--weights={weights}", "--dataset=generated", f"--output={output}", "--masks"]
    command += ["--min-size=128", "--epochs=1", "--batch-size=2", "--boxes=16"]
    losses = MAIN(command)["last_losses"]
    assert len(losses) == 5
    assert all(math.isfinite(loss) for loss in losses.values())
    detector = torch.load(output)
    for name, tensor in before.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        after = detector[f"backbone.body.{name}"]
        assert after.shape == tensor.shape and not torch.equal(after, tensor), name
        assert (after - tensor).abs().max() < 5, name


def test_weights_of_another_network_are_refused(tmp_path):
    (tmp_path / "w.safetensors.json").write_text('{"architecture": null, "backbone": "vit_tiny"}')
    with pytest.raises(SystemExit, match="vit_tiny"):
        MAIN([f"--weights={tmp_path / 'w.safetensors'}", "--dataset=generated"])
