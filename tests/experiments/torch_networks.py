"""Networks of public PyTorch code, written anew from their descriptions, with weights drawn at random."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Of a residual network: basic or bottleneck, stride on the 3x3; `shortcut` as the codes have it."""

    def __init__(self, inputs, planes, stride, bottleneck, shortcut, wide=1):
        super().__init__()
        outer = planes * 4 if bottleneck else planes
        inner = planes * wide
        sizes = [(inputs, inner, 1), (inner, inner, 3), (inner, outer, 1)]
        if not bottleneck:
            sizes = [(inputs, planes, 3), (planes, outer, 3)]
        strided = 2 if bottleneck else 1
        for i, (a, b, size) in enumerate(sizes, 1):
            step = stride if i == strided else 1
            self.add_module(f"conv{i}", nn.Conv2d(a, b, size, step, size // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        self.count, self.stride, self.more = len(sizes), stride, outer - inputs
        self.cut = shortcut if stride > 1 or inputs != outer else "same"
        if self.cut in ("downsample", "shortcut"):
            parts = nn.Conv2d(inputs, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
            self.add_module(self.cut, nn.Sequential(*parts))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.count else y
        if self.cut == "pad":  # every other pixel, and channels of zeros on both sides
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        elif self.cut != "same":
            x = getattr(self, self.cut)(x)
        return F.relu(x + y)


class ResNet(nn.Module):
    def __init__(self, blocks, planes, bottleneck, shortcut, large, classes, head="linear", wide=1):
        super().__init__()
        size, stride = (7, 2) if large else (3, 1)
        self.conv1 = nn.Conv2d(3, planes[0], size, stride, size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.large, self.stages, inputs = large, len(blocks), planes[0]
        for stage, (count, width) in enumerate(zip(blocks, planes, strict=True)):
            layers = []
            for i in range(count):
                layers.append(Block(inputs, width, 2 if stage and not i else 1, bottleneck, shortcut, wide))
                inputs = width * 4 if bottleneck else width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        conv = lambda bias: nn.Conv2d(inputs, classes, 1, bias=bias)  # noqa: E731
        self.fc = nn.Linear(inputs, classes) if head == "linear" else conv(head == "conv")

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1) if self.large else x
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        x = x.mean((2, 3))
        return self.fc(x) if isinstance(self.fc, nn.Linear) else self.fc(x[:, :, None, None]).flatten(1)


class VGG(nn.Module):
    """Lottery Jackpots' VGG-19 with BatchNorm, or torchvision's VGG-16 without."""

    PLAN = (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M")
    PLAN_16 = (8, 8, "M", 16, 16, "M", *[32] * 3, "M", *[64] * 3, "M", *[64] * 3, "M")  # an eighth as wide

    def __init__(self, plan, norm, classes):
        super().__init__()
        layers, inputs = [], 3
        for width in plan:
            if width == "M":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers.append(nn.Conv2d(inputs, width, 3, padding=1, bias=not norm))
            layers += [nn.BatchNorm2d(width)] * norm + [nn.ReLU()]
            inputs = width
        self.features, self.norm = nn.Sequential(*layers), norm
        self.classifier = nn.Conv2d(inputs, classes, 1)
        if not norm:
            hidden = nn.Linear(49 * inputs, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 512)
            self.classifier = nn.Sequential(*hidden, nn.ReLU(), nn.Dropout(), nn.Linear(512, classes))

    def forward(self, x):
        x = self.features(x)
        if self.norm:
            return self.classifier(x.mean((2, 3), keepdim=True)).flatten(1)
        return self.classifier(F.adaptive_avg_pool2d(x, 7).flatten(1))


class ConvN(nn.Module):
    """Multi-Prize tickets' Conv-2 or 4: dense layers are convolutions of one pixel, nothing has a bias."""

    def __init__(self, depth, classes, side=32):
        super().__init__()
        layers, inputs = [], 3
        for i in range(depth):
            layers += [nn.Conv2d(inputs, width := 64 * 2 ** (i // 2), 3, padding=1, bias=False), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] * (i % 2)
            inputs = width
        self.convs = nn.Sequential(*layers)
        flat = inputs * (side // 2 ** (depth // 2)) ** 2
        one = lambda a, b: nn.Conv2d(a, b, 1, bias=False)  # noqa: E731
        self.linear = nn.Sequential(one(flat, 256), nn.ReLU(), one(256, 256), nn.ReLU(), one(256, classes))

    def forward(self, x):
        return self.linear(self.convs(x).flatten(1)[:, :, None, None]).flatten(1)


def drawn(network, seed=0):
    """With everything drawn anew, running statistics too, in inference mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.ndim > 1:
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("weight"):  # scales of both signs: a pooling before one is seen
                value.uniform_(0.5, 1.5, generator=generator)
                value *= torch.where(torch.rand(value.shape, generator=generator) < 0.3, -1.0, 1.0)
            elif value.is_floating_point():
                value.normal_(0, 0.2, generator=generator)
    return network.eval()
