"""Prepares data sets once, so that training reads them without TensorFlow.

    python -m gsg_jax.data.prepare NAME --data_dir=DIR                  # an official TFDS set
    python -m gsg_jax.data.prepare NAME --data_dir=DIR --idx_dir=DIR    # MNIST-style IDX files
    python -m gsg_jax.data.prepare fashion_mnist --idx_dir=DIR --embedded   # the package's own

Only preparing an official set needs TensorFlow (`pip install 'gsg_jax[prepare]'`).
"""

import argparse
import difflib
import gzip
import importlib.util
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gsg_jax.console import Parser, UserError, argument_path, exit_status, protect_output
from gsg_jax.data.open import EMBEDDED_FILE, FASHION_MNIST_CLASSES

PROGRAM = "python -m gsg_jax.data.prepare"
EXAMPLES = """examples:
  PROGRAM cifar10 --data_dir=tfds                      # an official set of TFDS
  PROGRAM mnist --data_dir=tfds --idx_dir=downloads    # MNIST-style IDX files
"""
NUM_CLASSES = 10
EMBEDDED_TRAIN_PER_CLASS = 1000
EMBEDDED_TEST_PER_CLASS = 200
EMBEDDED_SEED = 0
_IDX_PREFIXES = {"train": "train", "test": "t10k"}


def _read_idx(path: str) -> np.ndarray:
    """Reads a gzipped IDX file of bytes: uint8 [N, H, W] for images, [N] for labels."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except FileNotFoundError as error:
        raise UserError(
            f"no file {path}: point --idx_dir at the folder of IDX .gz files"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path} ({error}): fetch the file again") from error
    num_dims = content[3] if len(content) >= 4 else 0
    start = 4 + 4 * num_dims
    if content[:3] != b"\x00\x00\x08" or num_dims == 0 or len(content) < start:
        raise UserError(f"{path} is no IDX file of bytes: fetch the file again")
    shape = tuple(np.frombuffer(content, ">u4", num_dims, 4).tolist())
    if len(content) - start != int(np.prod(shape)):
        raise UserError(
            f"{path} holds {len(content) - start} bytes but its header says {shape}: "
            "fetch the file again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_idx_split(idx_dir: str | os.PathLike[str], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the images and labels of one split from a folder of MNIST-style IDX files.

    Args:
      idx_dir: folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz.
      split: "train" or "test".

    Returns:
      (images, labels): uint8 [N, H, W] and uint8 [N] in [0, 10).

    Raises:
      UserError: if a file is missing or broken, or images and labels do not belong together.
    """
    stem = Path(idx_dir) / _IDX_PREFIXES[split]
    images = _read_idx(f"{stem}-images-idx3-ubyte.gz")
    labels = _read_idx(f"{stem}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{stem}-*.gz: images {images.shape} and labels {labels.shape} do not belong together: "
            "fetch both again"
        )
    if labels.size and labels.max() >= NUM_CLASSES:
        raise UserError(
            f"{stem}-labels-idx1-ubyte.gz: label {labels.max()} is above {NUM_CLASSES - 1}: "
            "only sets of ten classes are supported"
        )
    return images, labels


