"""Compares runs with all and with selected sources over several seeds: k-NN and time, one table.

    python benchmarks/sources.py [--recipe=default] [--seeds=0,1,2] [--methods=byol_gsg]
        [--pairing=halves] [--workdir=runs/sources]

Each run has the workdir WORKDIR/RECIPE-PAIRING/METHOD-SOURCES-SEED; a run that exists is resumed,
or read if it is complete. The last line is one JSON object: the difference of the means in points,
selected minus all, and the ratio of the runs' rates, selected over all. These rates say little if
other programs ran at the same time: versus_torch.py times both in turns.
"""

import argparse
import json
import pathlib

import numpy as np
from results import run_job, spread

SOURCES = ("all", "selected")
VIEWS = {"halves": 2, "permutation": 4}


def main() -> None:
    """Runs what is missing, then prints the table and the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="default", help="recipe of the configs")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, comma-separated")
    parser.add_argument("--methods", default="byol_gsg", help="simsiam_gsg, byol_gsg or both")
    parser.add_argument("--pairing", default="halves", choices=VIEWS, help="how images are paired")
    parser.add_argument("--workdir", default="runs/sources", help="folder of the runs")
    arguments = parser.parse_args()
    runs = pathlib.Path(arguments.workdir) / f"{arguments.recipe}-{arguments.pairing}"
    print("| method | sources | k-NN top-1 | images/s |\n|---|---|---|---|")
    found = {}
    for method in arguments.methods.split(","):
        scores, rates = {}, {}
        for sources in SOURCES:
            figures = [
                run_job(
                    f"--config=configs/{method}.py:{arguments.recipe}",
                    f"--config.method.sources={sources}",
                    f"--config.method.pairing={arguments.pairing}",
                    f"--config.method.num_views={VIEWS[arguments.pairing]}",
                    f"--config.run.seed={seed}",
                    f"--workdir={runs / f'{method}-{sources}-{seed}'}",
                )
                for seed in arguments.seeds.split(",")
            ]
            scores[sources] = [one["knn_top1"] for one in figures]
            views_per_second = np.mean([one["views_per_second"] for one in figures])
            rates[sources] = views_per_second / VIEWS[arguments.pairing]
            cells = (method, sources, spread(scores[sources]), f"{rates[sources]:.0f}")
            print(f"| {' | '.join(cells)} |", flush=True)
        points = 100 * (np.mean(scores["selected"]) - np.mean(scores["all"]))
        found[method] = {
            "knn_points": round(points, 2),
            "rate_ratio": round(rates["selected"] / rates["all"], 3),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
