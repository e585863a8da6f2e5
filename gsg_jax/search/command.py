"""`gsg-jax search DIR --image=my.jpg`: searches a folder of images by a pretrained run.

Each mode prints a table on standard error, writes a contact sheet and, unless standard output is a
terminal, prints one JSON object there. Exit status: 0 done, 1 failed with one clear line, 2 wrong
usage. Images are only read; everything but a --sheet elsewhere is written to DIR/search/.
"""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any, NoReturn

import ml_collections
import numpy as np

from gsg_jax.config.evaluations import evaluation
from gsg_jax.config.own import run_plugin
from gsg_jax.console import (
    UsageError,
    UserError,
    exit_status,
    given_path,
    last_line,
    say,
    standard_error,
)
from gsg_jax.data.decode import read_photo
from gsg_jax.devices.compile_cache import use_compile_cache
from gsg_jax.evaluation.encoder import check_checkpoint, open_encoder, read_run
from gsg_jax.evaluation.image_encoder import BATCH_SIZE, run_preparation
from gsg_jax.search.contact_sheet import FORMATS, MOST_IMAGES, write_sheet
from gsg_jax.search.images import Listing, list_folder, list_training_images
from gsg_jax.search.index import Index, Prepared, check_writable, update_index
from gsg_jax.search.results import find_duplicates, find_outliers, find_similar

PROGRAM = "gsg-jax search"
EXAMPLES = """examples:
  gsg-jax search runs/photos --image=cat.jpg
  gsg-jax search runs/photos --duplicates --folder=other/photos
  gsg-jax search runs/photos --outliers --show=50
"""
LARGEST_K = 1000
LONGEST_STEM = 50  # characters of the query's name in the sheet's: file names have a limit
LEAST_THRESHOLD = 0.01
DEFAULTS = {"k": 10, "threshold": 0.98, "show": 20}
# The modes, and the flags that each takes.
MODES = {
    "image": ("k",),
    "duplicates": ("threshold", "show"),
    "outliers": ("k", "show"),
}


def main(argv: list[str]) -> int:
    """Searches as the flags say; returns the exit status."""
    return exit_status(lambda: _main(argv))


