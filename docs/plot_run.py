"""Draws a run: its k-NN figure beside what it should beat, loss, rank, and some of its views.

pip install 'gsg_jax[report]'
python docs/plot_run.py runs/quickstart docs/quickstart.png
"""

import json
import pathlib
import sys

import jax
import matplotlib
import ml_collections
import numpy as np

from gsg_jax.config import view_recipe
from gsg_jax.data.augment import make_views
from gsg_jax.data.sources import open_source
from gsg_jax.metrics import read_lines
from gsg_jax.workdir import read_config

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

NUM_IMAGES = 10


def main(workdir: str, picture: str) -> None:
    """Draws the run in `workdir` into the file `picture`."""
    folder = pathlib.Path(workdir)
    lines = read_lines(folder / "metrics.jsonl")
    baselines = json.loads((folder / "baselines.json").read_text())
    config = read_config(folder)

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(9, 5.2), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(3, 2))
    curves = upper.subplots(1, 3)
    draw_knn(curves[0], lines, baselines, config["eval"]["knn_k"])
    draw_curve(curves[1], lines, "loss", "loss (negative cosine)")
    draw_curve(curves[2], lines, "embedding_rank", "effective rank of the embeddings")
    draw_views(lower, config)
    figure.savefig(picture, dpi=130)


def draw_knn(axes, lines: list[dict], baselines: dict, k: int) -> None:
    """The k-NN figure over the epochs, and the figures to beat."""
    scored = [line for line in lines if "knn_top1" in line]
    epochs = [0, *(line["epoch"] for line in scored)]
    top1 = [baselines["knn_top1_untrained"], *(line["knn_top1"] for line in scored)]
    axes.plot(epochs, top1, marker="o", markersize=3, color="tab:blue")
    axes.annotate(f"{top1[-1]:.4f}", (epochs[-1], top1[-1]), ha="right", va="bottom")
    # Below the line of "raw pixels", for the curve ends, one hopes, above it.
    for name, label, side in (
        ("knn_top1_pixels", "raw pixels", "top"),
        ("knn_top1_untrained", "untrained", "bottom"),
    ):
        axes.axhline(baselines[name], linestyle="--", linewidth=1, color="tab:gray")
        text = f"{label} {baselines[name]:.4f} "
        axes.annotate(text, (epochs[-1], baselines[name]), ha="right", va=side, color="gray")
    axes.set(xlabel="epoch", title=f"k-NN top-1 (k {k})")


def draw_curve(axes, lines: list[dict], name: str, title: str) -> None:
    """One logged figure over the epochs."""
    logged = [(line["epoch"], line[name]) for line in lines if name in line]
    axes.plot(*zip(*logged, strict=True), color="tab:blue", linewidth=1)
    axes.set(xlabel="epoch", title=title)


def draw_views(figure, config: dict) -> None:
    """Some images, and beneath each the views that the first step could have drawn."""
    config = ml_collections.ConfigDict(config)
    for key, value in config.views.items():
        config.views[key] = tuple(value) if isinstance(value, list | tuple) else value
    source = open_source(config.data, "train")
    images = np.stack([source.image(i) for i in range(NUM_IMAGES)])
    num_views = config.method.num_views
    key = jax.random.key(config.run.seed)
    views = np.asarray(make_views(images, key, view_recipe(config.views), num_views))
    views = views.reshape(NUM_IMAGES, num_views, *views.shape[1:])
    mean, std = np.array(config.views.mean), np.array(config.views.std)
    rows = [images / 255, *np.moveaxis(views * std + mean, 1, 0)]

    figure.suptitle("images, and views of them")
    grid = figure.subplots(len(rows), NUM_IMAGES)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, image in zip(axes_row, row, strict=True):
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()


if __name__ == "__main__":
    main(*sys.argv[1:])