def class_balanced_subset(labels: np.ndarray, *, per_class: int, seed: int) -> np.ndarray:
    """Draws the same number of examples of every class.

    Args:
      labels: [N] class numbers in [0, 10).
      per_class: examples to draw from each class.
      seed: of the draw.

    Returns:
      Sorted positions, int64 [10 * per_class].

    Raises:
      UserError: if a class has fewer than per_class examples.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for label in range(NUM_CLASSES):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise UserError(
                f"class {label} has {len(members)} images and {per_class} are needed: "
                "use the whole IDX files"
            )
        chosen.append(rng.choice(members, per_class, replace=False))
    return np.sort(np.concatenate(chosen))


def write_embedded(
    idx_dir: str | os.PathLike[str],
    path: str | os.PathLike[str] = EMBEDDED_FILE,
    *,
    train_per_class: int = EMBEDDED_TRAIN_PER_CLASS,
    test_per_class: int = EMBEDDED_TEST_PER_CLASS,
) -> Path:
    """Writes the class-balanced subset that ships inside the package.

    The same IDX files give the same arrays and, with the same zlib, the same bytes.

    Args:
      idx_dir: folder of IDX files.
      path: the .npz file to write; it appears only when complete.
      train_per_class: images of each class from the train file.
      test_per_class: images of each class from the t10k file.

    Returns:
      The path written.

    Raises:
      UserError: if the IDX files are missing, broken or hold too few images.
    """
    arrays = {}
    for split, per_class in (("train", train_per_class), ("test", test_per_class)):
        images, labels = read_idx_split(idx_dir, split)
        subset = class_balanced_subset(labels, per_class=per_class, seed=EMBEDDED_SEED)
        arrays[f"{split}_images"] = images[subset][..., None]  # [N, H, W, 1]
        arrays[f"{split}_labels"] = labels[subset].astype(np.int32)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # np.savez_compressed cannot set the level; 9 gives the smallest file.
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return partial.replace(path)


def prepare_idx(
    name: str, data_dir: str | os.PathLike[str], idx_dir: str | os.PathLike[str]
) -> Path:
    """Writes MNIST-style IDX files as a TFDS data set in ArrayRecord, without TensorFlow.

    Args:
      name: of the data set, to be used as data.name; fashion_mnist gets its class names.
      data_dir: TFDS folder to write to; the set appears there only when complete.
      idx_dir: folder of IDX files.

    Returns:
      The folder of the prepared set, data_dir/name/1.0.0.

    Raises:
      UserError: if the name is not valid, or the IDX files are missing or broken.
    """
    import tensorflow_datasets as tfds  # here, since it takes seconds

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name!r} is not a data set name: use a-z, 0-9 and _, a letter first")
    splits = {split: read_idx_split(idx_dir, split) for split in _IDX_PREFIXES}
    names = tuple(map(str, range(NUM_CLASSES)))
    names = FASHION_MNIST_CLASSES if name == "fashion_mnist" else names

    class IdxBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(
                    shape=(*splits["train"][0].shape[1:], 1), encoding_format="png"
                ),
                "label": tfds.features.ClassLabel(names=names),
            }
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                description=f"{name}, prepared from IDX files.",
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
            return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

        def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[Any]:
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                # TFDS encodes arrays with TensorFlow, but PIL images without it.
                yield i, {"image": Image.fromarray(image), "label": int(label)}

    IdxBuilder.name = name
    builder = IdxBuilder(data_dir=data_dir)
    builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_dir)


def _prepare_official(
    name: str, data_dir: str | os.PathLike[str], manual_dir: str | os.PathLike[str] | None = None
) -> Path:
    """Downloads an official TFDS data set and writes it as ArrayRecord; returns its folder.

    manual_dir holds the archives that must be fetched by hand for some sets, such as imagenet2012;
    None is TFDS's default, data_dir/downloads/manual.
    """
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)  # those are asked for over the net
    if re.split("[/:]", name)[0] not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see tfds.list_builders()"
        raise UserError(f"TFDS has no data set {name!r}: {hint}")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"preparing {name!r} needs TensorFlow, which is not installed: "
            "pip install 'gsg_jax[prepare]', or pass --idx_dir for IDX files"
        )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:  # of a config or version
        raise UserError(f"TFDS has no {name!r}: {str(error).splitlines()[0]}") from error
    array_record = tfds.core.FileFormat.ARRAY_RECORD
    if builder.is_prepared():
        if array_record not in builder.info.available_file_formats():
            raise UserError(
                f"{builder.data_dir} is prepared as {builder.info.file_format.value}, which is not "
                "read without TensorFlow: remove it or choose another --data_dir"
            )
        return Path(builder.data_dir)
    manual = Path(manual_dir or Path(data_dir, "downloads", "manual"))
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not (manual.is_dir() and any(manual.iterdir())):
        raise UserError(
            f"{name!r} cannot be downloaded freely and {manual} holds nothing: put its archives "
            f"there (see https://www.tensorflow.org/datasets/catalog/{name.split('/')[0]})"
        )
    config = tfds.download.DownloadConfig(manual_dir=manual)
    builder.download_and_prepare(file_format=array_record, download_config=config)
    return Path(builder.data_dir)


def main(arguments: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Runs the command line.

    Args:
      arguments: those after the program's name; None for sys.argv.
      program: its name.

    Returns:
      Exit status: 0, or 1 after one line on standard error. Wrong usage exits with 2 at once.
    """
    parser = Parser(
        prog=program,
        description="Prepares an image set once, as ArrayRecord, for training without TensorFlow.",
        epilog=EXAMPLES.replace("PROGRAM", program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="of TFDS, or to give to IDX files")
    for flag, meaning in (
        ("--data_dir", "TFDS folder to write to"),
        ("--idx_dir", "MNIST-style IDX .gz files to read from"),
        ("--manual_dir", "folder of archives fetched by hand (imagenet2012)"),
    ):
        parser.add_argument(flag, metavar="DIR", type=argument_path, help=meaning)
    parser.add_argument(
        "--embedded", action="store_true", help="write the package's own subset of --idx_dir"
    )
    options = parser.parse_args(arguments)
    if options.embedded and not options.idx_dir:
        parser.error("--embedded needs --idx_dir")
    if not options.embedded and not options.data_dir:
        parser.error("--data_dir is missing")
    return exit_status(lambda: _prepare(options))


def _prepare(options: argparse.Namespace) -> int:
    if options.embedded:
        folder = Path(options.data_dir) if options.data_dir else EMBEDDED_FILE.parent
        path = write_embedded(options.idx_dir, folder / EMBEDDED_FILE.name)
    elif options.idx_dir:
        path = prepare_idx(options.name, options.data_dir, options.idx_dir)
    else:
        path = _prepare_official(options.name, options.data_dir, options.manual_dir)
    print(path)
    return 0


if __name__ == "__main__":
    protect_output()
    sys.exit(main())
