"""Images of their own sizes, clips, and what makes a batch of them: rules against pixels, plans against counting."""

import io
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from needs import needs_clothes
from PIL import Image
from pydantic import ValidationError

from ditkit.data import (
    Arrays,
    Clips,
    DataSection,
    Digits,
    Encoded,
    FashionMNIST,
    Folder,
    Plan,
    Stream,
    arrays,
    batches,
    load_all,
    load_size,
    native_size,
    plan_for,
    prepare,
    prepare_native,
    shard,
)
from ditkit.data.buckets import places_by_size
from ditkit.data.sources import stack
from ditkit.errors import InputError
from ditkit.randomness import generator


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def area(size: tuple[int, ...]) -> int:
    """Tokens of patches of 4 × 4."""
    return int(np.prod(size)) // 16


# native sizes


def test_native_size_says_what_prepare_native_makes():
    random = np.random.default_rng(0)
    for _ in range(150):
        width, height = (int(side) for side in np.exp(random.uniform(0, np.log(400), 2)))
        size, multiple = int(random.integers(1, 70)), int(random.integers(1, 17))
        shape = native_size(width, height, size, multiple)
        assert prepare_native(noise(width, height), size, 3, shape).shape == (3, *shape)
        assert all(side % multiple == 0 for side in shape)
        assert np.prod(shape) <= max(size**2, multiple**2)
        assert native_size(height, width, size, multiple) == shape[::-1] or min(width, height) < multiple


def test_native_size_keeps_aspect_and_what_is_small():
    assert native_size(100, 60, 96, 1) == (60, 100)  # 6,000 <= 9,216 pixels: as it is
    assert native_size(103, 62, 96, 4) == (60, 100)
    assert native_size(45, 45, 32, 4) == (32, 32)  # exactly
    assert native_size(400, 100, 64, 1) == (32, 128)
    assert native_size(96, 96, 96, 1) == (96, 96)
    for width, height in [(4000, 3000), (3000, 4001), (1920, 1080), (301, 299)]:
        down, across = native_size(width, height, 256, 1)
        assert abs(across / down - width / height) < 2 * (across + down) / down**2
        assert 256**2 - across - down <= across * down <= 256**2


def test_an_image_below_one_multiple_is_stretched_and_no_larger_than_allowed():
    assert native_size(3, 20, 32, 8) == (16, 8)
    assert native_size(2, 2, 32, 8) == (8, 8)
    assert native_size(2000, 3, 32, 4) == (4, 256)  # 256 × 4 = 32²
    wide = np.zeros((2, 20), np.uint8)
    wide[1] = 200
    image = prepare_native(Image.fromarray(wide), 32, 1, native_size(20, 2, 32, 4))
    assert image.shape == (1, 4, 20)
    assert image[0, 0].max() < 40
    assert image[0, 3].min() > 160


def test_a_square_is_prepared_as_ever_and_a_small_image_is_cut_in_its_middle():
    for side in (64, 65, 130, 200, 257):
        image = noise(side, side)
        shape = native_size(side, side, 32, 4)
        assert torch.equal(prepare_native(image, 32, 3, shape), prepare(image, 32, 3))
    pixels = np.arange(7 * 11, dtype=np.uint8).reshape(7, 11)
    shape = native_size(11, 7, 64, 4)
    assert shape == (4, 8)
    cut = prepare_native(Image.fromarray(pixels), 64, 1, shape)
    assert cut[0].tolist() == pixels[1:5, 1:9].tolist()


def test_a_larger_image_is_scaled_and_not_cut_but_for_the_rounding():
    x, y = np.meshgrid(np.linspace(0, 255, 800), np.linspace(0, 255, 200))
    ramps = Image.fromarray(np.stack([x, y, 0 * x], -1).round().astype(np.uint8))
    image = prepare_native(ramps, 64, 3, native_size(800, 200, 64, 4)).double()  # (3, 32, 128)
    centres = [(torch.arange(count) + 0.5) / count * 255 for count in (128, 32)]
    assert (image[0].mean(0) - centres[0]).abs().max() < 2
    assert (image[1].mean(1) - centres[1]).abs().max() < 4


