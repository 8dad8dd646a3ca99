"""Every choice that parts of a recipe have, all of their combinations through the validators, and pairs of them to be run.

    python tests/combinations.py        # how many there are, how many run, and why the others are refused

An axis is a choice, its values the names of a registry or what a test needs of it; each value is fields of sections. What is
registered later is a value of its axis by itself. A row is a value of each axis.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import combinations, product
from math import prod
from typing import Any

from ditkit.backbones import BACKBONES
from ditkit.codecs import CODECS
from ditkit.config import Section
from ditkit.data import DATA
from ditkit.errors import InputError
from ditkit.fitting import refusals
from ditkit.nn.registries import ATTENTIONS, CONDITIONINGS
from ditkit.objectives import ROUTINGS, TERMS
from ditkit.optimizers import OPTIMIZERS
from ditkit.optimizers.schedules import SCHEDULES
from ditkit.recipe import Recipe, TrainConfig
from ditkit.sampling import DIFFUSIONS, SAMPLERS, SPACINGS, THRESHOLDS
from ditkit.sampling.caching import CACHES
from ditkit.sampling.config import SamplingConfig
from ditkit.text import TextConfig
from ditkit.transports import LOSSES, METHODS, PATHS, PREDICTIONS, TIME_LAWS, WEIGHTS, Transport

Value = dict[str, dict[str, Any]]
"""Of each section some fields."""
Row = dict[str, str]
"""Of each axis a value's name."""

WIDTH = {"width": 16, "heads": 2, "depth": 4}
DIT = {"kind": "DiT", "patch": 4, **WIDTH}
CLIPS = DIT | {"tubelet": 1}
PARTS = {"norm": "rms", "qk_norm": True, "value_residual": True, "stem": "convolutional"}
MDM = {
    "kind": "MDM",
    "widths": (32, 32),
    "depth": (1, 1),
    "attention": (0, 1),
    "heads": 2,
    "condition_width": 32,
    "text_width": 16,
}
LEVEL = {"widths": (32,), "depth": (1,), "patch": 2}
SIDE, FRAMES = 16, 4

KINDS: dict[str, dict[str, Any]] = {
    "DiT": DIT,
    "DiT rotary": DIT
    | {"positions": "rotary", "size_embedding": True, "grid": (4, 4), "extrapolation": "ntk"},
    "DiT without label": DIT | {"label": False},
    "DiT of clips": CLIPS,
    "DiT of clips, factorised": CLIPS | {"attention": "factorised", "positions": "rotary"},
    "DiT of clips, tubelet 2": CLIPS | {"tubelet": 2},
    "DiT with text among its tokens": CLIPS | {"text": "in_context"},
    "DiT attending to text": CLIPS | {"text": "cross_attention", "text_pooled": True},
    "DiT with pooled text": CLIPS | {"text_pooled": True},
    "DiT of other parts": DIT | PARTS | {"mlp": "swiglu"},
    "DiT with convolutions and registers": DIT | {"mlp": "depthwise", "registers": 2},
    "DiT of clips of other parts": CLIPS
    | PARTS
    | {
        "mlp": "depthwise",
        "registers": 2,
        "attention": "factorised",
        "positions": "rotary",
        "text": "cross_attention",
    },
    "DiT with sparse blocks": DIT | {"depth": 5, "sparse": 0.75, "registers": 1, "value_residual": True},
    "DiT of clips with sparse blocks": CLIPS
    | {
        "depth": 6,
        "sparse": 0.5,
        "attention": "factorised",
        "positions": "rotary",
        "text": "cross_attention",
    },
    "UNet": {"kind": "UNet", "width": 16, "multipliers": (1, 2), "depth": 1},
    "MDM": MDM,
    "Matryoshka of DiT": {"kind": "Matryoshka", "inner": DIT, "levels": (LEVEL,)},
    "Matryoshka of clips": {"kind": "Matryoshka", "inner": CLIPS, "levels": (LEVEL | {"frames": 2},)},
    "Matryoshka of MDM": {"kind": "Matryoshka", "inner": MDM, "levels": (LEVEL,)},
    **{
        f"U-DiT {name}": {"kind": "U-DiT", "width": 16, "depth": (1,) * 5, "attention": name}
        for name in ATTENTIONS
    },
    **{f"DiT {name}": CLIPS | {"conditioning": name} for name in CONDITIONINGS if name != "adaln_zero"},
}


