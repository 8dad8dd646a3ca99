"""What is trained, as it begins: the network, its averages, terms of the loss with weights, the optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ditkit.backbones import Backbone
from ditkit.codecs import Codec
from ditkit.conditions import Read
from ditkit.objectives.terms import build_terms
from ditkit.processes import ALONE, Processes
from ditkit.recipe import Recipe
from ditkit.training.averages import Averages
from ditkit.training.ema import Ema
from ditkit.training.parallel import Kind, Parallel, parallel
from ditkit.training.state import TrainState
from ditkit.training.step import Objective, make_optimizer

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def begin(
    recipe: Recipe,
    net: Backbone,
    codec: Codec,
    device: torch.device,
    read: Read | None = None,
    *,
    kind: Kind = "none",
    mesh: DeviceMesh | None = None,
    processes: Processes = ALONE,
) -> tuple[TrainState, Parallel]:
    """The state of a training that begins with `net`, and the step that the processes share.

    `codec` is that of the batches; `read` gives the captions' embeddings. Kind and mesh as of `kind_of` and `mesh_of`.
    """
    config = recipe.train
    terms = {name: term.to(device) for name, term in build_terms(config.terms, net, config.seed).items()}
    trained = {name: term for name, term in terms.items() if any(True for _ in term.parameters())}
    average = Ema(net, config.ema_half_life_images, config.ema_rampup)
    other = average.of(nn.ModuleDict(trained)) if trained else None
    objective = Objective(recipe, net, codec, device, read, terms, average.net, always=processes.several)
    others = [] if other is None else [*other.net.values()]
    shared = parallel(objective, average.net, others, kind, processes, mesh)
    state = TrainState(
        net,
        make_optimizer(net, config, *trained.values()),
        average=average,
        auxiliary=trained,
        auxiliary_average=other,
        averages=Averages(net, config.averages),
        processes=processes,
        sharded=mesh is not None,
    )
    return state, shared
