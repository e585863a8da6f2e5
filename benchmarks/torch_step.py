"""A PyTorch train step of SimSiam and BYOL, with and without guided stop-gradient.

The reference: every view is a separate forward pass through the online branch, and through the EMA
target if there is one, in float32. The tuned step: channels last, bfloat16 autocast and
torch.compile of the networks. Written from the papers' equations for versus_torch.py and gpu.py.
"""

import contextlib

import torch
from torch import nn
from torch.nn import functional

MODES = ("reference", "channels_last", "tuned")
STAGES = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(inputs, width, stride)

    def forward(self, x):
        """Maps [N, C, H, W] to [N, width, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = shortcut(inputs, 4 * width, stride)

    def forward(self, x):
        """Maps [N, C, H, W] to [N, 4 width, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        return functional.relu(self.bn3(self.conv3(y)) + self.shortcut(x), inplace=True)


def shortcut(inputs, outputs, stride):
    """The identity, or a strided 1x1 projection where the block changes the shape."""
    if inputs == outputs and stride == 1:
        return nn.Identity()
    projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(outputs))


class Encoder(nn.Module):
    """A ResNet and the projector behind it, of `config.model`."""

    def __init__(self, model, channels):
        super().__init__()
        block = Bottleneck if model.backbone == "resnet50" else Basic
        if model.stem == "imagenet":
            stem = nn.Conv2d(channels, model.width, 7, 2, padding=3, bias=False)
            pool = nn.MaxPool2d(3, 2, padding=1)
        else:
            stem = nn.Conv2d(channels, model.width, 3, model.stem_stride, padding=1, bias=False)
            pool = nn.Identity()
        layers = [stem, nn.BatchNorm2d(model.width), nn.ReLU(inplace=True), pool]
        inputs = model.width
        for stage in range(model.num_stages):
            width = model.width * 2**stage
            for index in range(STAGES[model.backbone][stage]):
                layers.append(block(inputs, width, 2 if stage and not index else 1))
                inputs = width * block.expansion
        self.backbone = nn.Sequential(*layers)
        layers, hidden = [], model.projector_hidden_width
        for _ in range(model.projector_layers - 1):
            layers += [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
            inputs = hidden
        outputs = model.projector_width
        last = nn.BatchNorm1d(outputs, affine=False)
        self.projector = nn.Sequential(*layers, nn.Linear(inputs, outputs, bias=False), last)

    def forward(self, images):
        """Maps views [B, C, H, W] to projections [B, D]."""
        return self.projector(self.backbone(images).mean(dim=(2, 3)))


class Step:
    """The step of a method: call it with a list of views [B, C, H, W]."""

    def __init__(self, config, mode, device):
        torch.manual_seed(0)
        model, optim = config.model, config.optim
        self.num_views, self.decay = config.method.num_views, config.method.ema_decay
        self.is_guided = config.method.name.endswith("_gsg")
        self.format = torch.contiguous_format if mode == "reference" else torch.channels_last
        self.device, self.is_tuned = device, mode == "tuned"
        torch.backends.cudnn.benchmark = self.is_tuned
        hidden, width = model.predictor_hidden_width, model.projector_width
        predictor = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, width),
        )
        channels = len(config.views.mean)
        self.encoder = self._placed(Encoder(model, channels))
        self.predictor = self._placed(predictor)
        self.target = None
        if config.method.target == "ema":
            self.target = self._placed(Encoder(model, channels)).requires_grad_(False)
            self.target.load_state_dict(self.encoder.state_dict())
        self.optimizer = torch.optim.SGD(
            [*self.encoder.parameters(), *self.predictor.parameters()],
            lr=optim.learning_rate * config.data.batch_size / 256,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
        )

    def placed_views(self, views):
        """Views [B, V, H, W, C] as the step takes them: a list of [B, C, H, W] on the device."""
        views = torch.as_tensor(views, device=self.device).permute(1, 0, 4, 2, 3)
        return [view.contiguous(memory_format=self.format) for view in views]

    def __call__(self, views):
        """One step; returns the loss."""
        loss = self._loss(views)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.target is not None:
            pairs = zip(self.target.parameters(), self.encoder.parameters(), strict=True)
            with torch.no_grad():
                for target, online in pairs:
                    target.lerp_(online, 1 - self.decay)
        return loss.detach()

    def _placed(self, module):
        module = module.to(device=self.device, memory_format=self.format).train()
        return torch.compile(module) if self.is_tuned else module

    def _loss(self, views):
        with self._precision():
            z = [self.encoder(view) for view in views]
            p = [self.predictor(of_view).float() for of_view in z]
            if self.target is None:
                targets = [of_view.detach() for of_view in z]
            else:
                with torch.no_grad():
                    targets = [self.target(view) for view in views]
        targets = [of_view.float() for of_view in targets]
        return guided(p, targets) if self.is_guided else asymmetric(p, targets)

    def _precision(self):
        if not self.is_tuned:
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)


def asymmetric(p, targets):
    """Mean negative cosine of every prediction and every other view's target."""
    pairs = [(v, u) for v in range(len(p)) for u in range(len(p)) if u != v]
    losses = [functional.cosine_similarity(p[v], targets[u]).mean() for v, u in pairs]
    return -sum(losses) / len(losses)


def guided(p, targets):
    """The closest of the four view pairs of an image and its reference become the sources.

    Views 0 and 1 are the image's; views 2 and 3 of another image, its reference, by a permutation.
    """
    reference = torch.randperm(len(p[0]), device=p[0].device)
    p, targets = torch.stack(p), torch.stack(targets)
    p_i, p_r = p[:2], p[2:, reference]
    z_i, z_r = targets[:2], targets[2:, reference]
    distances = torch.linalg.vector_norm(z_i[:, None] - z_r[None, :], dim=-1)  # [2, 2, B]
    closest = distances.reshape(4, -1).argmin(dim=0)
    a, b, rows = closest // 2, closest % 2, torch.arange(len(reference), device=p.device)
    of_image = functional.cosine_similarity(p_i[a, rows], z_i[1 - a, rows])
    of_reference = functional.cosine_similarity(p_r[b, rows], z_r[1 - b, rows])
    return -(of_image + of_reference).mean() / 2
