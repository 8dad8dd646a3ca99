"""Sections that come in kinds, on the command line: `--backbone NAME` replaces the whole of one, before its flags are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditkit.backbones import BACKBONES, MatryoshkaConfig
from ditkit.codecs import CODECS
from ditkit.config import Section
from ditkit.data import DATA, DataConfig, Folder
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.sampling.config import SamplingRequest
from ditkit.text import TEXT_ENCODERS, TextConfig
from ditkit.text.files import width

KINDS: dict[str, Mapping[str, Any]] = {"backbone": BACKBONES, "codec": CODECS, "data": DATA}


def switch_kinds(recipe: Recipe, argv: list[str]) -> tuple[Recipe, list[str]]:
    """The recipe with the sections chosen by name replaced, not compared yet, and the flags that are left.

    `--backbone DiT-S/4`, `--codec vae`, `--text minilm`, `--data fashion-mnist`, or `--data DIR`, a folder of
    images; --text none leaves the text out. Of a backbone of several levels `--backbone.inner` names the network inside, or
    a run that has it, and `--backbone.levels N` puts so many levels like its last around it.
    """
    sections: dict[str, Any] = {}
    nested: dict[str, str] = {}
    rest: list[str] = []
    flags = iter(argv)
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        if flag.startswith("--") and name in ("backbone.inner", "backbone.levels"):
            nested[name] = value or next(flags, "")
            continue
        if flag.startswith("--") and name == "sample.sampler":
            try:  # without the choices of the recipe's own sampler that this one does not have
                request = SamplingRequest.of({"sampler": value or next(flags, "")})
                sections["sample"] = recipe.sample.override(request)
            except InputError as error:
                raise InputError(f"--sample.{error}") from None
            continue
        if not flag.startswith("--") or name not in (*KINDS, "text"):
            rest.append(flag)
            continue
        value = value or next(flags, "")
        if name == "text":
            sections[name] = None if value == "none" else text_section(value)
        elif name == "data":
            sections[name] = data_section(value, like=recipe.data)
        elif value in KINDS[name]:
            sections[name] = KINDS[name][value]
        else:
            raise InputError(f"--{name}: unknown {value!r}; choose one of: {', '.join(KINDS[name])}")
    backbone = sections.pop("backbone", recipe.backbone)
    chosen = recipe.draft(**recipe.for_data(sections.pop("data", recipe.data)))
    chosen = chosen.draft(**chosen.for_backbone(nest(backbone, nested) if nested else backbone))
    chosen = chosen.draft(**{name: sections.pop(name) for name in ("sample", "text") if name in sections})
    return chosen.draft(**chosen.for_codec(sections.pop("codec", chosen.codec))), rest


def nest(config: Section, flags: dict[str, str]) -> MatryoshkaConfig:
    """The configuration with another network inside or another number of levels; InputError for one without."""
    if not isinstance(config, MatryoshkaConfig):
        raise InputError(f"--{next(iter(flags))} is for --backbone Matryoshka or another of several levels")
    changes: dict[str, Any] = {}
    if (name := flags.get("backbone.inner")) is not None:
        file = Path(name) / "recipe.json"
        changes["inner"] = Recipe.read(file).backbone.model_dump() if file.exists() else name
    if (count := flags.get("backbone.levels")) is not None:
        if not count.isdecimal() or not int(count):
            raise InputError(
                f"--backbone.levels {count!r}: give the number of levels around the inner network"
            )
        kept = config.levels[-int(count) :]
        changes["levels"] = (kept[0],) * (int(count) - len(kept)) + kept
    return MatryoshkaConfig.checked(config.model_dump() | changes, "--backbone")


def text_section(name: str) -> TextConfig:
    """The section of a text encoder's name, folder or Hub id; of one on the Hub --text.dim says how wide."""
    if name in TEXT_ENCODERS:
        return TextConfig(id=name, dim=TEXT_ENCODERS[name].dim)
    return TextConfig(id=name, dim=width(Path(name))) if Path(name).is_dir() else TextConfig(id=name)


def data_section(name: str, like: DataConfig | None = None, flag: str | None = "data") -> DataConfig:
    """The default section of a data set's name, or that of a folder of images.

    A folder takes size, channels and flip from `like`, the recipe's own data: a recipe for 28 pixels
    stays one. Its classes are counted.
    """
    if name in DATA:
        return DATA[name]
    if Path(name).is_dir():
        if isinstance(like, Folder):
            return like.model_copy(update={"path": Path(name), "classes": None})
        if like is None:
            return Folder(path=Path(name))
        kept = {"size": like.size, "channels": like.channels, "flip": like.flip}
        return Folder.checked({"path": Path(name), **kept}, f"--{flag} {name}")
    raise InputError(
        f"{f'--{flag}: unknown' if flag else 'unknown data'} {name!r}; choose one of: {', '.join(DATA)}, or an existing "
        "folder of images"
    )
