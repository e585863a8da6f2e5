"""Studies for the tests: their files, and runs that are made up instead of trained."""

import json
import pathlib

from gsg_jax.config.load import as_json, load_config, override
from gsg_jax.console import UserError

TEXT = '''"""Is b better than a?

A question for the tests.
"""

from gsg_jax.study import Cell, Study


def get_study():
    return Study([Cell(name, "simsiam") for name in {names}], seeds={seeds}, baseline="a"{more})
'''


def write_study(folder: pathlib.Path, names="abc", seeds=(0,), more: str = "") -> pathlib.Path:
    """Writes a study of SimSiam's cells, which differ in their names only."""
    path = folder / "mine.py"
    path.write_text(TEXT.format(names=list(names), seeds=seeds, more=more))
    return path


class FakeRuns:
    """In place of running._call: writes what a run leaves behind, without training.

    Attributes:
      called: names of the runs, in order.
      scores: k-NN by name; 0.5 for others.
      failing: names of runs that fail.
    """

    def __init__(self, scores=(), failing=()):
        self.called, self.scores, self.failing = [], dict(scores), failing

    def __call__(self, words, log, held, stop):
        flags = dict(word.lstrip("-").split("=", 1) for word in words if word.startswith("-"))
        if "config.pretrained" in flags:
            return {"job": words[0], f"{words[0]}_top1": 0.25, "num_steps": 0}
        workdir = pathlib.Path(flags["workdir"])
        self.called.append(workdir.name)
        if workdir.name in self.failing:
            raise UserError("the loss is nan at step 3")
        config = load_config(words[0])
        override(config, {"run.seed": int(flags["config.run.seed"])})
        workdir.mkdir(exist_ok=True)
        (workdir / "config.json").write_text(as_json(config))
        score = self.scores.get(workdir.name, 0.5)
        spread = {"embedding_rank": 7.0, "projection_std": 0.75}
        lines = [{"step": 2, **spread}, {"step": 4, "knn_top1": score / 2}]
        lines += [{"step": 8, "knn_top1": score, **spread}]
        write_lines(workdir / "metrics.jsonl", lines)
        timed = {"views_per_second": 50.0, "interval_seconds": 4.0, "train_seconds": 9.0}
        write_lines(
            workdir / "throughput.jsonl", [{"step": 8, "interval_processor_seconds": 6.0, **timed}]
        )
        (workdir / "baselines.json").write_text(json.dumps({"knn_top1_untrained": 0.125}))
        start = {"date": "d", "command": "c", "version": "0", "commit": "abc1234", "machine": "m"}
        write_lines(workdir / "starts.jsonl", [{"step": 0, **start}])
        return {"job": "pretrain", "step": 8, "num_steps": 8, "knn_top1": score} | {
            "knn_top1_untrained": 0.125
        }


def write_lines(path: pathlib.Path, lines: list[dict]) -> None:
    """Writes a .jsonl file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
