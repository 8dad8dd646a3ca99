"""The training loop: one function, counted in images, resumed by calling it again.

Order, augmentation, time, noise and label dropout of image n are functions of (run seed, n), so a
run that is stopped and resumed equals one that was not, bit for bit on the same machine.
"""

import logging
from contextlib import ExitStack
from pathlib import Path

import torch

from ditkit.backbones import compile_blocks, compiles
from ditkit.checkpoint import load_newest, optimizer_tensors, restore_optimizer, save_checkpoint
from ditkit.data import Plan, Source, batches, plan_for, workers_named
from ditkit.data.latents import Latents
from ditkit.device import DeviceName, pick_device
from ditkit.errors import InputError
from ditkit.files import owned
from ditkit.pipeline import Pipeline
from ditkit.plots import loss_curve
from ditkit.progress import progress_bar
from ditkit.recipe import Recipe
from ditkit.signals import Requests
from ditkit.text import TextCache
from ditkit.training.captions import read_captions
from ditkit.training.data import recorded, settled
from ditkit.training.ema import Ema
from ditkit.training.initial import load_initial, load_inner
from ditkit.training.latents import open_for
from ditkit.training.log import Log, read_log
from ditkit.training.monitor import Monitor
from ditkit.training.run import RECIPE, check_run, claim_run, was_compiled
from ditkit.training.schedule import due, learning_rate
from ditkit.training.skipped import Skipped
from ditkit.training.step import backward, make_optimizer, update

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

    Leaves recipe.json, log.jsonl, text/ where there are captions, loss.png, previews/, checkpoints/ and what `monitor.py` measures. `init` starts
    from the moving average of another run or snapshot instead of fresh weights, `init_inner` from one of fewer
    levels that goes inside. Earlier stages (`train.stages`) are runs in stages/1, 2, ... With `train.latents` the batches
    come from a cache; what is measured meanwhile is still of the images.

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
    with workers_named(), ExitStack() as until_end:
        return _train(recipe, out, device, init, init_inner, progress, until_end)


def _train(
    recipe: Recipe,
    out: Path,
    device: torch.device,
    init: str | Path | None,
    init_inner: str | Path | None,
    progress: bool,
    until_end: ExitStack,
) -> Path:
    config = recipe.train
    recipe = recipe.replace(data=settled(recipe.data, out / RECIPE, config.latents))
    codec = recipe.build_codec(device)
    plan: Plan | None = None
    source: Source | Latents
    if config.latents is None:
        source, encoding = recipe.data.training(), codec
    else:
        source, encoding = open_for(recipe, codec, config.latents)
    recipe = recipe.replace(data=recorded(recipe.data, source), codec=recipe.codec.resolved())
    if recipe.text and source.captions is None:
        raise InputError(
            f"--text {recipe.text.id}: the data has no captions; give --data.caption-column where its captions are, "
            "or leave --text out"
        )
    if init_inner is not None and config.stages:
        raise InputError(
            f"--init-inner {init_inner} and --train.stages {' '.join(map(str, config.stages))}: the first stage has "
            "nothing inside; leave one out"
        )
    if config.tokens is not None:
        plan = plan_for(source, recipe.data, recipe.multiple, recipe.tokens, config.tokens, config.packed)
        log.info(plan.describe())
    net = recipe.build_backbone()  # before anything is written: refuses what cannot be built
    check_run(recipe, out, source)
    newest = load_newest(out / "checkpoints", ("model", "ema", "optimizer"))
    begins = newest is None
    left = config.images - (newest[0]["images"] if newest else 0)
    tokens = 3 * left * recipe.backbone.tokens(codec.layout(*recipe.data.shape).shape[1:])
    as_before = newest and was_compiled(newest[0], out)
    compiled = compiles(config.compile, net, device, tokens, "--train.compile", as_before)
    if begins and init is not None:
        load_initial(net, init)
    if begins and init_inner is not None:
        load_inner(net, recipe, init_inner)
    until_end.enter_context(owned(out))
    requests = until_end.enter_context(Requests().noted())
    claim_run(recipe, out, source)
    texts = None if recipe.text is None else read_captions(recipe, source, out, device)
    if begins and recipe.stages:
        load_inner(net, recipe, _train_stages(recipe, out, device, texts, progress))
    if config.freeze_inner:
        net.get_submodule("inner").requires_grad_(False)
    net = net.to(device).train()
    ema = Ema(net, config.ema_half_life_images, config.ema_rampup)
    optimizer = make_optimizer(net, config)
    seen, seconds, skipped = 0, 0.0, Skipped()
    if newest is not None:
        state, tensors = newest
        seen, seconds, skipped = state["images"], state["seconds"], Skipped(state["skipped"])
        net.load_state_dict(tensors["model"])
        ema.net.load_state_dict(tensors["ema"])
        restore_optimizer(optimizer, net, tensors["optimizer"])
        log.info(f"{out}: going on after {seen:,} of {config.images:,} images")
    if compiled:
        compile_blocks(net)

    average = Pipeline(recipe, ema.net, codec, device, texts=texts)
    monitor = Monitor(average, out, seen, source)
    lines = Log(out / "log.jsonl", seen, seconds, newest[0].get("log") if newest else None)
    checkpoint = out / "checkpoints" / f"{seen:012d}"

    def save() -> None:
        nonlocal checkpoint
        if checkpoint.name == f"{seen:012d}":
            return
        parts = {
            "model": net.state_dict(),
            "ema": ema.net.state_dict(),
            "optimizer": optimizer_tensors(optimizer, net),
        }
        state = {"seconds": lines.seconds, "skipped": skipped.count, "compiled": compiled, "log": lines.begun}
        checkpoint = save_checkpoint(out / "checkpoints", seen, parts, state, config.keep)
        loss_curve(read_log(out / "log.jsonl"), out / "loss.png", recipe.name)

    if seen:
        monitor.catch_up(seen)
    stream = batches(
        source,
        recipe.data,
        seed=config.seed,
        start=seen,
        stop=config.images,
        batch=config.batch,
        workers=config.workers,
        plan=plan,
    )
    with progress_bar(config.images, recipe.name, "img", initial=seen, shown=progress) as bar:
        for batch in stream:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, seen)
            terms = backward(recipe, net, encoding, batch, device, texts)
            norm = update(net, optimizer, config.clip)
            before, seen = seen, seen + len(batch.index)
            if skipped.taken(norm):
                ema.update(len(batch.index), seen)
                lines.add(terms | {"grad_norm": norm})
            bar.update(len(batch.index))

            if due(config.log_images, before, seen, config.images):
                row = lines.write(seen, lr=optimizer.param_groups[0]["lr"], skipped=skipped.count)
                bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            if seen >= config.images:  # before the last checkpoint: a run that is lost is not finished
                skipped.end(out)
            if requests.any or due(config.checkpoint_images, before, seen, config.images):
                save()
            if requests.stop is None:
                with requests.interruptible():
                    monitor.measure(before, seen)
            if requests.any:
                save()
                requests.answer(f"{out}: {seen:,} of {config.images:,} images are saved in {checkpoint}")
    return checkpoint


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
