"""The larger workloads by PyTorch, eager or with ``torch.compile`` of forward pass and loss, on CUDA where it is there.

As its performance tuning guide says: autocast to bfloat16, TensorFloat-32 for what stays float32, fused optimizers,
``channels_last`` images, gradients set to ``None``, nothing read by the host between the steps. Attention is
``scaled_dot_product_attention``, which keeps no matrix of weights, so no block is computed again for the gradient.
The MLPs are products of stacked weights; Adam, whose rate is another one for each, is written out.
"""

# Names and code say what a network is.
# ruff: noqa: D101, D102

from collections.abc import Callable
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from one_large import Large, rates
from torch import Tensor, nn
from torch.nn import functional as F

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# ---- networks --------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = self.inputs(self.norm1(x)).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(seen.transpose(1, 2).reshape(batch, time, width))
        return x + self.dense(self.norm2(x))


class Gpt(nn.Module):
    def __init__(self, size: Large) -> None:
        super().__init__()
        self.embed = nn.Embedding(size.classes, size.width)
        self.positions = nn.Parameter(torch.empty(size.shape[0], size.width))
        self.blocks = nn.Sequential(*(Block(size.width, size.heads) for _ in range(size.blocks[0])))
        self.norm = nn.LayerNorm(size.width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.embed(tokens) + self.positions)
        return F.linear(self.norm(x), self.embed.weight)


def conv_norm(before: int, after: int, size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after))


class Bottleneck(nn.Module):
    def __init__(self, before: int, inside: int, stride: int, changes: bool) -> None:
        super().__init__()
        first, second = conv_norm(before, inside, 1), conv_norm(inside, inside, 3, stride)
        self.inside = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), conv_norm(inside, 4 * inside, 1))
        self.shortcut = conv_norm(before, 4 * inside, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.inside(x))


def resnet(size: Large) -> nn.Module:
    before = size.width
    layers: list[nn.Module] = [conv_norm(size.shape[-1], before, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for i, count in enumerate(size.blocks):
        inside = size.width * 2**i
        for j in range(count):
            layers.append(Bottleneck(before, inside, 2 if i and not j else 1, not j))
            before = 4 * inside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, size.classes))


@torch.no_grad()
def initialised(model: nn.Module) -> nn.Module:
    """The model with Glorot uniform kernels and zero biases, as the other sides begin."""
    for module in reversed(list(model.modules())):  # what is inside of a module before the module itself
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, Block):  # its three kernels, of which each is Glorot's
            for kernel in module.inputs.weight.chunk(3):
                nn.init.xavier_uniform_(kernel)
        if isinstance(module, Gpt):
            nn.init.normal_(module.embed.weight, std=0.02)
            nn.init.normal_(module.positions, std=0.02)
    return model


NETWORKS: dict[str, Callable[[Large], nn.Module]] = {"GPT": Gpt, "ResNet-50": resnet}


def parameters(name: str, size: Large) -> int:
    """How many there are, of all members."""
    with torch.device("meta"):
        own = stacked(size) if name == "MLPs" else NETWORKS[name](size).parameters()
        return sum(p.numel() for p in own)


# ---- training --------------------------------------------------------------------------------------------------------


def tensor(values: np.ndarray) -> Tensor:
    """On the device; images as NCHW in ``channels_last`` and integers as int64, which its losses want."""
    made = torch.from_numpy(np.ascontiguousarray(values)).to(DEVICE)
    made = made.permute(0, 3, 1, 2) if made.ndim == 4 else made  # whose memory is that of channels_last
    return made if made.is_floating_point() else made.long()


def allow_tf32() -> None:
    """Products of float32 by TensorFloat-32, as JAX has them on a GPU unless it is told otherwise."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def synchronised(history: list[Tensor]) -> np.ndarray:
    """The losses of the epochs, all of the device's work being done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return torch.stack(history).float().cpu().numpy()


