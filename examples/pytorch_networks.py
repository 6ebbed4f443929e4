"""A ResNet-18 and a small GPT-2 in PyTorch, with the names of their published weights, for ``from_pytorch.py``."""

import torch
from torch import nn

VOCABULARY, LENGTH, FEATURES, HEADS, BLOCKS = 300, 32, 64, 4, 3


class Basic(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, n, m, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, m, 3, stride, 1, bias=False), nn.BatchNorm2d(m)
        self.conv2, self.bn2 = nn.Conv2d(m, m, 3, 1, 1, bias=False), nn.BatchNorm2d(m)
        down = nn.Sequential(nn.Conv2d(n, m, 1, stride, bias=False), nn.BatchNorm2d(m))
        self.downsample = down if stride > 1 else nn.Identity()

    def forward(self, x):
        """The outputs."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.downsample(x))


class ResNet18(nn.Module):
    """Of He, Zhang, Ren and Sun, 2015, as in torchvision."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        for i, (n, m) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)]):
            setattr(self, f"layer{i + 1}", nn.Sequential(Basic(n, m, 1 if i == 0 else 2), Basic(m, m, 1)))
        self.fc = nn.Linear(512, 1000)

    def forward(self, x):
        """The outputs."""
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


class Block(nn.Module):
    """Attention, then a perceptron, each after a norm."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(FEATURES), nn.LayerNorm(FEATURES)
        self.attn = nn.ModuleDict(
            {"c_attn": nn.Linear(FEATURES, 3 * FEATURES), "c_proj": nn.Linear(FEATURES, FEATURES)}
        )
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(FEATURES, 4 * FEATURES), "c_proj": nn.Linear(4 * FEATURES, FEATURES)}
        )

    def forward(self, x):
        """The outputs."""
        heads = self.attn["c_attn"](self.ln_1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.attn["c_proj"](y.transpose(1, 2).flatten(2))
        return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Of Radford et al., 2019."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, FEATURES), nn.Embedding(LENGTH, FEATURES)
        self.h, self.ln_f = nn.Sequential(*[Block() for _ in range(BLOCKS)]), nn.LayerNorm(FEATURES)

    def forward(self, tokens):
        """The outputs."""
        return self.ln_f(self.h(self.wte(tokens) + self.wpe.weight[: tokens.shape[1]])) @ self.wte.weight.T
