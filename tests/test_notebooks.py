"""The notebook runs as it stands, in any folder, and shows what its text describes."""

import base64
import io
import json
import re

import pytest
from PIL import Image

from gsg_jax.run.files import read_lines
from tests.runs import ROOT, hashes

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytestmark = pytest.mark.extended

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
SMALL = {
    "run.num_steps": 6,
    "run.log_every_steps": 2,
    "model.width": 4,
    "model.num_stages": 1,
    "model.projector_hidden_width": 8,
    "model.projector_width": 8,
    "views.blur_probability": (0.0,),
    "views.solarize_probability": (0.0,),
}


def with_parameters(notebook, **values):
    """The notebook with a cell behind that of the parameters, as papermill adds it."""
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    text = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(tags.index(["parameters"]) + 1, nbformat.v4.new_code_cell(text))
    return notebook


def shown(notebook, kind):
    """The outputs of one kind of data, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output["data"][kind] for output in outputs if kind in output.get("data", ())]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The notebook after its run, and the folder of that run."""
    folder, home = tmp_path_factory.mktemp("ran"), tmp_path_factory.mktemp("home")
    notebook = with_parameters(
        nbformat.read(NOTEBOOK, as_version=4), CONFIGS=str(ROOT / "configs"), OVERRIDES=SMALL
    )
    before = hashes(ROOT / "notebooks")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
            patch.setenv(name, str(home))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(home / "runtime"))
        patch.setenv("PYTHONPATH", str(ROOT))
        client = nbclient.NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
        )
        client.execute()
    assert hashes(ROOT / "notebooks") == before
    return notebook, folder


def test_it_pretrains_in_the_folder_that_it_is_in_and_writes_nothing_else(ran):
    _, folder = ran
    assert [path.name for path in folder.iterdir()] == ["runs"]
    assert [path.name for path in (folder / "runs").iterdir()] == ["notebook"]
    lines = read_lines(folder / "runs/notebook/metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6]


def test_it_shows_images_views_and_neighbours(ran):
    pictures = [Image.open(io.BytesIO(base64.b64decode(png))) for png in shown(ran[0], "image/png")]
    sizes = [(picture.width // 56, picture.height // 56) for picture in pictures]
    assert sizes == [(12, 2), (12, 5), (10, 6), (10, 6)]
    images, views, *_ = [picture.convert("L") for picture in pictures]
    row = (0, 0, 12 * 56, 56)
    assert views.crop(row).tobytes() == images.crop(row).tobytes()  # a column begins with its image
    rows = {views.crop((0, 56 * n, 12 * 56, 56 * (n + 1))).tobytes() for n in range(5)}
    assert len(rows) == 5


def test_its_curves_hold_every_logged_point(ran):
    notebook, folder = ran
    lines = read_lines(folder / "runs/notebook/metrics.jsonl")
    (svg,) = shown(notebook, "image/svg+xml")
    polylines = re.findall('points="([^"]*)"', svg)
    names = ("loss", "knn_top1", "projection_std", "embedding_rank")
    logged = [sum(name in line for line in lines) for name in names]
    logged[1] += 1  # the untrained network's
    assert [len(points.split()) for points in polylines] == logged and min(logged) >= 2


def test_its_comparison_has_the_figures_of_the_run(ran):
    notebook, folder = ran
    *_, table = shown(notebook, "text/markdown")
    told = dict(re.findall(r"\| (\w+) \| ([0-9.]+) \|", table))
    baselines = json.loads((folder / "runs/notebook/baselines.json").read_text())
    last = read_lines(folder / "runs/notebook/metrics.jsonl")[-1]
    assert told == {
        "pretrained": f"{last['knn_top1']:.4f}",
        "untrained": f"{baselines['knn_top1_untrained']:.4f}",
        "pixels": f"{baselines['knn_top1_pixels']:.4f}",
    }


def test_it_is_committed_with_what_its_cells_showed_in_one_whole_run():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert len(shown(notebook, "image/png")) == 4 and len(shown(notebook, "image/svg+xml")) == 1
    said = json.dumps(notebook)
    assert not re.search(r"/(home|root|tmp|Users|work)/", said)
