"""Prepares an official TFDS set once, so that training reads it without TensorFlow.

    gsg-jax prepare NAME --data_dir=DIR [--manual_dir=DIR]

Only this needs TensorFlow (`pip install 'gsg_jax[prepare]'`).
"""

import difflib
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

from gsg_jax.console import Parser, UserError, argument_path, exit_status

PROGRAM = "gsg-jax prepare"


def prepare(
    name: str, data_dir: str | os.PathLike[str], manual_dir: str | os.PathLike[str] | None = None
) -> Path:
    """Downloads an official TFDS data set and writes it as ArrayRecord.

    Args:
      name: of the set, perhaps with its config or version.
      data_dir: TFDS folder to write to.
      manual_dir: holds the archives that must be fetched by hand for some sets, such as
        imagenet2012; None is TFDS's default, data_dir/downloads/manual.

    Returns:
      The folder of the prepared set.

    Raises:
      UserError: if TFDS has no such set, TensorFlow is not installed, the archives are missing, or
        the set is prepared in another format.
    """
    import tensorflow_datasets as tfds  # here, since it takes seconds

    known = tfds.list_builders(with_community_datasets=False)  # those are asked for over the net
    if re.split("[/:]", name)[0] not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see tfds.list_builders()"
        raise UserError(f"TFDS has no data set {name!r}: {hint}")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"preparing {name!r} needs TensorFlow, which is not installed: "
            "pip install 'gsg_jax[prepare]'"
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


def main(argv: Sequence[str]) -> int:
    """Runs the command line.

    Args:
      argv: what follows the command's name.

    Returns:
      Exit status: 0, or 1 after one line on standard error. Wrong usage exits with 2 at once.
    """
    parser = Parser(
        prog=PROGRAM,
        description="Prepares an image set once, as ArrayRecord, for training without TensorFlow.",
        epilog=f"Example: {PROGRAM} cifar10 --data_dir=tfds",
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="of an official TFDS set")
    add(
        "--data_dir",
        metavar="DIR",
        type=argument_path,
        required=True,
        help="TFDS folder to write to",
    )
    add(
        "--manual_dir",
        metavar="DIR",
        type=argument_path,
        help="folder of archives fetched by hand (imagenet2012)",
    )
    options = parser.parse_args(argv)

    def run() -> int:
        print(prepare(options.name, options.data_dir, options.manual_dir))
        return 0

    return exit_status(run)
