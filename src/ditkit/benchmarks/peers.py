"""Whose training step and guided evaluation can be timed: each is declared here, once."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ditkit.backbones import DiTConfig
from ditkit.benchmarks import diffusers, ours, paper
from ditkit.benchmarks.latents import recipe_with
from ditkit.device import Precision
from ditkit.recipe import Recipe


class Peer(NamedTuple):
    """A network in a loop. All are of the recipe's size, and train and evaluate on the same latents."""

    build: Callable[[Recipe], Any]
    """The network, with the weights that it begins with."""
    step: Callable[[Recipe, Any], Callable[[], object]]
    """A training step: the hybrid loss, backward, AdamW, the moving average."""
    evaluation: Callable[[Recipe, Any], Callable[[], object]]
    """The network's part of a step of guided sampling, of half a batch of images."""
    sampled: Callable[[Recipe, Any], Any] = lambda recipe, net: net
    """From a network that is frozen to the one that is evaluated."""
    compile: Callable[[Any], None] | None = None
    """Compiles the network's blocks; None for one that is only run as its authors do."""
    check: Callable[[], None] = lambda: None
    """InputError where what it needs is not installed."""
    fp32: bool = False
    """Whether it is also run in float32 where the others run in bf16."""


PEERS: dict[str, Peer] = {
    "paper": Peer(paper.build_paper, paper.paper_step, paper.paper_evaluation, fp32=True),
    "diffusers": Peer(
        diffusers.build_diffusers,
        diffusers.diffusers_step,
        diffusers.diffusers_evaluation,
        compile=diffusers.compile_diffusers,
        check=diffusers.check_diffusers,
    ),
}
"""What ditkit can be compared with."""

OURS = Peer(
    Recipe.build_backbone, ours.ditkit_step, ours.ditkit_evaluation, ours.ditkit_sampled, ours.compile_ditkit
)


class Form(NamedTuple):
    """One way in which a peer, or ditkit, is run."""

    peer: str
    precision: Precision
    compiled: bool = False

    @property
    def name(self) -> str:
        words = f"{self.peer} {self.precision}" if self._peer.fp32 else self.peer
        return f"{words}, compiled" if self.compiled else words

    @property
    def _peer(self) -> Peer:
        return PEERS.get(self.peer, OURS)

    @property
    def ours(self) -> bool:
        return self._peer is OURS

    def built_step(self, backbone: DiTConfig, batch: int) -> tuple[Any, Callable[[], object]]:
        """A network, and the training step that trains it."""
        recipe = recipe_with(backbone, batch, self.precision)
        net = self._peer.build(recipe).train()
        return net, self._ready(net, self._peer.step(recipe, net))

    def built_evaluation(self, backbone: DiTConfig, batch: int) -> Callable[[], object]:
        """The guided evaluation of a network that is not trained."""
        recipe = recipe_with(backbone, batch, self.precision)
        net = self._peer.sampled(recipe, self._peer.build(recipe).eval().requires_grad_(False))
        return self._ready(net, self._peer.evaluation(recipe, net))

    def _ready(self, net: Any, run: Callable[[], object]) -> Callable[[], object]:
        if self.compiled and self._peer.compile:
            self._peer.compile(net)
        return run


def forms(peers: tuple[str, ...], precision: Precision, compiled: bool) -> list[Form]:
    """How these peers, in the registry's order, and ditkit are run, with `compiled` also compiled. InputError where what one
    needs is not installed."""
    found = []
    chosen = {name: peer for name, peer in PEERS.items() if name in peers}
    for name, peer in {**chosen, "ditkit": OURS}.items():
        peer.check()
        precisions: tuple[Precision, ...] = ("fp32", precision) if peer.fp32 else (precision,)
        ways = (False, True) if compiled and peer.compile else (False,)
        found += [Form(name, each, way) for each in dict.fromkeys(precisions) for way in ways]
    return found
