"""A fixed sheet of prompts for a model of `emoji`, every one of them a combination that was held out of training.

    python examples/emoji_prompts.py runs/emoji-t2i docs/images/emoji-prompts.png [GUIDANCE]

A row for each prompt: the real glyph, which the model has never seen, samples of seeds 0 to 5, and in the same
order the training pictures that are nearest to them, by the squared distance of pixels. Printed is how much is
memorised: of captions that were trained on, how often the nearest training picture is the caption's own.
"""

import sys
from pathlib import Path

import torch

import ditkit
from ditkit.data import spread
from ditkit.data.sources import stack
from ditkit.errors import InputError
from ditkit.evaluation import nearest
from ditkit.pictures import side_by_side

PROMPTS = (
    "green heart",
    "black heart",
    "yellow circle",
    "brown circle",
    "orange square",
    "purple square",
    "waving hand: medium-light skin tone",
    "victory hand: dark skin tone",
    "thumbs up: medium-dark skin tone",
    "raised fist: medium skin tone",
    "smiling cat with heart-eyes",
    "pouting cat",
)
COLUMNS = 6
TRAINED = 300  # captions of the training part, evenly spread


def main(run: str, picture: str, *guidance: str) -> None:
    pipe = ditkit.load(run)
    data = pipe.recipe.data
    seen, held_out = data.open("train"), data.open("test")
    if data.kind != "emoji" or not seen.captions or not held_out.captions:
        raise InputError(f"{run}: a model of emoji is wanted, this one is of {data.kind}")
    assert not set(PROMPTS) & set(seen.captions)
    real = stack(held_out, [held_out.captions.index(prompt) for prompt in PROMPTS], data)
    scale = float(guidance[0]) if guidance else pipe.recipe.sample.guidance
    made = pipe.generate(
        {"text": [prompt for prompt in PROMPTS for _ in range(COLUMNS)]},
        seeds=[*range(COLUMNS)] * len(PROMPTS),
        guidance=scale,
    )
    training = stack(seen, range(len(seen)), data)
    _, places = nearest(training.flatten(1).float(), made.flatten(1).float())
    panels = [
        ("real", real),
        (f"samples, guidance {scale:g}", made),
        ("the training picture nearest to each", training[places]),
    ]
    side_by_side(panels, PROMPTS, Path(picture))
    own = torch.tensor(list(spread(len(seen), TRAINED)))
    again = pipe.generate({"text": [seen.captions[k] for k in own]}, seeds=range(TRAINED), guidance=scale)
    _, found = nearest(training.flatten(1).float(), again.flatten(1).float())
    share = (found == own).double().mean().item()
    print(f"{share:.1%} of {TRAINED} training captions give a picture that is nearest to their own")


if __name__ == "__main__":
    main(*sys.argv[1:])
