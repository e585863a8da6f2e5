"""What a study runs: its cells and seeds, read from a file and checked before any long work."""

import difflib
import fnmatch
import hashlib
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.find import CONFIG_FOLDER, find_config
from gsg_jax.config.load import load_config, override, run_getter
from gsg_jax.console import UsageError, given_path
from gsg_jax.run.record import SCORES

STUDY_FOLDER = CONFIG_FOLDER / "studies"
# What --toy changes in every cell: the embedded images and a network that trains in seconds.
TOY = {
    "data.name": "embedded",
    "data.num_threads": 1,
    "views.mean": (0.286,),
    "views.std": (0.353,),
    "views.size": 12,
    "views.jitter_probability": 0.0,  # costs compile time
    "views.blur_probability": (0.0,),
    "model.backbone": "resnet10",
    "model.width": 4,
    "model.num_stages": 1,
    "model.projector_hidden_width": 16,
    "model.projector_width": 16,
    "model.predictor_hidden_width": 8,
    "eval.knn_pixels": False,
    "eval.few_label": False,
    "eval.max_bank": 1000,
    "run.num_steps": 4,
    "run.log_every_steps": 2,
}
MOST_TOY_CELLS = 2  # of a sweep, whose cells differ in numbers only
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Cell(NamedTuple):
    """One config of a study, to be run with each seed.

    Attributes:
      name: for tables and folders: letters, digits, "_", "." and "-".
      config: as on the command line, such as "simsiam:cifar10_small".
      overrides: other values of its keys, by dotted names.
      against: names of the cells that it is compared with; () for the study's baseline.
      group: of a sweep: the best cell of each group is named.
    """

    name: str
    config: str
    overrides: Mapping[str, Any] = {}
    against: tuple[str, ...] = ()
    group: str = ""


class Study(NamedTuple):
    """What a study asks.

    Attributes:
      cells: in the order in which they run.
      seeds: run.seed of the runs of every cell; runs of one seed are compared with each other.
      baseline: name of the cell that the others are compared with; "" for none.
      metric: a share in the last line of a run, or of one of the evaluations; higher is better.
      evaluations: configs of evaluations of every run, such as "linear".
      is_sweep: whether the table is sorted and the best cell of each group named.
    """

    cells: Sequence[Cell]
    seeds: tuple[int, ...] = (0,)
    baseline: str = ""
    metric: str = "knn_top1"
    evaluations: tuple[str, ...] = ()
    is_sweep: bool = False


class Run(NamedTuple):
    """A cell with a seed.

    Attributes:
      cell: of the study.
      seed: of the run.
      overrides: all of them, with the seed.
      view_epochs: its epochs, if run.num_steps does not end it, times the views per image in one.
      metric: the study's.
      evaluations: the study's.
      config_digest: of the text of the cell's config file, if it is one of the user's; else "".
    """

    cell: Cell
    seed: int
    overrides: dict[str, Any]
    view_epochs: float
    metric: str
    evaluations: tuple[str, ...]
    config_digest: str = ""

    @property
    def name(self) -> str:
        """The name of its folder and its files."""
        return f"{self.cell.name}-{self.seed}"


class Loaded(NamedTuple):
    """A study of a file.

    Attributes:
      name: the file's, with the recipe after a hyphen if one was given.
      text: the docstring of the file.
      study: with all of its cells.
      runs: every cell with the first seed, then every cell with the next one, and so on.
      asked: those of them that the command line asks for.
    """

    name: str
    text: str
    study: Study
    runs: list[Run]
    asked: list[Run]


def load_study(
    name_and_recipe: str,
    *,
    images: str = "",
    seeds: tuple[int, ...] = (),
    cells: tuple[str, ...] = (),
    is_toy: bool = False,
    changes: Mapping[str, Any] | None = None,
    length: float = 1.0,
) -> Loaded:
    """Reads a study and checks the config of every run.

    Args:
      name_and_recipe: a file or the name of a study that comes with the package; a recipe may
        follow after a colon.
      images: folder of the images of every cell; "" for those of the configs.
      seeds: of the runs that are asked for; () for the study's.
      cells: names or patterns of the cells that are asked for; () for all.
      is_toy: whether TOY changes every cell, with one seed unless seeds are given; a sweep keeps
        its first MOST_TOY_CELLS.
      changes: other values of keys in every cell, by dotted names.
      length: factor of the epochs or steps of every cell, and of the epochs between k-NN scores.

    Raises:
      UsageError: if there is no such study, or it is wrong.
    """
    if "run.seed" in (changes or {}):
        raise UsageError(f"--config.run.seed={changes['run.seed']}: give --seeds instead")
    name, _, recipe = name_and_recipe.partition(":")
    path = _find(name)
    study, text = _read(path, name_and_recipe)
    where = f"--study={name_and_recipe}"
    _check(study, where)
    if is_toy:
        study = study._replace(seeds=study.seeds[:1])
        if study.is_sweep:
            study = study._replace(cells=study.cells[:MOST_TOY_CELLS])
    chosen, seeds = _chosen(study, cells), seeds or study.seeds
    study = study._replace(seeds=tuple(dict.fromkeys((*study.seeds, *seeds))))
    more = {"data.name": "folder", "data.dir": images} if images else {}
    more |= (TOY if is_toy else {}) | dict(changes or {})
    costly = {"run.report": False, "eval.few_label": study.metric.startswith("few_label")}
    runs = []
    for seed in study.seeds:
        for cell in study.cells:
            once = {"eval.knn_pixels": False} if runs else {}  # the same for all runs, and costly
            overrides = {**costly, **once, **cell.overrides, **more, "run.seed": seed}
            runs.append(_run(cell, overrides, length, study, where))
    asked = [run for run in runs if run.cell.name in chosen and run.seed in seeds]
    return Loaded(f"{path.stem}-{recipe}" if recipe else path.stem, text, study, runs, asked)


