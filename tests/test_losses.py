"""The space in which errors are measured, for every prediction: closed forms, ends of paths, parts that are known, and
paths and losses of one's own."""

import itertools

import pytest
import torch
from torch import nn

from ditkit.cli import main
from ditkit.cli.train import parse_train
from ditkit.data import Batch
from ditkit.errors import InputError
from ditkit.layout import Frames, Layout, Pyramid
from ditkit.pipeline import Pipeline
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.sampling import SAMPLERS
from ditkit.sampling.grids import time_grid
from ditkit.training.draws import with_draws
from ditkit.training.step import backward
from ditkit.transports import LOSSES, PATHS, PREDICTIONS, WEIGHTS, Coeffs, Loss, Path, Transport, transport

PAIRS = list(itertools.product(PATHS, PREDICTIONS, LOSSES))
each = pytest.mark.parametrize(("path", "predict", "loss"), PAIRS)
LEVELS = Pyramid.of(1, 4, 4, ratios=(2, 1))
CLIP = Frames.of(2, 5, 2, 2)
MIDDLE = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)  # no divisor is bounded there


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def wide(c, layout):
    return Coeffs(*(layout.expand(value) for value in c))


def expected(tr, loss, out, x0, eps, t, layout):
    """By the views of what the output is decoded to, (B, K)."""
    plain = tr.coeffs(t, layout)
    own, shared = wide(tr.own_coeffs(t, layout), layout), wide(plain, layout)
    meant = {"output": tr.predict, "likelihood": "noise"}.get(loss, loss)
    c = wide(transport(tr.path, predict=meant).own_coeffs(t, layout), layout)
    found = PREDICTIONS[tr.predict].decode(out, own.alpha * x0 + own.sigma * eps, own)
    error = PREDICTIONS[meant].view(found[0] - x0, found[1] - eps, c)
    if meant == "score":
        error = c.sigma * error
    if loss == "likelihood":
        error = (
            error * (shared.sigma * shared.d_sigma - shared.sigma**2 * shared.d_alpha / shared.alpha).sqrt()
        )
        error = error / shared.sigma
    return layout.mean(error**2)


