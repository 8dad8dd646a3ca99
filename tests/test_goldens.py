"""Numbers of the released DiT and SiT code on a model filled by formula: ours must be the same, on a GPU too."""

import official
import pytest
import torch
from needs import GPU, needs_gpu

from ditkit.device import autocast
from ditkit.nn.embeddings import sincos_positions, sinusoid
from ditkit.nn.patches import unpatchify
from ditkit.sampling import SAMPLERS, cfg, respaced
from ditkit.sampling.config import SamplingConfig
from ditkit.transports import Transport
from ditkit.transports.variational import learned_log_variance

DDPM = Transport(path="ddpm", predict="noise", variance="learned")
FLOW = Transport(path="linear", predict="velocity")


on_both = pytest.mark.parametrize(
    "device",
    [torch.device("cpu"), pytest.param(GPU, marks=[pytest.mark.gpu, needs_gpu], id="gpu")],
    indirect=True,
)
"""Everything that has numbers of its own: a GPU sums in another order, so its digits are fewer."""

CPU_ONLY = torch.device("cpu"), 1
_where = [CPU_ONLY]  # the device, and how many times further its numbers may be


@pytest.fixture(autouse=True)
def device(request):
    chosen = getattr(request, "param", torch.device("cpu"))
    autocast(chosen, "fp32")  # settles of what products of float32 are there
    _where[:] = [(chosen, 1 if chosen.type == "cpu" else 10)]
    yield chosen
    _where[:] = [CPU_ONLY]


def here(tensor):
    return tensor.to(_where[0][0])


def tiny(**fields):
    return official.tiny(**fields).to(_where[0][0])


def wave(function=torch.sin):
    return here(official.wave(function))


def labels():
    return {"label": here(official.LABELS["label"])}


def index(*indices):
    """DiT's index i is t = (i + 1)/1000."""
    return (torch.tensor(indices, dtype=torch.float64) + 1) / 1000


def close(value, expected, rel=1e-5, abs=1e-6):
    looser = _where[0][1]
    assert value == pytest.approx(expected, rel=looser * rel, abs=looser * abs)


def sit_network():
    """The tiny model as SiT uses it: its own clock, minus its output (its time runs the other way),
    and the second half of the channels discarded."""
    net = tiny(time_scale=-1.0, time_shift=1.0)
    return lambda x, t, cond: -net(x, t, cond)[:, :4]


@on_both
def test_positions_and_time():
    assert sincos_positions(16, 16, 1152).double().sum().item() == pytest.approx(134598.9478, rel=1e-7)
    embedded = sinusoid(here(torch.tensor([999.0], dtype=torch.float64)))[0]
    last = (
        999 * 2**-23
    )  # where a processor rounds a frequency up, and another down, the angles differ by as much
    close(embedded[:3].tolist(), [0.99964982, 0.96378529, -0.39902055], abs=last)
    close(embedded[128:131].tolist(), [-0.02646075, -0.26667938, -0.91694200], abs=last)


def test_unpatchify_puts_the_channel_fastest():
    tokens = torch.zeros(1, 16, 32)
    tokens[0, 5] = torch.arange(32.0)
    patch = unpatchify(tokens, (4, 4), 2)[0, 0, 2:4, 2:4]
    assert patch.tolist() == [[0, 8], [16, 24]]


@on_both
@torch.no_grad()
def test_dit_forward():
    net = tiny()
    assert sum(p.numel() for p in net.parameters()) == 107_456 - 16 * 48  # without pos_embed
    out = net(wave(), here(index(3, 250)), labels())
    close(out.double().sum().item(), 59.30689)
    close(out.double().square().sum().item(), 41.12365)
    close(out[0, 0, 0, :4].tolist(), [0.1954983, 0.0071218, 0.1484265, -0.0265457])


@on_both
@torch.no_grad()
def test_sit_forward():
    net = tiny(time_scale=-1.0, time_shift=1.0)
    out = net(wave(), here(1 - torch.tensor([0.3, 0.8], dtype=torch.float64)), labels())[:, :4]
    close(out.double().sum().item(), 28.50145)
    close(out.double().square().sum().item(), 40.94308)
    close(out[0, 0, 0, :4].tolist(), [0.204871, 0.006569, 0.156389, -0.027973], rel=5e-5)


