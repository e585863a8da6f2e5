"""Files of a classifier's predictions for every image, and of the classifier itself."""

import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import safetensors.numpy
from jax.typing import ArrayLike

from gsg_jax.console import say
from gsg_jax.devices.hosts import is_writer
from gsg_jax.run.files import replacing, write_atomically
from gsg_jax.run.lock import not_writable

PREDICTIONS, CLASSIFIER = "predictions.csv", "classifier.safetensors"


def write_predictions(
    folder: pathlib.Path,
    ids: np.ndarray,
    labels: np.ndarray,
    shares: np.ndarray,
    class_names: Sequence[str],
    classifier: Mapping[str, ArrayLike],
) -> None:
    """Writes predictions.csv and classifier.safetensors, each whole or not at all.

    Args:
      folder: created if missing.
      ids: paths of the images, or their indices, [N].
      labels: int [N].
      shares: probabilities or shares of votes of the classes, [N, C]; the score is the highest.
      class_names: one per class; also the classifier's metadata.
      classifier: the arrays of the fitted classifier by name.

    Raises:
      UserError: if the folder cannot be written.
    """
    if not is_writer():
        return
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(("path", "label", "predicted", "score"))
    for name, label, row in zip(ids, labels, shares, strict=True):
        best = row.argmax()
        texts = map(_cell, (name, class_names[label], class_names[best]))
        writer.writerow((*texts, f"{row[best]:.6g}"))
    arrays = {name: np.ascontiguousarray(array) for name, array in classifier.items()}
    about = {"class_names": json.dumps(list(class_names))}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / PREDICTIONS, table.getvalue())
        with replacing(folder / CLASSIFIER) as file:
            file.write(safetensors.numpy.save(arrays, metadata=about))
    except OSError as error:
        raise not_writable(folder, error) from error
    say(f"predictions and classifier are in {folder}: {PREDICTIONS}, {CLASSIFIER}")


def _cell(value: object) -> str:
    """A text that no spreadsheet evaluates: somebody else may have named the images and classes."""
    text = str(value)
    return f"'{text}" if text.startswith(tuple("=+-@\t\r")) else text