@each
@pytest.mark.parametrize("layout", [Layout((2, 3)), LEVELS], ids=["plain", "levels"])
def test_every_loss_is_that_of_what_the_output_means(path, predict, loss, layout):
    tr = transport(path, predict=predict, loss=loss)
    x0, eps, out = (normal(3, *layout.shape, seed=seed) for seed in range(3))
    found = tr.losses(lambda *_: out, x0, {}, t=MIDDLE, eps=eps, layout=layout)["loss"]
    torch.testing.assert_close(
        found, expected(tr, loss, out, x0, eps, MIDDLE, layout).sum(1), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("path", [name for name in PATHS if PATHS[name].knots])
def test_the_bound_of_a_learned_variance_goes_with_every_loss(path, predict, loss):
    layout, x0, eps, out = (
        Layout((2, 3)),
        normal(3, 2, 3).tanh(),
        normal(3, 2, 3, seed=1),
        normal(3, 4, 3, seed=2),
    )
    hybrid = transport(path, predict=predict, loss=loss, variance="learned")
    terms = hybrid.losses(lambda *_: out, x0, {}, t=MIDDLE, eps=eps)
    square = expected(hybrid, loss, out[:, :2], x0, eps, MIDDLE, layout).sum(1)
    torch.testing.assert_close(terms["mse"], square, rtol=1e-9, atol=1e-12)
    by_output = transport(path, predict=predict, variance="learned")
    assert terms["vb"].equal(by_output.losses(lambda *_: out, x0, {}, t=MIDDLE, eps=eps)["vb"])
    assert terms["loss"].equal(terms["mse"] + terms["vb"])


def test_data_by_the_velocity_is_the_error_over_t():
    """|x0_hat - x0|² / max(t, 0.05)² on straight lines (Li & He, 2025, t counted from the data)."""
    x0, eps, out, t = (
        normal(3, 4),
        normal(3, 4, seed=1),
        normal(3, 4, seed=2),
        torch.tensor([0.001, 0.05, 0.7]),
    )
    found = transport(predict="data", loss="velocity").losses(lambda *_: out, x0, {}, t=t.double(), eps=eps)
    square = (out - x0).square().mean(1) / torch.tensor([0.05, 0.05, 0.7], dtype=torch.float64) ** 2
    torch.testing.assert_close(found["loss"], square, rtol=1e-6, atol=0)


@pytest.mark.parametrize("end", [0, 1])
@each
def test_losses_are_finite_at_the_ends_of_training(path, predict, loss, end):
    """In float32, and so are their gradients."""
    tr = transport(path, predict=predict, loss=loss)
    x0, eps = (normal(2, 6, seed=seed, dtype=torch.float32) for seed in range(2))
    out = nn.Parameter(normal(2, 6, seed=2, dtype=torch.float32))
    t = torch.full((2,), tr.interval("train")[end], dtype=torch.float64)
    tr.losses(lambda *_: out, x0, {}, t=t, eps=eps)["loss"].sum().backward()
    assert out.grad.isfinite().all()


@each
def test_frames_that_are_known_count_nothing(path, predict, loss):
    """They are clean, where what is divided by sigma is not finite: neither the loss nor its gradient sees them."""
    learned = bool(PATHS[path].knots)
    tr = transport(
        path, predict=predict, loss=loss, known_frames=1.0, variance="learned" if learned else "fixed"
    )
    x0, eps = normal(4, *CLIP.shape).tanh(), normal(4, *CLIP.shape, seed=1)
    out = normal(4, CLIP.shape[0] * (1 + learned), *CLIP.shape[1:], seed=2).requires_grad_()
    t, weights = tr.known_parts(torch.full((4,), 0.5, dtype=torch.float64), normal(4, 3).sigmoid(), CLIP)
    known = (t == 0)[:, None, :, None, None]
    assert known.any()
    assert not known.all()
    found = tr.losses(lambda *_: out, x0, {}, t=t, eps=eps, layout=CLIP, weights=weights)["loss"]
    found.sum().backward()
    assert found.isfinite().all()
    assert out.grad.isfinite().all()
    assert out.grad.masked_select(known).eq(0).all()
    assert out.grad.masked_select(~known).ne(0).any()
    other = torch.where(known, 7.0, out)
    again = tr.losses(lambda *_: other, x0, {}, t=t, eps=eps, layout=CLIP, weights=weights)["loss"]
    torch.testing.assert_close(again, found, rtol=1e-12, atol=0)


@each
def test_levels_that_are_known_count_nothing(path, predict, loss):
    tr = transport(path, predict=predict, loss=loss, cascade=0.0)
    x0, eps = normal(3, *LEVELS.shape), normal(3, *LEVELS.shape, seed=1)
    out = normal(3, *LEVELS.shape, seed=2).requires_grad_()
    t, weights = tr.known_parts(MIDDLE, normal(3, 3).sigmoid(), LEVELS)
    found = tr.losses(lambda *_: out, x0, {}, t=t, eps=eps, layout=LEVELS, weights=weights)["loss"]
    found.sum().backward()
    torch.testing.assert_close(
        found, expected(tr, loss, out, x0, eps, MIDDLE, LEVELS)[:, 0], rtol=1e-9, atol=1e-12
    )
    assert out.grad[:, 4:].eq(0).all()
    assert out.grad[:, :4].isfinite().all()


# weights by time

WEIGHTED = [
    (path, predict, weight)
    for path, predict, weight in itertools.product(PATHS, PREDICTIONS, WEIGHTS)
    if weight != "none"
]
each_weighted = pytest.mark.parametrize(("path", "predict", "weight"), WEIGHTED)


def data_weight(weight, tr, t, layout):
    """What the squared error of the data counts, (B, K), by the papers' formulas; d log SNR / dt by a difference."""

    def snr(t):
        c = tr.coeffs(t, layout)
        return (c.alpha / c.sigma).square().reshape(len(t), -1)

    if weight == "min_snr":
        return snr(t).clamp(max=5.0)
    rate = (snr(t).log() - snr(t - 1e-6).log()) * 1e6
    return snr(t) * (2.0 - snr(t).log()).sigmoid() * -rate / 2


@each_weighted
@pytest.mark.parametrize("layout", [Layout((2, 3)), LEVELS], ids=["plain", "levels"])
def test_a_weight_is_of_the_error_of_the_data_that_the_output_means(path, predict, weight, layout):
    """For every prediction and path, also of levels; and in whichever space errors are measured otherwise."""
    x0, eps, out = (normal(3, *layout.shape, seed=seed) for seed in range(3))
    fields = {"path": path, "predict": predict, "weight": weight, "level_shift": 2.0}
    tr = Transport(**fields)
    own = wide(tr.own_coeffs(MIDDLE, layout), layout)
    found, _ = PREDICTIONS[predict].decode(out, own.alpha * x0 + own.sigma * eps, own)
    expected = (data_weight(weight, tr, MIDDLE, layout) * layout.mean((found - x0) ** 2)).sum(1)
    for loss in [name for name in LOSSES if LOSSES[name].factor is None]:
        value = Transport(**fields, loss=loss).losses(
            lambda *_: out, x0, {}, t=MIDDLE, eps=eps, layout=layout
        )["loss"]
        torch.testing.assert_close(value, expected, rtol=1e-9 if weight == "min_snr" else 1e-4, atol=1e-12)


@pytest.mark.parametrize("predict", ["noise", "data", "v"])
@pytest.mark.parametrize("path", PATHS)
def test_min_snr_is_what_the_paper_has_for_noise_data_and_v(path, predict):
    """min(SNR, g) / SNR, min(SNR, g) and min(SNR, g) / (SNR + 1) of these outputs' squared errors (on paths that preserve
    variance the last is of v itself)."""
    x0, eps, out = (normal(3, 4, seed=seed) for seed in range(3))
    c = transport(path).coeffs(MIDDLE)
    snr = (c.alpha / c.sigma) ** 2
    least = snr.clamp(max=3.0)
    weights = {"noise": least / snr, "data": least, "v": least / (snr + 1) / (c.alpha**2 + c.sigma**2)}
    found = transport(path, predict=predict, weight="min_snr:gamma=3").losses(
        lambda *_: out, x0, {}, t=MIDDLE, eps=eps
    )["loss"]
    plain = transport(path, predict=predict).losses(lambda *_: out, x0, {}, t=MIDDLE, eps=eps)["loss"]
    torch.testing.assert_close(found, weights[predict] * plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_the_sigmoid_weight_is_a_share_of_the_likelihoods_bound(path, predict, bias):
    """sigmoid(bias - log SNR) of it, at every time."""
    x0, eps, out = (normal(3, 4, seed=seed) for seed in range(3))
    fields = {"path": path, "predict": predict}
    found, bound = (
        Transport(**fields, **more).losses(lambda *_: out, x0, {}, t=MIDDLE, eps=eps)["loss"]
        for more in ({"weight": f"sigmoid:bias={bias}"}, {"loss": "likelihood"})
    )
    c = transport(path).coeffs(MIDDLE)
    share = (bias - 2 * (c.alpha / c.sigma).log()).sigmoid()
    torch.testing.assert_close(found, share * bound, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("end", [0, 1])
@each_weighted
def test_weighted_losses_are_finite_at_the_ends_of_training(path, predict, weight, end):
    """In float32, and so are their gradients."""
    tr = transport(path, predict=predict, weight=weight)
    x0, eps = (normal(2, 6, seed=seed, dtype=torch.float32) for seed in range(2))
    out = nn.Parameter(normal(2, 6, seed=2, dtype=torch.float32))
    t = torch.full((2,), tr.interval("train")[end], dtype=torch.float64)
    tr.losses(lambda *_: out, x0, {}, t=t, eps=eps)["loss"].sum().backward()
    assert out.grad.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": "min_snr", "loss": "likelihood"}, "both weight errors by time; give weight none"),
        ({"weight": "min_snr:gamma=0"}, "gamma: Input should be greater than 0"),
        ({"weight": "min_snr", "method": "mean_flow"}, "transport.weight min_snr is not for it; give none"),
    ],
)
def test_weights_that_cannot_be_are_refused_in_one_line(fields, message):
    with pytest.raises(InputError) as caught:
        Transport.checked(fields, "transport")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# what is one's own


def bent(t):
    """alpha = 1 - t², sigma = t."""
    return Coeffs(1 - t**2, t, -2 * t, torch.ones_like(t))


def stepped(t):
    """alpha = 1 - 0.9 t; alpha² + sigma² = 1."""
    alpha = 1 - 0.9 * t
    sigma = (1 - alpha**2).sqrt()
    return Coeffs(alpha, sigma, torch.full_like(t, -0.9), 0.9 * alpha / sigma)


@pytest.fixture
def own(monkeypatch):
    """Registered at run time, as a plug-in does."""
    monkeypatch.setitem(PATHS, "bent", Path(bent))
    monkeypatch.setitem(PATHS, "stepped", Path(stepped, knots=20, ends=(0.05, 1.0), safe_ends=(0.05, 1.0)))
    monkeypatch.setitem(LOSSES, "late", Loss("of the noise, less near the data", "noise", lambda c: c.sigma))


@pytest.mark.parametrize(
    "fields", [{"path": "bent"}, {"path": "stepped", "variance": "learned", "loss": "late"}]
)
def test_a_path_of_ones_own_trains_and_samples(own, fields):
    small = {"width": 24, "depth": 1, "heads": 2}
    chosen = recipe("digits").replace(backbone=small, transport=fields, train={"precision": "fp32"})
    assert Recipe.recorded(chosen.model_dump(mode="json"), "again") == chosen
    net, codec, cpu = chosen.build_backbone(), chosen.build_codec(), torch.device("cpu")
    images = torch.zeros(4, chosen.data.channels, *chosen.data.shape, dtype=torch.uint8)
    batch = with_draws(chosen, codec, Batch(images, torch.arange(4), torch.arange(4)))
    terms = backward(chosen, net, codec, batch, cpu)
    assert terms["loss"].isfinite()
    assert all(value.grad.isfinite().all() for value in net.parameters())
    pipeline = Pipeline(chosen, net.eval().requires_grad_(False), codec, cpu)
    for sampler, solver in SAMPLERS.items():
        steps = {"steps": 4} if not solver.adaptive else {"tolerance": 0.1}
        found = pipeline.generate({"label": [1, 2]}, seeds=range(2), sampler=sampler, progress=False, **steps)
        assert found.shape == (2, *images.shape[1:])


def test_grids_of_a_path_of_ones_own_visit_its_knots(own):
    grid = time_grid(transport("stepped"), "jump", 5)
    assert [round(20 * t) for t in grid.tolist()] == [20, 15, 11, 6, 1, 0]
    assert [round(20 * t) for t in time_grid(transport("stepped"), "jump", 1).tolist()] == [20, 0]
    assert transport("stepped").times(torch.tensor([1e-9, 0.52, 1.0])).tolist() == pytest.approx(
        [0.05, 0.55, 1]
    )


def test_the_help_and_the_flags_know_what_is_registered(own, capsys):
    with pytest.raises(SystemExit):
        main(["train", "digits", "--help"])
    shown = capsys.readouterr().out
    assert "--transport.path {linear,gvp,vp,ddpm,cosine,bent,stepped}" in shown
    assert "--transport.loss {output,velocity,noise,data,likelihood,late}" in shown
    assert parse_train(["digits", "--transport.path", "bent"]).recipe.transport.path == "bent"


def test_a_path_that_is_not_registered_is_unknown():
    with pytest.raises(InputError, match="path: unknown 'bent'; there are linear, gvp"):
        transport("bent")


# names of an earlier version


@pytest.mark.parametrize(
    ("before", "now"), [("none", "output"), ("velocity", "velocity"), ("noise", "noise")]
)
def test_files_with_earlier_names_are_read(before, now):
    values = recipe("moving-digits").model_dump(mode="json")
    transport = {
        key: value for key, value in values["transport"].items() if key not in ("loss", "known_frames")
    }
    values["transport"] = transport | {"weighting": before, "given_frames": 0.25}
    found = Recipe.recorded(values, "recipe.json").transport
    assert (found.loss, found.known_frames) == (now, 0.25)
    with pytest.raises(InputError, match="unknown 'weighting'"):
        Transport.checked(values["transport"], "transport")
