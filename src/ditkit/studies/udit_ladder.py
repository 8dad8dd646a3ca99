"""What makes a U-DiT good? The paper's ladder in miniature, a step at a time.

From a plain DiT over the same network in a U-shape with full attention (DiT-UNet), through downsampled keys and
values, downsampled tokens, cosine attention, rotary positions and the depthwise MLP to its re-parameterised form;
and what precedes downsampling. Fashion-MNIST at 16 x 16 pixels, the same images for all at one constant learning
rate, seed 0. The paper (Tian et al., 2024, tables 3, 9 and 10: tiny networks on ImageNet latents, FID-50K
unguided) stands beside.

Of the DiT-UNet and of the network with downsampled tokens the spectrum of the tokens that attention reads is kept:
frequencies above a quarter of a cycle per token are those that a sub-map of every second token cannot hold.

Command: ditkit study udit-ladder. Cost: about 35 minutes of two CPU cores with AMX, one thread and one
process each. What came out: docs/results.md.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ditkit.backbones import DiTConfig, UDiT, UDiTConfig
from ditkit.costs import recipe_cost
from ditkit.data import in_order
from ditkit.pipeline import Pipeline
from ditkit.plots import save_figure
from ditkit.randomness import RowNoise
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.studies.cells import Cell, Point, Results

SIZE = 16
IMAGES = 48_000
STEPS = 10  # and evaluations
TIMES = (0.1, 0.5, 0.9)  # at which the spectrum is taken
BANDS = 8  # of a sixteenth of a cycle per token each


class Rung(NamedTuple):
    """A network of the ladder, and the paper's FID for its kind."""

    what: str
    backbone: DiTConfig | UDiTConfig
    paper: float


PLAIN = UDiTConfig(width=16, depth=(1, 2, 2, 2, 1), heads=1, cosine=False, rotary=False, ffn="basic")


def _with(**fields: Any) -> UDiTConfig:
    return PLAIN.model_copy(update=fields)


RUNGS = {
    "dit": Rung("DiT, patch 2", DiTConfig(width=96, depth=4, heads=3, patch=2), 97.85),
    "slim": Rung("DiT-UNet, slim", _with(attention="full", width=12), 107.00),
    "full": Rung("DiT-UNet", _with(attention="full"), 93.48),
    "key-value": Rung("downsampled keys and values", _with(attention="key_value"), 94.38),
    "token": Rung("downsampled tokens", PLAIN, 89.43),
    "cosine": Rung("+ cosine attention", _with(cosine=True), 86.96),
    "rotary": Rung("+ rotary positions", _with(cosine=True, rotary=True), 84.64),
    "depthwise": Rung("+ depthwise MLP", _with(cosine=True, rotary=True, ffn="depthwise"), 79.30),
    "reparameterised": Rung(
        "+ re-parameterisation", _with(cosine=True, rotary=True, ffn="reparameterised"), 75.71
    ),
    "no-convolution": Rung("downsampled tokens, no convolution before", _with(downsampler="none"), 96.15),
    "no-shortcut": Rung("downsampled tokens, no shortcut", _with(downsampler="depthwise"), 89.87),
}
SPECTRA = ("full", "token")


def cells() -> dict[str, Cell]:
    base = recipe("fashion-sit").replace(
        data={"size": SIZE},
        train={"images": IMAGES, "lr": 1e-3, "schedule": "constant", "preview_images": IMAGES},
    )
    points = tuple(
        Point(images=IMAGES, sampler="ab2", steps=STEPS, guidance=guidance) for guidance in (1.0, 1.5)
    )
    return {
        name: Cell(
            base.replace(name=f"udit-ladder-{name}", backbone=rung.backbone),
            points,
            spectra if name in SPECTRA else None,
        )
        for name, rung in RUNGS.items()
    }


@torch.no_grad()
def spectra(pipeline: Pipeline) -> dict[str, dict[str, list[float]]]:
    """By time, of the tokens that attention reads in the first stage, before and after their convolution: the
    share of their power in each band of frequencies, the mean of the tokens left out. 64 held-out images."""
    net = pipeline.recipe.build_backbone()  # uncompiled, so that its parts can be watched
    assert isinstance(net, UDiT)
    net.load_state_dict(pipeline.backbone.state_dict())
    net.eval()
    seen: dict[str, list[Tensor]] = {}
    for name, module in net.blocks[: 2 * net.depth[0]].named_modules():
        if name.endswith(".attention"):
            _watch(module, "tokens", seen)
        elif name.endswith(".spread"):
            _watch(module, "spread", seen, after=True)
    ((images, labels),) = in_order(pipeline.recipe.data, "test", limit=64)
    x0 = pipeline.codec.encode(images)
    eps = RowNoise(range(len(x0)))(x0)
    found = {}
    for time in TIMES:
        seen.clear()
        t = torch.full((len(x0),), time, dtype=torch.float64)
        c = pipeline.transport.coeffs(t[0])
        net((c.alpha * x0 + c.sigma * eps).float(), t, {"label": labels})
        found[f"{time:g}"] = {name: _bands(torch.cat(maps)) for name, maps in seen.items()}
    return found


