"""The training loop: one function, counted in images, resumed by calling it again.

Order, augmentation, time, noise and label dropout of image n are functions of (run seed, n), so a
run that is stopped and resumed equals one that was not, bit for bit on the same machine.
"""

import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ditkit.checkpoint import load_newest, optimizer_tensors, restore_optimizer, save_checkpoint
from ditkit.codecs import Codec
from ditkit.data import Batch, batches
from ditkit.device import autocast, can_compile
from ditkit.errors import InputError
from ditkit.pictures import loss_curve
from ditkit.pipeline import Pipeline
from ditkit.progress import progress_bar
from ditkit.randomness import generator
from ditkit.recipe import Recipe, TrainConfig
from ditkit.training.ema import Ema
from ditkit.training.initial import load_initial
from ditkit.training.preview import save_preview
from ditkit.training.run import claim_run

log = logging.getLogger(__name__)

MOST_SKIPPED = 50  # non-finite steps in a row after which going on makes no sense


def train(
    recipe: Recipe, out: Path, *, device: torch.device, init: str | Path | None = None, progress: bool = True
) -> Path:
    """Train `recipe` in the folder `out`, resuming what is there; the path of the last checkpoint.

    Leaves recipe.json, log.jsonl, loss.png, previews/ and checkpoints/. `init` starts from the moving
    average of another run or snapshot instead of fresh weights.

    Raises:
        InputError: data that cannot be read, a folder made by another recipe, no intact checkpoint,
            a full disk, or a loss that stays non-finite.
    """
    source = recipe.data.open("train")
    recipe = recipe.replace(data={"classes": len(source.names)})
    config = recipe.train
    codec = recipe.build_codec(device)
    net = recipe.build_backbone()  # before anything is written: refuses what cannot be built
    if config.compile and not can_compile(device):
        raise InputError("--train.compile needs a C++ compiler (install g++), or leave it off")
    claim_run(recipe, out)
    newest = load_newest(out / "checkpoints", ("model", "ema", "optimizer"))
    if init is not None and newest is None:
        load_initial(net, init)
    net = net.to(device).train()
    ema = Ema(net, config.ema_half_life_images, config.ema_rampup)
    optimizer = make_optimizer(net, config)
    state = {"seconds": 0.0, "skipped": 0}
    seen = 0
    if newest is not None:
        state, tensors = newest
        seen = state["images"]
        net.load_state_dict(tensors["model"])
        ema.net.load_state_dict(tensors["ema"])
        restore_optimizer(optimizer, net, tensors["optimizer"])
        _truncate_log(out / "log.jsonl", seen)
        log.info(f"{out}: resuming after {seen} images")
    if config.compile:
        compile_blocks(net)
    log_rows = _Log(out / "log.jsonl", seen, state["seconds"])
    bar = progress_bar(config.images, recipe.name, "img", initial=seen, shown=progress)
    skipped_in_a_row = 0
    stream = batches(
        source,
        recipe.data,
        seed=config.seed,
        start=seen,
        stop=config.images,
        batch=config.batch,
        workers=config.workers,
    )
    path = out / "checkpoints" / f"{seen:012d}"
    for batch in stream:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, seen)
        terms = backward(recipe, net, codec, batch, device)
        norm = nn.utils.clip_grad_norm_(net.parameters(), config.clip or math.inf)
        finite = bool(norm.isfinite())
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        before, seen = seen, seen + len(batch.index)
        if finite:
            ema.update(len(batch.index), seen)
            skipped_in_a_row = 0
        else:
            state["skipped"] += 1
            skipped_in_a_row += 1
            if skipped_in_a_row >= MOST_SKIPPED:
                raise InputError(
                    f"the gradient was not finite {MOST_SKIPPED} steps in a row; lower --train.lr, set "
                    "--train.clip 1, or use --train.precision fp32"
                )
        log_rows.add(terms, norm if finite else None, len(batch.index))

        def due(every: int, before: int = before, seen: int = seen) -> bool:
            return seen // every > before // every or seen >= config.images

        if due(config.log_images):
            row = log_rows.write(seen, optimizer.param_groups[0]["lr"], state["skipped"])
            bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
        bar.update(len(batch.index))
        if due(config.checkpoint_images):
            state["seconds"] = log_rows.seconds
            parts = {
                "model": net.state_dict(),
                "ema": ema.net.state_dict(),
                "optimizer": optimizer_tensors(optimizer, net),
            }
            path = save_checkpoint(out / "checkpoints", seen, parts, state, config.keep)
            loss_curve(log_rows.all(), out / "loss.png", recipe.name)
        if due(config.preview_images):
            save_preview(Pipeline(recipe, ema.net, codec, device), out / "previews" / f"{seen:012d}.png")
    bar.close()
    return path


