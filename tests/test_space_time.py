"""Networks of clips, and positions on grids of any size."""

import math

import pytest
import torch
import torch.nn.functional as F

import ditkit
from ditkit.backbones import BACKBONES, MatryoshkaConfig, backbone
from ditkit.costs.count import count_cost
from ditkit.errors import InputError
from ditkit.kernels.rotation import rotate
from ditkit.nn.attention import Arrangement, SelfAttention
from ditkit.nn.blocks import AdaLNZeroBlock
from ditkit.nn.embeddings import SizeEmbedding, sincos_positions, sincos_table
from ditkit.nn.patches import PatchEmbed, patchify, unpatchify
from ditkit.nn.positions import Axis, axis
from ditkit.nn.registries import CONDITIONINGS
from ditkit.nn.rotary import rotary_positions, unturned

DIM, M = 8, 3  # of texts
ADAPTIVE = ("adaln_zero", "adaln")
SMALL = {"width": 16, "depth": 2, "heads": 2, "patch": 2, "classes": 3, "channels": 1}
every_conditioning = pytest.mark.parametrize("conditioning", CONDITIONINGS)
both_attentions = pytest.mark.parametrize("attention", ["joint", "factorised"])
both_positions = pytest.mark.parametrize("positions", ["sincos", "rotary"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on_meta(name, **fields):
    with torch.device("meta"):
        return backbone(name, **fields)


def randomised(net, seed=1):
    """The same with every parameter random: at initialisation a DiT's output is zero."""
    stream = torch.Generator().manual_seed(seed)
    for value in net.parameters():
        value.data = 0.2 * torch.randn(value.shape, generator=stream)
    return net.eval()


def clips(**fields):
    """A tiny DiT of clips, with a tubelet of one frame, none of whose weights are zero."""
    return randomised(backbone("DiT", **(SMALL | {"tubelet": 1} | fields)))


def images(**fields):
    return randomised(backbone("DiT", **(SMALL | fields)))


def inputs(frames=4, height=4, width=6):
    return normal(3, 1, frames, height, width), torch.tensor([0.1, 0.5, 0.9]), {"label": torch.arange(3)}


def text_of(net):
    """What of a text a network can read besides."""
    cond = {
        "text": normal(3, M, DIM, seed=2),
        "text_mask": torch.arange(M) < torch.tensor([[2], [3], [1]]),
        "text_pooled": normal(3, DIM, seed=3),
    }
    return cond if net.text_dim else {}


def rows(cond, rows):
    return {key: value[rows] for key, value in cond.items()}


# Contracts


WAYS = [
    {},
    {"text": "cross_attention", "text_pooled": True, "text_dim": DIM},
    {"text": "in_context", "text_dim": DIM},
]


@pytest.mark.parametrize("way", WAYS, ids=["labels", "text", "text in context"])
@both_attentions
@every_conditioning
def test_contract(conditioning, attention, way):
    """Shapes of clips and images, finite gradients, rows that are independent, every condition changes the output."""
    positions = "rotary" if attention == "joint" else "sincos"
    net = clips(conditioning=conditioning, attention=attention, positions=positions, **way)
    x, t, cond = inputs()
    cond = {**cond, **text_of(net)}
    out = net(x, t, cond)
    assert out.shape == x.shape
    out.square().mean().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for n, p in net.named_parameters() if "null" not in n
    )
    with torch.no_grad():
        assert net(x[:, :, 0], t, cond).shape == (3, 1, 4, 6)
        torch.testing.assert_close(net(x[1:2], t[1:2], rows(cond, [1])), out[1:2], rtol=1e-4, atol=1e-5)
        moved = torch.cat([x[:, :, :3], x[:, :, 3:] + 1], 2)
        for other in (
            net(moved, t, cond)[:, :, :3],  # every frame attends to the last
            net(x, 1.2 - t, cond),
            *(
                net(
                    x,
                    t,
                    {
                        **cond,
                        key: value + 1.5 * normal(*value.shape) if value.is_floating_point() else 2 - value,
                    },
                )
                for key, value in cond.items()
                if key != "text_mask" and not (key == "text_pooled" and not net.config.text_pooled)
            ),
        ):
            assert (other - out[:, :, : other.shape[2]]).abs().amax((0, 1, 3, 4)).min() > 1e-4


@both_attentions
@torch.no_grad()
def test_padding_of_a_text_does_not_matter(attention):
    net = clips(text="in_context", text_dim=DIM, attention=attention)
    x, t, cond = inputs()
    cond = {**cond, **text_of(net)}
    noise = torch.where(cond["text_mask"][..., None], cond["text"], 9.0)
    longer = {"text": F.pad(noise, (0, 0, 0, 2), value=7.0), "text_mask": F.pad(cond["text_mask"], (0, 2))}
    torch.testing.assert_close(net(x, t, {**cond, **longer}), net(x, t, cond), rtol=1e-4, atol=1e-5)


@both_attentions
@both_positions
def test_bf16_autocast_is_close_and_sums_in_float32(positions, attention):
    net = clips(positions=positions, attention=attention, heads=1)
    x, t, cond = inputs()
    seen = []
    net.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    exact = net(x, t, cond)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x, t, cond)
    assert seen == [torch.float32] * 2
    assert 1e-6 < (rounded - exact).norm() / exact.norm() < 0.03


