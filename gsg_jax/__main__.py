"""The command `gsg-jax`, also `python -m gsg_jax`: trains, evaluates and searches.

  gsg-jax CONFIG[:RECIPE] [flags]   pretrain with a method, or run an evaluation or another job
  gsg-jax search DIR [flags]        similar images, duplicates and outliers in a folder of images
  gsg-jax compare DIR DIR ...       several runs side by side
  gsg-jax study --study=NAME        configs by several seeds, with intervals and a verdict
  gsg-jax doctor                    is this machine ready?
  gsg-jax prepare NAME [flags]      prepare an image set for training
  gsg-jax COMMAND --help            the flags of one of these five
  gsg-jax --version                 this version, and that of JAX

Examples:
  gsg-jax simsiam_gsg                                            # embedded images, runs/...
  gsg-jax simsiam_gsg:folder --config.data.dir=photos --workdir=runs/photos
  gsg-jax simsiam_gsg --config.run.num_steps=20 --workdir=runs/short
  gsg-jax knn --config.pretrained=runs/photos
  gsg-jax search runs/photos --image=photos/cat.jpg
  gsg-jax simsiam_gsg:folder --print_config                      # every key and its meaning
  gsg-jax my_method.py                                           # a config file of your own
"""

import difflib
import importlib
import importlib.metadata
import pathlib
import sys
from functools import partial

import gsg_jax
from gsg_jax.config.find import config_names
from gsg_jax.console import say
from gsg_jax.devices.mesh import give_fake_devices_threads
from gsg_jax.main import FLAGS, HELP_FLAGS, run_process
from gsg_jax.main import main as run_config

COMMANDS = {
    "search": "gsg_jax.search.command",
    "compare": "gsg_jax.report.compare",
    "study": "gsg_jax.study.command",
    "doctor": "gsg_jax.doctor",
    "prepare": "gsg_jax.data.prepare",
}


def main(argv: list[str], ask_cluster: bool = False) -> int:
    """Runs a command line of `gsg-jax`.

    Args:
      argv: the command line, the program's name first.
      ask_cluster: whether a cluster may make this process one of several hosts.

    Returns:
      The exit status.
    """
    if len(argv) < 2:
        print(__doc__, end="", file=sys.stderr)
        return 2
    if "--version" in argv:
        print(f"gsg_jax {gsg_jax.__version__}, jax {importlib.metadata.version('jax')}")
        return 0
    name, *flags = argv[1:]
    if name in COMMANDS:
        give_fake_devices_threads()
        return importlib.import_module(COMMANDS[name]).main(flags)
    if HELP_FLAGS & set(argv):
        print(f"{__doc__}\nFlags of a config:{FLAGS}\nConfigs: {', '.join(config_names())}")
        return 0
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.75)
    if near and name not in config_names() and not pathlib.Path(name).exists():
        say(f"error: {name}: there is no such command; did you mean gsg-jax {near[0]}?")
        return 2
    config = name if name.startswith("-") else f"--config={name}"
    return run_config([argv[0], config, *flags], ask_cluster)


def start() -> None:
    """Runs the console script."""
    run_process(partial(main, ask_cluster=True))


if __name__ == "__main__":
    start()