def of_each(registry: Iterable[str], section: str, field: str, **others: Any) -> dict[str, Value]:
    """A value for each name of a registry."""
    return {name: {section: {field: name, **others}} for name in registry}


def sections(registry: Mapping[str, Any], name: str, known: Mapping[str, dict[str, Any]]) -> dict[str, Value]:
    """A value for each of the `known`, and one for each kind in the registry that they leave out."""
    kinds = {fields["kind"] for fields in known.values()}
    others = {key: part.model_dump() for key, part in registry.items() if part.kind not in kinds}
    return {key: {name: fields} for key, fields in {**known, **others}.items()}


def axes() -> dict[str, dict[str, Value]]:
    """Axis -> name -> value; the first value of each is what a recipe has without it."""
    of_data = {
        "digits": {"kind": "digits", "size": SIDE},
        "folder": {"kind": "folder", "size": SIDE, "channels": 1, "classes": 2, "flip": True, "caption_column": "txt"},
        "folder of native sizes": {
            "kind": "folder", "size": SIDE, "channels": 1, "classes": 2, "caption_column": "txt", "aspect": "native",
        },
        "arrays": {"kind": "arrays", "size": SIDE, "width": SIDE, "channels": 2, "classes": 0, "range": (-1, 1)},
        "moving digits": {"kind": "moving-digits", "size": SIDE, "glyph": 8, "frames": FRAMES, "clips": 20, "classes": 10},
        "moving digits, single frames": {
            "kind": "moving-digits", "size": SIDE, "glyph": 8, "frames": FRAMES, "clips": 20, "classes": 10, "single_frames": 0.5,
        },
    }  # fmt: skip
    choices = {
        "spacing": of_each(SPACINGS, "sample", "grid"),
        "diffusion": of_each(DIFFUSIONS, "sample", "diffusion"),
        "threshold": of_each(THRESHOLDS, "sample", "threshold"),
    }
    return {
        "backbone": sections(BACKBONES, "backbone", KINDS),
        "data": sections(DATA, "data", of_data),
        "codec": sections(CODECS, "codec", {"identity": {"kind": "identity"}, "vae": {"kind": "vae"}}),
        "path": of_each(PATHS, "transport", "path"),
        "predict": of_each(PREDICTIONS, "transport", "predict"),
        "loss": of_each(LOSSES, "transport", "loss"),
        "weight": of_each(WEIGHTS, "transport", "weight"),
        "time_law": of_each([*TIME_LAWS, "logit_normal:mean=0.8,spread=0.8"], "transport", "time_law"),
        "method": of_each(METHODS, "transport", "method"),
        "variance": of_each(("fixed", "learned"), "transport", "variance"),
        "parts": {
            "all learned": {},
            "known frames": {"transport": {"known_frames": 0.5}},
            "cascade": {"transport": {"cascade": 0.2}},
        },
        "batching": {
            "plain": {},
            "micro-batch": {"train": {"micro_batch": 3}},
            "tokens": {"train": {"tokens": 512}},
            "packed": {"train": {"tokens": 512, "packed": True}},
        },
        "text": {"none": {}, "text": {"text": {"id": "hashed", "dim": 8, "length": 5}}},
        "extras": {
            "none": {},
            **{f"term {name}": {"train": {"terms": (name,)}} for name in TERMS},
            **{f"routing {name}": {"train": {"routing": name}} for name in ROUTINGS if name != "none"},
            "size shift": {"transport": {"size_shift": 4.0}},
            "level shift": {"transport": {"level_shift": 2.0}},
            "level share": {"train": {"level_share": (0.5,)}},
            "stages": {"train": {"stages": (8,)}},
            "frozen by name": {"train": {"freeze": ("*.bias",)}},
            "blocks computed again": {"train": {"checkpoint_blocks": 1}},
            **{f"optimizer {name}": {"train": {"optimizer": name}} for name in OPTIMIZERS},
            **{f"schedule {name}": {"train": {"schedule": name}} for name in SCHEDULES if name != "constant"},
            "frozen inside": {"train": {"freeze_inner": True}},
            "weight of one level": {"transport": {"level_weights": (2.0,)}},
            "weights of two levels": {"transport": {"level_weights": (2.0, 1.0)}, "sample": {"level_guidance": (2.0, 1.0)}},
            "scale of one level": {"codec": {"level_scale": (2.0,)}},
            "scales of two levels": {"codec": {"level_scale": (2.0, 1.0)}},
            "scores": {"train": {"score_images": 16}},
            "cached latents": {"train": {"latents": "latents"}},
        },
        "sampler": of_each(SAMPLERS, "sample", "sampler"),
        "cache": of_each(CACHES, "sample", "cache"),
        "guidance": {
            "off": {},
            "on": {"sample": {"guidance": 1.5, "interval": (0.1, 0.9)}},
            "of one channel": {"sample": {"guidance": 1.5, "guidance_channels": 1}},
            "from dense blocks": {"sample": {"guidance": 1.5, "guidance_path": "dense"}},
        },
        "choices": {
            "none": {},
            "respacing": {"sample": {"respacing": "ddim2"}},
            "last step": {"sample": {"last_step": "tweedie", "last_step_size": 0.1}},
            "eta": {"sample": {"eta": 0.5}},
            **{f"{what} {name}": value for what, those in choices.items() for name, value in those.items()},
        },
    }  # fmt: skip