@every_conditioning
def test_zero_at_initialisation(conditioning):
    net = backbone("DiT", **SMALL, tubelet=1, attention="factorised", conditioning=conditioning)
    x, t, cond = inputs()
    assert net(x, t, cond).abs().max() == 0


# A clip and its frames


@pytest.mark.parametrize(
    "extra", [{}, {"text": "in_context", "text_dim": DIM}], ids=["labels", "text in context"]
)
@every_conditioning
@torch.no_grad()
def test_a_clip_of_one_frame_is_the_image(conditioning, extra):
    """With an image network's weights, reshaped: the same names, the same numbers."""
    net, other = images(conditioning=conditioning, **extra), clips(conditioning=conditioning, **extra)
    weights = net.state_dict()
    weights["patches.proj.weight"] = weights["patches.proj.weight"][:, :, None]
    other.load_state_dict(weights, strict=True)
    x, t, cond = inputs(frames=1)
    cond = {**cond, **text_of(net)}
    expected = net(x[:, :, 0], t, cond)
    torch.testing.assert_close(other(x, t, cond)[:, :, 0], expected, rtol=1e-4, atol=1e-5)
    assert other(x[:, :, 0], t, cond).equal(other(x, t, cond)[:, :, 0])


@torch.no_grad()
def test_factorised_attention_is_joint_within_a_frame_and_along_a_place():
    c = normal(2, 1, 1, 16)
    blocks = {over: AdaLNZeroBlock(16, 2, 2.0, over) for over in ("joint", "space", "time")}
    weights = randomised(blocks["joint"]).state_dict()
    for block in blocks.values():
        block.load_state_dict(weights)
    frame, place, clip = normal(2, 1, 5, 16), normal(2, 5, 1, 16), normal(2, 3, 5, 16)
    torch.testing.assert_close(blocks["space"](frame, c), blocks["joint"](frame, c))
    torch.testing.assert_close(blocks["time"](place, c), blocks["joint"](place, c))
    for k in range(3):
        torch.testing.assert_close(
            blocks["space"](clip, c)[:, k : k + 1], blocks["joint"](clip[:, k : k + 1], c)
        )
    for k in range(5):
        alone = blocks["joint"](clip[:, :, k : k + 1], c)
        torch.testing.assert_close(blocks["time"](clip, c)[:, :, k : k + 1], alone)
    assert (blocks["time"](clip, c) - blocks["joint"](clip, c)).abs().max() > 1e-2


