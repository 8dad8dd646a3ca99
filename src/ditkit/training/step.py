"""One training step's parts: the loss and gradient of a batch, the optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ditkit.backbones import Backbone
from ditkit.chosen import chosen, name_of
from ditkit.codecs import Codec
from ditkit.conditions import Read, conditions, in_place_of_unknown, unknown
from ditkit.data import Batch, Share
from ditkit.device import autocast, sent
from ditkit.layout import Cond, Layout, Packed
from ditkit.nn.around import Around, checkpointing, composed
from ditkit.objectives import ROUTINGS, group_of
from ditkit.objectives.terms import Seen, Term, capturing, with_terms
from ditkit.optimizers import OPTIMIZERS
from ditkit.optimizers.parameters import trained
from ditkit.processes import whole
from ditkit.recipe import Recipe, Training
from ditkit.transports import Network


class Objective(nn.Module):
    """The loss of training images, as a module of all that is trained: what processes wrap, or keep their shards of."""

    def __init__(
        self,
        recipe: Recipe,
        net: Backbone,
        codec: Codec,
        device: torch.device,
        read: Read | None = None,
        terms: Mapping[str, Term] | None = None,
        average: Backbone | None = None,
        *,
        always: bool = False,
    ):
        """`read` gives the captions' embeddings, for a network that reads a text; `terms` are added to the loss, and
        `average` is the moving average of the network, which they may run. `always`: every parameter has a gradient, also of a
        level of a pyramid that has no images, which processes that exchange gradients need.
        """
        super().__init__()
        self.net, self.terms = net, nn.ModuleDict(dict(terms or {}))
        self.recipe, self.device, self.read, self.always = recipe, device, read, always
        self.group = group_of(recipe.train.terms)
        """So many images of a batch stay together."""
        self._not_trained = codec, average  # in a tuple, so that they are no parts of this module

    def forward(self, part: Batch) -> dict[str, Tensor]:
        """Of every image, (B,), by name; "loss" is their sum, with weights. The batch carries its draws (`draws_of`)."""
        recipe, (codec, average) = self.recipe, self._not_trained
        config = recipe.train
        prepare = _packed if part.groups else _whole
        task = prepare(recipe, self.net, codec, part, self.device, self.always)
        cond = conditions(part.label, part.caption, self.read, self.device)
        dropped = sent(task.drop < config.label_dropout, self.device)
        instead = in_place_of_unknown(recipe.text, self.read)
        cond = {
            key: torch.where(dropped.view(-1, *[1] * (empty.ndim - 1)), empty, cond[key])
            for key, empty in unknown(self.net, cond, instead).items()
        }
        with autocast(self.device, config.precision):
            return _losses(
                recipe, task, cond, cast(Mapping[str, Term], self.terms), average, part.shared.places
            )


def backward(
    recipe: Recipe,
    net: Backbone,
    codec: Codec,
    batch: Batch,
    device: torch.device,
    read: Read | None = None,
    terms: Mapping[str, Term] | None = None,
    average: Backbone | None = None,
) -> dict[str, Tensor]:
    """Accumulate the gradient of the batch's mean loss; the batch's mean of every term of the loss, as of `accumulate`. What
    the other arguments are, `Objective` says."""
    objective = Objective(recipe, net, codec, device, read, terms, average)
    return accumulate(objective, batch, recipe.train.micro_batch, group=objective.group)


Exchange = Callable[[bool], AbstractContextManager]
"""A context for a micro-batch's passes, forward and backward; called with whether it is the step's last one."""


def accumulate(
    losses: Callable[[Batch], Mapping[str, Tensor]],
    batch: Batch,
    micro_batch: int | None,
    *,
    world: int = 1,
    group: int = 1,
    exchange: Exchange = nullcontext,
) -> dict[str, Tensor]:
    """Add the gradient of the batch's mean loss to the parameters', `micro_batch` images at a time; the mean of every term.

    Of a batch that `world` processes share, what its images here add to both. All of them take as many micro-batches as the
    one with the most images, those without images of their own on one of zeros that counts nothing. Processes share the batch
    by groups of `group` images, and `micro_batch` is a multiple of it.
    """
    total = batch.total
    most = min(total, math.ceil(math.ceil(total / group) / world) * group)
    size = micro_batch or most
    parts = [(part, float(total)) for part in batch.split(size) if len(part.index)]
    missing = (1 if batch.groups else -(-most // size)) - len(parts)
    parts += [(_stand_in(batch), math.inf)] * missing
    means: dict[str, Tensor] = {}
    for number, (part, count) in enumerate(parts, start=1):
        with exchange(number == len(parts)):
            found = losses(part)
            (found["loss"].sum() / count).backward()
        for name, value in found.items():
            mean = value.detach().sum() / count
            means[name] = means[name] + mean if name in means else mean
    return means


def _losses(
    recipe: Recipe,
    task: Task,
    cond: Cond,
    terms: Mapping[str, Term],
    average: Backbone | None,
    places: Tensor,
) -> dict[str, Tensor]:
    """Of every image, (B,), by name; "loss" is their sum, with weights. `places` are those of the images in the batch."""
    captured: dict[int, Tensor] = {}
    outputs: list[Tensor] = []
    blocks = {k for term in terms.values() for k in term.blocks}
    arounds = [capturing([*blocks], captured)] if blocks else []
    if name_of(recipe.train.routing) != "none":
        make = chosen(ROUTINGS, recipe.train.routing)
        arounds.append(make(task.drawn["route"], cast(Any, recipe.backbone).depth))
    if recipe.train.checkpoint_blocks:
        arounds.append(checkpointing(recipe.train.checkpoint_blocks))
    network = partial(cast(Any, task.network), around=composed(*arounds)) if arounds else task.network
    if terms:
        network = _recorded(network, outputs)
    losses = recipe.transport.losses(
        network,
        task.x0,
        cond,
        t=task.t,
        eps=task.eps,
        layout=task.layout,
        weights=task.weights,
        drawn=task.drawn,
    )
    if not terms:
        return losses
    seen = Seen(
        transport=recipe.transport,
        x0=task.x0,
        eps=task.eps,
        t=task.t,
        cond=cond,
        layout=task.layout,
        draws=task.drawn,
        average=average,
        places=places,
        captured=captured,
        weights=task.weights,
        output=outputs[-1],
    )
    return with_terms(losses, terms, seen)


def _recorded(network: Network, outputs: list[Tensor]) -> Network:
    """The network, which keeps what it gives."""

    def recorded(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        outputs.append(network(x, t, cond))
        return outputs[-1]

    return recorded


def at_least_one(batch: Batch) -> Batch:
    """The batch; of one without images the one of zeros that stands in for it."""
    return batch if len(batch.index) else _stand_in(batch)


def _stand_in(batch: Batch) -> Batch:
    """One image of zeros for a batch of none: networks run on some, and every parameter has its gradient."""

    def one(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.new_zeros(1, *value.shape[1:])

    return Batch(
        one(batch.images),
        one(batch.label),
        batch.index.new_zeros(1),
        None if batch.caption is None else ("",),
        one(batch.moments),
        groups=tuple(map(_stand_in, batch.groups)),
        draws={name: values.new_zeros(1, *values.shape[1:]) for name, values in batch.draws.items()},
        share=Share(batch.index.new_zeros(1), batch.total),
    )


class Task(NamedTuple):
    """What the loss of some training images is of."""

    network: Network
    x0: Tensor
    eps: Tensor
    t: Tensor
    drop: Tensor  # float64 (B,), uniform in [0, 1): label and text are dropped below label_dropout
    layout: Layout
    weights: Tensor | None
    drawn: Mapping[str, Any]
    """By the names of streams, (B, ...); of packed images lists where their sizes differ."""


def _whole(
    recipe: Recipe, net: Backbone, codec: Codec, part: Batch, device: torch.device, always: bool = False
) -> Task:
    """Of images or clips of one size; `always` as of `mixed`."""
    config, transport, drawn = recipe.train, recipe.transport, part.draws
    layout = codec.layout(*part.size)
    posterior = sent(drawn["posterior"], device) if codec.random else None
    x0 = codec.encode(sent(part.encodable, device), posterior)
    t, learned = transport.times(1 - drawn["time"], layout), None
    if transport.has_known_parts:
        t, learned = transport.known_parts(t, drawn["known"], layout)
    shared, weights = mixed(net, config.level_share, part.shared, always)
    if further := net.in_training(drawn):
        shared = partial(cast(Any, shared), **further)
    if learned is not None:
        weights = learned if weights is None else weights * learned
    return Task(shared, x0, sent(drawn["noise"], device), t, drawn["drop"], layout, weights, drawn)


def _packed(
    recipe: Recipe, net: Backbone, codec: Codec, part: Batch, device: torch.device, always: bool = False
) -> Task:
    """Of images of several sizes as one state, each with the draws that it has in a batch of its size."""
    groups = [_whole(recipe, net, codec, group, device, always) for group in part.groups]
    shapes = [group.x0.shape[1:] for group in groups for _ in group.x0]
    layout = Packed.of(shapes)

    def network(x: Tensor, t: Tensor, cond: Cond, around: Around | None = None) -> Tensor:
        states = [row.view(shape) for row, shape in zip(x[0].split(layout.lengths), shapes, strict=True)]
        outs = net.packed(states, t[0], cond, around=around)
        # With a learned variance first the predictions of all, then the variances of all, as of a batch's channels.
        parts = zip(
            *(out.chunk(len(out) // len(state)) for out, state in zip(outs, states, strict=True)), strict=True
        )
        return torch.cat([part.flatten() for several in parts for part in several])[None]

    x0, eps = (
        torch.cat([getattr(group, name).flatten() for group in groups])[None] for name in ("x0", "eps")
    )
    t, drop = (torch.cat([getattr(group, name) for group in groups]) for name in ("t", "drop"))
    drawn = {name: [row for group in groups for row in group.drawn[name]] for name in groups[0].drawn}
    return Task(network, x0, eps, t[None], drop, layout, None, drawn)


def mixed(
    net: Backbone, level_share: Sequence[float], images: Share, always: bool = False
) -> tuple[Network, Tensor | None]:
    """The network whose outer levels run on those of these B images that are among the first, a share for each level, of
    the whole batch; and the weights (B, levels) that make each level's mean that of the images it runs on (Gu et al., 2024).
    `always`: levels without images run, too.
    """
    if not level_share:
        return net, None
    first = [max(1, int(share * images.total)) for share in level_share]
    there = torch.stack([images.places < count for count in (*first, images.total)], dim=1)
    weights = there * torch.tensor([images.total / count for count in (*first, images.total)])
    return partial(net, rows=there[:, :-1].sum(0).tolist(), always=always), weights


def make_optimizer(net: nn.Module, config: Training, *others: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimiser of all parameters that are trained, those of `others` too. InputError where it needs something
    that is not there."""
    return chosen(OPTIMIZERS, config.optimizer)(trained(net, *others), config)


def update(optimizer: torch.optim.Optimizer, clip: float | None) -> Tensor:
    """Take the step of the accumulated gradient unless it is not finite, and clear it; the gradient's norm, float (), over all
    processes that have shards of it.

    A fused optimiser leaves such a step out on the device, and the host waits for nothing. The others have no means of
    that: for them the norm is read.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters]))
    if clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~norm.isfinite()).to(torch.float32)  # type: ignore[attr-defined]  # as torch's GradScaler does
        optimizer.step()
    elif norm.isfinite():
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
