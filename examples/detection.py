"""Fine-tunes torchvision's Faster R-CNN or Mask R-CNN from an exported ResNet, in PyTorch.

    python examples/detection.py --weights=resnet50.safetensors --data=$HOME/VOC --dataset=voc

FILE.safetensors and its card FILE.safetensors.json come from configs/export.py with layout
torchvision. `voc` reads VOCdevkit/ below --data (boxes only), `coco` reads train2017/ and
annotations/ (boxes, and masks with --masks), `generated` draws rectangles to try the script.
Nothing is downloaded. The last line of standard output is one JSON object with the losses.

Source: the protocol of He et al., CVPR 2020 (arXiv 1911.05722), section 4.2: all layers are tuned,
BatchNorm included. Differs from the reference: torchvision's FPN heads, and BatchNorm over the
images of one device.
"""

import argparse
import json
import pathlib

import safetensors.torch
import torch
import torchvision
from torchvision import transforms
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
NUM_COCO_CLASSES = 90  # the highest category's number


def main(arguments: list[str] | None = None) -> dict:
    """Trains and saves; returns the figures of the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=pathlib.Path, required=True)
    parser.add_argument("--dataset", choices=("voc", "coco", "generated"), default="voc")
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--masks", action="store_true", help="Mask R-CNN; not on voc")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--min-size", type=int, default=800, help="of an image's shorter side")
    parser.add_argument("--boxes", type=int, default=512, help="proposals trained on, an image")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("detector.pt"))
    args = parser.parse_args(arguments)
    if args.masks and args.dataset == "voc":
        parser.error("--masks: voc has only boxes; take --dataset=coco")
    if args.dataset != "generated" and (args.data is None or not args.data.is_dir()):
        parser.error(f"--data={args.data}: there is no such folder")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, num_classes = open_images(args)
    network = build_detector(args, num_classes).to(device).train()
    losses = train(network, images, args, device)
    torch.save(network.state_dict(), args.output)
    figures = {"images": len(images), "first_losses": losses[0], "last_losses": losses[-1]}
    print(json.dumps(figures))
    return figures


def build_detector(args: argparse.Namespace, num_classes: int) -> FasterRCNN:
    """Builds a detector whose backbone starts from all of the exported weights."""
    card = json.loads(args.weights.with_name(args.weights.name + ".json").read_text())
    if not (card["architecture"] or "").startswith("resnet"):
        raise SystemExit(f"{args.weights}: torchvision has no such ResNet ({card['backbone']})")
    backbone = resnet_fpn_backbone(
        backbone_name=card["architecture"],
        weights=None,
        norm_layer=torch.nn.BatchNorm2d,
        trainable_layers=5,
    )
    tensors = safetensors.torch.load_file(args.weights)
    body = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    backbone.body.load_state_dict(body, strict=True)
    build = MaskRCNN if args.masks else FasterRCNN
    return build(
        backbone,
        num_classes + 1,  # class 0 is the background
        image_mean=card["mean"],
        image_std=card["std"],
        min_size=args.min_size,
        box_batch_size_per_image=args.boxes,
    )


def train(network, images, args: argparse.Namespace, device) -> list[dict[str, float]]:
    """Trains by SGD with a short warm-up and two drops; returns every step's losses."""
    loader = torch.utils.data.DataLoader(
        images, args.batch_size, shuffle=True, collate_fn=_in_columns
    )
    optimizer = torch.optim.SGD(
        network.parameters(), args.learning_rate, momentum=0.9, weight_decay=1e-4
    )
    num_steps = args.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1, (step + 1) / 100)
            * 0.1 ** ((step >= num_steps * 3 / 4) + (step >= num_steps * 11 / 12))
        ),
    )
    losses = []
    for epoch in range(args.epochs):
        for pictures, targets in loader:
            pictures = [picture.to(device) for picture in pictures]
            targets = [{key: value.to(device) for key, value in t.items()} for t in targets]
            parts = network(pictures, targets)
            optimizer.zero_grad()
            sum(parts.values()).backward()
            optimizer.step()
            schedule.step()
            losses.append({name: loss.item() for name, loss in parts.items()})
        print(f"epoch {epoch + 1}: {sum(losses[-1].values()):.4f}", flush=True)
    return losses


def _in_columns(batch: list[tuple]) -> tuple:
    return tuple(zip(*batch, strict=True))


def open_images(args: argparse.Namespace) -> tuple[torch.utils.data.Dataset, int]:
    """Returns images with their boxes, and the number of classes."""
    if args.dataset == "generated":
        return Rectangles(), 2
    if args.dataset == "voc":
        return Voc(args.data), len(VOC_CLASSES)
    coco = torchvision.datasets.CocoDetection(
        args.data / "train2017",
        args.data / "annotations" / "instances_train2017.json",
        transform=transforms.ToTensor(),
    )
    keys = ("boxes", "labels", "masks") if args.masks else ("boxes", "labels")
    coco = torchvision.datasets.wrap_dataset_for_transforms_v2(coco, target_keys=keys)
    has_boxes = [n for n in range(len(coco)) if coco._load_target(coco.ids[n])]
    return torch.utils.data.Subset(coco, has_boxes), NUM_COCO_CLASSES


class Voc(torch.utils.data.Dataset):
    """PASCAL VOC 2007's trainval."""

    def __init__(self, folder: pathlib.Path):
        self.images = torchvision.datasets.VOCDetection(folder, year="2007", image_set="trainval")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        image, annotation = self.images[index]
        objects = annotation["annotation"]["object"]
        edges = ("xmin", "ymin", "xmax", "ymax")
        boxes = [[float(o["bndbox"][edge]) for edge in edges] for o in objects]
        labels = [VOC_CLASSES.index(o["name"]) + 1 for o in objects]
        target = {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}
        return transforms.functional.to_tensor(image), target


class Rectangles(torch.utils.data.Dataset):
    """Four images of bright and dark rectangles on noise, drawn from their number."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        draw = torch.Generator().manual_seed(index)
        image = 0.4 + 0.2 * torch.rand(3, 128, 128, generator=draw)
        masks = torch.zeros(2, 128, 128, dtype=torch.uint8)
        boxes = []
        for label in (0, 1):
            x, y = torch.randint(0, 64, (2,), generator=draw).tolist()
            width, height = torch.randint(24, 60, (2,), generator=draw).tolist()
            image[:, y : y + height, x : x + width] = float(label)
            masks[label, y : y + height, x : x + width] = 1
            boxes.append([float(x), float(y), float(x + width), float(y + height)])
        labels = torch.tensor([1, 2])
        return image, {"boxes": torch.tensor(boxes), "labels": labels, "masks": masks}


if __name__ == "__main__":
    main()