def test_blocks_take_turns():
    net = on_meta("DiT", **SMALL | {"depth": 4}, tubelet=1, attention="factorised")
    assert [block.attention.over for block in net.blocks] == ["space", "time", "space", "time"]
    assert {block.attention.over for block in on_meta("DiT", **SMALL, tubelet=1).blocks} == {"joint"}


@both_attentions
@torch.no_grad()
def test_blocks_know_the_order_of_frames_by_positions_only(attention):
    net = clips(attention=attention)
    x, t, cond = inputs()
    order = torch.tensor([2, 0, 3, 1])
    conditions = net.conditions(cond, x.shape[2:])
    c, h = net.condition(t, conditions), normal(3, 4, 6, 16)
    torch.testing.assert_close(
        net.body(h[:, order], c, conditions), net.body(h, c, conditions)[:, order], rtol=1e-4, atol=1e-5
    )
    times = normal(3, 4).sigmoid()
    mixed = net.body(h[:, order], net.condition(times[:, order], conditions), conditions)
    expected = net.body(h, net.condition(times, conditions), conditions)[:, order]
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)
    assert (net(x[:, :, order], t, cond) - net(x, t, cond)[:, :, order]).abs().max() > 1e-2
    turned = clips(attention=attention, positions="rotary")
    assert (turned(x[:, :, order], t, cond) - turned(x, t, cond)[:, :, order]).abs().max() > 1e-3


# A time per frame


@both_attentions
@pytest.mark.parametrize("conditioning", ADAPTIVE)
@torch.no_grad()
def test_a_time_per_frame(conditioning, attention):
    net = clips(conditioning=conditioning, attention=attention)
    x, t, cond = inputs()
    same = t[:, None].expand(-1, 4)
    torch.testing.assert_close(net(x, same, cond), net(x, t, cond), rtol=1e-4, atol=1e-5)
    ramp = t[:, None] * torch.linspace(0, 1, 4)
    assert (net(x, ramp, cond) - net(x, t, cond)).abs().amax((0, 1, 3, 4)).min() > 1e-3
    conditions = net.conditions(cond, x.shape[2:])
    assert net.condition(t, conditions).shape == (3, 1, 1, 16)
    assert net.condition(ramp, conditions).shape == (3, 4, 1, 16)  # a modulation per frame, not per token
    assert net(x[:, :, 0], t[:, None], cond).equal(net(x[:, :, :1], t[:, None], cond)[:, :, 0])


@torch.no_grad()
def test_frames_of_a_tubelet_have_the_time_of_the_first():
    net = clips(tubelet=2)
    x, _, cond = inputs()
    times = normal(3, 4).sigmoid()
    other = times.clone()
    other[:, 1::2] = 0.3
    assert net(x, other, cond).equal(net(x, times, cond))
    other[:, 2] = 0.3
    assert (net(x, other, cond) - net(x, times, cond)).abs().max() > 1e-3


# Patches


@torch.no_grad()
def test_tubelets_are_a_convolution_without_overlap_and_come_back():
    x = normal(2, 3, 4, 6, 8)
    embed = PatchEmbed(3, 2, 16, tubelet=2)
    expected = embed.proj(x)
    assert embed.grid(4, 6, 8) == expected.shape[2:] == (2, 3, 4)
    torch.testing.assert_close(embed(x), expected.flatten(3).permute(0, 2, 3, 1))
    bound = math.sqrt(6 / (24 + 16))
    assert 0.9 * bound < embed.proj.weight.abs().max() <= bound
    tokens = patchify(x, (2, 2, 2))  # (2, 2, 3, 4, 24), the channel slowest
    fastest = tokens.unflatten(-1, (3, 8)).transpose(-1, -2).flatten(-2).flatten(2, 3)
    assert unpatchify(fastest, (2, 3, 4), 2, tubelet=2).equal(x)


