"""`ditkit train-codec DATA --out DIR`: an autoencoder of one's own images, for latent diffusion."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ditkit.cli.kinds import data_section
from ditkit.cli.options import check_writable
from ditkit.cli.parsing import only, parse
from ditkit.cli.verbs import to_type, typed
from ditkit.device import DeviceName, pick_device
from ditkit.errors import InputError
from ditkit.training.codec import PICTURE, REPORT, CodecRecipe, train_codec

USAGE = """usage: ditkit train-codec DATA --out DIR [--data.field value ...] [--codec.widths 32 64 64]
                          [--codec.channels 4] [--train.images N] [--train.kl 1e-6] [--features NAME] ...

Train a small KL autoencoder (diffusers' AutoencoderKL) on images of your own, where no pretrained one fits.
DATA: digits, fashion-mnist, clipart, hub, arrays, or a folder of images; --data.size and --data.channels as in `ditkit train`.
The same command again resumes it. Afterwards held-out images are reconstructed: PSNR and, in the features of
the data's classifier or of --features NAME, the Fréchet distance to the same images.

    ditkit train-codec fashion-mnist --out runs/codec
    ditkit encode fashion-sit --codec vae --codec.id runs/codec --out runs/latents
    ditkit train fashion-sit --codec vae --codec.id runs/codec --backbone.patch 1 --train.latents runs/latents \\
        --out runs/fashion-latent

DIR is a folder of diffusers'; every flag: ditkit train-codec DATA --help"""


class TrainCodecCommand(CodecRecipe):
    """Train an autoencoder. Run again, the same command resumes it."""

    out: Path | None = None
    """The autoencoder's folder; required."""
    features: str | None = None
    """Network for the Fréchet distance, as in `ditkit eval`; the data's own classifier by default."""
    n: Annotated[int, Field(ge=2)] = 2000
    """Held-out images to reconstruct."""
    device: DeviceName = "auto"
    """Where to train; auto takes the fastest present."""

    @property
    def recipe(self) -> CodecRecipe:
        return CodecRecipe(data=self.data, codec=self.codec, train=self.train)


def parse_train_codec(argv: list[str]) -> TrainCodecCommand:
    """The data named first, and the flags after it."""
    name, *flags = argv
    default = TrainCodecCommand(data=data_section(name, flag=None))
    return parse(TrainCodecCommand, flags, f"train-codec {name}", default=default)


def run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(typed(USAGE))
        return
    command = parse_train_codec(argv)
    out = command.out
    if out is None:
        raise InputError("train-codec: --out DIR names the folder of the autoencoder")
    check_writable(out)
    device = pick_device(command.device)
    report = train_codec(command.recipe, out, device=device, features=command.features, count=command.n)
    words = f"PSNR {report['psnr']:.2f} dB"
    if "frechet" in report:
        words += f", Fréchet distance {report['frechet']:.3f} ({report['features']})"
    print(f"{report['images']} images of the {report['split']} part, reconstructed: {words}")
    print(f"{out / REPORT}\n{out / PICTURE}")
    data = ["--data", argv[0], *only(argv, "data")]
    print(
        f"next: {to_type('encode', 'RECIPE', *data, '--codec', 'vae', '--codec.id', out, '--out', 'LATENTS')}"
    )
