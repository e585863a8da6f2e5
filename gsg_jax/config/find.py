"""Where a config file is: in the user's folders, or among those that travel with the package."""

import difflib
import pathlib

from gsg_jax.console import UsageError

# In a clone, gsg_jax/configs is a link to configs/; in a wheel, a folder.
CONFIG_FOLDER = (pathlib.Path(__file__).parents[1] / "configs").resolve()


def config_names() -> list[str]:
    """Returns the names of the packaged configs."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.py"))


def find_config(name: str) -> pathlib.Path:
    """Returns the file that `--config=` names, without its recipe.

    Args:
      name: a path, or the bare name of a packaged config.

    Raises:
      UsageError: if there is neither such a file nor such a name; the nearest right one is named.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    if name in config_names():
        return CONFIG_FOLDER / f"{name}.py"
    there = {file.name: str(file) for file in sorted(path.parent.glob("*.py"))}
    packaged = {file: file for file in config_names()}
    near = [
        candidates[match]
        for wanted, candidates in ((path.name, there), (path.stem, packaged))
        for match in difflib.get_close_matches(wanted, candidates, n=1)
    ]
    hint = f"did you mean {near[0]}?" if near else f"give a file or one of {', '.join(packaged)}"
    raise UsageError(f"--config={name}: there is no such file or config; {hint}")
