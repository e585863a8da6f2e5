"""Measures on your own photographs which encoder finds what belongs together.

    python benchmarks/retrieval.py --photos=PHOTOS runs/photos [resnet50.safetensors ...]

Two random crops are cut of each photograph, of a fifth to three fifths of its area. Top-1 is the
share of all crops whose most similar other crop, by cosine, is of the same photograph. An encoder
is all that gsg_jax.load opens; its network is also measured untrained. Raw pixels are 8 x 8 colours
less the mean of all crops. The last line is JSON: the top-1 of each of five draws.
"""

import argparse
import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image

import gsg_jax
from gsg_jax.config.evaluations import evaluation
from gsg_jax.console import say
from gsg_jax.data.decode import read_photo
from gsg_jax.data.files import list_images
from gsg_jax.evaluation.encoder import encoder_of

DRAWS = 5
AREA, ASPECT = (0.2, 0.6), (3 / 4, 4 / 3)
SHORT_SIDE = 480  # pixels that photographs are shrunk towards


def main() -> None:
    """Measures every encoder on the same crops."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoders", nargs="+", metavar="ENCODER")
    parser.add_argument("--photos", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(read_photo(path, 3)) for path in list_images(arguments.photos).paths]
    photos = [photo.reduce(max(1, min(photo.size) // SHORT_SIDE)) for photo in photos]
    draws = [[_crop(photo, rng) for photo in photos * 2] for _ in range(DRAWS)]
    say(f"{len(photos)} photographs, {2 * len(photos)} crops, mean of {DRAWS} draws")

    figures = {"raw pixels": [_top1(_pixels(crops)) for crops in draws]}
    untrained = evaluation("search")
    untrained.encoder = "untrained"
    for name in arguments.encoders:
        trained = gsg_jax.load(name)
        network = encoder_of(untrained, trained.config, trained.channels)
        before = dataclasses.replace(trained, encoder=network)
        figures[f"{name}, untrained"] = [_top1(before.embed(crops)) for crops in draws]
        figures[name] = [_top1(trained.embed(crops)) for crops in draws]
    for name, top1 in figures.items():
        say(f"{np.mean(top1):6.1%}  {min(top1):.1%} to {max(top1):.1%}  {name}")
    print(json.dumps({"num_photos": len(photos), "top1": figures}))


def _crop(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    while True:
        aspect = np.exp(rng.uniform(*np.log(ASPECT)))
        area = photo.width * photo.height * rng.uniform(*AREA)
        width, height = int((area * aspect) ** 0.5), int((area / aspect) ** 0.5)
        if width <= photo.width and height <= photo.height:
            left = int(rng.integers(photo.width - width + 1))
            top = int(rng.integers(photo.height - height + 1))
            return photo.crop((left, top, left + width, top + height))


def _pixels(crops: list[Image.Image]) -> np.ndarray:
    rows = [np.asarray(crop.resize((8, 8), Image.Resampling.BOX), float).ravel() for crop in crops]
    return rows - np.mean(rows, axis=0)


def _top1(h: np.ndarray) -> float:
    """The share of rows [2N, F] whose nearest other row is N rows before or after."""
    h = h / np.linalg.norm(h, axis=1, keepdims=True)
    nearest = np.argmax(h @ h.T - 9 * np.eye(len(h)), axis=1)
    return float(np.mean(nearest == np.roll(np.arange(len(h)), len(h) // 2)))


if __name__ == "__main__":
    main()