AXES = axes()
PLAIN = {axis: next(iter(values)) for axis, values in AXES.items()}
FEW = {
    "images": 16, "batch": 8, "precision": "fp32", "compile": "off", "preview_images": 0, "validate_images": 0,
}  # fmt: skip
TOUCHING = {
    section: [axis for axis in AXES if any(section in value for value in AXES[axis].values())]
    for section in ("data", "codec", "text", "backbone", "transport", "train", "sample")
}
"""The axes that change each section."""


def recipe_of(row: Mapping[str, str], **paths: str) -> Recipe | str:
    """The recipe of a row, its parts not compared yet; of a row one of whose sections is refused by itself, why. `paths` are
    those of what stands on disk, by section: data_path, codec_id."""
    found: dict[str, Any] = {}
    for section, touching in TOUCHING.items():
        part = _section(section, tuple(row[axis] for axis in touching))
        if isinstance(part, str):
            return part
        found[section] = part
    for place, path in paths.items():
        section, _, field = place.partition("_")
        found[section] = found[section].replaced({field: path}, section)
    return Recipe.model_construct(name="combination", **found)


@cache
def _section(section: str, names: tuple[str, ...]) -> Section | str | None:
    """A section of these values of the axes that change it, or why it is refused."""
    values: dict[str, Any] = {"train": dict(FEW), "sample": {"steps": 2}}.get(section, {})
    for axis, name in zip(TOUCHING[section], names, strict=True):
        values |= AXES[axis][name].get(section, {})
    registries: dict[str, Mapping[str, Any]] = {"backbone": BACKBONES, "data": DATA, "codec": CODECS}
    kind: Any = {
        "transport": Transport,
        "train": TrainConfig,
        "sample": SamplingConfig,
        "text": TextConfig,
    }.get(section)
    if section == "text" and not values:
        return None
    if kind is None:
        kind = next(type(part) for part in registries[section].values() if part.kind == values["kind"])
    try:
        return kind.checked(values, section)
    except InputError as error:
        return str(error)


