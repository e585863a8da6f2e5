"""The detection example begins with the exported weights, all of them, and trains them."""

import importlib.util
import math
import pathlib

import pytest
import safetensors.torch
import torch
import torchvision

from tests.interop.test_forward import scrambled
from tests.interop.test_round_trip import to_file, to_run

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inside PyTorch
SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "detection.py"


def plain_nms(boxes, scores, iou_threshold):
    """By a loop: a box stays unless one of a higher score that stays covers it."""
    kept = []
    for index in torch.argsort(scores, descending=True).tolist():
        covered = kept and torchvision.ops.box_iou(boxes[index][None], boxes[kept]).max()
        if not kept or covered <= iou_threshold:
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


@pytest.fixture
def operators(monkeypatch):
    """Stands in for the operators that torchvision has not beside another PyTorch."""
    if torchvision.extension._has_ops():
        yield
        return
    monkeypatch.setattr(torchvision.ops.boxes, "nms", plain_nms)
    with torch.compiler.set_stance("force_eager"):  # of its own stand-in for RoIAlign
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    network = scrambled(torchvision.models.resnet18())
    to_run(network.state_dict(), folder, wrapper="", prefix="")
    return to_file(folder, "weights.safetensors", "torchvision")[0]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("detection", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--masks"]])
def test_two_steps_on_generated_boxes_move_every_layer(script, weights, operators, flags, tmp_path):
    size = ["--min-size=128", "--epochs=1", "--batch-size=2", "--boxes=16"]
    output = tmp_path / "detector.pt"
    command = [f"--weights={weights}", "--dataset=generated", f"--output={output}", *size, *flags]
    losses = script.main(command)["last_losses"]
    assert len(losses) == 4 + len(flags)
    assert all(math.isfinite(loss) for loss in losses.values())
    detector, before = torch.load(output), safetensors.torch.load_file(weights)
    for name, tensor in before.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        after = detector[f"backbone.body.{name}"]
        assert after.shape == tensor.shape and not torch.equal(after, tensor), name
        assert (after - tensor).abs().max() < 5, name


def test_weights_of_another_network_are_refused(script, tmp_path):
    (tmp_path / "w.safetensors.json").write_text('{"architecture": null, "backbone": "vit_tiny"}')
    with pytest.raises(SystemExit, match="vit_tiny"):
        script.main([f"--weights={tmp_path / 'w.safetensors'}", "--dataset=generated"])