def contiguous_noise(x):
    return here(torch.randn(x.shape))  # randn_like would follow the strides of x, not its rows


def knots(sections):
    times = index(*reversed(respaced(sections)))
    return torch.cat([times, times.new_zeros(1)])


@on_both
@torch.no_grad()
@pytest.mark.parametrize(
    ("sections", "total", "square", "first"),
    [
        ("10", -4643.160, 6423564.67, [-15.07754, -10.61031, 20.4895, 30.30371]),
        ("ddim10", -1774.364, 960695.41, [-5.681017, -3.760007, 7.694903, 12.33276]),
    ],
)
def test_ddim_loop(sections, total, square, first):
    x = SAMPLERS["ddim"].run(DDPM.denoiser(tiny()), wave(), knots(sections), labels())
    close(x.double().sum().item(), total)
    close(x.double().square().sum().item(), square)
    close(x[0, 0, 0, :4].tolist(), first)


@on_both
@torch.no_grad()
def test_ancestral_loop():
    denoise = DDPM.denoiser(tiny())
    torch.manual_seed(0)
    x = SAMPLERS["ancestral"].run(denoise, wave(), knots("10"), labels(), noise=contiguous_noise)
    close(x.double().sum().item(), -4869.4656)
    close(x.double().square().sum().item(), 8292705.70)
    close(x[0, 0, 0, :4].tolist(), [-103.05913, -89.50472, -22.07021, 11.70837])


@on_both
@torch.no_grad()
def test_ddpm_mean_and_learned_variance_of_a_step():
    t = index(0, 500)
    denoise = DDPM.denoiser(tiny())
    p = denoise(wave(), t, labels())
    close(p.x0.double().sum().item(), -49.397203)
    step = denoise.posterior(t, t - 1 / 1000, wave())
    close(step.mean(p.x0, wave()).double().sum().item(), 3.3373042, rel=2e-5)
    log_variance = learned_log_variance(p.var, step, DDPM.log_variance_floor())
    close(log_variance.double().sum().item(), -3607.04533)
    close(log_variance[0, 0, 0, :4].tolist(), [-9.5273008, -9.447361, -9.5095577, -9.4463005])


@on_both
@torch.no_grad()
def test_ddpm_hybrid_loss():
    terms = DDPM.losses(tiny(), wave(), labels(), t=index(0, 500), eps=wave(torch.cos))
    close(terms["mse"].tolist(), [0.598978, 0.5150539])
    close(terms["vb"].tolist(), [2.0274158, 0.0040959], rel=2e-5)
    torch.testing.assert_close(terms["loss"], terms["mse"] + terms["vb"])


@pytest.mark.parametrize(
    ("sections", "start", "end", "total"),
    [
        ("250", [0, 4, 8], [995, 999], 124_875),
        ("50", [0, 20, 41], [979, 999], None),
        ("ddim50", [0, 20], [980], None),
    ],
)
def test_respaced(sections, start, end, total):
    indices = respaced(sections)
    assert indices[: len(start)] == start
    assert indices[-len(end) :] == end
    assert total is None or sum(indices) == total


@on_both
@torch.no_grad()
@pytest.mark.parametrize(("sampler", "total"), [("euler", 32.331529), ("heun", 32.270981)])
def test_sit_ode(sampler, total):
    grid = torch.linspace(1, 0, 11, dtype=torch.float64)
    x = SAMPLERS[sampler].run(FLOW.denoiser(sit_network()), wave(), grid, labels())
    close(x.double().sum().item(), total)


@on_both
@torch.no_grad()
@pytest.mark.parametrize(
    ("sampler", "choices", "total"),
    [
        ("euler_maruyama", {}, 20.792861),
        ("euler_maruyama", {"last_step": "tweedie"}, 20.454295),
        ("euler_maruyama", {"last_step": "euler"}, 20.454294),
        ("euler_maruyama", {"last_step": "none"}, 20.332342),
        ("euler_maruyama", {"diffusion": "decreasing"}, 26.230429),
        ("sde_heun", {}, 21.714523),
    ],
)
def test_sit_sde(sampler, choices, total):
    """11 of SiT's points: 10 steps, and the last one where there is one."""
    steps = 10 if "none" in choices.values() else 11
    chosen = SamplingConfig(sampler=sampler, steps=steps, **choices)
    denoise = FLOW.denoiser(sit_network())
    torch.manual_seed(0)
    x = chosen.run(denoise, wave(), chosen.times(FLOW), labels(), noise=contiguous_noise)
    close(x.double().sum().item(), total)