def test_unpatchified_frames_are_the_images():
    """A feature is (frame, row, column, channel): of one frame, an image's."""
    tokens = normal(2, 3, 6, 12)
    x = unpatchify(tokens, (3, 2, 3), 2, tubelet=1)
    for k in range(3):
        assert x[:, :, k].equal(unpatchify(tokens[:, k], (2, 3), 2))


# Positions


def test_sincos_of_a_clip():
    """The image's, plus a sinusoid of the frame over all channels that is nothing at the first."""
    table = sincos_table((Axis(5), Axis(2), Axis(3)), 8)
    assert table.shape == (5, 6, 8)
    assert table[0].equal(sincos_positions(2, 3, 8))
    frame = 3.0 * torch.tensor([1.0, 0.1, 0.01, 0.001])
    torch.testing.assert_close(table[3] - table[0], torch.cat([frame.sin(), frame.cos() - 1]).expand(6, -1))


def test_pairs_take_turns_among_column_row_and_frame():
    """Closed form, with pairs that do not divide evenly: the column has two, the others one."""
    table = rotary_positions((Axis(4), Axis(5), Axis(6)), 8).unflatten(1, (4, 5, 6))
    f, r, c = 3, 2, 5
    angles = torch.tensor([c, r, f, c * 10_000.0 ** (-2 * 3 / 8)])
    torch.testing.assert_close(table[:, f, r, c], torch.stack([angles.cos(), angles.sin()]))


@pytest.mark.parametrize("grid", [(7,), (4, 5), (3, 4, 5)])
def test_products_depend_on_differences_along_every_axis(grid):
    dim = 12
    q, k = normal(2, 1, 1, 1, dim).expand(2, 1, math.prod(grid), 1, dim)
    table = rotary_positions(tuple(Axis(n) for n in grid), dim)
    q, k = (rotate(x, table).view(*grid, dim) for x in (q, k))
    seen = []
    for axis_, n in enumerate(grid):
        products = (q.narrow(axis_, 0, n - 1) * k.narrow(axis_, 1, n - 1)).sum(-1)
        torch.testing.assert_close(products, products.flatten()[0].expand_as(products), rtol=1e-4, atol=1e-4)
        seen.append(round(products.flatten()[0].item(), 3))
    assert len(set(seen)) == len(grid)  # and axes are distinguished


def test_tokens_without_a_place_are_not_turned():
    table = unturned(rotary_positions((Axis(2), Axis(3)), 8), 2)
    x = normal(1, 8, 2, 8)
    assert rotate(x, table)[:, 6:].equal(x[:, 6:])
    assert rotate(x, table)[:, :6].equal(rotate(x[:, :6], table[:, :6]))


def test_rows_may_have_their_own_angles():
    tables = [rotary_positions((Axis(2), Axis(3)), 8), rotary_positions((Axis(3), Axis(2)), 8)]
    x = normal(2, 6, 2, 8)
    both = rotate(x, torch.stack(tables, dim=1))
    for k in range(2):
        assert both[k].equal(rotate(x[k : k + 1], tables[k])[0])


@torch.no_grad()
def test_attention_with_turned_queries_and_keys():
    """Written out; values are not turned."""
    attention, x = randomised(SelfAttention(8, 2)), normal(1, 6, 8)
    table = rotary_positions((Axis(2), Axis(3)), 4)
    q, k, v = (part.unflatten(-1, (2, 4)) for part in attention.qkv(x).chunk(3, dim=-1))
    q, k = rotate(q, table), rotate(k, table)
    heads = [(q[0, :, h] @ k[0, :, h].T / 2).softmax(-1) @ v[0, :, h] for h in range(2)]
    expected = attention.proj(torch.cat(heads, dim=-1))[None]
    torch.testing.assert_close(attention(x, Arrangement(rotary=table)), expected)


# Beyond the trained grid


@pytest.mark.parametrize("how", ["raw", "interpolated", "ntk"])
def test_axes_up_to_the_trained_grid_are_as_they_are(how):
    assert axis(8, 8, how, 16) == axis(8, 12, how, 16) == Axis(8)