def make_optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in one fused call over all parameters."""
    return torch.optim.AdamW(
        net.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def compile_blocks(net: nn.Module) -> None:
    """Compile the blocks, all of one kind, once for all of them; weights keep their names."""
    for block in net.blocks:
        block.compile()


def learning_rate(config: TrainConfig, seen: int) -> float:
    """The rate for the step after `seen` images: linear warm-up, then the schedule."""
    rate = config.lr
    if seen < config.warmup_images:
        rate *= (seen + config.batch) / (config.warmup_images + config.batch)
    if config.schedule == "cosine":
        rate *= (1 + math.cos(math.pi * min(1.0, seen / config.images))) / 2
    return rate


class Draws(NamedTuple):
    """The randomness of a batch of training images, on the CPU."""

    u: Tensor  # float64 (B,), uniform in (0, 1): the time
    drop: Tensor  # float64 (B,), uniform in [0, 1): the label is dropped below label_dropout
    eps: Tensor  # float32 (B, *S), standard normal
    posterior: Tensor  # float32 (B, *S), standard normal: what a random codec encodes with


def draws(seed: int, index: Tensor, shape: tuple[int, ...], random_codec: bool) -> Draws:
    """u, dropout and noise of the images numbered `index`, each from (seed, n) alone."""
    u, drop, eps, posterior = [], [], [], []
    for n in index.tolist():
        stream = generator(seed, n, "train")
        u.append(1 - stream.random())  # (0, 1]
        drop.append(stream.random())
        eps.append(stream.standard_normal(shape, dtype=np.float32))
        if random_codec:
            posterior.append(generator(seed, n, "codec").standard_normal(shape, dtype=np.float32))
    noise = torch.from_numpy(np.stack(eps))
    second = torch.from_numpy(np.stack(posterior)) if random_codec else noise
    return Draws(torch.tensor(u, dtype=torch.float64), torch.tensor(drop, dtype=torch.float64), noise, second)


def backward(
    recipe: Recipe, net: nn.Module, codec: Codec, batch: Batch, device: torch.device
) -> dict[str, Tensor]:
    """Accumulate the gradient of the batch's mean loss; the batch's mean of every term of the loss."""
    config, total = recipe.train, len(batch.index)
    means: dict[str, Tensor] = {}
    for part in _split(batch, config.micro_batch or total):
        layout = codec.layout(*part.images.shape[-2:])
        drawn = draws(config.seed, part.index, layout.shape, recipe.codec.kind != "identity")
        x0 = codec.encode(part.images.to(device), drawn.posterior.to(device))
        cond = {}
        if part.label is not None:
            cond = {"label": part.label.to(device)}
            dropped = (drawn.drop < config.label_dropout).to(device)
            cond = {key: torch.where(dropped, empty, cond[key]) for key, empty in net.null(cond).items()}
        with autocast(device, config.precision):
            t = recipe.transport.times(drawn.u)
            terms = recipe.transport.loss(net, x0, cond, t=t, eps=drawn.eps.to(device), layout=layout)
        (terms["loss"].sum() / total).backward()
        for name, value in terms.items():
            mean = value.detach().sum() / total
            means[name] = means[name] + mean if name in means else mean
    return means


def _split(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch.index), size):
        rows = slice(start, start + size)
        yield Batch(batch.images[rows], None if batch.label is None else batch.label[rows], batch.index[rows])


class _Log:
    """log.jsonl: one line per `log_images`, means since the line before it."""

    def __init__(self, path: Path, images: int, seconds: float):
        self._path, self._images = path, images
        self._before, self._start = seconds, time.perf_counter()
        self._last = seconds
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    @property
    def seconds(self) -> float:
        """Of training, over all sittings."""
        return self._before + time.perf_counter() - self._start

    def add(self, terms: dict[str, Tensor], norm: Tensor | None, images: int) -> None:
        if norm is None:  # a skipped step says nothing about the loss
            return
        for name, value in (terms | {"grad_norm": norm}).items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1

    def write(self, images: int, lr: float, skipped: int) -> dict:
        now = self.seconds
        row = {"images": images, "minutes": round(now / 60, 4)}
        row |= {name: float(value) / self._steps for name, value in self._sums.items()} or {"loss": math.nan}
        row |= {
            "lr": lr,
            "skipped": skipped,
            "images_per_second": (images - self._images) / (now - self._last),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._sums, self._steps, self._images, self._last = {}, 0, images, now
        return row

    def all(self) -> list[dict]:
        return [row for row in read_log(self._path) if math.isfinite(row["loss"])]


def read_log(path: Path) -> list[dict]:
    """The rows of a run's log.jsonl, oldest first."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _truncate_log(path: Path, images: int) -> None:
    """Drop the lines written after the checkpoint that is resumed: they will be written again."""
    rows = [row for row in read_log(path) if row["images"] <= images]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