@on_both
@torch.no_grad()
def test_sit_velocity_loss():
    torch.manual_seed(0)
    eps, t = here(torch.randn(2, 4, 8, 8)), torch.rand(2)
    close(t.tolist(), [0.3612727, 0.3136021])
    terms = FLOW.losses(sit_network(), wave(), labels(), t=1 - t.double(), eps=eps)
    close(terms["loss"].tolist(), [1.4322600, 1.8943670])


@on_both
@torch.no_grad()
@pytest.mark.parametrize(
    ("predict", "loss", "expected"),
    [
        ("score", "output", [0.92035, 1.31898]),
        ("score", "velocity", [7.04071, 13.37974]),
        ("score", "likelihood", [3.98711, 6.12354]),
        ("noise", "output", [1.03896, 1.25859]),
        ("noise", "velocity", [7.94805, 12.76715]),
        ("noise", "likelihood", [4.50093, 5.84318]),
    ],
)
def test_sit_losses(predict, loss, expected):
    """The same draw, mapped to SiT's training interval [0.001, 0.999] for these predictions."""
    torch.manual_seed(0)
    eps, t = here(torch.randn(2, 4, 8, 8)), torch.rand(2).double()
    net = tiny(time_scale=-1.0, time_shift=1.0)
    transport = Transport(path="linear", predict=predict, loss=loss)
    t = 1 - (t * 0.998 + 0.001)
    terms = transport.losses(lambda x, t, cond: net(x, t, cond)[:, :4], wave(), labels(), t=t, eps=eps)
    close(terms["loss"].tolist(), expected, rel=2e-5)


@on_both
@torch.no_grad()
def test_guidance_is_linear_in_the_raw_output():
    """All channels: the guided velocity is null + s (cond - null), one call of twice the rows."""
    net, x, t = sit_network(), wave(), torch.tensor([0.7, 0.7], dtype=torch.float64)
    cond, empty = {"label": here(torch.tensor([1, 2]))}, {"label": here(torch.tensor([10, 10]))}
    guided = cfg(FLOW.denoiser(net), lambda cond: empty, 4.0)(x, t, cond).velocity
    there = here(t)
    expected = net(x, there, empty) + 4 * (net(x, there, cond) - net(x, there, empty))
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-5)


@on_both
@torch.no_grad()
def test_guidance_of_three_channels_is_the_released_one():
    """Both released codes return the guided three channels twice, and the others of either half."""
    x, t = wave()[:1], torch.tensor([0.5], dtype=torch.float64)
    cond, empty = {"label": labels()["label"][:1]}, {"label": labels()["label"][1:]}
    goldens = [
        (DDPM, tiny(), index(3, 250), "eps", 14.56702, 495.48203),
        (
            FLOW,
            sit_network(),
            1 - torch.tensor([0.3, 0.8], dtype=torch.float64),
            "velocity",
            28.77719,
            39.17049,
        ),
    ]
    for transport, net, times, meaning, total, square in goldens:
        times = here(times)
        raw = net(torch.cat([x, x]), times, labels())
        # the vectors have a time for each half, which no sampler does
        denoise = transport.denoiser(lambda x, t, cond, net=net, times=times: net(x, times, cond))
        guided = cfg(denoise, lambda cond: empty, 4.0, channels=3)(x, t, cond)
        own = getattr(guided, meaning)
        parts = torch.cat([own[:, :3].repeat(2, 1, 1, 1), raw[:, 3:]], dim=1)
        if transport is FLOW:
            parts = -parts
        close(parts.double().sum().item(), total)
        close(parts.double().square().sum().item(), square)
        torch.testing.assert_close(own[:, 3:], raw[:1, 3:4], rtol=1e-4, atol=1e-5)
        if transport is DDPM:
            close(own[0, 0, 0, :4].tolist(), [0.3984242, -0.6483748, 0.2435124, -0.5113144])
