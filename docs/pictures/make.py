"""Draws ``run.svg``, the picture of the README, from 64 training runs and the gradients through them.

Run it with ``python docs/pictures/make.py``; it takes about half a minute. The curves and slopes are measured here and
now. The colours follow the reader's light or dark mode.
"""

import hashlib
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from funcnn import data, layers, losses, training

PICTURE = pathlib.Path(__file__).with_name("run.svg")
EPOCHS, MEMBERS, WIDTH, BATCH = 20, 64, 32, 128
VERBS = ("compile", "map", "differentiate", "resume", "shard", "inspect", "export")
STOPS = [(46, 134, 222), (140, 92, 230), (228, 76, 140), (245, 138, 48)]  # from the smallest rate to the largest

STYLE = """
  .card { fill: #ffffff; stroke: #d8dee4 } .ink { fill: #1f2328 } .soft { fill: #59636e } .grid { stroke: #e6eaef }
  .tangent { stroke: #1f2328; stroke-width: 1.6; stroke-linecap: round } .pill { fill: #f6f8fa; stroke: #afb8c1 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #30363d } .ink { fill: #f0f6fc } .soft { fill: #9198a1 } .grid { stroke: #21262d }
    .tangent { stroke: #f0f6fc } .pill { fill: #151b23; stroke: #3d444d } }
  text { font-family: -apple-system, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; font-size: 13px }
  .code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }
"""


def mark():
    """What the picture says of the code that drew it: a sum over this file."""
    return hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()[:16]


def measured():
    """The rates, the validation loss of each run by epoch, and the derivative of the last one by the rate."""
    images, labels = load_digits(return_X_y=True)
    key = jax.random.key(0)
    train, test = data.split((images / 16, labels), 0.2, key=key, stratify=labels)
    model = layers.serial(layers.dense(WIDTH), layers.tanh, layers.dense(10))

    def curve(rate):
        trainer = training.supervised(model, losses.softmax_cross_entropy, optax.adam(rate, eps_root=1e-8))
        run = training.run(trainer, train, key=key, epochs=EPOCHS, batch_size=BATCH, validation=test)
        return run.history["validation_loss"]

    rates = jnp.logspace(-4, -1, MEMBERS)
    curves = jax.jit(jax.vmap(curve))(rates)
    slopes = jax.jit(jax.vmap(jax.grad(lambda rate: curve(rate)[-1])))(rates)
    return np.asarray(rates), np.asarray(curves), np.asarray(slopes)


def colour(t):
    """The colour at ``t`` from 0 to 1."""
    i = min(int(t * 3), 2)
    mixed = [round(a + (b - a) * (t * 3 - i)) for a, b in zip(STOPS[i], STOPS[i + 1], strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def text(x, y, words, style="soft", anchor="middle", size=13):
    """One line of text."""
    place = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"'
    return f'<text {place} class="{style}" style="font-size:{size}px">{words}</text>'


def panel(left, heading, below, ticks, place, levels, height):
    """A heading, a grid of horizontal lines, and the labels of both axes."""
    parts = [text(left, 142, heading, "ink", "start", 15)]
    for level in levels:
        y = height(level)
        parts.append(f'<line x1="{left}" x2="{left + 380}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(text(left - 10, y + 4, f"{level:g}", anchor="end"))
    parts += [text(place(tick), 470, label) for tick, label in ticks]
    return [*parts, text(left + 190, 494, below)]


def drawn(rates, curves, slopes):
    """The whole picture."""
    low, high = math.log(curves[:, -1].min() * 0.8), math.log(curves.max() * 1.1)
    levels = [level for level in (0.05, 0.1, 0.2, 0.5, 1, 2) if low < math.log(level) < high]

    def height(loss):
        return 450 - (math.log(loss) - low) / (high - low) * 285

    def by_epoch(epoch):
        return 70 + (epoch - 1) / (EPOCHS - 1) * 380

    def by_rate(rate):
        return 540 + (math.log10(rate) + 4) / 3 * 380

    parts = ['<rect x="0.5" y="0.5" width="959" height="589" rx="14" class="card"/>']
    parts.append(text(480, 58, "run(key, data) → (state, history)", "ink code", size=25))
    idea = "A whole training run is one pure function. What JAX does with functions, it does with runs."
    parts.append(text(480, 88, idea, size=15))
    epochs = [(epoch, f"{epoch}") for epoch in (1, 5, 10, 15, 20)]
    parts += panel(70, "map it: 64 learning rates, one program", "epoch", epochs, by_epoch, levels, height)
    decades = [(10.0**e, f'10<tspan dy="-5" style="font-size:9px">−{-e}</tspan>') for e in (-4, -3, -2, -1)]
    heading = "differentiate it: each slope is jax.grad of a run"
    parts += panel(540, heading, "learning rate", decades, by_rate, levels, height)
    parts.append(text(70, 165, "validation loss", anchor="start", size=12))
    parts.append(text(540, 165, "validation loss after the last epoch", anchor="start", size=12))
    for i, (rate, curve, slope) in enumerate(zip(rates, curves, slopes, strict=True)):
        paint = colour(i / (MEMBERS - 1))
        points = " ".join(f"{by_epoch(epoch + 1):.1f},{height(loss):.1f}" for epoch, loss in enumerate(curve))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{paint}" stroke-width="1.2" opacity="0.85"/>')
        x, y = by_rate(rate), height(curve[-1])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{paint}"/>')
        if i % 6 == 3:
            # The slope in the units of the picture: both axes are logarithms.
            steep = -slope * rate * math.log(10) / curve[-1] * 285 / (high - low) / (380 / 3)
            dx = 20 / math.hypot(1, steep)
            ends = x - dx, y - dx * steep, x + dx, y + dx * steep
            parts.append('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="tangent"/>'.format(*ends))
    for i, verb in enumerate(VERBS):
        x = 70 + i * 124
        parts.append(f'<rect x="{x}" y="522" width="106" height="32" rx="16" class="pill"/>')
        parts.append(text(x + 53, 543, verb, "ink", size=14))
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 590" width="960" height="590" role="img">'
    return "\n".join([head, f"<!-- Source {mark()} -->", f"<style>{STYLE}</style>", *parts, "</svg>\n"])


if __name__ == "__main__":
    PICTURE.write_text(drawn(*measured()))