def refused(row: Mapping[str, str]) -> list[str]:
    """Why a row is refused, every reason a line; [] where it runs."""
    recipe = recipe_of(row)
    return [recipe] if isinstance(recipe, str) else list(refusals(recipe))


def reason(message: str) -> str:
    """What a refusal is about, without the names and numbers of this one."""
    parts = (*BACKBONES.values(), *DATA.values(), *CODECS.values())
    names = {part.kind for part in parts} | {
        "hashed",
        *PATHS,
        *SAMPLERS,
        *DIFFUSIONS,
        *SPACINGS,
        *WEIGHTS,
        *TERMS,
        *ROUTINGS,
    }
    known = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    text = message.partition(";")[0].removeprefix("transport: ")
    for long, short in (
        (r"backbone\.[\w.-]+(?: [\w-]+)?(?= (is|takes|has|have|works|predicts|needs) )", "the network"),
        (rf"(?<=[a-z]) \(?({known})\)?(?=[\s,:;]|$)", ""),
        (r" \(?\d[\d., ]*\)?(?=[\s,;]|$)", ""),
        (r"(?<=threshold) \w+", ""),
        (r": transport\.\w+ .*is not for it$", ""),
        (r" needs the steps of .*", " needs a path with steps"),
        (r"(, this backbone needs| before the last for).*", " and the network another number of levels"),
        (r" ddim\d+|,? not$", ""),
    ):
        text = re.sub(long, short, text)
    return text.strip()


TRANSPORT = ("path", "predict", "loss", "weight", "time_law", "method", "variance", "parts")
ONE_AT_A_TIME = ("extras", "sampler", "cache", "guidance", "choices")


