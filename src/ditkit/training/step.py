"""One training step's parts: what is drawn for a batch, its loss and gradient, the optimiser."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ditkit.backbones import Backbone, Cond
from ditkit.codecs import Codec
from ditkit.conditions import Read, conditions, in_place_of_unknown, unknown
from ditkit.data import Batch, first_fit
from ditkit.device import autocast
from ditkit.layout import Layout, Packed
from ditkit.nn.packing import stacks
from ditkit.randomness import generator
from ditkit.recipe import Recipe, Training
from ditkit.transports import Network

ROW = 2
"""Rows of packed images are this many times as long as the longest image: fuller than rows of one, while attention
costs more the longer a row is."""


class Draws(NamedTuple):
    """The randomness of a batch of training images, on the CPU."""

    u: Tensor  # float64 (B,), uniform in (0, 1]: the time
    drop: Tensor  # float64 (B,), uniform in [0, 1): label and text are dropped below label_dropout
    eps: Tensor  # float32 (B, *S), standard normal
    posterior: Tensor | None  # float32 (B, *S), standard normal: what a random codec encodes with


def draws(seed: int, index: Tensor, shape: tuple[int, ...], random_codec: bool) -> Draws:
    """Time, dropout and noise of the images numbered `index`, each from (seed, n) alone."""
    u, drop, eps, posterior = [], [], [], []
    for n in index.tolist():
        stream = generator(seed, n, "train")
        u.append(1 - stream.random())
        drop.append(stream.random())
        eps.append(stream.standard_normal(shape, dtype=np.float32))
        if random_codec:
            posterior.append(generator(seed, n, "codec").standard_normal(shape, dtype=np.float32))
    return Draws(
        torch.tensor(u, dtype=torch.float64),
        torch.tensor(drop, dtype=torch.float64),
        torch.from_numpy(np.stack(eps)),
        torch.from_numpy(np.stack(posterior)) if random_codec else None,
    )


def backward(
    recipe: Recipe,
    net: Backbone,
    codec: Codec,
    batch: Batch,
    device: torch.device,
    read: Read | None = None,
) -> dict[str, Tensor]:
    """Accumulate the gradient of the batch's mean loss; the batch's mean of every term of the loss.

    `read` gives the captions' embeddings, for a network that is told a text.
    """
    config, total = recipe.train, len(batch.index)
    instead = in_place_of_unknown(recipe.text, read)
    means: dict[str, Tensor] = {}
    for part in _split(batch, config.micro_batch or total):
        task = (_packed if part.packed else _whole)(recipe, net, codec, part, device)
        cond = conditions(part.label, part.caption, read, device)
        dropped = (task.drop < config.label_dropout).to(device)
        cond = {
            key: torch.where(dropped.view(-1, *[1] * (empty.ndim - 1)), empty, cond[key])
            for key, empty in unknown(net, cond, instead).items()
        }
        with autocast(device, config.precision):
            terms = recipe.transport.losses(
                task.network,
                task.x0,
                cond,
                t=task.t,
                eps=task.eps,
                layout=task.layout,
                weights=task.weights,
            )
        (terms["loss"].sum() / total).backward()
        for name, value in terms.items():
            mean = value.detach().sum() / total
            means[name] = means[name] + mean if name in means else mean
    return means


class Task(NamedTuple):
    """What the loss of some training images is of."""

    network: Network
    x0: Tensor
    eps: Tensor
    t: Tensor
    drop: Tensor  # as in `Draws`
    layout: Layout
    weights: Tensor | None


def _whole(recipe: Recipe, net: Backbone, codec: Codec, part: Batch, device: torch.device) -> Task:
    """Of images or clips of one size."""
    config, transport = recipe.train, recipe.transport
    layout = codec.layout(*part.images.shape[2:])
    drawn = draws(config.seed, part.index, layout.shape, codec.random)
    posterior = None if drawn.posterior is None else drawn.posterior.to(device)
    x0 = codec.encode(part.images.to(device), posterior)
    t, learned = transport.times(drawn.u, layout), None
    if transport.has_known_parts:  # or else the draws would be for nothing
        t, learned = transport.known_parts(t, known_draws(config.seed, part.index), layout)
    shared, weights = mixed(net, config.level_share, len(x0))
    if learned is not None:
        weights = learned if weights is None else weights * learned
    return Task(shared, x0, drawn.eps.to(device), t, drawn.drop, layout, weights)


def _packed(recipe: Recipe, net: Backbone, codec: Codec, part: Batch, device: torch.device) -> Task:
    """Of images of several sizes as one state, each with the draws that it has in a batch of its size."""
    stacked = stacks(part.packed)
    groups = [
        _whole(recipe, net, codec, Batch(images, None, index), device)
        for images, index in zip(stacked, part.index.split([*map(len, stacked)]), strict=True)
    ]
    shapes = [group.x0.shape[1:] for group in groups for _ in group.x0]
    layout = Packed.of(shapes)
    lengths = [recipe.backbone.tokens(shape[1:]) for shape in shapes]
    rows = first_fit(lengths, ROW * max(lengths))

    def network(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        states = [row.view(shape) for row, shape in zip(x[0].split(layout.lengths), shapes, strict=True)]
        return torch.cat([out.flatten() for out in net.packed(states, t[0], cond, rows)])[None]

    x0, eps = (
        torch.cat([getattr(group, name).flatten() for group in groups])[None] for name in ("x0", "eps")
    )
    t, drop = (torch.cat([getattr(group, name) for group in groups]) for name in ("t", "drop"))
    return Task(network, x0, eps, t[None], drop, layout, None)


def known_draws(seed: int, index: Tensor) -> Tensor:
    """float64 (B, 3), uniform in [0, 1): which parts of the states are known, and with how much noise."""
    draws = [generator(seed, n, "given").random(3) for n in index.tolist()]
    return torch.from_numpy(np.stack(draws))


def mixed(net: Backbone, share: Sequence[float], count: int) -> tuple[Network, Tensor | None]:
    """The network whose outer levels run on that share of `count` images only, and the weights (count, levels) that
    keep each level's mean what it is: with the images it runs on (Gu et al., 2024)."""
    if not share:
        return net, None
    rows = [max(1, int(part * count)) for part in share]
    weights = torch.ones(count, len(rows) + 1)
    for level, n in enumerate(rows):
        weights[:, level] = (torch.arange(count) < n) * (count / n)
    return partial(net, rows=rows), weights


def make_optimizer(net: nn.Module, config: Training) -> torch.optim.AdamW:
    """AdamW in one fused call over all parameters."""
    return torch.optim.AdamW(
        net.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def update(optimizer: torch.optim.Optimizer, clip: float | None) -> Tensor:
    """Take the step of the accumulated gradient unless it is not finite, and clear it; the gradient's norm, float ().

    A fused optimiser leaves such a step out on the device, and the host waits for nothing. The others have no means of
    that: for them the norm is read.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    if clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # as torch's GradScaler does
        optimizer.step()
    elif norm.isfinite():
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _split(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch.index), size):
        rows = slice(start, start + size)
        label = None if batch.label is None else batch.label[rows]
        caption = None if batch.caption is None else batch.caption[rows]
        yield Batch(batch.images[rows], label, batch.index[rows], caption, batch.packed[rows])
