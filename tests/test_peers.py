"""The paper's loop computes what the released code does (its numbers), and what ditkit's own network does."""

import official
import pytest
import torch

from ditkit.benchmarks.latents import CHANNELS, CLASSES, SIDE, TINY, latents, recipe_with
from ditkit.benchmarks.paper import PaperDiT, ancestral, build_paper, hybrid_loss, paper_step
from ditkit.costs import cost
from ditkit.interop.official import read_official
from ditkit.transports import Transport

DDPM = Transport(path="ddpm", predict="noise", variance="learned")
Y = official.LABELS["label"]


def golden():
    """The tiny network of the golden numbers, filled by formula in the order of its own names."""
    net = PaperDiT(side=8, patch=2, channels=4, width=48, depth=2, heads=4, classes=10)
    for k, (name, value) in enumerate(net.state_dict().items()):
        if name != "pos_embed":
            value.copy_(official.fill(k, value.shape))
    return net.eval()


def close(value, expected, rel=1e-5):
    assert value == pytest.approx(expected, rel=rel, abs=1e-6)


def filled(net):
    """Small random weights, the positions left as they are: the paper's own begin with many zeros."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return net.eval()


def test_names_and_positions_are_the_released_ones():
    state, expected = golden().state_dict(), official.tiny_official()
    assert [*state] == [*expected]
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)
    sized = PaperDiT(side=32, patch=2, channels=4, width=384, depth=12, heads=6, classes=1000)
    assert len(sized.state_dict()) == 132
    assert sum(p.numel() for p in sized.parameters()) == 32_963_360
    assert sum(p.numel() for p in sized.parameters() if p.requires_grad) == cost("DiT-S/2").params
    table = PaperDiT(side=32, patch=2, channels=4, width=1152, depth=0, heads=16, classes=1).pos_embed
    close(table.double().sum().item(), 134598.9478, rel=1e-7)


@torch.no_grad()
def test_forward_is_the_released_one():
    out = golden()(official.wave(), torch.tensor([3, 250]), Y)
    assert out.shape == (2, 8, 8, 8)
    close(out.double().sum().item(), 59.30689)
    close(out.double().square().sum().item(), 41.12365)
    close(out[0, 0, 0, :4].tolist(), [0.1954983, 0.0071218, 0.1484265, -0.0265457])


@torch.no_grad()
def test_guidance_is_the_released_one():
    out = golden().forward_with_cfg(official.wave(), torch.tensor([3, 250]), Y, 4.0)
    close(out.double().sum().item(), 14.56702)
    close(out.double().square().sum().item(), 495.48203)
    close(out[0, 0, 0, :4].tolist(), [0.3984242, -0.6483748, 0.2435124, -0.5113144])


def test_training_loss_is_the_released_one():
    terms = hybrid_loss(DDPM, golden(), official.wave(), Y, torch.tensor([0, 500]), official.wave(torch.cos))
    close(terms["mse"].tolist(), [0.598978, 0.5150539])
    close(terms["vb"].tolist(), [2.0274158, 0.0040959], rel=2e-5)
    torch.testing.assert_close(terms["loss"], terms["mse"] + terms["vb"])


def test_ancestral_steps_are_the_released_ones():
    net = golden()
    torch.manual_seed(0)
    x = ancestral(lambda x, t: net(x, t, Y), official.wave(), 10)
    close(x.double().sum().item(), -4869.4656)
    close(x.double().square().sum().item(), 8292705.70)
    close(x[0, 0, 0, :4].tolist(), [-103.05913, -89.50472, -22.07021, 11.70837])


def test_a_guided_sample_takes_both_halves_along():
    net, sizes = golden(), []
    x = torch.cat([official.wave()[:1]] * 2)

    def guided(x, t):
        sizes.append(len(x))
        return net.forward_with_cfg(x, t, Y, 4.0)

    assert ancestral(guided, x, 3).isfinite().all()
    assert sizes == [2, 2, 2]


def test_output_and_gradients_are_those_of_ditkits_network(tmp_path):
    """The weights go over in a file with the released names."""
    theirs = filled(build_paper(recipe_with(TINY, 2, "fp32")))
    torch.save(theirs.state_dict(), tmp_path / "DiT-tiny.pt")
    found = read_official(tmp_path / "DiT-tiny.pt", heads=TINY.heads)
    ours = found.recipe.backbone.build(channels=CHANNELS, classes=CLASSES, out_channels=2 * CHANNELS)
    ours.load_state_dict(found.weights)
    x, y = latents(2)
    index = torch.tensor([3, 700])
    time = (index + 1).double() / 1000
    expected = ours.eval()(x, time, {"label": y})
    out = theirs(x, index, y)
    assert out.shape == (2, 2 * CHANNELS, SIDE, SIDE)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)

    for net, result in ((ours, expected), (theirs, out)):
        result.square().mean().backward()
        assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    gradients = dict(ours.named_parameters())
    torch.testing.assert_close(
        theirs.blocks[0].attn.qkv.weight.grad,
        gradients["blocks.0.attention.qkv.weight"].grad,
        rtol=1e-4,
        atol=1e-6,
    )


def test_weights_begin_as_the_papers():
    net = build_paper(recipe_with(TINY, 2, "fp32"))
    x, y = latents(2)
    assert net(x, torch.tensor([0, 999]), y).abs().max() == 0
    bound = (6 / (4 * TINY.width)) ** 0.5  # queries, keys and values are one matrix
    weight = net.blocks[0].attn.qkv.weight
    assert 0.95 * bound < weight.abs().max() <= bound
    assert net.y_embedder.embedding_table.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert net.t_embedder.mlp[0].bias.abs().max() == 0
    assert net.x_embedder.proj.bias.abs().max() == 0


def test_a_training_step_moves_weights_and_drops_labels():
    recipe = recipe_with(TINY, 64, "fp32")
    net = build_paper(recipe).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    step = paper_step(recipe, net)
    for _ in range(2):  # the first moves the last layer alone, whose weights begin as zeros
        step()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert "pos_embed" not in moved
    assert {"final_layer.linear.weight", "final_layer.adaLN_modulation.1.weight"} <= moved
    unknown = net.y_embedder(torch.zeros(1000, dtype=torch.long))
    share = (unknown == net.y_embedder.embedding_table.weight[-1]).all(1).float().mean()
    assert 0.05 < share < 0.15
