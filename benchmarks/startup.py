"""Times a pretraining run's start, from its process to its first step, without and with a cache.

    python benchmarks/startup.py [--config=configs/simsiam_gsg.py] [--way=resume] [--starts=3]

The first start finds nothing compiled. The second is one of two kinds: "resume" resumes in the same
workdir, in which the first was killed (SIGKILL) after its first checkpoint; "environment" begins in
another workdir with the same JAX_COMPILATION_CACHE_DIR. Every pair of starts has new folders. A
start ends when the log shows the first step's loss; the k-NN monitor is off. The last line is a
JSON object with both medians, in seconds, and their ratio. Other flags are passed to the run.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
RUN = (
    "--config.run.num_steps=1000",
    "--config.run.log_every_steps=1",
    "--config.run.checkpoint_every_steps=1",
    "--config.eval.knn_every_epochs=0",
)


def main() -> None:
    """Measures pairs of starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/simsiam_gsg.py", help="NAME.py[:RECIPE]")
    parser.add_argument("--way", choices=("resume", "environment"), default="resume")
    parser.add_argument("--starts", type=int, default=3, help="pairs")
    arguments, flags = parser.parse_known_args()
    flags = [f"--config={arguments.config}", *RUN, *flags]
    pairs = []
    for _ in range(arguments.starts):
        with tempfile.TemporaryDirectory(prefix="gsg_jax-") as folder:
            pairs.append(measure(pathlib.Path(folder), arguments.way, flags))
        print("first {:.1f} s, second {:.1f} s".format(*pairs[-1]), file=sys.stderr, flush=True)
    first, second = (statistics.median(times) for times in zip(*pairs, strict=True))
    figures = {
        "config": arguments.config,
        "way": arguments.way,
        "starts": arguments.starts,
        "first_start_seconds": round(first, 2),
        "second_start_seconds": round(second, 2),
        "ratio": round(first / second, 2),
    }
    print(json.dumps(figures))


def measure(folder: pathlib.Path, way: str, flags: list[str]) -> tuple[float, float]:
    """Starts a run twice: seconds to the first step of each.

    Args:
      folder: an empty folder.
      way: resume or environment.
      flags: of the run.
    """
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(folder / "user")  # the user's cache has earlier runs
    workdirs = (folder / "run", folder / "run")
    if way == "environment":
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
        workdirs = (folder / "run", folder / "other")
    first, second = (start(workdir, flags, environment) for workdir in workdirs)
    return first, second


def start(workdir: pathlib.Path, flags: list[str], environment: dict[str, str]) -> float:
    """Starts a run and kills it after its first checkpoint: seconds to its first step."""
    command = [sys.executable, "-m", "gsg_jax.main", *flags, f"--workdir={workdir}"]
    before = checkpoints(workdir)
    begin = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        log = []
        try:
            for line in process.stderr:
                log.append(line.decode())
                if line.startswith(b"step "):
                    break
            else:
                sys.exit(f"error: the run ended before its first step:\n{''.join(log)}")
            seconds = time.perf_counter() - begin
            while checkpoints(workdir) <= before:
                time.sleep(0.01)
        finally:
            process.kill()
    return seconds


def checkpoints(workdir: pathlib.Path) -> set[int]:
    """Returns the steps of the complete checkpoints."""
    return {int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()}


if __name__ == "__main__":
    main()
