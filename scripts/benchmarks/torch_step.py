"""A training step of ResNet-50 with masks at density 0.2 against PyTorch's (extra `torch`).

The same weights, masks, batch and SGD in both, masks multiplied into the weights in PyTorch. On a GPU
batch 256 at 224x224 in bfloat16, PyTorch with `torch.compile`, channels_last, autocast and fused SGD;
on a CPU batch 8 at 96x96 in float32, PyTorch eager and channels_last.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from benchmarks.mask_overhead import random_batch, start, stepper
from giung2_ext.methods import ticket
from giung2_ext.models import resnet


class Net(torch.nn.Module):
    """torchvision's network over flat lists of layers, numbered as our leaves are."""

    def __init__(self, params, masks):
        super().__init__()
        count = sum(name.startswith("Conv_") for name in params)
        tensor = lambda x: torch.tensor(np.asarray(x, np.float32))  # noqa: E731
        kernel = lambda tree, i: tensor(tree[f"Conv_{i}"]["kernel"]).permute(3, 2, 0, 1).contiguous()  # noqa: E731
        self.kernels = torch.nn.ParameterList([kernel(params, i) for i in range(count)])
        for i in range(count):
            self.register_buffer(f"mask_{i}", kernel(masks, i))
        self.norms = torch.nn.ModuleList([torch.nn.BatchNorm2d(k.shape[0]) for k in self.kernels])
        for i, norm in enumerate(self.norms):
            norm.weight.data = tensor(params[f"BatchNorm_{i}"]["scale"])
        self.cls = torch.nn.Linear(*params["cls"]["kernel"].shape)
        self.cls.weight.data = tensor(params["cls"]["kernel"]).T.contiguous()
        self.cls.bias.data = tensor(params["cls"]["bias"])

    def layer(self, i, x, stride=1):
        kernel = self.kernels[i] * getattr(self, f"mask_{i}")
        return self.norms[i](functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2))

    def forward(self, pixels_BHWC):
        x = (pixels_BHWC.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        x = functional.max_pool2d(functional.relu(self.layer(0, x, 2)), 3, 2, 1)
        i = 1
        for stage, blocks in enumerate(resnet.BLOCKS[50]):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                y = functional.relu(self.layer(i, x))
                y = functional.relu(self.layer(i + 1, y, stride))
                y = self.layer(i + 2, y)
                x = functional.relu(y + (x if block else self.layer(i + 3, x, stride)))
                i += 3 if block else 4
        return self.cls(x.mean((2, 3)))


def torch_stepper(params, kept, data, steps, low):
    gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
    device = "cuda" if gpu else "cpu"
    net = Net(params, kept).to(device, memory_format=torch.channels_last)
    forward = torch.compile(net) if low else net
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-4, fused=gpu)
    images = torch.tensor(np.asarray(data["images"]), device=device)
    labels = torch.tensor(np.asarray(data["labels"]), device=device).long()

    def advance():
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=low):
                loss = functional.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
        return loss.item()

    return advance


def make(smoke, data_root):
    gpu = jax.default_backend() == "gpu"
    size, batch, steps = (224, 256, 20) if gpu else (96, 8, 1)
    if smoke:
        size, batch, steps = 64, 4, 1

    def network(dtype):
        return resnet.build(1000, dtype, padding="torch", head="biased", zero_init=False)

    params, statistics, kept = start(network(jnp.float32), (size, size, 3))
    few = random_batch((64, 64, 3), 4, 1000)
    check = stepper(network(jnp.float32), ticket.build(), params, statistics, kept, few, 1)
    rival = torch_stepper(params, kept, few, 1, low=False)
    losses = np.array([[check(), rival()] for _ in range(3)])
    assert losses[-1, 0] < 0.8 * losses[0, 0]  # gradients, decay and masks have had their say
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-2)  # four images: noise grows

    data = random_batch((size, size, 3), batch, 1000)
    model = network(jnp.bfloat16 if gpu else jnp.float32)
    ours = stepper(model, ticket.build(), params, statistics, kept, data, steps)
    contenders = {"ours": ours, "PyTorch": torch_stepper(params, kept, data, steps, low=gpu)}
    note = (
        f"{steps} step(s) of {batch} at {size}x{size}, torch {torch.__version__}; "
        "three float32 steps had the same losses to 1%"
    )
    return [(contenders, {"PyTorch": 1.1} if gpu else {}, [note], ("images", steps * batch))]