def test_axes_beyond_the_trained_grid():
    assert axis(12, 8, "raw", 16) == Axis(12)
    assert axis(12, 8, "interpolated", 16) == Axis(12, step=8 / 12)
    assert axis(12, 8, "ntk", 2) == Axis(12)  # one frequency, which stays
    longer = axis(16, 8, "ntk", 16)
    # The slowest of d/2 frequencies, base^(-(d - 2)/d), is divided by s; the quickest stays.
    assert longer.base ** (-14 / 16) == pytest.approx(10_000.0 ** (-14 / 16) / 2)
    raw, squeezed = rotary_positions((Axis(8),), 16), rotary_positions((axis(16, 8, "interpolated", 16),), 16)
    torch.testing.assert_close(squeezed[:, ::2], raw)
    stretched = rotary_positions((longer,), 16)
    assert stretched[..., 0].equal(rotary_positions((Axis(16),), 16)[..., 0])
    torch.testing.assert_close(stretched[:, ::2, -1], raw[..., -1])


@pytest.mark.parametrize("how", ["interpolated", "ntk"])
@pytest.mark.parametrize(
    "fields", [{}, {"positions": "rotary"}, {"positions": "rotary", "attention": "factorised"}], ids=str
)
@torch.no_grad()
def test_networks_extrapolate_axis_by_axis(how, fields):
    """The same network up to the grid it is trained for, another beyond, along any axis that is."""
    raw, net = clips(heads=1, **fields), clips(heads=1, **fields, grid=(4, 2, 3), extrapolation=how)
    net.load_state_dict(raw.state_dict())
    for size in ((4, 4, 6), (2, 2, 4), (6, 4, 6), (4, 6, 6), (4, 4, 8)):
        x, t, cond = inputs(*size)
        beyond = any(n > m for n, m in zip(size, (4, 4, 6), strict=True))
        difference = (net(x, t, cond) - raw(x, t, cond)).abs().max()
        assert difference > 1e-4 if beyond else difference == 0, size
    x, t, cond = inputs(1)
    still = images(
        heads=1, **{k: v for k, v in fields.items() if k == "positions"}, grid=(2, 3), extrapolation=how
    )
    plain = images(heads=1, **{k: v for k, v in fields.items() if k == "positions"})
    assert still(x[:, :, 0], t, cond).equal(plain(x[:, :, 0], t, cond))
    wide = normal(3, 1, 4, 12)
    assert (still(wide, t, cond) - plain(wide, t, cond)).abs().max() > 1e-4


def test_interpolated_positions_of_twice_the_grid():
    """Every other token stands where one of the trained grid does, in rows, columns and frames."""
    net = clips(grid=(2, 2, 3), extrapolation="interpolated")
    torch.nn.init.zeros_(net.patches.proj.weight)
    fine = net.embed(torch.zeros(1, 1, 4, 8, 12)).unflatten(2, (4, 6))
    coarse = net.embed(torch.zeros(1, 1, 2, 4, 6)).unflatten(2, (2, 3))
    torch.testing.assert_close(fine[:, ::2, ::2, ::2], coarse)


# The size


@every_conditioning
@torch.no_grad()
def test_the_size_is_a_condition(conditioning):
    net = clips(size_embedding=True, conditioning=conditioning)
    _, t, cond = inputs()
    seen = [
        net.condition(t, net.conditions(cond, size))
        for size in ((4, 4, 6), (2, 4, 6), (4, 2, 6), (4, 4, 8), (4, 6))
    ]
    for k, one in enumerate(seen):
        assert all((one - other).abs().max() > 1e-3 for other in seen[:k])
    assert net.condition(t, net.conditions(cond, (1, 4, 6))).equal(
        seen[-1]
    )  # an image is a clip of one frame


