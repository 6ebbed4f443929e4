"""Weights from PyTorch: a ResNet-18 and a small GPT-2 with random weights give the same outputs here and there.

Needs PyTorch: ``pip install torch``.
"""

import jax
import numpy as np
import torch
from pytorch_networks import BLOCKS, FEATURES, GPT, HEADS, LENGTH, VOCABULARY, ResNet18

from funcnn import layers, models, trees

NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
LINEAR = {"weight": "kernel", "bias": "bias"}
RESNET = {"conv1/weight": "conv_0/kernel"} | {f"fc/{a}": f"head/{b}" for a, b in LINEAR.items()}
RESNET |= {f"bn1/{a}": f"batch_norm_0/{b}" for a, b in NORM.items()}
for i in range(4):
    block = f"stage_{i}/serial_*/residual_0"
    for j in range(2):
        RESNET[f"layer{i + 1}/*/conv{j + 1}/weight"] = f"{block}/conv_{j}/kernel"
        RESNET |= {f"layer{i + 1}/*/bn{j + 1}/{a}": f"{block}/batch_norm_{j}/{b}" for a, b in NORM.items()}
    if i:
        RESNET[f"layer{i + 1}/*/downsample/0/weight"] = f"{block}/shortcut/conv_0/kernel"
        RESNET |= {f"layer{i + 1}/*/downsample/1/{a}": f"{block}/shortcut/batch_norm_0/{b}" for a, b in NORM.items()}
PARTS = {"ln_1": "residual_0/layer_norm_0", "attn/c_proj": "residual_0/attention_0/output"}
PARTS |= {
    "ln_2": "residual_1/layer_norm_0",
    "mlp/c_fc": "residual_1/serial_0/dense_0",
    "mlp/c_proj": "residual_1/serial_0/dense_1",
}
GPT2 = {"wte/weight": "table/embedding", "wpe/weight": "start/learned_positions_0/embedding"}
GPT2 |= {f"ln_f/{a}": f"decoder/layer_norm_0/{b}" for a, b in NORM.items() if a in LINEAR}
GPT2 |= {
    f"h/*/{part}/{a}": f"h/*/{ours}/{b if part[:2] != 'ln' else NORM[a]}"
    for part, ours in PARTS.items()
    for a, b in LINEAR.items()
}


def renamed(module, rules):
    """The weights of a PyTorch module as nested dicts under our names, inputs before outputs."""
    found = {name.replace(".", "/"): a.numpy() for name, a in module.state_dict().items() if a.ndim}
    leaves = trees.select(trees.rename(trees.nested(found), rules), "**")
    order = {4: (2, 3, 1, 0), 2: (1, 0)}
    return {path: a.transpose(order[a.ndim]) if path.endswith("kernel") else a for path, a in leaves.items()}


def main() -> None:
    """Copy both networks, and compare."""
    torch.manual_seed(0)
    theirs, images = ResNet18(), np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    theirs(torch.randn(8, 3, 64, 64))  # in training mode, so that the running averages are those of something
    leaves = renamed(theirs, RESNET)
    state = trees.nested({path: a for path, a in leaves.items() if path.endswith(("/mean", "/var"))})
    params = trees.nested({path: a for path, a in leaves.items() if not path.endswith(("/mean", "/var"))})
    y, _ = jax.jit(models.resnet(18, 1000).apply)(params, state, images)
    expected = theirs.eval()(torch.tensor(images).permute(0, 3, 1, 2)).detach().numpy()
    print(
        f"ResNet-18: {trees.count(params):,} parameters, largest difference of a logit {np.abs(y - expected).max():.1e}"
    )

    theirs, tokens = GPT(), np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH))
    leaves = renamed(theirs, GPT2)
    stacked = {
        path[4:]: np.stack([leaves[f"h/{i}/{path[4:]}"] for i in range(BLOCKS)])
        for path in leaves
        if path[:4] == "h/0/"
    }
    for part in LINEAR.items():  # queries, keys and values are one matrix there
        fused = stacked.pop(f"attn/c_attn/{part[0]}")
        fused = np.swapaxes(fused, -1, -2) if part[0] == "weight" else fused
        for name, a in zip(("query", "key", "value"), np.split(fused, 3, -1), strict=True):
            stacked[f"residual_0/attention_0/{name}/{part[1]}"] = a
    rest = {path: a for path, a in leaves.items() if path[:2] != "h/"}
    params = trees.nested(rest | {f"decoder/repeat_0/serial_0/{path}": a for path, a in stacked.items()})
    size = {"heads": HEADS, "blocks": BLOCKS, "length": LENGTH}
    y, _ = jax.jit(models.transformer(VOCABULARY, FEATURES, **size, activation=layers.gelu_tanh).apply)(
        params, {}, tokens
    )
    difference = np.abs(y - theirs(torch.tensor(tokens)).detach().numpy()).max()
    print(f"GPT-2, small: {trees.count(params):,} parameters, largest difference of a logit {difference:.1e}")


if __name__ == "__main__":
    main()
