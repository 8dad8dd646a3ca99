"""Training a diffusion model: counted in images, resumed by calling `train` again.

Order, augmentation, time, noise and label dropout of image n are functions of (run seed, n), so a
run that is stopped and resumed equals one that was not, bit for bit on the same machine. The loop itself: `fit`.
"""

import logging
import math
from collections.abc import Generator
from contextlib import ExitStack, closing, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from ditkit.adapting import adapt
from ditkit.backbones import Backbone, compile_blocks, compiles
from ditkit.checkpoint import checkpoints
from ditkit.codecs import Codec
from ditkit.data import Batch, Plan, Source, batches, plan_for, workers_named
from ditkit.device import DeviceName, check_compiler, pick_device
from ditkit.errors import InputError
from ditkit.files import owned
from ditkit.objectives import group_of
from ditkit.objectives.terms import build_terms
from ditkit.pipeline import Pipeline
from ditkit.processes import Processes, joined
from ditkit.progress import progress_bar
from ditkit.randomness import Draws
from ditkit.recipe import Recipe, Training
from ditkit.signals import Requests
from ditkit.text import TextCache
from ditkit.trackers import check_trackers
from ditkit.training.averages import Storing
from ditkit.training.beginning import begin
from ditkit.training.captions import read_captions
from ditkit.training.data import recorded, settled
from ditkit.training.diverging import Diverged, go_back
from ditkit.training.draws import draws_of
from ditkit.training.fit import fit
from ditkit.training.hooks import CHECKPOINTS, checkpoint_path, run_hooks
from ditkit.training.initial import load_initial, load_inner
from ditkit.training.latents import open_for
from ditkit.training.monitor import Monitor
from ditkit.training.parallel import Parallel, kind_of, mesh_of
from ditkit.training.run import RECIPE, check_run, claim_run, was_compiled
from ditkit.training.schedule import learning_rate
from ditkit.training.siblings import check_sibling
from ditkit.training.state import TrainState
from ditkit.training.tracking import Tracking

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    device: DeviceName | torch.device,
    init: str | Path | None = None,
    init_inner: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Train `recipe` in the folder `out`, resuming what is there; the path of the last checkpoint.

    Leaves recipe.json, log.jsonl, text/ where there are captions, loss.png, previews/, checkpoints/ and what
    `monitor.py` measures. `init` starts from the moving average of another run or snapshot instead of fresh weights,
    `init_inner` from one of fewer levels that goes inside. Earlier stages (`train.stages`) are runs in stages/1, 2, ...
    With `train.latents` the batches come from a cache; what is measured meanwhile is still of the images.

    SIGINT, SIGTERM and SIGHUP write a checkpoint and end with `Stopped`, a second one without a checkpoint; SIGUSR1
    writes one and goes on.

    Raises:
        InputError: data that cannot be read, a cache of something else, a folder made by another recipe, no
            intact checkpoint, a full disk, or a loss that stays non-finite.
        Stopped: a signal.
    """
    device = pick_device(device)
    if not isinstance(recipe, Recipe):
        raise InputError(f"recipe: {recipe!r:.80} is none; take one of ditkit.recipes, or Recipe.read(FILE)")
    if not isinstance(out, str | Path):
        raise InputError(f"out: {out!r:.80} is no folder")
    out = Path(out)
    check_trackers(recipe.train.track)
    if init_inner is not None and recipe.train.stages:
        raise InputError(
            f"`init_inner` {init_inner} and `train.stages` {' '.join(map(str, recipe.train.stages))}: the first stage has "
            "nothing inside; leave one out"
        )
    with workers_named(), ExitStack() as until_end:
        processes = until_end.enter_context(joined(device))
        return _train(recipe, out, device, init, init_inner, progress, until_end, processes)


class _Opened(NamedTuple):
    """What a run reads, and the recipe with nothing left open."""

    recipe: Recipe
    source: Source
    codec: Codec
    encoding: Codec  # of the batches: of moments where they come from a cache
    plan: Plan | None
    draws: Draws
    device: torch.device

    def stream(self, start: int, processes: Processes) -> Generator[Batch]:
        """What this process has of the batches from that image on."""
        data, config = self.recipe.data, self.recipe.train
        return batches(
            self.source,
            data,
            seed=config.seed,
            start=start,
            stop=config.images,
            batch=config.batch,
            rank=processes.rank,
            world=processes.world,
            group=group_of(config.terms),
            workers=config.workers,
            plan=self.plan,
            draws=self.draws,
            pinned=self.device.type == "cuda",
        )


def _open(recipe: Recipe, out: Path, device: torch.device) -> _Opened:
    """Open the data. InputError when it cannot be read, or does not belong to the recipe."""
    config = recipe.train
    recipe = recipe.replace(data=settled(recipe.data, out / RECIPE, config.latents))
    codec = recipe.build_codec(device)
    source: Source
    if config.latents is None:
        source, encoding = recipe.data.training(), codec
    else:
        source, encoding = open_for(recipe, codec, config.latents)
    recipe = recipe.replace(data=recorded(recipe.data, source), codec=recipe.codec.resolved())
    if recipe.text and source.captions is None:
        raise InputError(
            f"`text` {recipe.text.id}: the data has no captions; give `data.caption_column` where its captions are, "
            "or leave `text` out"
        )
    plan = None
    if config.tokens is not None:

        def tokens(size: tuple[int, ...]) -> int:
            return recipe.backbone.tokens(encoding.layout(*size).shape[1:])

        plan = plan_for(source, recipe.data, recipe.multiple, tokens, config.tokens, config.packed)
        log.info(plan.describe())
    sizes = {*source.sizes(recipe.multiple)} if plan is None else {*plan.sizes}
    return _Opened(recipe, source, codec, encoding, plan, draws_of(recipe, encoding, sizes), device)


def _train(
    recipe: Recipe,
    out: Path,
    device: torch.device,
    init: str | Path | None,
    init_inner: str | Path | None,
    progress: bool,
    until_end: ExitStack,
    processes: Processes,
) -> Path:
    """Prepare the data and the state, then `fit`; what has to be undone or released at the end is left to `until_end`."""
    config = recipe.train
    group = group_of(config.terms)
    if config.tokens is None and math.ceil(config.batch / group) < processes.world:
        words = (
            ("", "one image")
            if group == 1
            else (" need", f"one of {group} images, which `train.terms` compare")
        )
        raise InputError(
            f"`train.batch` {config.batch} is less than the {processes.world} processes{words[0]}; give each at least {words[1]}"
        )
    with processes.in_turn():  # the first prepares what the others find
        opened = _open(recipe, out, device)
    recipe = opened.recipe
    facts = {"recipe": recipe.model_dump_json(), "images": len(opened.source)}
    processes.check_same(facts | {name: version(name) for name in ("ditkit", "torch")})
    net = _built(recipe, device)  # before anything is written
    kind = kind_of(config, net, processes, device)
    mesh = mesh_of(kind, config.shard_size, processes, device)
    begins = not checkpoints(out / CHECKPOINTS)
    if begins and init is None and config.lora:
        raise InputError(
            f"train.lora {config.lora} is for a trained network: give `init`, a run, snapshot or file"
        )
    if begins and init is not None:
        load_initial(net, init)
    if begins and init_inner is not None:
        load_inner(net, recipe, init_inner)
    requests = until_end.enter_context(Requests(config.max_minutes).noted())
    compiled = None
    with processes.in_turn():
        if processes.first:
            check_run(recipe, out, opened.source)
            check_sibling(recipe, out)
            compiled = None if begins else was_compiled(out)
            until_end.enter_context(owned(out))
            claim_run(recipe, out, opened.source)
        texts = None if recipe.text is None else read_captions(recipe, opened.source, out, device)
    compiled = processes.from_first(compiled)
    if begins and recipe.stages:
        load_inner(net, recipe, _train_stages(recipe, out, device, texts, progress))
    state, shared = begin(
        recipe,
        net.to(device).train(),
        opened.encoding,
        device,
        texts,
        kind=kind,
        mesh=mesh,
        processes=processes,
    )
    until_end.callback(shared.close)
    if not begins:
        state.load(out / CHECKPOINTS)
        _say_how_far(out, state.images, config.images)
    state.notes["compiled"] = _compile(opened, net, state, state.notes.get("compiled", compiled))
    pipeline = Pipeline(recipe, shared.average, opened.codec, device, texts=texts)
    while True:
        try:
            _fit(opened, pipeline, state, shared, requests, out, progress)
            return checkpoint_path(out, state.images)
        except Diverged as error:
            if config.on_divergence == "stop":
                raise
            go_back(state, out / CHECKPOINTS, error, config.keep)


def _built(recipe: Recipe, device: torch.device) -> Backbone:
    """The network as it begins, on the CPU. InputError for what of a training cannot be built."""
    config = recipe.train
    net = adapt(recipe.build_backbone(), config)
    build_terms(config.terms, net, config.seed)
    if config.compile == "on":
        check_compiler(device, "`train.compile` off")
    return net


def _fit(
    opened: _Opened,
    pipeline: Pipeline,
    state: TrainState,
    shared: Parallel,
    requests: Requests,
    out: Path,
    progress: bool,
) -> None:
    """Train to the end. Diverged where it goes wrong."""
    recipe, config, processes = opened.recipe, opened.recipe.train, state.processes
    monitor = Monitor(pipeline, out, state.images, opened.source, shared.whole_average)
    if state.images:
        monitor.catch_up(state.images)
    with (
        progress_bar(
            config.images, recipe.name, "img", initial=state.images, shown=progress and processes.first
        ) as bar,
        Tracking(out, config, recipe.name, recipe) if processes.first else nullcontext() as tracking,
        # An error ends the loader's processes at once.
        closing(opened.stream(state.images, processes)) as stream,
    ):
        every = config.snapshot_images
        hooks = run_hooks(
            state, out, config, requests, bar,
            storing=Storing(state.averages, out, every, config.images, state.images, processes),
            name=recipe.name, measure=monitor.measure, tracking=tracking, processes=processes,
            explain=shared.explain, ends=config.on_divergence == "rewind",
        )  # fmt: skip

        def rate(config: Training, seen: int) -> float:
            return state.rate * learning_rate(config, seen)

        fit(state, stream, shared.backward, config, hooks=hooks, rate=rate)


def _say_how_far(out: Path, seen: int, last: int) -> None:
    """What a run begins with that is there already."""
    ended = f"finished, {seen:,} images" if seen >= last else f"going on after {seen:,} of {last:,} images"
    log.info(f"{out}: {ended}")


def _compile(opened: _Opened, net: Backbone, state: TrainState, before: bool | None) -> bool:
    """Compile the steps, where that pays for what is left, or as `before`; whether they are compiled."""
    recipe = opened.recipe
    size = opened.codec.layout(*recipe.data.shape).shape[1:]
    images, tokens = recipe.train.images - state.images, 3 * recipe.backbone.tokens(size)
    chosen = compiles(recipe.train.compile, net, opened.device, images, tokens, "`train.compile`", before)
    if chosen:
        compile_blocks(net)
    return chosen


def _train_stages(
    recipe: Recipe, out: Path, device: torch.device, texts: TextCache | None, progress: bool
) -> Path:
    """The stages before the last, each a run in `out` that starts from the one before; the last one's folder."""
    inside: Path | None = None
    for number, stage in enumerate(recipe.stages, start=1):
        log.info(f"{out}: stage {number} of {len(recipe.stages) + 1}")
        if texts is not None:  # the same captions
            stage = stage.replace(train={"texts": texts.folder})
        folder = out / "stages" / str(number)
        train(stage, folder, device=device, init_inner=inside, progress=progress)
        inside = folder
    assert inside is not None  # there are stages
    return inside
