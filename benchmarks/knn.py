"""Times our exact k-NN search against scikit-learn's, on the same random embeddings.

    python benchmarks/knn.py [--bank=60000] [--queries=10000] [--width=512] [--k=20,200]
        [--repeats=5]

Each method has its own process, which makes the same embeddings and searches on request: one search
of each method in turn, several times, so that other work on the machine slows all alike. A search
starts from raw float32 rows and includes normalising them. scikit-learn takes part with the cosine
metric and with the Euclidean one on unit rows, its faster path to the same neighbours. The table
has the medians of the searches after the first; the first one itself and its compile seconds
(imports are done before); the processor's seconds, which other work disturbs less; the peak of
memory above the inputs; and the share of a sample's neighbours that are ours too. The last line is
JSON with the same figures and each method's seconds over ours.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

OURS = "gsg_jax"
COMPILE_EVENTS = "/jax/core/compile/"
# Columns of the table: their figures and formats.
COLUMNS = {
    "k": ("k", "d"),
    "method": ("method", "s"),
    "seconds": ("seconds", ".2f"),
    "over ours": ("over_ours", ".2f"),
    "CPU s": ("cpu_seconds", ".2f"),
    "first s": ("first_seconds", ".2f"),
    "compile s": ("compile_seconds", ".2f"),
    "peak MiB": ("peak_mb", "d"),
    "same rows": ("same_rows", ".2%"),
}


def main() -> None:
    """Times every method for each k and prints the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=int, default=60_000, help="rows of the bank")
    parser.add_argument("--queries", type=int, default=10_000, help="rows to search for")
    parser.add_argument("--width", type=int, default=512, help="numbers of a row")
    parser.add_argument("--k", default="20,200", help="neighbours, comma-separated")
    parser.add_argument("--repeats", type=int, default=5, help="timed searches of each method")
    parser.add_argument("--here", choices=SEARCHES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    ks = [int(k) for k in arguments.k.split(",")]
    if not 1 <= min(ks) <= max(ks) <= arguments.bank:
        parser.error(f"--k={arguments.k}: takes numbers from 1 to --bank, {arguments.bank}")
    if arguments.repeats < 1:
        parser.error(f"--repeats={arguments.repeats}: must be 1 or more")
    if arguments.here:
        serve(arguments)
        return
    results = [result for k in ks for result in compare(k, arguments)]
    Console(width=100).print(to_table(results, arguments))
    sizes = {name: getattr(arguments, name) for name in ("bank", "queries", "width", "repeats")}
    print(json.dumps({"machine": machine(), **sizes, "results": results}))


def search_with_gsg_jax(bank: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    """Our neighbours."""
    from gsg_jax.evaluation.knn import neighbours

    return neighbours(bank, query, k)[1]


def search_with_cosine(bank: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    """scikit-learn's by cosine, the plain choice."""
    from sklearn.neighbors import NearestNeighbors

    searcher = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine").fit(bank)
    return searcher.kneighbors(query, return_distance=True)[1]


def search_with_euclidean(bank: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    """scikit-learn's by its fused kernel, which has no cosine but finds the same rows."""
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize

    searcher = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="euclidean")
    return searcher.fit(normalize(bank)).kneighbors(normalize(query), return_distance=True)[1]


SEARCHES: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    OURS: search_with_gsg_jax,
    "sklearn cosine": search_with_cosine,
    "sklearn euclidean": search_with_euclidean,
}


def serve(arguments: argparse.Namespace) -> None:
    """Searches once for each line of standard input and answers with a line of figures."""
    search, k = SEARCHES[arguments.here], int(arguments.k)
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((arguments.bank, arguments.width), dtype=np.float32)
    query = rng.standard_normal((arguments.queries, arguments.width), dtype=np.float32)
    search(bank[: k + 1], query[:1], k)  # imports, which count in no figure
    compiling = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiling.append(seconds * event.startswith(COMPILE_EVENTS))
    )
    before = peak_mb()
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        index = search(bank, query, k)
        figures = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,
            "compile_seconds": sum(compiling),
            "peak_mb": peak_mb() - before,
            "sample": np.sort(index[:: max(1, len(index) // 100)], axis=1).tolist(),
        }
        print(json.dumps(figures), flush=True)


def peak_mb() -> float:
    """Peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def compare(k: int, arguments: argparse.Namespace) -> list[dict]:
    """Figures of every method for one k, one search of each in turn.

    Args:
      k: neighbours.
      arguments: of the command line.

    Returns:
      For each method: medians, the first search's seconds, peak memory, and the share of its
      neighbours that are ours too, over a hundred queries.
    """
    processes = {method: start_process(method, k, arguments) for method in SEARCHES}
    answers = {method: [] for method in SEARCHES}
    for _ in range(1 + arguments.repeats):
        for method, process in processes.items():
            process.stdin.write("search\n")
            process.stdin.flush()
            answers[method].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.communicate()
    ours = statistics.median(answer["seconds"] for answer in answers[OURS][1:])
    results = []
    for method, (first, *timed) in answers.items():
        seconds = statistics.median(answer["seconds"] for answer in timed)
        results.append(
            {
                "k": k,
                "method": method,
                "seconds": round(seconds, 3),
                "over_ours": round(seconds / ours, 3),
                "cpu_seconds": round(statistics.median(a["cpu_seconds"] for a in timed), 3),
                "first_seconds": round(first["seconds"], 3),
                "compile_seconds": round(first["compile_seconds"], 3),
                "peak_mb": round(timed[-1]["peak_mb"]),
                "same_rows": round(share(first["sample"], answers[OURS][0]["sample"]), 5),
            }
        )
    return results


def start_process(method: str, k: int, arguments: argparse.Namespace) -> subprocess.Popen:
    """Starts a process that waits for lines to search at."""
    flags = [f"--{name}={getattr(arguments, name)}" for name in ("bank", "queries", "width")]
    command = [sys.executable, __file__, f"--here={method}", f"--k={k}", *flags]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def share(rows: list[list[int]], others: list[list[int]]) -> float:
    """Share of the neighbours that both have."""
    pairs = zip(rows, others, strict=True)
    return statistics.mean(len(set(row) & set(other)) / len(row) for row, other in pairs)


def to_table(results: list[dict], arguments: argparse.Namespace) -> Table:
    """One row a method and k."""
    sizes = f"{arguments.bank} x {arguments.queries} x {arguments.width}"
    table = Table(*COLUMNS, title=f"{sizes} float32, medians of {arguments.repeats}")
    for result in results:
        table.add_row(*(format(result[name], form) for name, form in COLUMNS.values()))
    return table


def machine() -> dict:
    """What the figures were measured on."""
    packages = ("jax", "scikit-learn", "faiss-cpu", "numpy")
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def processor() -> str:
    """Its name if the system has it, as Linux does."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.machine()


if __name__ == "__main__":
    main()