def _watch(module: nn.Module, name: str, seen: dict[str, list[Tensor]], after: bool = False) -> None:
    def keep(_, inputs, outputs):
        seen.setdefault(name, []).append(outputs if after else inputs[0])

    module.register_forward_hook(keep)


def _bands(maps: Tensor) -> list[float]:
    """Maps (B, H, W, D) -> the share of their power in each band, zero frequency apart."""
    power = torch.fft.fft2(maps, dim=(1, 2)).abs().square().mean((0, 3))  # (H, W)
    rows, columns = (torch.fft.fftfreq(n) for n in power.shape)
    radius = torch.hypot(rows[:, None], columns[None])
    band = (radius * 2 * BANDS).long().clamp(max=BANDS - 1)
    power[0, 0] = 0
    shares = torch.zeros(BANDS).index_add_(0, band.flatten(), power.flatten())
    return (shares / shares.sum()).tolist()


def report(results: Results, out: Path) -> str:
    """The ladder beside the paper's as Markdown; draws ladder.png and spectrum.png into `out`."""
    finished = {name: record for name, record in results.items() if record["finished"]}
    if not finished:
        return "No cell is finished yet."
    _draw_ladder(finished, out / "ladder.png")
    lines = [
        "| network | parameters, M | MMACs | FD | class accuracy | FD, guidance 1.5 | images/s | paper's FID |",
        "|" + "---|" * 8,
        *(_line(name, record) for name, record in finished.items()),
    ]
    if set(SPECTRA) <= finished.keys():
        _draw_spectra(finished, out / "spectrum.png")
        lines += ["", *_high(finished)]
    return "\n".join(lines)


def _line(name: str, record: dict) -> str:
    cost = recipe_cost(Recipe.recorded(record["recipe"], name), fused=True)
    plain, guided = _scores(record)
    return (
        f"| {RUNGS[name].what} | {cost.params / 1e6:.2f} | {cost.macs / 1e6:.1f} | {plain['frechet']:.2f} | "
        f"{plain['accuracy']:.1%} | {guided['frechet']:.2f} | {record['images_per_second']:.0f} | "
        f"{RUNGS[name].paper:.2f} |"
    )


def _scores(record: dict) -> tuple[dict, dict]:
    """Unguided and guided."""
    plain, guided = sorted(record["scores"].values(), key=lambda row: row["guidance"])
    return plain, guided


def _high(finished: Results) -> Iterator[str]:
    """How much a sub-map cannot hold."""
    yield "Share of the tokens' power above a quarter of a cycle per token, by t:\n"
    yield "| | " + " | ".join(f"t = {time:g}" for time in TIMES) + " |"
    yield "|" + "---|" * (1 + len(TIMES))
    for name, part, what in _lines_of_spectra(finished):
        shares = [sum(finished[name]["measured"][f"{time:g}"][part][BANDS // 2 :]) for time in TIMES]
        yield f"| {what} | " + " | ".join(f"{share:.1%}" for share in shares) + " |"


def _lines_of_spectra(finished: Results) -> Iterator[tuple[str, str, str]]:
    yield "full", "tokens", "DiT-UNet: what attention reads"
    yield "token", "tokens", "downsampled tokens: before their convolution"
    yield "token", "spread", "downsampled tokens: after it"


def _draw_ladder(finished: Results, path: Path) -> None:
    names = list(finished)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    values = [_scores(finished[name])[0]["frechet"] for name in names]
    axes.barh(range(len(names)), values, color="tab:blue", alpha=0.6, label="here, FD")
    axes.set_yticks(range(len(names)), [RUNGS[name].what for name in names])
    axes.invert_yaxis()
    axes.set(xlabel="Fréchet distance")
    papers = axes.twiny()
    papers.plot(
        [RUNGS[name].paper for name in names], range(len(names)), "o", color="tab:red", label="paper, FID"
    )
    papers.set_xlim(left=0)
    papers.set_xlabel("paper's FID", color="tab:red")
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside lower center", ncols=2)
    save_figure(figure, path)


def _draw_spectra(finished: Results, path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, len(TIMES), sharey=True)
    bands = range(1, BANDS)  # nothing but the mean, which is left out, is below a cycle per image
    middles = [(band + 0.5) / (2 * BANDS) for band in bands]
    for axes, time in zip(panels, TIMES, strict=True):
        for name, part, what in _lines_of_spectra(finished):
            shares = finished[name]["measured"][f"{time:g}"][part]
            axes.plot(middles, [shares[band] for band in bands], "o-", label=what, markersize=4)
        axes.axvspan(0.25, 0.5, color="0.9")
        axes.set(title=f"t = {time:g}", xlabel="cycles per token (last: and more)", yscale="log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of power")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    save_figure(figure, path)
