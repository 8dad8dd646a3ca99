"""Small trainings of every kind: each network, state and addition once, on made-up images that need no data."""

import torch

from ditkit.backbones import BACKBONES, DiTConfig, MatryoshkaConfig, MDMConfig, OuterLevel
from ditkit.data import Batch, Folder
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.text import TextConfig
from ditkit.training.draws import with_draws
from ditkit.transports import Transport


def small(name: str = "digits", **sections) -> Recipe:
    fields = {"width": 24, "depth": 4, "heads": 2} | sections.pop("backbone", {})
    train = {"precision": "fp32"} | sections.pop("train", {})
    return recipe(name).replace(backbone=fields, train=train, **sections)


def pyramid(**transport) -> Recipe:
    inner = DiTConfig(width=16, depth=1, heads=2, patch=1)
    levels = (OuterLevel(widths=(32,), depth=(1,), patch=2),)
    return recipe("digits").replace(
        backbone=MatryoshkaConfig(inner=inner, levels=levels),
        transport=Transport(**transport),
        train={"precision": "fp32", "level_share": () if transport.get("cascade") is not None else (0.5,)},
    )


def words(**backbone) -> Recipe:
    return small("emoji-t2i", data={"size": 16}, text={"length": 4}, backbone=backbone)


def packed_words(**backbone) -> Recipe:
    return small(
        "anysize-fashion",
        data=Folder(size=28, channels=1, classes=10, aspect="native", caption_column="txt"),
        text=TextConfig(length=4, dim=8),
        backbone={"depth": 6} | backbone,
        train={"packed": True, "routing": "tread:first=1,last=3"},
    )


CLIPS = {"frames": 4, "size": 8}
PARTS = {"norm": "rms", "qk_norm": True, "value_residual": True, "stem": "convolutional"}
TRAININGS = {
    "velocity": small(),
    "learned variance": small(transport=Transport(path="ddpm", predict="noise", variance="learned")),
    "cosine, data": small(transport=Transport(path="cosine", predict="data", loss="velocity")),
    "rotary": small(backbone={"positions": "rotary"}),
    "size embedding": small(backbone={"size_embedding": True}),
    "other parts": small(backbone=PARTS | {"mlp": "swiglu", "registers": 2, "positions": "rotary"}),
    "clips, other parts": small("moving-digits", data=CLIPS, backbone=PARTS | {"mlp": "depthwise"}),
    "sparse": small(backbone={"depth": 5, "sparse": 0.75}),
    "clips, sparse": small("moving-digits", data=CLIPS, backbone={"depth": 6, "sparse": 0.5}),
    "in context": small(backbone={"conditioning": "in_context", "positions": "rotary"}),
    "cross-attention": small(backbone={"conditioning": "cross_attention"}),
    "text": words(),
    "text, empty": words().replace(text={"null": "empty"}),
    "text in context": words(text="in_context"),
    "clips": small("moving-digits", data=CLIPS, transport=Transport(known_frames=0.5)),
    "clips, rotary": small("moving-digits", data=CLIPS, backbone={"positions": "rotary"}),
    "pyramid": pyramid(level_weights=(2.0, 1.0)),
    "cascade": pyramid(cascade=0.2),
    "tread": small(backbone={"depth": 6}, train={"routing": "tread:first=1,last=3"}),
    "terms": small(backbone={"depth": 6}, train={"terms": ("sra", "layer_sync")}),
    "compared": small(
        "moving-digits",
        data=CLIPS,
        transport=Transport(known_frames=0.5),
        train={"terms": ("contrastive", "dispersive")},
    ),
    "again": small(train={"checkpoint_blocks": 2}),
    "lora": small(train={"lora": 2}),
    "mean flow": small(transport=Transport(method="mean_flow")),
    "packed": small("anysize-fashion", train={"packed": True}, data={"classes": 10}),
    "packed, tread": small(
        "anysize-fashion",
        backbone={"depth": 6},
        train={"packed": True, "routing": "tread:first=1,last=3"},
        data={"classes": 10},
    ),
    "packed, text": packed_words(text="cross_attention"),
    "packed, text in context": packed_words(text="in_context", registers=2),
    "U-DiT": recipe("digits").replace(
        backbone=BACKBONES["U-DiT"].model_copy(update={"width": 16, "heads": 2, "depth": (1, 1, 1, 1, 1)}),
        train={"precision": "fp32"},
    ),
    "MDM": recipe("emoji-t2i").replace(
        backbone=MDMConfig(
            widths=(32, 32), depth=(1, 1), attention=(0, 1), condition_width=32, text_width=16
        ),
        data={"size": 16},
        text={"length": 4},
        train={"precision": "fp32"},
    ),
}


def batch_of(chosen: Recipe, device: torch.device) -> Batch:
    """Four images of noise, or clips, with their draws; where they are packed two of each of two sizes."""
    stream = torch.Generator().manual_seed(0)

    def images(count, size):
        shape = (count, chosen.data.channels, *size)
        return torch.randint(256, shape, generator=stream, dtype=torch.uint8)

    label = torch.arange(4) if chosen.data.classes else None
    captions = ("",) * 4 if chosen.text else None
    index = torch.arange(4)
    if chosen.train.packed:
        sizes = [(8, 8), (12, 8)]
        groups = [Batch(images(2, size), None, index[2 * k : 2 * k + 2]) for k, size in enumerate(sizes)]
        batch = Batch(None, label, index, captions, groups=tuple(groups))
    else:
        batch = Batch(images(4, chosen.data.shape), label, index, captions)
    return with_draws(chosen, chosen.build_codec(device), batch)
