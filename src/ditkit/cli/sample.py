"""`ditkit sample RUN`: images, or clips, from a run, a snapshot's folder or a bundled snapshot."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ditkit.cli.options import SamplingOptions
from ditkit.cli.parsing import parse
from ditkit.cli.shapes import Positional
from ditkit.sampling.config import FrameSettings


class SampleCommand(SamplingOptions, FrameSettings):
    """Make images: a grid of the first ones, at most 1,000, and on request single PNGs or an .npz file in ADM's format.

    Of a model of clips a sheet of frames, a row for each of the first 100, and every clip as a file of its own. Stopped, the
    same command goes on.
    """

    run: Annotated[str, Positional]
    """A run's folder, a snapshot's folder, or the name of a bundled snapshot."""
    labels: tuple[str, ...] = ()
    """Classes to sample, by name or number, in turn; all of them by default."""
    prompt: tuple[str, ...] = ()
    """Texts to sample, in turn, for a model that takes a text."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Number of images. By default 8 of each class or prompt (2 where they are clips), at most as many as the
    picture shows."""
    out: Path | None = None
    """Folder for what is written. By default samples/NAME, or samples/NAME-2, -3, ... where there are others."""
    replace: bool = False
    """Remove samples of other settings from the folder first."""
    size: str | None = None
    """Height and width in pixels, 48x96, or 48 for squares; the recipe's by default. Multiples of the patch."""
    image: Path | None = None
    """A picture that clips begin with, for a model trained so."""
    extend: Path | None = None
    """A clip to go on from: a video, GIF or WebP file, or a folder of frames."""
    length: Annotated[int, Field(ge=1)] | None = None
    """Frames altogether: windows of --frames, each beginning with the last --keep frames of the one before."""
    keep: Annotated[int, Field(ge=1)] = 4
    """Frames that go over from window to window, for --extend, --length and --loop."""
    loop: bool = False
    """Let each clip lead back to its first frames, in a window after its --length."""
    fps: Annotated[float, Field(gt=0)] = 8.0
    """Frames a second of the clips' files."""
    movie: Literal["gif", "mp4", "webp"] = "gif"
    """Kind of the clips' files; mp4 needs the extra `video`."""
    png: bool = False
    """Also write every image as a PNG file into the folder's images/, named by number and class, as the grid shows it."""
    npz: bool = False
    """Also write samples.npz with arr_0 and the labels: uint8 (N, H, W, C), as ADM's evaluator reads it; for data
    arrays with a range float32 in that range, with the data's axes."""


def run(argv: list[str]) -> None:
    command = parse(SampleCommand, argv, "sample")
    from ditkit.cli.make_samples import make_samples

    make_samples(command)