def started(
    name: str, size: Large, x: np.ndarray, y: np.ndarray, seed: int, *, compiled: bool = False
) -> Callable[[], np.ndarray]:
    """``train()``: a measured call, waited for; it gives the losses of its epochs."""
    torch.manual_seed(seed)
    allow_tf32()
    inputs, targets = tensor(x), tensor(y)
    if name == "MLPs":
        return members(size, inputs, targets, compiled)
    with DEVICE:
        model = initialised(NETWORKS[name](size))
    if name == "ResNet-50":
        model = model.to(memory_format=torch.channels_last)
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.1, fused=True)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=size.compute == "bfloat16"):
            return F.cross_entropy(model(x).flatten(0, -2), y.flatten())

    loss = torch.compile(loss) if compiled else loss

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss(x, y)
        value.backward()
        optimizer.step()
        return value.detach()

    def train() -> np.ndarray:
        history = []
        for _ in range(size.epochs):
            order = torch.randperm(len(inputs), device=DEVICE)
            values = [step(inputs[rows], targets[rows]) for rows in order.split(size.batch_size)[: per_epoch(size)]]
            history.append(torch.stack(values).mean())
        return synchronised(history)

    return train


def per_epoch(size: Large) -> int:
    return size.examples // size.batch_size


# ---- MLPs ------------------------------------------------------------------------------------------------------------


def stacked(size: Large) -> list[Tensor]:
    """Kernel and bias of both layers, each with a leading axis of members."""
    made: list[Tensor] = []
    sizes = (*size.shape, size.width, size.classes)
    for a, b in pairwise(sizes):
        limit = (6 / (a + b)) ** 0.5  # Glorot's
        made += [torch.empty(size.members, a, b).uniform_(-limit, limit), torch.zeros(size.members, 1, b)]
    return [p.requires_grad_() for p in made]


def mlp_losses(params: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The loss of each member on its own batch, ``(members, batch, ...)``."""
    w1, b1, w2, b2 = params
    logits = torch.baddbmm(b2, torch.relu(torch.baddbmm(b1, x, w1)), w2)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)


@torch.no_grad()
def adam(
    params: list[Tensor], gradients: list[Tensor], means: list[Tensor], squares: list[Tensor], rate: Tensor, t: Tensor
) -> None:
    """Step ``t`` of Adam, in place; ``rate`` has a leading axis of members."""
    for p, g, m, v in zip(params, gradients, means, squares, strict=True):
        m.lerp_(g, 0.1)
        v.lerp_(g * g, 0.001)
        p.sub_(rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))


def members(size: Large, x: Tensor, y: Tensor, compiled: bool) -> Callable[[], np.ndarray]:
    """A call is a whole run from its initialisation on; each member has an order of its own."""
    losses, update = (torch.compile(mlp_losses), torch.compile(adam)) if compiled else (mlp_losses, adam)
    rate = torch.from_numpy(rates(size)).to(DEVICE).repeat_interleave(size.seeds).view(-1, 1, 1)

    def train() -> np.ndarray:
        with DEVICE:
            params = stacked(size)
            means, squares = ([torch.zeros_like(p, requires_grad=False) for p in params] for _ in range(2))
            t, history = torch.zeros(()), []
        for _ in range(size.epochs):
            order, values = torch.rand(size.members, len(x), device=DEVICE).argsort(1), []
            for rows in order.split(size.batch_size, 1)[: per_epoch(size)]:
                t += 1
                value = losses(params, x[rows], y[rows])
                update(params, torch.autograd.grad(value.sum(), params), means, squares, rate, t)
                values.append(value.detach().mean())
            history.append(torch.stack(values).mean())
        return synchronised(history)

    return train


# ---- the other seven -------------------------------------------------------------------------------------------------


def on_device(module: ModuleType) -> Any:
    """``by_torch``, which knows of no device, with its networks and data on this one."""
    from_numpy, to_numpy = torch.from_numpy, Tensor.numpy

    def moved(call: Callable[..., Any]) -> Callable[..., Any]:
        def inside(*given: Any, **options: Any) -> Any:
            there = mock.patch.object(torch, "from_numpy", lambda values: from_numpy(values).to(DEVICE))
            back = mock.patch.object(Tensor, "numpy", lambda values: to_numpy(values.cpu()))
            with there, back, DEVICE:
                return call(*given, **options)

        return inside

    def started(*given: Any, **options: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        allow_tf32()
        train, predict = moved(module.started)(*given, **options)

        def waited() -> None:
            train()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        return waited, moved(predict)  # between the steps nothing is intercepted

    return SimpleNamespace(started=started)
