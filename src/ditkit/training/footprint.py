"""What a recipe's own training step takes: its loss, backward pass and optimiser, run on fake tensors.

Fake tensors have shapes, types and a device, a CPU, but no numbers. Types under autocast are those that a CPU takes. Blocks
are not compiled; a recipe with an autoencoder or a text encoder is taken to train from what these made beforehand.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ditkit.adapting import adapt
from ditkit.averages import power_widths
from ditkit.codecs import Codec, IdentityConfig, PyramidCodec
from ditkit.costs.footprint import Footprint, Live, Pass
from ditkit.costs.operators import CPU, bytes_of
from ditkit.data import Batch, Share
from ditkit.kernels.attention import Form, attention_as
from ditkit.objectives.terms import build_terms
from ditkit.optimizers.parameters import Parameters, trained
from ditkit.optimizers.size import state_bytes
from ditkit.recipe import Recipe
from ditkit.text import Text
from ditkit.training.draws import with_draws
from ditkit.training.step import backward

PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103)


class Training:
    """A recipe's training with fake tensors in place of weights."""

    def __init__(self, recipe: Recipe, sharded: bool = False):
        """`sharded`: as where GPUs have shards of the weights, and gather those of blocks as bf16 where products are of it,
        with no copies of them that autograd keeps. InputError as of `Recipe.build_backbone`."""
        self.recipe = recipe
        with torch.device("meta"):
            self.net = adapt(recipe.build_backbone(), recipe.train).train()
            self.terms = build_terms(recipe.train.terms, self.net, recipe.train.seed)
            # Only terms run the average.
            self.average = (
                adapt(recipe.build_backbone(), recipe.train).eval().requires_grad_(False)
                if self.terms
                else None
            )
        mode = FakeTensorMode(allow_non_fake_inputs=True)  # tables of positions are kept, and real
        self._modules: Sequence[nn.Module] = [
            self.net,
            *self.terms.values(),
            *([self.average] if self.average else []),
        ]
        for module in self._modules:
            _fake(module, mode)
        if sharded and recipe.train.precision == "bf16":
            for block in self.net.repeated:
                _fake(block, mode, torch.bfloat16)

    @property
    def images(self) -> int:
        """A prime number that divides no size of the network, its state, tokens or texts."""
        recipe = self.recipe
        sizes = {size for module in self._modules for tensor in _tensors(module) for size in tensor.shape}
        sizes |= {*recipe.data.shape, *recipe.build_codec().layout(*recipe.data.shape).shape}
        sizes |= {recipe.tokens(recipe.data.shape), recipe.text.length if recipe.text else 1}
        return next(prime for prime in PRIMES if all(size % prime for size in sizes if size))

    @property
    def trained(self) -> Parameters:
        return trained(self.net, *self.terms.values())

    def footprint(self) -> Footprint:
        net, changed = self.net, self.trained
        weights, auxiliary = bytes_of(_tensors(net)), sum(bytes_of(_tensors(t)) for t in self.terms.values())
        further = len(self.recipe.train.averages) * bytes_of(p for p in net.parameters() if p.requires_grad)
        blocks = [bytes_of(block.parameters()) for block in net.repeated]
        return Footprint(
            weights=weights,
            auxiliary=auxiliary,
            gradients=bytes_of(changed),
            optimizer=state_bytes(changed, self.recipe.train),
            averages=bytes_of(changed)
            + further
            + sum(bytes_of(m.buffers()) for m in (net, *self.terms.values())),
            units=(*blocks, bytes_of(net.parameters()) - sum(blocks)),
        )

    def stored(self) -> int:
        """Bytes of a file of the power averages, in 16 bits (`train.snapshot_images`)."""
        trained = sum(p.numel() for p in self.net.parameters() if p.requires_grad)
        return 2 * trained * len(power_widths(self.recipe.train.averages))

    def passes(self, form: Form, every: int) -> Pass:
        """Of a step of one pass, with attention of that form, where every so many-th block is computed again (0: none).
        InputError for a recipe whose blocks cannot be."""
        recipe = self.recipe.replace(train={"micro_batch": None, "checkpoint_blocks": every})
        codec = planned_codec(recipe)
        images = self.images
        batch = planned_batch(recipe, codec, images)
        changed = self.trained
        live = Live(images, (tensor for module in self._modules for tensor in _tensors(module)))
        counting = live.follow_gradients(changed)
        try:
            with live, attention_as(form):
                live.follow(batch.draws.values())
                backward(
                    recipe, self.net, codec, batch, CPU, planned_reader(recipe), self.terms, self.average
                )
        finally:
            for handle in counting:
                handle.remove()
            for parameter in changed:
                parameter.grad = None
        return live.counted()


def planned_codec(recipe: Recipe) -> Codec:
    """The codec of batches that hold the states themselves: what an autoencoder made beforehand, or the pixels."""
    codec = recipe.build_codec()
    base = codec.base if isinstance(codec, PyramidCodec) else codec
    return recipe.nested(IdentityConfig().build(base.channels))


def planned_batch(recipe: Recipe, codec: Codec, images: int) -> Batch:
    """So many images of the recipe's size, the first of a batch, without anything in them."""
    whole = recipe.build_codec()
    base = whole.base if isinstance(whole, PyramidCodec) else whole
    index = torch.arange(images)
    batch = Batch(
        torch.zeros(images, *base.layout(*recipe.data.shape).shape),
        torch.zeros(images, dtype=torch.int64) if recipe.data.classes else None,
        index,
        ("",) * images if recipe.text else None,
        share=Share(index, max(images, recipe.train.batch)),
    )
    return with_draws(recipe, codec, batch)


def planned_reader(recipe: Recipe) -> Any:
    """Embeddings of texts, without numbers."""
    config = recipe.text
    if config is None:
        return None

    def read(texts: Sequence[str]) -> Text:
        n = len(texts)
        return Text(
            torch.zeros(n, config.length, config.dim),
            torch.ones(n, config.length, dtype=torch.bool),
            torch.zeros(n, config.dim),
        )

    return read


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _fake(net: nn.Module, mode: FakeTensorMode, dtype: torch.dtype | None = None) -> None:
    """Put fake parameters, of that type or their own, and buffers in place of a network's own."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                own = dtype if dtype and isinstance(tensor, nn.Parameter) else tensor.dtype
                like = torch.empty(tensor.shape, dtype=own, device=CPU)
            parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(like, tensor.requires_grad) if parameter else like
        return made[id(tensor)]

    kept = []  # or another tensor could get the number of one that is gone
    for module in net.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            kept.append(tensor)
            setattr(module, name, fake(tensor))
