"""PyTorch, eager: the loop of its Quickstart over batches that are indexed from a random permutation.

The fused optimizers are the fastest on a CPU, ``channels_last`` is not. Attention is ``scaled_dot_product_attention``
after one product for queries, keys and values, as in the tutorial on it; ``nn.MultiheadAttention`` is slower.
The runs of W7 are side by side with ``torch.func``, as in its tutorial on model ensembling, which only predicts; the
stacked parameters are trained as those of one model would be, each at its rate.
"""

# Names and code say what a network is.
# ruff: noqa: D101, D102

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from workloads import Workload, rates, seeds

WORKLOADS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7")

# ---- networks --------------------------------------------------------------------------------------------------------


def xor() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Sigmoid())


def mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def images() -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in ((1, 32), (32, 64)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(128, 3 * 128)
        self.outputs = nn.Linear(128, 128)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = self.inputs(x).view(batch, time, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.outputs(x.transpose(1, 2).reshape(batch, time, width))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(128), Attention(), nn.LayerNorm(128)
        self.dense = nn.Sequential(nn.Linear(128, 512), nn.GELU(approximate="tanh"), nn.Linear(512, 128))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.dense(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 128)
        self.positions = nn.Parameter(torch.empty(64, 128))
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))
        self.norm = nn.LayerNorm(128)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.embed(tokens) + self.positions)
        return F.linear(self.norm(x), self.embed.weight)


@torch.no_grad()
def initialised(model: nn.Module) -> nn.Module:
    """The model with Glorot uniform kernels and zero biases."""
    for module in reversed(list(model.modules())):  # what is inside of a module before the module itself
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, Attention):  # its three kernels, of which each is Glorot's
            for kernel in module.inputs.weight.chunk(3):
                nn.init.xavier_uniform_(kernel)
        if isinstance(module, Transformer):
            nn.init.normal_(module.embed.weight, std=0.02)
            nn.init.normal_(module.positions, std=0.02)
    return model


def tokens_loss(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.4, fused=True)


def adam(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=rate, fused=True)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4, fused=True)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], Callable[[Any], torch.optim.Optimizer]]] = {
    "W1": (xor, F.mse_loss, sgd),
    "W2": (lambda: mlp(2, 16, 8, 1), F.binary_cross_entropy_with_logits, adam(0.01)),
    "W3": (lambda: mlp(64, 128, 64, 10), F.cross_entropy, adam(1e-3)),
    "W4": (lambda: mlp(784, 512, 512, 10), F.cross_entropy, adam(1e-3)),
    "W5": (images, F.cross_entropy, adam(1e-3)),
    "W6": (Transformer, tokens_loss, adamw),
}

# ---- training --------------------------------------------------------------------------------------------------------


def tensor(values: np.ndarray) -> Tensor:
    """On the same memory where that can be; images as NCHW and integers as int64, which its losses want."""
    made = torch.from_numpy(values)
    if made.ndim == 4:
        made = made.permute(0, 3, 1, 2).contiguous()
    return made if made.is_floating_point() else made.long()


def batches(x: Tensor, y: Tensor, size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    if size is None:
        yield x, y
        return
    for rows in torch.randperm(len(x), device=x.device).split(size):
        yield x[rows], y[rows]


def started(
    name: str, work: Workload, x: np.ndarray, y: np.ndarray, seed: int, *, compiled: bool = False
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    """``train()``: a whole run of ``work.epochs`` epochs, waited for; and ``predict(x)``: raw outputs.

    On a GPU ``torch.compile`` may compile the network (accelerators.py); on a CPU it stays eager.
    """
    torch.manual_seed(seed)
    if name == "W7":
        return ensemble(work, tensor(x), tensor(y), compiled)
    network, loss, optimizer_of = NETWORKS[name]
    inputs, targets = tensor(x), tensor(y)
    model = initialised(network())
    optimizer = optimizer_of(model.parameters())
    outputs = torch.compile(model) if compiled else model

    def train() -> None:
        history = []
        for _ in range(work.epochs):
            total = 0.0
            for x, y in batches(inputs, targets, work.batch_size):
                optimizer.zero_grad()
                value = loss(outputs(x), y)
                value.backward()
                optimizer.step()
                total += (value.detach() if value.is_cuda else value.item()) * len(x)  # a GPU is not waited for
            history.append(total / len(inputs))

    @torch.inference_mode()
    def predict(x: np.ndarray) -> np.ndarray:
        return model(tensor(x)).numpy()

    return train, predict


def ensemble(
    work: Workload, x: Tensor, y: Tensor, compiled: bool
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    member_rates = torch.from_numpy(rates(work.members))
    template, begun = xor(), [initialised(xor()) for _ in range(4)]
    stacked, buffers = torch.func.stack_module_state([begun[i] for i in seeds(work.members)])

    def forward(params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(template, (params, buffers), (x,))

    side_by_side = torch.vmap(forward, in_dims=(0, 0, None))
    outputs = torch.compile(side_by_side) if compiled else side_by_side
    params = list(stacked.values())
    scales = [member_rates.view(-1, *(1,) * (p.ndim - 1)) for p in params]

    def train() -> None:
        history = []
        for _ in range(work.epochs):
            losses = (outputs(stacked, buffers, x) - y).square().mean((1, 2))
            gradients = torch.autograd.grad(losses.sum(), params)  # a member's loss moves that member only
            with torch.no_grad():
                for p, gradient, scale in zip(params, gradients, scales, strict=True):
                    p.addcmul_(gradient, scale, value=-1)
            history.append(losses.detach())

    @torch.inference_mode()
    def predict(x: np.ndarray) -> np.ndarray:
        return side_by_side(stacked, buffers, tensor(x)).numpy()

    return train, predict
