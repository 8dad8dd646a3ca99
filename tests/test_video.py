"""Movies as files and clips cut from them: frames are the right ones, and what cannot be used is named."""

import json
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from ditkit.data.video import VideoFolder, read_movie
from ditkit.errors import InputError
from ditkit.movie_writing import ENCODERS, save_movie
from ditkit.movies import frames, open_movie
from ditkit.pictures import contact_sheet

av = pytest.importorskip("av")


def levels(count: int, start: int = 20, step: int = 4) -> torch.Tensor:
    """The grey level by which a frame of `movie` is recognised."""
    return start + step * torch.arange(count)


def movie(count: int = 48, start: int = 20, step: int = 4, side: int = 32) -> torch.Tensor:
    """uint8 (1, F, H, W): every frame of one grey."""
    return levels(count, start, step).byte()[None, :, None, None].expand(1, -1, side, side)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def shown(clip: torch.Tensor, start: int = 20, step: int = 4) -> list[int]:
    """Which frames of `movie` a clip shows."""
    return ((clip.float().mean((0, 2, 3)) - start) / step).round().int().tolist()


def write(path: Path, clip=None, *, stamps=None, rotation=None, encoder="libx264", options=None) -> Path:
    """A video of 24 frames a second, or with stamps in 1/24000 of one; keyframes twelve frames apart, B-frames
    between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (
        (movie() if clip is None else clip).expand(3, -1, -1, -1).permute(1, 2, 3, 0).contiguous().numpy()
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=24)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "yuv420p"
        stream.options = options or {"crf": "3", "x264-params": "keyint=12:bframes=3:b-adapt=0:scenecut=0"}
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 24000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, image in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[number], Fraction(1, 24000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path, cover: bool = False) -> Path:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        sound.layout = "mono"
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux([*picture.encode(frame), *picture.encode()])
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux([*sound.encode(frame), *sound.encode()])
    return path


def make_hole(path: Path, start: float, size: int) -> None:
    """Zeros in a file, from this share of it on."""
    whole = path.read_bytes()
    first = int(len(whole) * start)
    path.write_bytes(whole[:first] + bytes(size) + whole[first + size :])


def write_frames(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(movie(count)[0].numpy()):
        Image.fromarray(image).save(
            folder / f"{number}.png"
        )  # 2.png, 10.png: not in the order of the alphabet
    return folder


# movies


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts", "mov", "avi"])
def test_the_frames_of_a_video_are_exact_from_every_start(tmp_path, ending):
    path = write(tmp_path / f"a.{ending}")
    with av.open(str(path)) as container:  # otherwise this test is easy
        packets = [packet for packet in container.demux(video=0) if packet.size]
        reordered = container.streams.video[0].codec_context.has_b_frames
    assert reordered or any(a.pts > b.pts for a, b in pairwise(packets)), "B-frames"
    assert sum(packet.is_keyframe for packet in packets) == 4
    for decode in (True, False):
        opened = open_movie(path, decode=decode)
        assert len(opened.keys) == 48
        assert opened.fps == pytest.approx(24, rel=1e-3)
        for start in range(0, 45, 4):
            numbers = [start + 2, start, start + 3, start]
            images = [np.array(image) for image in frames(opened, numbers)]
            assert shown(torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2)) == numbers


def test_a_seek_that_lands_too_late_begins_from_the_start(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4")
    opened = open_movie(path)
    monkeypatch.setattr("ditkit.movies._open_video", lambda path: Late(av.open(str(path))))
    for numbers in ([10, 11], [10, 26]):  # no frame and one of them is after the third keyframe
        pictures = np.stack([np.array(image) for image in frames(opened, numbers)])
        assert shown(torch.from_numpy(pictures).permute(3, 0, 1, 2)) == numbers


def test_only_what_follows_the_keyframe_before_is_decoded(tmp_path):
    path = write(tmp_path / "a.mkv", noise(3, 48, 64, 64))
    opened = open_movie(path)
    make_hole(path, 0.05, path.stat().st_size // 4)
    assert len(frames(opened, range(37, 48))) == 11
    with pytest.raises(ValueError, match=r"Invalid data|damaged|frames cannot be decoded"):
        frames(opened, range(4, 8))


class Late:
    """A container that always seeks to its third keyframe."""

    def __init__(self, container):
        self.container, self.format = container, container.format

    def __enter__(self):
        return self, self.container.streams.video[0]

    def __exit__(self, *_):
        self.container.close()

    def decode(self, stream):
        return self.container.decode(stream)

    def seek(self, _, stream):
        self.container.seek(25 * 512, stream=stream)


def test_a_video_is_upright(tmp_path):
    clip = torch.full((1, 2, 32, 48), 200, dtype=torch.uint8)
    clip[:, :, :16] = 0  # the upper half is black
    turned, _ = read_movie(write(tmp_path / "a.mp4", clip, rotation=-90), 1)  # clockwise: the right half
    assert turned.shape == (1, 2, 48, 32)
    assert turned[..., :12].float().mean() > 190
    assert turned[..., 20:].float().mean() < 10


@pytest.mark.parametrize("encoder", ENCODERS)
def test_mp4_keeps_frames_rate_and_colour(tmp_path, monkeypatch, caplog, encoder):
    monkeypatch.setattr("ditkit.movie_writing.ENCODERS", {encoder: ENCODERS[encoder]})
    clip = movie(20).expand(3, -1, -1, -1).clone()
    clip[0] = 255 - clip[0]
    save_movie(clip, tmp_path / "a.mp4", 12.5)
    back, fps = read_movie(tmp_path / "a.mp4")
    assert back.shape == clip.shape
    assert (back.float() - clip).abs().max() <= 5
    assert fps == pytest.approx(12.5)
    assert not caplog.text
    save_movie(movie(3)[..., :7, :9], tmp_path / "odd.mp4", 8)
    assert "odd.mp4: 7x9 padded to 8x10; .mp4 takes even sides" in caplog.text
    assert shown(read_movie(tmp_path / "odd.mp4", 1)[0][:, :, 7:]) == [0, 1, 2]
    assert read_movie(tmp_path / "odd.mp4")[0].shape == (3, 3, 8, 10)


@pytest.mark.parametrize(
    ("name", "channels", "rate"), [("a.gif", 1, 100 / 12), ("a.webp", 1, 8), ("a.webp", 3, 8)]
)
def test_animations_keep_every_pixel_and_frames_that_repeat(tmp_path, name, channels, rate):
    clip = noise(channels, 9, 21, 34)
    clip[:, 3] = clip[:, 2]
    clip[:, 6:] = clip[:, 5:6]
    save_movie(clip, tmp_path / name, 8)
    back, fps = read_movie(tmp_path / name, channels)
    assert torch.equal(back, clip)
    assert fps == pytest.approx(rate)
    assert Image.open(tmp_path / name).info["loop"] == 0, "for ever"


def test_other_movies(tmp_path):
    clip, fps = read_movie(write_frames(tmp_path / "frames"), 1)
    assert (clip.shape, fps) == ((1, 12, 32, 32), None)
    assert shown(clip) == list(range(12))
    Image.new("RGBA", (5, 4), (255, 0, 0, 51)).save(tmp_path / "still.png")
    clip, fps = read_movie(tmp_path / "still.png")
    assert (clip[:, 0, 0, 0].tolist(), clip.shape, fps) == ([255, 204, 204], (3, 1, 4, 5), None)
    photo, exif = Image.new("L", (16, 8)), Image.Exif()
    photo.paste(255, (0, 0, 8, 8))  # the left half is white
    exif[0x0112] = 6  # to be turned clockwise for display: left goes to the top
    photo.save(tmp_path / "still.jpg", exif=exif)
    clip, _ = read_movie(tmp_path / "still.jpg", 1)
    assert clip[0, 0, ::15, 4].tolist() == [255, 0]
    Image.new("L", (4, 4), 7).save(tmp_path / "still.gif", duration=500)
    assert read_movie(tmp_path / "still.gif", 1)[0].tolist() == torch.full((1, 1, 4, 4), 7).tolist()
    pictures = [Image.new("L", (4, 4), level) for level in (10, 20, 30)]
    pictures[0].save(
        tmp_path / "uneven.gif", save_all=True, append_images=pictures[1:], duration=[100, 190, 100]
    )
    clip, fps = read_movie(tmp_path / "uneven.gif", 1)
    assert (clip[0, :, 0, 0].tolist(), fps) == ([10, 20, 30], None)


def test_movies_that_cannot_be_read_or_written_are_named(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    write_frames(tmp_path / "sizes", 2)
    Image.new("L", (9, 9)).save(tmp_path / "sizes" / "2.png")
    (tmp_path / "text.png").write_text("no image")
    (write_frames(tmp_path / "broken", 3) / "1.png").write_text("no image")
    for name, words in {
        "empty": "no frames in it",
        "sizes": "its frames have several sizes: 9 × 9, 32 × 32",
        "text.png": "not an image",
        "broken": "1.png: not an image",
        "gone.mp4": "No such file",
        "gone.gif": "No such file",
    }.items():
        with pytest.raises(InputError, match=rf"{name} cannot be read as a clip \(.*{words}") as caught:
            read_movie(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"a\.avi: a clip is written as \.mp4, \.gif or \.webp"):
        save_movie(movie(2), tmp_path / "a.avi", 8)
    with pytest.raises(InputError, match="0 frames a second"):
        save_movie(movie(2), tmp_path / "a.gif", 0)
    path = write(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    for needs in (lambda: read_movie(path), lambda: save_movie(movie(2), path, 8), lambda: folder(tmp_path)):
        with pytest.raises(InputError, match=r"^video files need PyAV; pip install 'ditkit\[video\]'"):
            needs()


def test_a_contact_sheet_has_a_row_per_clip_of_evenly_chosen_frames():
    clips = torch.stack([movie(31, side=64), movie(31, start=21, side=64)])
    sheet = np.array(contact_sheet(clips, 4))
    assert sheet.shape == (2 * 64 + 2, 4 * 64 + 3 * 2, 3)
    assert [shown(torch.from_numpy(sheet[None, None, 66 * row : 66 * row + 64, 66 * column : 66 * column + 64, 0]),
                  20 + row)[0] for row in range(2) for column in range(4)] == [0, 10, 20, 30] * 2  # fmt: skip
    assert contact_sheet(clips[:, :, :3]).width == 3 * 64 + 2 * 2


# clips to train on


def folder(path: Path, **options):
    return VideoFolder(path=path, **({"size": 32, "frames": 4, "channels": 1} | options)).open()


def test_clips_start_anywhere_by_the_draw_and_in_the_middle_without(tmp_path):
    write(tmp_path / "a.mp4")
    source = folder(tmp_path, stride=3)
    clip = source.clip(0, None)
    assert (clip.dtype, clip.shape) == (torch.uint8, (1, 4, 32, 32))
    assert shown(clip) == [19, 22, 25, 28]  # (48 - 10) // 2
    starts = set()
    for seed in range(100):
        first, *others = shown(source.clip(0, np.random.default_rng(seed)))
        assert others == [first + 3, first + 6, first + 9]
        starts.add(first)
    assert (min(starts), max(starts)) == (0, 38)
    assert len(starts) > 30
    again = [shown(source.clip(0, np.random.default_rng(7))) for _ in range(2)]
    assert again[0] == again[1]


def test_a_video_of_just_the_length_is_one_clip(tmp_path):
    write(tmp_path / "a.mp4", movie(46))
    source = folder(tmp_path, frames=16, stride=3, size=16, channels=3)
    clip = source.clip(0, np.random.default_rng(0))
    assert shown(clip) == list(range(46))[::3]
    assert clip.shape == (3, 16, 16, 16)
    with pytest.raises(InputError, match=r"none of the 1 videos can be used: a\.mp4 \(46 of 49 frames\)"):
        folder(tmp_path, frames=17, stride=3)


def test_fps_takes_the_frames_nearest_in_time(tmp_path):
    write(tmp_path / "a.mp4")  # 24 frames a second
    assert shown(folder(tmp_path, frames=16, fps=8).clip(0, None)) == list(range(0, 48, 3))
    assert shown(folder(tmp_path, frames=4, fps=8, stride=5).clip(0, None)) == [0, 15, 30, 45]
    nearest = [round(24 * k / 10 - 1e-9) for k in range(20)]
    assert shown(folder(tmp_path, frames=20, fps=10).clip(0, None)) == nearest
    twice = shown(folder(tmp_path, frames=95, fps=48).clip(0, None))
    assert twice == [max(0, k - 1) // 2 if k % 2 else k // 2 for k in range(95)]
    with pytest.raises(InputError, match=r"16 of 17 frames"):
        folder(tmp_path, frames=17, fps=8)


def test_a_rate_that_varies_is_resampled_by_times_or_left_out(tmp_path):
    stamps = [
        1000 * k + 1000 * (k > 20) for k in range(48)
    ]  # a frame of 24 a second is missing after number 20
    write(tmp_path / "dropped.mp4", stamps=stamps)
    with pytest.raises(
        InputError, match=r"dropped\.mp4 \(frames at uneven times; `data\.fps` resamples them\)"
    ):
        folder(tmp_path)
    source = folder(tmp_path, frames=9, fps=4)
    assert shown(source.clip(0, None)) == [0, 6, 12, 18, 23, 29, 35, 41, 47]
    write(tmp_path / "even.mkv")  # in milliseconds: 42, 41, 42, ...
    assert folder(tmp_path).broken == ("dropped.mp4 (frames at uneven times; `data.fps` resamples them)",)


def test_clips_are_cut_to_a_square_as_images_are(tmp_path):
    wide = torch.zeros(1, 4, 32, 64, dtype=torch.uint8)
    wide[..., 16:48] = torch.tensor([200, 210, 220, 230]).view(4, 1, 1)
    save_movie(wide, tmp_path / "a.webp", 8)
    clip = folder(tmp_path).clip(0, None)
    assert torch.equal(clip, wide[..., 16:48])
    assert folder(tmp_path, size=16).clip(0, None).min() >= 195


def test_classes_folders_of_frames_and_animations(tmp_path):
    write(tmp_path / "cat" / "b.mp4", movie(8))
    write_frames(tmp_path / "ant" / "walk" / "first")
    write_frames(tmp_path / "ant" / "run")
    save_movie(movie(6), tmp_path / "ant" / "a.gif", 10)
    save_movie(movie(6), tmp_path / "cat" / "c.webp", 10)
    write_frames(tmp_path / "ant" / ".hidden")
    write_frames(tmp_path / "dog" / "frames")
    Image.new("L", (8, 8)).save(tmp_path / "dog" / "cover.png")
    (tmp_path / "notes.md").write_text("passed over")
    source = folder(tmp_path, classes=3, size=8)
    assert (source.names, source.labels.tolist()) == (("ant", "cat", "dog"), [0, 0, 0, 1, 1, 2])
    assert [shown(source.clip(k, None)) for k in range(6)] == [
        [1, 2, 3, 4], [4, 5, 6, 7], [4, 5, 6, 7], [2, 3, 4, 5], [1, 2, 3, 4], [4, 5, 6, 7],
    ]  # fmt: skip
    assert source.broken == ("dog/cover.png (1 of 4 frames)",)
    assert source.captions is None
    unlabelled = folder(tmp_path / "cat", size=8)
    assert (unlabelled.names, unlabelled.labels, len(unlabelled)) == ((), None, 2)


def test_captions_of_movies(tmp_path):
    write(tmp_path / "a.mp4", movie(8))
    write_frames(tmp_path / "b")
    save_movie(movie(6), tmp_path / "c.webp", 10)
    (tmp_path / "a.txt").write_text("an a")
    (tmp_path / "c.txt").write_text(" \n")
    (tmp_path / "b.txt").write_text("a b")
    source = folder(tmp_path, caption_column="txt")
    assert source.captions == ["an a", "a b"]
    assert source.broken == ("c.webp (no caption in UTF-8)",)
    rows = [{"file_name": "c.webp", "words": "see"}, {"file_name": "b", "words": "bee"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = folder(tmp_path, caption_column="words")
    assert {text: shown(source.clip(k, None)) for k, text in enumerate(source.captions)} == {
        "see": [1, 2, 3, 4],
        "bee": [4, 5, 6, 7],
    }


def test_what_cannot_be_used_is_counted_named_and_left_out(tmp_path, caplog):
    good = write(tmp_path / "good.mp4")
    save_movie(noise(3, 48, 64, 64), tmp_path / "hole.mp4", 24)
    make_hole(tmp_path / "hole.mp4", 0.5, 5000)
    make_hole(
        write(tmp_path / "hole.avi", noise(3, 48, 64, 64), encoder="mpeg4", options={"qmin": "3"}), 0.5, 1500
    )
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:1000])
    (tmp_path / "empty.mkv").write_bytes(b"")
    (tmp_path / "text.webm").write_text("no video")
    (tmp_path / "text.gif").write_text("no animation")
    write(tmp_path / "short.mpg", noise(3, 3, 64, 64))
    Image.new("L", (8, 8)).save(tmp_path / "still.png")
    write_sound(tmp_path / "sound.mp4")
    write_sound(tmp_path / "song.mp4", cover=True)
    gif = tmp_path / "cut.gif"
    save_movie(noise(1, 6, 32, 32), gif, 8)
    gif.write_bytes(gif.read_bytes()[:3000])
    (tmp_path / "strange.mp4").write_bytes((tmp_path / "good.mp4").read_bytes().replace(b"avc1", b"zzzz"))
    source = folder(tmp_path)
    assert len(source) == 1
    invalid = "Invalid data found when processing input"
    reasons = dict(name.rstrip(")").split(" (", 1) for name in source.broken)
    assert reasons.pop("cut.gif").startswith("image file is truncated")
    assert reasons == {
        "hole.mp4": invalid,
        "cut.mp4": invalid,
        "empty.mkv": invalid,
        "text.webm": invalid,
        "text.gif": "not an image",
        "short.mpg": "3 of 4 frames",
        "still.png": "1 of 4 frames",
        "sound.mp4": "only sound in it",
        "song.mp4": "only sound in it",
        "hole.avi": "a damaged frame in it",
        "strange.mp4": "its video is in a format that this PyAV cannot decode",
    }
    assert f"{tmp_path}: left out 12 of 13 videos: cut.gif (image" in caplog.text
    unchecked = folder(tmp_path, check=False)
    assert any(name.startswith("cut.mp4") for name in unchecked.broken)
    titles = [path.name for path in sorted(tmp_path.iterdir()) if path.name not in str(unchecked.broken)]
    assert titles == ["good.mp4", "hole.avi", "hole.mp4"], "that two are broken is not found"
    with pytest.raises(
        InputError, match=r"hole\.mp4 cannot be decoded \(.*`data\.check` leaves such videos out"
    ):
        unchecked.clip(2, None)


def test_wrong_settings_and_folders_are_refused(tmp_path):
    write(tmp_path / "a.mp4")
    for options, words in {
        ("path", None): r"`data\.path` DIR names the folder of videos",
        ("path", tmp_path / "gone"): "is not a folder",
        ("classes", 2): r"has 0 classes, but `data\.classes` is 2",
    }.items():
        with pytest.raises(InputError, match=words):
            folder(**({"path": tmp_path} | dict([options])))
    with pytest.raises(InputError, match="has no held-out part"):
        VideoFolder(path=tmp_path).open("test")
    write(tmp_path / "class" / "b.mp4")
    with pytest.raises(InputError, match=r"holds videos \(a\.mp4, \.\.\.\) beside class folders \(class, "):
        folder(tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="holds no videos"):
        folder(tmp_path / "nothing")
    for wrong in ({"fps": 0}, {"stride": 0}, {"frames": 0}):
        with pytest.raises(ValidationError):
            VideoFolder(**wrong)
    assert VideoFolder(frames=8, size=24).shape == (8, 24, 24)
