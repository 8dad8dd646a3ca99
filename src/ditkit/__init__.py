"""ditkit: diffusion transformers from the same small parts.

    import ditkit
    net = ditkit.backbone("DiT-S/2", classes=10)
    tr = ditkit.transport("linear", predict="velocity")
    pipe = ditkit.load("digits")
    images = pipe.generate({"label": [3, 7]}, seeds=[0, 1])     # uint8 (2, C, H, W)

The names below are the stable surface; everything else may move. They are loaded when first used, so
that `import ditkit` is quick.
"""

import importlib

_PUBLIC = {
    "InputError": "ditkit.errors",
    "Pipeline": "ditkit.pipeline",
    "Recipe": "ditkit.recipe",
    "SamplingRequest": "ditkit.sampling.config",
    "backbone": "ditkit.backbones",
    "cost": "ditkit.costs",
    "load": "ditkit.pipeline",
    "register": "ditkit.extending",
    "train": "ditkit.training",
    "transport": "ditkit.transports",
}

__all__ = [
    "InputError",
    "Pipeline",
    "Recipe",
    "SamplingRequest",
    "backbone",
    "cost",
    "load",
    "register",
    "train",
    "transport",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ditkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
