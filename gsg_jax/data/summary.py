"""What a run reports about its images before starting."""

from gsg_jax.data.source import Source


def summary(train: Source, test: Source | None) -> list[str]:
    """Returns lines for people: counts of images and classes, and what was left out."""
    text = f"{train.name}: {len(train):,} images"
    if train.class_names:
        text += f" in {len(train.class_names):,} classes"
    text += ", no test set" if test is None else f", {len(test):,} to test"
    return [text, *getattr(train, "notes", ())]
