"""Draws docs/pack.png: a real pack of the bundled data and who attends to whom in it. Run: python docs/make_pack_picture.py"""

from pathlib import Path

import matplotlib
import numpy as np

from tunesmith.base.catalog import resolve
from tunesmith.base.tokenizer import load_tokenizer
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.packing import make_pack
from tunesmith.data.render import Renderer
from tunesmith.data.sources import load_rows

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

PIRATE = "You are a pirate. Answer as one, and briefly, whatever you are asked."
COLOURS = ["#ffffff", "#2b5c8a", "#8fb8de", "#b5651d", "#e8bd8f", "#777777"]
"""Nothing; the first prefix and documents that continue it; the second and its documents; a document alone."""


def main() -> None:
    pack = make_pack([[example] for example in examples()])
    lengths, parents = pack.segments.lengths, pack.segments.parents
    owner = np.repeat(np.arange(len(lengths)), lengths)
    roots = sorted(set(parents) - {-1})
    kind = [1 + 2 * roots.index(i) if i in roots else 5 if p < 0 else 2 + 2 * roots.index(p) for i, p in enumerate(parents)]
    parent = np.array(parents)[owner]
    position = pack.position_ids.numpy()
    seen = (owner[:, None] == owner[None, :]) | (parent[:, None] == owner[None, :])
    seen &= position[:, None] >= position[None, :]
    picture = np.where(seen, np.array(kind)[owner][None, :], 0)
    figure, (strip, matrix) = plt.subplots(2, 1, figsize=(6.4, 7.4), height_ratios=[1, 12], layout="constrained")
    colours = ListedColormap(COLOURS)
    strip.imshow(np.array(kind)[owner][None, :], cmap=colours, vmin=0, vmax=5, aspect="auto", interpolation="nearest")
    strip.plot(pack.label_index.numpy(), np.zeros(len(pack.label_index)), "k.", markersize=2)
    strip.set_title(f"{pack.tokens} tokens of {len(pack.where)} rows in {len(owner)}; dots predict a trained token", fontsize=9)
    strip.set_yticks([])
    strip.set_xticks([])
    matrix.imshow(picture, cmap=colours, vmin=0, vmax=5, interpolation="nearest")
    for edge in np.cumsum(lengths)[:-1] - 0.5:
        matrix.axhline(edge, color="#dddddd", linewidth=0.5)
        matrix.axvline(edge, color="#dddddd", linewidth=0.5)
    matrix.set_xlabel("keys: tokens of the pack, shared prefixes dark", fontsize=9)
    matrix.set_ylabel("queries: each sees its prefix, and itself up to here", fontsize=9)
    figure.savefig(Path(__file__).parent / "pack.png", dpi=80)


def examples() -> list:
    """Rows of the bundled data, some of them under another system prompt, and one that is like no other."""
    renderer = Renderer(load_tokenizer(resolve("smollm2-135m")))
    rows = [row.values for row in load_rows("yoda", limit=8)]
    talks = []
    for number, row in enumerate(rows):
        asked = [Message("user", row["sentence"]), Message("assistant", row["translation_extra"])]
        system = [Message("system", PIRATE)] if number >= 5 else []
        talks.append(Conversation((*system, *asked), f"row {number}"))
    alone = (Message("system", "Say yes or no."), Message("user", "Is the sea blue?"), Message("assistant", "Yes."))
    return renderer.examples([*talks, Conversation(alone, "alone")])


if __name__ == "__main__":
    main()