# sizes of sources


def save(path: Path, image: Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.mark.parametrize("check", [True, False])
def test_sizes_are_those_of_the_upright_image_whatever_the_format(tmp_path, check):
    for ending in ("png", "jpg", "tif", "webp"):
        for orientation in (1, 3, 6, 8):
            exif = Image.Exif()
            exif[0x0112] = orientation
            save(tmp_path / f"{ending}{orientation}.{ending}", noise(20, 12), exif=exif)
    config = Folder(path=tmp_path, aspect="native", size=64, check=check)
    source = config.open()
    assert len(source) == 16
    turned = 0
    for index in range(len(source)):
        assert source.size(index) == source[index][0].size
        turned += source.size(index) == (12, 20)
    assert turned == 8
    assert places_by_size(source.sizes(4)) == {
        (12, 20): [k for k in range(16) if source.size(k) == (20, 12)],
        (20, 12): [k for k in range(16) if source.size(k) == (12, 20)],
    }


class Counted:
    """A store of one picture that counts how often it is read."""

    where = "here"

    def __init__(self, data: bytes):
        self.data, self.reads = data, 0

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> bytes:
        self.reads += 1
        return self.data

    def title(self, index: int) -> str:
        return "picture"


def test_a_size_comes_from_the_header_once_and_a_bad_header_is_named():
    buffer = io.BytesIO()
    noise(64, 48).save(buffer, "JPEG")
    whole = buffer.getvalue()
    store = Counted(whole[:1000])  # the pixels are cut short
    unchecked = Folder(check=False, cache="off")
    source = Encoded(store, None, (), unchecked)
    assert source.size(0) == (64, 48)
    assert store.reads == 1
    with pytest.raises(InputError, match="picture in here cannot be decoded"):
        source[0]
    with pytest.raises(
        InputError, match=r"picture in here cannot be decoded \(not an image\).*`data\.check`"
    ):
        Encoded(Counted(b"hello"), None, (), unchecked).size(0)
    store = Counted(whole)
    checked = Encoded(store, None, (), Folder(cache="off"))
    assert checked.size(0) == (64, 48)
    assert store.reads == 1


# garments


def pictures() -> np.ndarray:
    """Six 28 × 28 pictures of bright blocks of known places; faint ones around them, one picture all faint."""
    pixels = np.zeros((6, 28, 28), np.uint8)
    pixels[0, 3:27, 10:18] = 200
    pixels[1, 9:21, 0:28] = 90
    pixels[2, 4:9, 2:20] = 9
    pixels[3] = 8
    pixels[4, 5, 7] = 255
    pixels[5, 3:27, 10:18] = 60
    pixels[5, 0:3, 0:10] = 8
    return pixels


BOXES = [[10, 3, 18, 27], [0, 9, 28, 21], [2, 4, 20, 9], [0, 0, 28, 28], [7, 5, 8, 6], [10, 3, 18, 27]]


def test_bounding_boxes_of_pictures_made_by_hand():
    assert arrays.bounding_boxes(pictures()).tolist() == BOXES


def in_memory(config: FashionMNIST) -> Arrays:
    return arrays.in_memory(
        pictures(), np.array([1, 7, 2, 4, 0, 1]), arrays.CLOTHES, config, arrays.bounding_boxes(pictures())
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_unequal_sizes_are_kept_in_memory(channels):
    config = FashionMNIST(aspect="native", crop="garment", channels=channels)
    source = in_memory(config)
    assert source.images.shape == (6, channels, 28, 28)
    assert [source.size(k) for k in range(6)] == [(8, 24), (28, 12), (18, 5), (28, 28), (1, 1), (8, 24)]
    assert [source[k][0].size for k in range(6)] == [source.size(k) for k in range(6)]
    image, label = source[5]
    assert image.mode == ("L" if channels == 1 else "RGB")
    assert (label, np.asarray(image).min()) == (1, 60)
    both = stack(source, [0, 5], (24, 8))
    assert both.shape == (2, channels, 24, 8)
    assert [int(image.min()) for image in both] == [200, 60]
    assert source.read([], size=(24, 8)).shape == (0, channels, 24, 8)


@needs_clothes
def test_fashion_mnist_has_garments_of_every_aspect():
    config = FashionMNIST(aspect="native", crop="garment")
    source = config.open("test")
    width, height = np.array([source.size(k) for k in range(len(source))]).T
    for name, low, high in [("Trouser", 0.3, 0.6), ("Sneaker", 1.8, 2.5), ("Bag", 0.8, 1.4)]:
        ratio = np.median((width / height)[source.labels == source.names.index(name)])
        assert low < ratio < high
    whole = FashionMNIST().open("test").images
    for index in range(0, 10_000, 997):  # nothing bright is outside, and what is inside is the picture's own
        left, top, right, bottom = source.boxes[index].tolist()
        inside = whole[index, :, top:bottom, left:right]
        assert np.array_equal(np.asarray(source[index][0])[None], inside)
        assert (whole[index] > arrays.DARK).sum() == (inside > arrays.DARK).sum()
    places = places_by_size(source.sizes(4))
    assert len(places) > 15
    assert sorted(place for found in places.values() for place in found) == list(range(10_000))
    images, labels = load_size(config, "test", (28, 12), 4)
    assert images.shape == (len(places[28, 12]), 1, 28, 12)
    assert torch.equal(labels, source.labels[places[28, 12]])


# plans


def mixed(count: int = 200) -> list[tuple[int, int]]:
    random = np.random.default_rng(1)
    return [(4 * int(h), 4 * int(w)) for h, w in random.integers(1, 5, (count, 2))]


@pytest.mark.parametrize("budget", [16, 17, 50, 1000])
def test_a_plan_has_every_sample_once_an_epoch_in_batches_of_one_size_within_the_budget(budget):
    sizes = mixed()
    plan = Plan(sizes, area, budget)
    assert [bucket.size for bucket in plan.buckets] == sorted(set(sizes))
    assert sum(bucket.images for bucket in plan.buckets) == len(plan) == 200
    for epoch in range(3):
        parts = plan.batches(5, epoch)
        assert sorted(np.concatenate(parts).tolist()) == list(range(200))
        for part in parts:
            (size,) = {sizes[place] for place in part}
            assert 0 < len(part) * area(size) <= budget
        for bucket in plan.buckets:  # all batches but one are as large as the budget lets them be
            own = [len(part) for part in parts if sizes[part[0]] == bucket.size]
            assert bucket.batch == budget // bucket.tokens
            assert sum(length != bucket.batch for length in own) <= 1
            assert len(own) == -(-bucket.images // bucket.batch)


def test_a_plan_is_a_function_of_seed_and_epoch_and_shuffles_both_samples_and_batches():
    plan, again = Plan(mixed(), area, 40), Plan(mixed(), area, 40)
    order = [part.tolist() for part in plan.batches(3, 1)]
    plan.batches(4, 7)
    assert (
        order
        == [part.tolist() for part in plan.batches(3, 1)]
        == [part.tolist() for part in again.batches(3, 1)]
    )
    for other in (plan.batches(3, 2), plan.batches(4, 1)):
        assert sorted(map(sorted, order)) != sorted(sorted(part.tolist()) for part in other)
    where = [mixed()[part[0]] for part in order]
    assert where != sorted(where)


def test_a_packed_batch_has_many_sizes_sorted_within_the_budget():
    plan = Plan(mixed(), area, 200, packed=True)
    batches = plan.batches(seed=0, epoch=3)
    assert sorted(np.concatenate(batches)) == list(range(len(plan)))
    for batch in batches:
        sizes = [plan.sizes[place] for place in batch]
        assert sizes == sorted(sizes)
        assert sum(map(area, sizes)) <= 200
    assert max(len({plan.sizes[place] for place in batch}) for batch in batches) > 2


def test_a_plan_is_cut_at_any_counter_and_goes_on_over_epochs():
    plan = Plan(mixed(50), area, 30)
    whole = list(plan.counters(0, 0, 130))
    assert [n for part in whole for n in part] == list(range(130))
    lengths = [len(part) for epoch in range(3) for part in plan.batches(0, epoch)]
    assert [len(part) for part in whole][:-1] == lengths[: len(whole) - 1]
    for start in range(0, 130, 7):
        tail = list(plan.counters(0, start, 130))
        expected = [range(max(part.start, start), part.stop) for part in whole if part.stop > start]
        assert tail == expected
    assert list(plan.counters(0, 20, 20)) == []


def test_ranks_share_a_batch():
    for batch in (range(10, 21), np.arange(11), range(3, 5)):
        parts = [list(shard(batch, rank, 4)) for rank in range(4)]
        assert sorted(chain(*parts)) == list(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_plan_describes_its_buckets_and_how_much_they_fill():
    plan = Plan([(8, 8)] * 5 + [(8, 16)] * 3 + [(16, 8)], area, 16, without=["16x8"])
    assert len(plan) == 8
    assert plan.describe().splitlines() == [
        "size  images  batch  tokens a batch",
        " 8x8       5      4              16",
        "8x16       3      2              16",
        "8 images of 2 sizes in 4 batches an epoch, which fill 68.8% of 16 tokens on average",  # 44 of 64
        "left out of training: 16x8 (1 images)",
    ]
    assert sorted(np.concatenate(plan.batches(0, 0)).tolist()) == list(range(8))


def test_wrong_budgets_and_sizes_are_named():
    sizes = [(8, 8), (16, 8)]
    with pytest.raises(
        InputError, match=r"^`train\.tokens` 7 is less than the 8 tokens of one sample of 16x8"
    ):
        Plan(sizes, area, 7)
    with pytest.raises(
        InputError, match=r"^`data\.without` 8x16: nothing has that size; there are 8x8, 16x8$"
    ):
        Plan(sizes, area, 8, ["8x16"])
    with pytest.raises(InputError, match="leaves nothing to train on"):
        Plan(sizes, area, 8, ["8x8", "16x8"])
    assert len(Plan(sizes, area, 4, ["16x8"])) == 1  # what is left out need not fit


def test_wrong_settings_are_refused():
    for wrong, words in (
        ({"crop": "garment"}, "give `data.aspect` native, too"),
        ({"without": ("28x12",)}, "give `data.aspect` native, or leave it out"),
        ({"aspect": "native", "without": ("8x8", "28-12")}, "`data.without` 28-12: a size is HxW"),
        ({"aspect": "native", "without": ("0x12",)}, "`data.without` 0x12: a size"),
        ({"aspect": "wide"}, "aspect"),
    ):
        with pytest.raises(ValidationError, match=words):
            FashionMNIST(**wrong)
        with pytest.raises(InputError, match=words):
            FashionMNIST.checked(wrong, "data")
    assert FashionMNIST().shape == (28, 28)
    assert Folder(size=96).shape == (96, 96)


# batches of several sizes


@pytest.fixture(params=["folder", "memory"])
def native(request, tmp_path):
    """(source, config): forty images of several sizes, from files with captions, or in memory."""
    if request.param == "memory":
        random = np.random.default_rng(0)
        pixels = random.integers(9, 256, (40, 28, 28), dtype=np.uint8)
        for picture, (height, width) in zip(pixels, random.integers(4, 29, (40, 2)), strict=True):
            picture[height:] = 0
            picture[:, width:] = 0
        config = FashionMNIST(aspect="native", crop="garment", flip=True)
        boxes = arrays.bounding_boxes(pixels)
        return arrays.in_memory(pixels, np.arange(40) % 10, arrays.CLOTHES, config, boxes), config
    random = np.random.default_rng(3)
    for number, (width, height) in enumerate(random.integers(3, 40, (40, 2)).tolist()):
        save(tmp_path / str(number % 3) / f"{number:02}.png", noise(width, height, number))
        (tmp_path / str(number % 3) / f"{number:02}.txt").write_text(f"number {number}")
    config = Folder(path=tmp_path, aspect="native", size=16, flip=True, caption_column="txt")
    return config.open(), config


def run(native, plan, *, seed=0, start=0, stop=100, **options):
    return list(batches(*native, seed=seed, start=start, stop=stop, batch=1, plan=plan, **options))


def flat(parts) -> list:
    """Every image of the batches: counter, label, caption and pixels."""
    return [
        (n, label, None if part.caption is None else part.caption[row], part.images[row].numpy().tobytes())
        for part in parts
        for row, (n, label) in enumerate(zip(part.index.tolist(), part.label.tolist(), strict=True))
    ]


def test_batches_of_a_plan_are_right_wherever_a_run_starts_and_whoever_reads_them(native):
    source, config = native
    plan = plan_for(source, config, 4, area, 60)
    whole = run(native, plan)
    assert [n for part in whole for n in part.index.tolist()] == list(range(100))
    assert all(part.images.dtype == torch.uint8 for part in whole)
    expected = flat(whole)
    stream = Stream(source, config, 0, plan)
    for part in whole:
        assert len(part.images) * area(part.images.shape[2:]) <= 60
        for row, n in enumerate(part.index.tolist()):
            place = stream.position(n)
            shape = native_size(*source.size(place), config.size, 4)
            image = prepare_native(source[place][0], config.size, config.channels, shape)
            assert torch.equal(part.images[row], image.flip(-1) if stream.draw(n).mirrored else image)
            assert part.label[row] == source.labels[place]
    for start in (1, 13, 39, 40, 41, 77, 99):
        assert flat(run(native, plan, start=start)) == expected[start:]
        assert flat(run(native, plan, stop=start)) == expected[:start]
    assert flat(run(native, plan, workers=2)) == expected
    assert flat(run(native, plan, seed=1)) != expected


def test_ranks_together_see_what_one_process_would_in_as_many_steps(native):
    plan = plan_for(*native, 4, area, 60)
    whole = run(native, plan, start=7)
    ranks = [run(native, plan, start=7, rank=rank, world=3) for rank in range(3)]
    assert sorted(flat(chain(*ranks))) == sorted(flat(whole))
    assert [len(parts) for parts in ranks] == [len(whole)] * 3
    assert any(len(part.index) == 0 for part in ranks[2])
    for parts in zip(whole, *ranks, strict=True):
        assert sum(len(part.images) for part in parts[1:]) == len(parts[0].images)
        assert all(part.images.shape[2:] == parts[0].images.shape[2:] for part in parts if len(part.index))


def test_sizes_left_out_are_never_trained_on_but_can_be_loaded(native):
    source, config = native
    sizes = by_size_of(source, config)
    name = max(sizes, key=lambda size: len(sizes[size]))
    config = config.model_copy(update={"without": ("x".join(map(str, name)),)})
    plan = plan_for(source, config, 4, area, 60)
    assert len(plan) == 40 - len(sizes[name])
    parts = run((source, config), plan)
    assert [n for part in parts for n in part.index.tolist()] == list(range(100))
    assert name not in {tuple(part.images.shape[2:]) for part in parts}
    assert by_size_of(source, config)[name] == sizes[name]


def by_size_of(source, config) -> dict:
    found: dict = {}
    for place in range(len(source)):
        found.setdefault(native_size(*source.size(place), config.size, 4), []).append(place)
    return found


def test_square_images_can_be_planned_too_and_need_no_plan():
    config = Digits(size=8)
    source = config.open("test")
    plan = plan_for(source, config, 2, area, 64)
    assert [tuple(bucket) for bucket in plan.buckets] == [((8, 8), 355, 16, 4)]
    parts = list(batches(source, config, seed=0, start=0, stop=355, batch=3, plan=plan))
    assert {len(part.images) for part in parts} == {16, 3}
    assert sorted(flat_images(parts)) == sorted(image.numpy().tobytes() for image in source.images)


def flat_images(parts) -> list[bytes]:
    return [image.numpy().tobytes() for part in parts for image in part.images]


def test_native_images_need_a_plan_or_a_size(native):
    source, config = native
    with pytest.raises(
        InputError, match=r"`data\.aspect` native: images of several sizes .*`data\.aspect` square"
    ):
        list(batches(source, config, seed=0, start=0, stop=4, batch=2))
    with pytest.raises(InputError, match=r"`data\.aspect` native"):
        stack(source, [0, 1])
    if isinstance(config, Folder):
        with pytest.raises(InputError, match=r"`data\.aspect` native"):
            load_all(config)
        sizes = by_size_of(source, config)
        size = next(iter(sizes))
        images, labels = load_size(config, "train", size, 4)
        assert torch.equal(images, stack(source, sizes[size], size))
        assert torch.equal(labels, source.labels[sizes[size]])
        with pytest.raises(InputError, match=r"the train part has no images of 4x400; there are \d+x\d+, "):
            load_size(config, "train", (4, 400), 4)


def test_native_images_in_memory_keep_their_size():
    source = Digits(size=32, aspect="native").open("test")
    assert source.images.shape == (355, 1, 8, 8)
    images, labels = load_size(Digits(size=32, aspect="native"), "test", (8, 8), 2)
    assert torch.equal(images, Digits().open("test").images)
    assert torch.equal(labels, source.labels)


# clips


class Videos(Clips):
    """Nine videos of ten frames; frame f of video k is of the value 20 k + 2 f, its left column of 1 more."""

    captions = tuple(f"video {k}" for k in range(9))

    def __len__(self) -> int:
        return 9

    def clip(self, index: int, draw: np.random.Generator | None) -> torch.Tensor:
        start = 3 if draw is None else int(draw.integers(0, 7))
        frames = 20 * index + 2 * torch.arange(start, start + 4)
        clip = frames[None, :, None, None].repeat(1, 1, 6, 6).to(torch.uint8)
        clip[..., 0] += 1
        return clip


class VideoData(DataSection):
    kind: str = "videos"
    size: int = 6
    channels: int = 1
    frames: int = 4

    @property
    def shape(self) -> tuple[int, ...]:
        return self.frames, self.size, self.size

    def open(self, split="train") -> Clips:
        return Videos(self)


@pytest.mark.parametrize("planned", [False, True])
def test_clips_are_drawn_by_their_counter_alone(planned):
    config = VideoData(flip=True)
    source = config.open()
    plan = plan_for(source, config, 2, area, 20) if planned else None
    parts = list(batches(source, config, seed=4, start=0, stop=60, batch=2, plan=plan))
    assert {part.images.shape[1:] for part in parts} == {(1, 4, 6, 6)}
    assert max(len(part.images) for part in parts) == 2
    clips = torch.cat([part.images for part in parts])
    stream = Stream(source, config, 4, plan)
    starts = set()
    for n, clip in enumerate(clips):
        draw = generator(4, n, "augment")
        mirrored = draw.random() < 0.5
        start = int(draw.integers(0, 7))
        place = stream.position(n)
        assert clip[0, :, 0, 3].tolist() == [20 * place + 2 * f for f in range(start, start + 4)]
        assert (clip[0, 0, 0, -1] > clip[0, 0, 0, 0]) == mirrored == stream.draw(n).mirrored
        starts.add(start)
    assert len(starts) > 4
    tail = list(batches(source, config, seed=4, start=11, stop=60, batch=3, plan=plan, workers=1))
    assert torch.equal(torch.cat([part.images for part in tail]), clips[11:])
    assert [caption for part in tail for caption in part.caption] == [
        f"video {stream.position(n)}" for n in range(11, 60)
    ]
    still = config.model_copy(
        update={"flip": False}
    )  # the frames do not depend on whether clips are mirrored
    plain = torch.cat([part.images for part in batches(source, still, seed=4, start=0, stop=60, batch=60)])
    if not planned:
        assert torch.equal(plain[:, 0, :, 0, 3], clips[:, 0, :, 0, 3])


def test_scoring_sees_the_middle_clip_of_every_video():
    images, labels = load_all(VideoData())
    assert labels is None
    assert images.shape == (9, 1, 4, 6, 6)
    assert images[:, 0, 0, 0, 3].tolist() == [20 * k + 6 for k in range(9)]
