"""The import job: a PyTorch checkpoint becomes a run that can be evaluated and trained."""

import pathlib
import shlex
import shutil
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import ml_collections
import numpy as np

from gsg_jax.config.load import flat, resolve
from gsg_jax.console import UsageError, UserError, given_path, say
from gsg_jax.devices.mesh import all_devices, replicated
from gsg_jax.interop.imported import write_imported
from gsg_jax.interop.layouts import Found
from gsg_jax.interop.weights import check_tensors, put, read_network
from gsg_jax.methods import METHODS
from gsg_jax.run.checkpoint import Checkpoints, state_digest
from gsg_jax.run.lock import writing
from gsg_jax.run.workdir import IMPORTED, WRITTEN, write_record
from gsg_jax.train.build import build_experiment
from gsg_jax.train.state import TrainState, init_state


def import_checkpoint(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Turns a PyTorch checkpoint into a run at step 0, in a folder that holds none.

    Returns:
      The job's last line: layout, method and backbone, how many tensors have a place in the run,
      how many are only kept for an export, and which branches are initialised anew.

    Raises:
      UserError: if the file cannot be read, has no known layout, lacks tensors or has unknown
        ones, or if the folder holds a run; nothing is written then.
    """
    if not config.checkpoint:
        raise UsageError("--config.checkpoint is missing: give a .safetensors or .pth file")
    if config.method and config.method not in METHODS:
        raise UsageError(f"--config.method={config.method}: take one of {', '.join(METHODS)}")
    _check_holds_no_run(workdir)
    path = given_path("--config.checkpoint", config.checkpoint)
    file, found, run_config, plain, run, about = read_network(path, config)
    state, placed, fresh = _filled(run, found, file.tensors, path)
    with writing(workdir):
        _check_holds_no_run(workdir)  # another process may have been first
        try:
            write_imported(workdir, file, found, placed)
            with Checkpoints(workdir) as checkpoints:
                checkpoints.save(state, None)
            write_record(workdir / "config.json", run)  # last: without it the folder is no run
        except BaseException:
            for name in (IMPORTED, "checkpoints"):
                shutil.rmtree(workdir / name, ignore_errors=True)
            raise
    say(about)
    for branch in fresh:
        method = run.method.name
        say(f"{branch}: the checkpoint has none that fits {method}; it is initialised anew")
    command = ["python", "-m", "gsg_jax.main", f"--config={run_config}", f"--workdir={workdir}"]
    say(f"to continue training: {shlex.join([*command, *_flags(run, plain)])}")
    return {
        "job": "import_torch",
        "method": run.method.name,
        "layout": found.layout,
        "backbone": run.model.backbone,
        "num_tensors": len(placed),
        "num_kept": len(file.tensors) - len(placed),
        "fresh": fresh,
        "state_digest": state_digest(state),
    }


def _check_holds_no_run(workdir: pathlib.Path) -> None:
    for name in ("config.json", IMPORTED, *WRITTEN):
        if (workdir / name).exists():
            raise UserError(f"{workdir} holds a run already ({name}): give another --workdir")


def _filled(
    run: ml_collections.ConfigDict,
    found: Found,
    tensors: Mapping[str, np.ndarray],
    path: pathlib.Path,
) -> tuple[TrainState, set[str], list[str]]:
    """Fills the initial state of a run with a checkpoint's tensors.

    Returns:
      (state, names of the tensors that have a place in it, branches without any).
    """
    experiment = build_experiment(run, num_steps=1, steps_per_epoch=1)
    everywhere = replicated(all_devices())
    init = partial(init_state, experiment, found.channels)
    like = jax.eval_shape(init)
    names = ("params", "batch_stats")
    check_tensors({name: getattr(like, name) for name in names}, found, tensors, path)
    state = jax.jit(init, out_shardings=everywhere)()
    groups = {name: _copied(getattr(state, name)) for name in names}
    mine = [t for t in found.tensors if t.path[0] in groups["params"]]
    placed = put(groups, mine, tensors, found)
    if experiment.has_ema_target:
        of_target = {name: _copied(getattr(state, f"target_{name}")) for name in groups}
        theirs = found.target_tensors or [t for t in mine if t.path[0] in of_target["params"]]
        placed |= put(of_target, theirs, tensors, found)
        groups |= {f"target_{name}": tree for name, tree in of_target.items()}
    like = {name: getattr(state, name) for name in groups}
    groups = jax.tree.map(
        lambda x, old: jax.device_put(x.astype(old.dtype), everywhere), groups, like
    )
    fresh = sorted(set(state.params) - {tensor.path[0] for tensor in mine})
    return state.replace(**groups), placed, fresh


def _copied(tree: Any) -> Any:
    """Copies a tree into host arrays, in dicts that may be changed."""
    return jax.tree.map(np.asarray, tree)


def _flags(run: ml_collections.ConfigDict, plain: ml_collections.ConfigDict) -> list[str]:
    """The flags that turn a config file into the config of a run."""
    before, after = (flat(config.to_dict()) for config in (resolve(plain), run))
    flags = [f"--config.{key}={after[key]}" for key in after if before[key] != after[key]]
    needs_folder = run.data.name == "folder" and not run.data.dir
    return [*flags, "--config.data.dir=PATH"] if needs_folder else flags
