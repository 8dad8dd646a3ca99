"""How to read a Fréchet distance: what real, repeated and meaningless images score.

    python examples/read_the_ruler.py

prints, for each data set with a bundled classifier, the values that stand in docs/results.md.
"""

import torch

from ditkit.data import DATA, load_all
from ditkit.evaluation import frechet_distance, gather
from ditkit.scoring import rulers

N, REPEATED = 1000, 10


def main() -> None:
    for name in ("digits", "fashion-mnist", "clipart"):
        data = DATA[name]
        images, labels = load_all(data, "train")
        (ruler,) = rulers(["classifier"], data)
        held_out, _ = load_all(data, "test")
        stream = torch.Generator().manual_seed(0)
        drawn = torch.randint(len(images), (N,), generator=stream)
        few = torch.cat([torch.nonzero(labels == label).flatten()[:REPEATED] for label in labels.unique()])
        noise = torch.randint(256, (N, *images.shape[1:]), generator=stream, dtype=torch.uint8)
        sets = {
            f"{len(held_out)} held-out images": held_out,
            f"{N} training images, drawn with replacement": images[drawn],
            f"the first {REPEATED} training images per class, repeated": images[few.repeat(N // len(few))],
            f"{N} images of uniform noise": noise,
        }
        card = ruler.network.card
        print(f"{name}: classifier {ruler.network.hash[:12]}, held-out accuracy {card.accuracy:.4f}")
        for title, some in sets.items():
            found = gather(((part, None) for part in some.split(500)), ruler.network)
            print(f"  {title}: FD {frechet_distance(found.moments, ruler.reference.moments):.3f}")


if __name__ == "__main__":
    main()