@torch.no_grad()
def test_at_first_the_size_changes_nothing():
    torch.manual_seed(0)
    net = backbone("DiT", **SMALL, size_embedding=True)
    _, t, cond = inputs()
    assert net.condition(t, net.conditions(cond, (4, 6))).equal(net.time(t) + net.label(cond["label"]))
    added = {name for name in net.state_dict() if name not in backbone("DiT", **SMALL).state_dict()}
    assert {name.split(".")[0] for name in added} == {"extent"}


def test_a_size_that_never_changes_is_no_bias_with_a_huge_step():
    """A network that saw squares only was lost after 130,000 images, in its condition on their size."""
    torch.manual_seed(0)
    extent = SizeEmbedding(2, 192)
    optimizer = torch.optim.AdamW(extent.parameters(), lr=1e-3, weight_decay=0)
    wanted, counts = torch.randn(192), torch.tensor([[7, 7]])
    steps = 200
    for _ in range(steps):
        optimizer.zero_grad()
        (extent(counts) * wanted).sum().backward()
        optimizer.step()
    assert extent(counts).pow(2).mean().sqrt() <= 1.01 * 1e-3 * steps


# Sizes of states


@pytest.mark.parametrize("name", [*BACKBONES, "clips"])
def test_patch_sizes_are_what_states_must_be_multiples_of(name):
    net = on_meta("DiT", tubelet=2, channels=3) if name == "clips" else on_meta(name, channels=3)
    config = net.config if name == "clips" else BACKBONES[name]
    *tubelet, height, width = config.patch_sizes
    ratio = config.ratios[0]
    size = [*(3 * n for n in tubelet), 2 * height // ratio, 3 * width // ratio]
    net.check_size(*size)
    for k, patch in enumerate([*tubelet, height // ratio, width // ratio]):
        if patch > 1:
            with pytest.raises(InputError):
                net.check_size(*(n - (j == k) for j, n in enumerate(size)))


@pytest.mark.parametrize(
    "fields",
    [{"patch": 2}, {"patch": 2, "tubelet": 2}, {"patch": 1, "tubelet": 1, "attention": "factorised"}],
    ids=str,
)
def test_tokens_are_counted(fields):
    net = on_meta("DiT", **SMALL | fields)
    size = (4, 6, 8) if "tubelet" in fields else (6, 8)
    tokens = net.embed(torch.empty(1, 1, *size, device="meta")).flatten(1, -2).shape[1]
    assert net.config.tokens(size) == tokens
    if fields.get("tubelet") == 1:
        assert net.config.tokens(size[1:]) == tokens // 4


def test_tokens_of_networks_without_patches():
    assert BACKBONES["U-DiT-S"].tokens((16, 24)) == BACKBONES["MDM-64"].tokens((16, 24)) == 16 * 24
    around = MatryoshkaConfig.checked({"inner": "DiT-S/2", "levels": [{"patch": 2}, {}]}, "around")
    assert around.patch_sizes == (16, 16)  # 2, times 2, times 4
    assert around.tokens((4, 6)) == 16 * 24  # of an image of 32 x 48, four pixels a token


# Costs


@both_attentions
def test_costs_in_closed_form(attention):
    """Tokens of 4 frames times 6 places, D wide: attention takes 2 L² D, or 2 F S² D and 2 S F² D in turn."""
    net = on_meta("DiT", **SMALL | {"depth": 4}, tubelet=2, attention=attention, positions="rotary")
    d, f, s, features = 16, 4, 6, 8
    products = 4 * 2 * (f * s) ** 2 * d if attention == "joint" else 2 * 2 * (f * s**2 + s * f**2) * d
    expected = 4 * (12 * f * s * d**2 + 6 * d**2) + products
    expected += 2 * f * s * features * d + 256 * d + d**2 + 2 * d**2
    assert count_cost(net, (1, 8, 4, 6), labelled=True).macs == expected


def test_costs_by_name():
    image, one = ditkit.cost("DiT-S/4", 64), ditkit.cost("DiT-S/4", 64, frames=1, tubelet=1)
    assert (one.params, one.macs) == (image.params, image.macs)
    joint = ditkit.cost("DiT-S/4", 64, frames=16, tubelet=1)
    factorised = ditkit.cost("DiT-S/4", 64, frames=16, tubelet=1, attention="factorised")
    assert image.macs < factorised.macs < joint.macs
    assert factorised.params == joint.params
    assert factorised.memory(2).activations < joint.memory(2).activations


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 4}, "`frames` 4: DiT-S/2, .* is a network of images; give it a tubelet"),
        ({"frames": 3, "tubelet": 2}, "`frames` 3: .* takes multiples of its tubelet, 2"),
        ({"frames": 0, "tubelet": 2}, "`frames` 0: .* takes multiples of its tubelet, 2"),
        ({"tubelet": 2}, "`frames` 1: .* takes multiples of its tubelet, 2"),
        ({"size": 250, "frames": 2, "tubelet": 2}, "`size` 250: .* takes 240, 256"),
    ],
)
def test_errors_of_costs(fields, message):
    with pytest.raises(InputError, match=message):
        ditkit.cost("DiT-S/2", **fields)


# Errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "factorised"}, "attention factorised is of clips: give `backbone.tubelet` 1"),
        ({"attention": "factorised", "tubelet": 1, "depth": 3}, "depth 3 is odd; use 4"),
        ({"grid": (4, 4, 4)}, r"grid \(4, 4, 4\) has 3 axes, .* tubelet 0 has 2: give \(rows, columns\)"),
        ({"grid": (4, 4), "tubelet": 1}, r"has 2 axes, .* has 3: give \(frames, rows, columns\)"),
        ({"grid": (0, 4)}, "grid.0: .*greater than or equal to 1"),
        ({"extrapolation": "ntk"}, "extrapolation ntk from what size.* `backbone.grid`"),
        ({"positions": "rotary", "heads": 8}, "on 2 axes need .* 4 or more, not 2; use fewer heads"),
        ({"positions": "rotary", "heads": 4, "tubelet": 1}, "on 3 axes need .* 6 or more, not 4"),
        ({"positions": "rotary", "width": 36, "heads": 4}, "an even number of channels, 4 or more, not 9"),
        ({"tubelet": -1}, "tubelet: .*greater than or equal to 0"),
    ],
)
def test_errors_of_fields(fields, message):
    with pytest.raises(InputError, match=message) as caught:
        on_meta("DiT", **SMALL | fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["DiT", "U-DiT", "UNet", "MDM", "Matryoshka"])
def test_error_of_frames_for_a_network_of_images(name):
    net = on_meta(name, channels=1)
    channels = sum(ratio**2 for ratio in BACKBONES[name].ratios)
    x, t = torch.empty(1, channels, 4, 16, 16, device="meta"), torch.empty(1, device="meta")
    for ask in (lambda: net(x, t), lambda: net.check_size(4, 16, 16)):
        with pytest.raises(
            InputError, match=r"frames asked of a network of images: .*4x16x16.*`backbone.tubelet`"
        ):
            ask()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            (3, 4, 4),
            "a clip of 3 frames is not divisible into tubelets of 2; .*`data.frames` .*`backbone.tubelet`",
        ),
        ((4, 4), "a clip of 1 frame is not divisible into tubelets of 2"),
        ((4, 5, 4), "5x4 is not divisible into patches of 2"),
    ],
)
def test_error_of_a_size(size, message):
    net = clips(tubelet=2)
    _, t, cond = inputs()
    with pytest.raises(InputError, match=message):
        net(normal(3, 1, *size), t, cond)


def test_errors_of_times():
    net = clips()
    x, t, cond = inputs()
    with pytest.raises(InputError, match=r"times of 3 frames for clips of 4; .*\(B, 4\)"):
        net(x, t[:, None].expand(-1, 3), cond)
    with pytest.raises(InputError, match="a time per token or frame needs adaptive norms"):
        clips(conditioning="in_context")(x, t[:, None].expand(-1, 4), cond)