def transports() -> dict[tuple[Any, ...], list[Row]]:
    """All transports, by what a recipe's validator can see of them; refused ones by why."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for names in product(*(AXES[axis] for axis in TRANSPORT)):
        row = dict(zip(TRANSPORT, names, strict=True))
        recipe = recipe_of(PLAIN | row)
        if isinstance(recipe, str):
            key: tuple[Any, ...] = (recipe,)
        else:
            t = recipe.transport
            plain = (LOSSES[t.loss].space or t.predict) == "velocity" and t.weighting is None
            key = (t.knots, t.variance, t.cascade, t.known_frames, t.interval("ode")[1], t.method, plain)
        found.setdefault(key, []).append(row)
    return found


def walk() -> tuple[Counter[str], list[str]]:
    """How many combinations there are by why they are refused, "" where they run; and all messages.

    Backbone, transport, data, codec, batching and text in all combinations, with extras and choices of sampling one at a
    time. Transports of which validators see the same are walked once, and counted as many as they are; nothing that is added to
    what is refused is walked.
    """
    others = one_at_a_time()
    whole = ("backbone", "data", "codec", "batching", "text")
    several = prod(len(AXES[axis]) for axis in whole) * len(others)
    counts: Counter[str] = Counter()
    messages: dict[str, str] = {}

    def add(message: str, count: int) -> None:
        if message not in messages:
            messages[message] = reason(message)
        counts[messages[message]] += count

    for group in transports().values():
        if isinstance(alone := recipe_of(PLAIN | group[0]), str):
            add(alone, len(group) * several)
            continue
        for names in product(*(AXES[axis] for axis in whole)):
            row = PLAIN | group[0] | dict(zip(whole, names, strict=True))
            if found := refused(row):
                add(found[0], len(group) * len(others))
                continue
            for other in others:
                add("".join(refused(row | other)[:1]), len(group))
    return counts, [message for message in messages if message]


def one_at_a_time() -> list[Row]:
    """What is added to the rest: nothing, or one value; with a sampler that takes it."""
    found: list[Row] = [{}]
    for axis in ONE_AT_A_TIME:
        for name in [*AXES[axis]][1:]:
            samplers = (
                [{axis: name}] if axis == "sampler" else [{axis: name, "sampler": each} for each in SAMPLERS]
            )
            taken = [other for other in samplers if not isinstance(recipe_of(PLAIN | other), str)]
            found.append(next(iter(taken), {axis: name}))
    return found


def covering(
    seed: int = 0, axes: Mapping[str, Iterable[str]] = AXES
) -> tuple[list[Row], dict[frozenset[tuple[str, str]], str]]:
    """Rows that run, in which every pair of two axes' values stands that can stand in one; and why the other pairs cannot.

    Greedy: a row is begun with a pair that stands in none yet, changed value by value until nothing refuses it, then as long as
    it has more new pairs.
    """
    draw = random.Random(seed)
    left = {frozenset(((a, x), (b, y))) for a, b in combinations(axes, 2) for x in axes[a] for y in axes[b]}
    rows: list[Row] = []
    never: dict[frozenset[tuple[str, str]], str] = {}
    for pair in sorted(left, key=sorted):
        if pair not in left:
            continue
        row = _completed(dict(pair), axes, draw)
        if isinstance(row, str):
            never[pair] = row
            left.discard(pair)
            continue
        _enrich(row, dict(pair), axes, left, draw)
        rows.append(row)
        left -= _pairs(row)
    return rows, never


def _pairs(row: Row) -> set[frozenset[tuple[str, str]]]:
    return {frozenset(two) for two in combinations(row.items(), 2)}


def _completed(
    fixed: Row, axes: Mapping[str, Iterable[str]], draw: random.Random, tries: int = 2, moves: int = 6
) -> Row | str:
    """A row with these values that runs; where none is found, why the first one does not."""
    first = ""
    for attempt in range(tries):
        begun = (
            {axis: draw.choice([*axes[axis]]) for axis in ("backbone", "data", "batching")} if attempt else {}
        )
        row = PLAIN | begun | fixed
        reasons = refused(row)
        first = first or "".join(reasons[:1])
        for _ in range(moves):
            if not reasons:
                return row
            row, reasons = _changed(row, fixed, axes, reasons, draw)
    return first


def _changed(
    row: Row, fixed: Row, axes: Mapping[str, Iterable[str]], reasons: list[str], draw: random.Random
) -> tuple[Row, list[str]]:
    """The row with one value changed that fewer reasons refuse, or other ones, with these."""
    others = [(axis, name) for axis in axes if axis not in fixed for name in axes[axis] if name != row[axis]]
    draw.shuffle(others)
    kept = row, reasons
    for axis, name in others:
        changed = row | {axis: name}
        if len(found := refused(changed)) < len(reasons):
            return changed, found
        if len(found) == len(reasons) and found[0] != reasons[0]:
            kept = changed, found
    return kept


def _enrich(
    row: Row,
    fixed: Row,
    axes: Mapping[str, Iterable[str]],
    left: set[frozenset[tuple[str, str]]],
    draw: random.Random,
) -> None:
    """Change the row's other values, in place, to those with the most pairs that are left."""
    free = [axis for axis in axes if axis not in fixed]
    for axis in draw.sample(free, len(free)):
        rest = [item for item in row.items() if item[0] != axis]

        def new(name: str, axis: str = axis, rest: list[tuple[str, str]] = rest) -> int:
            return sum(frozenset(((axis, name), item)) in left for item in rest)

        for name in sorted(axes[axis], key=new, reverse=True):
            if name == row[axis] or new(name) <= new(row[axis]):
                break
            if not refused(row | {axis: name}):
                row[axis] = name
                break


def table() -> Iterator[str]:
    """The lines of the table."""
    counts, _ = walk()
    total, run = sum(counts.values()), counts.pop("")
    yield f"| combinations | {total:,} |"
    yield "|---|---:|"
    yield f"| run | {run:,} |"
    for why, count in counts.most_common():
        yield f"| {why} | {count:,} |"


if __name__ == "__main__":
    for line in table():
        print(line)
    rows, never = covering()
    print(f"{len(rows)} rows run, with every pair of values that can stand in one; {len(never)} pairs cannot")