def _main(argv: list[str]) -> int:
    arguments = parse(argv)
    figures = search(arguments)
    return last_line(figures) if arguments.json or not sys.stdout.isatty() else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists the flags")


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads the flags: workdir, mode, image (a list), folder, k, threshold, show and sheet.

    Raises:
      UsageError: if one is unknown, out of range, or not for the mode.
    """
    arguments = _flags().parse_args(argv)
    for path in arguments.plugin:
        run_plugin(path)
    modes = [mode for mode in MODES if getattr(arguments, mode)]
    if len(modes) != 1:
        raise UsageError(
            f"{' and '.join(f'--{mode}' for mode in modes) or 'no mode'} given: give one of "
            "--image=FILE, --duplicates and --outliers"
        )
    arguments.mode = modes[0]
    _check_numbers(arguments)
    arguments.workdir = _path("DIR", arguments.workdir)
    arguments.image = [_path("--image", value) for value in arguments.image]
    for flag in ("folder", "sheet"):
        if (value := getattr(arguments, flag)) is not None:
            setattr(arguments, flag, _path(f"--{flag}", value))
    if arguments.sheet and arguments.sheet.suffix.lower() not in FORMATS:
        raise UsageError(f"--sheet={arguments.sheet}: must end in one of {', '.join(FORMATS)}")
    return arguments


def _flags() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description=__doc__.splitlines()[0].split(": ", 1)[1].capitalize(),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("workdir", metavar="DIR", help="the --workdir of a pretraining run")
    parser.add_argument(
        "--image",
        metavar="FILE",
        action="append",
        default=[],
        help="find what is similar; may be given again",
    )
    parser.add_argument("--duplicates", action="store_true", help="find (near-)duplicates")
    parser.add_argument("--outliers", action="store_true", help="find what is like no other image")
    parser.add_argument(
        "--folder", metavar="PHOTOS", help="of images; without it, what the run was trained on"
    )
    parser.add_argument(
        "--follow_links", action="store_true", help="follow links that lead out of the folder"
    )
    parser.add_argument(
        "--k", metavar="N", type=int, help="neighbours of --image and --outliers (10)"
    )
    parser.add_argument(
        "--threshold", metavar="X", type=float, help="cosine of --duplicates (0.98)"
    )
    parser.add_argument(
        "--show", metavar="N", type=int, help="outliers, or groups of duplicates, to show (20)"
    )
    parser.add_argument("--sheet", metavar="FILE", help="the contact sheet (a file in DIR/search)")
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="registers the run's own backbone or data set; may be given again",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the last line on a terminal, too"
    )
    return parser


def _check_numbers(arguments: argparse.Namespace) -> None:
    """Sets defaults; raises UsageError if a number is out of range or has no use in the mode."""
    limits = {"k": (1, LARGEST_K), "threshold": (LEAST_THRESHOLD, 1), "show": (1, MOST_IMAGES)}
    for flag, (low, high) in limits.items():
        value = getattr(arguments, flag)
        if value is None:
            setattr(arguments, flag, DEFAULTS[flag])
        elif flag not in MODES[arguments.mode]:
            of = " and ".join(f"--{mode}" for mode in MODES if flag in MODES[mode])
            raise UsageError(f"--{flag}={value}: is of {of}, not of --{arguments.mode}: leave it")
        elif not low <= value <= high:
            raise UsageError(f"--{flag}={value}: must be a number from {low} to {high:,}")


def _path(flag: str, value: str) -> Path:
    if not value:
        raise UsageError(f"{flag} is empty: give a path")
    return given_path(flag, value)


def search(arguments: argparse.Namespace) -> dict[str, Any]:
    """Updates the index, searches it and shows the results; returns the last line."""
    use_compile_cache()
    images, index, query_h, about = _opened(arguments)
    if arguments.mode == "image":
        found = find_similar(images, index, arguments.image, query_h, arguments.k)
    elif arguments.mode == "duplicates":
        found = find_duplicates(images, index, arguments.threshold, arguments.show)
    else:
        found = find_outliers(images, index, arguments.k, arguments.show)
    figures = {"job": "search", "mode": arguments.mode, **about, **found.figures}
    if not found.pictures:
        return figures | {"sheet": None}
    standard_error(soft_wrap=False).print(found.table)
    num_shown, num_all = write_sheet(arguments.sheet, found.pictures), sum(map(len, found.pictures))
    rest = f" (the first {num_shown} of {num_all:,} images)" if num_shown < num_all else ""
    say(f"contact sheet: {arguments.sheet}{rest}")
    return figures | {"sheet": str(arguments.sheet)}


def _opened(
    arguments: argparse.Namespace,
) -> tuple[Listing, Index, np.ndarray, dict[str, Any]]:
    """Opens run and images, updates the index, and sets the sheet if none was given.

    Returns:
      (images, index, embeddings of the --image files [Q, F], first figures of the last line).
    """
    config = evaluation("search")
    config.pretrained = str(arguments.workdir)
    run = read_run(config, needs_data=arguments.folder is None)
    check_checkpoint(config)
    prepare = run_preparation(arguments.workdir, run)
    queries = [prepare(read_photo(path, prepare.channels)) for path in arguments.image]
    images = _listed(arguments, run)
    if prepare.channels == 1 and (images.root or queries):
        say("the run was trained on grayscale images: photographs lose their colours")
    index_path = arguments.workdir / "search" / f"{_index_name(images)}.npz"
    arguments.sheet = _checked_sheet(arguments, run, images, index_path)

    encoder = open_encoder(config, run, Prepared(images, np.arange(len(images.id)), prepare))
    about = {"backbone_digest": encoder.digest, "step": encoder.step}
    index = update_index(index_path, images, encoder.embed, prepare, about)
    parts = [queries[i : i + BATCH_SIZE] for i in range(0, len(queries), BATCH_SIZE)]
    query_h = [encoder.embed(np.stack(part)) for part in parts]
    figures = {
        **encoder.about,
        "images": images.title,
        "num_images": len(index.h),
        "num_embedded": index.num_embedded,
        "num_left_out": len(images.id) + len(images.not_files) - len(index.h),
        "index": str(index_path),
    }
    return images, index, np.concatenate(query_h) if queries else index.h[:0], figures


def _listed(arguments: argparse.Namespace, run: ml_collections.ConfigDict) -> Listing:
    if arguments.folder is not None:
        return list_folder(arguments.folder, follow_links=arguments.follow_links)
    try:
        return list_training_images(run.data, follow_links=arguments.follow_links)
    except UserError as error:
        raise UserError(f"the images of the run: {error}; or give --folder=PHOTOS") from error


def _index_name(images: Listing) -> str:
    """A name that differs between folders, and between sets and splits."""
    name = images.title if images.root is None else images.root.resolve().name
    readable = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:60]
    digest = hashlib.sha256(images.key.encode(errors="surrogateescape")).hexdigest()
    return f"{readable}-{digest[:8]}"


def _checked_sheet(
    arguments: argparse.Namespace, run: ml_collections.ConfigDict, images: Listing, index_path: Path
) -> Path:
    """Path of the contact sheet; never in a folder of images, where it would become one of them."""
    sheet = arguments.sheet or index_path.with_name(_sheet_name(arguments, index_path.stem))
    has_folder = run.data.name == "folder" and run.data.dir  # an import may not have one yet
    trained_on = given_path("--config.data.dir", run.data.dir) if has_folder else None
    for folder in filter(None, (images.root, trained_on)):
        if sheet.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"--sheet={sheet}: lies in the folder of images {folder}, and would become one of "
                "them: give --sheet=FILE elsewhere"
            )
    if arguments.sheet and not sheet.parent.is_dir():
        raise UserError(f"--sheet={sheet}: there is no folder {sheet.parent}: make it")
    if not arguments.sheet:
        check_writable(sheet.parent)
    return sheet


def _sheet_name(arguments: argparse.Namespace, index_name: str) -> str:
    if arguments.mode != "image":
        return f"{index_name}-{arguments.mode}.png"
    more = len(arguments.image) - 1
    stem = arguments.image[0].stem[:LONGEST_STEM]
    return stem + (f"-and-{more}-more.png" if more else ".png")