def _find(name: str) -> pathlib.Path:
    """The file that --study= names."""
    if (path := given_path("--study", name)).is_file():
        return path
    known = {path.stem: path for path in sorted(STUDY_FOLDER.glob("*.py"))}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give a file or one of {', '.join(known)}"
    raise UsageError(f"--study={name}: there is no such file or study; {hint}")


def _read(path: pathlib.Path, name_and_recipe: str) -> tuple[Study, str]:
    """The study that a file makes, and the file's docstring."""
    study, text = run_getter(path, "--study", name_and_recipe, "get_study")
    if not isinstance(study, Study):
        raise UsageError(
            f"--study={name_and_recipe}: get_study() must return a gsg_jax.study.Study"
        )
    study = study._replace(cells=tuple(study.cells), seeds=tuple(study.seeds))
    return study, text or path.stem


def _check(study: Study, where: str) -> None:
    """Raises UsageError if the names, seeds or comparisons of a study are wrong."""
    names = [cell.name for cell in study.cells]
    if not names or not study.seeds:
        raise UsageError(f"{where}: has {len(names)} cells and {len(study.seeds)} seeds; give both")
    if wrong := [name for name in names if not _NAME.fullmatch(name)]:
        raise UsageError(f"{where}: cell {wrong[0]!r}: a name has letters, digits, _, . and - only")
    for what, values in (("cell", names), ("seed", study.seeds)):
        if twice := [value for value in values if list(values).count(value) > 1]:
            raise UsageError(f"{where}: {what} {twice[0]} is given twice: give each once")
    if seeded := [cell.name for cell in study.cells if "run.seed" in cell.overrides]:
        raise UsageError(f"{where}: cell {seeded[0]} sets run.seed: give the study its seeds")
    _check_scores(study, where)
    for cell in study.cells:
        for other in against(study, cell):
            if other not in names or other == cell.name:
                raise UsageError(
                    f"{where}: {cell.name} is compared with {other!r}: take another one of "
                    f"{', '.join(names)}"
                )


def _check_scores(study: Study, where: str) -> None:
    """Raises UsageError if no run can have the metric, or an evaluation is not one."""
    if isinstance(study.evaluations, str):
        raise UsageError(
            f"{where}: evaluations is {study.evaluations!r}: give a tuple, such as ('linear',)"
        )
    for name in study.evaluations:
        if load_config(name).get("job", "pretrain") == "pretrain":
            raise UsageError(f"{where}: evaluations: {name} is a pretraining: give evaluations")
    if not study.evaluations and study.metric not in SCORES:
        raise UsageError(
            f"{where}: metric is {study.metric!r}: a run without evaluations has "
            f"{', '.join(SCORES)}"
        )


def against(study: Study, cell: Cell) -> tuple[str, ...]:
    """Names of the cells that a cell is compared with."""
    by_default = (study.baseline,) if study.baseline not in ("", cell.name) else ()
    return cell.against or by_default


def _chosen(study: Study, patterns: Iterable[str]) -> set[str]:
    """The names of cells that match one of the patterns; all without any."""
    names = [cell.name for cell in study.cells]
    matched = {pattern: fnmatch.filter(names, pattern) for pattern in patterns}
    for pattern, found in matched.items():
        if not found:
            raise UsageError(f"--cells={pattern}: no such cell; cells are {', '.join(names)}")
    return set().union(*matched.values()) if matched else set(names)


def _run(cell: Cell, overrides: dict[str, Any], length: float, study: Study, where: str) -> Run:
    """A cell with a seed; raises UsageError if its config is wrong."""
    try:
        config = load_config(cell.config)
        if config.get("job") != "pretrain":
            raise UsageError(f"{cell.config} is the config of a job that is not a pretraining")
        override(config, overrides)
        if length != 1:
            lengths = {f"run.{key}": config.run[key] for key in ("num_epochs", "num_steps")}
            lengths["eval.knn_every_epochs"] = config.eval.knn_every_epochs
            scaled = {key: n and max(1, round(length * n)) for key, n in lengths.items()}
            override(config, scaled)
            overrides = overrides | scaled
        check_pretraining(config)
    except UsageError as error:
        raise UsageError(f"{where}: cell {cell.name}: {error}") from error
    views = config.method.num_views + config.views.num_local
    view_epochs, asked = config.run.num_epochs * views, (study.metric, study.evaluations)
    return Run(cell, config.run.seed, overrides, view_epochs, *asked, _digest_of_file(cell.config))


def _digest_of_file(name_and_recipe: str) -> str:
    """Digest of a user's config file; "" for one of the package, whose commit a record has."""
    path = find_config(name_and_recipe.partition(":")[0]).resolve()
    is_ours = path.parent == CONFIG_FOLDER
    return "" if is_ours else hashlib.sha256(path.read_bytes()).hexdigest()[:16]
