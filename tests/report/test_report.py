"""The report of a run shows all there is and names what is missing."""

import html
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from gsg_jax.jobs import report as jobs_report
from gsg_jax.report import pictures
from gsg_jax.run.starts import read_starts
from tests.runs import config, done, tiny, write_images

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images; the name of one class would be markup."""
    folder = write_images(tmp_path_factory.mktemp("images"))
    for split in ("train", "test"):
        (folder / split / "uneven").rename(folder / split / EVIL)
    return folder


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """(folder, last line, standard error) of a run that has written a report."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, *done(*tiny("simsiam_gsg", images, folder, "--config.run.report=true"))


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run, for a test to damage."""
    return shutil.copytree(run[0], tmp_path / "run")


@pytest.fixture
def trained(monkeypatch):
    """Stands in for a training that is complete: only its report is still made."""
    last = {"step": 10, "num_steps": 10}
    monkeypatch.setattr("gsg_jax.jobs.pretrain.pretrain", lambda config, workdir: last)


def write_photos(folder, num):
    """Writes images without labels."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for n in range(num):
        Image.fromarray(rng.integers(0, 255, (14, 14, 3)).astype(np.uint8)).save(
            folder / f"{n}.png"
        )
    return folder


def report(folder, *flags):
    """Runs the report job: the last line, and the page."""
    last, err = done(config("report"), f"--config.pretrained={folder}", *flags)
    assert "Traceback" not in err
    return last, (folder / "report.html").read_text()


def test_a_pretraining_ends_with_a_report_that_has_every_section_and_the_runs_accuracy(run):
    folder, last, err = run
    page = (folder / "report.html").read_text()
    assert err.index("writing the report\n") < err.index(f"the report is in {folder}/report.html\n")
    assert err.endswith(f"evaluate  gsg-jax evaluate_all --config.pretrained={folder}\n")
    assert last["job"] == "pretrain"
    for section in ("curves", "map", "neighbours", "views", "spectrum", "classes", "settings"):
        assert f'<section id="{section}"' in page and page.count(f'href="#{section}"') == 1
    assert 'class="missing"' not in page
    assert page.count("<svg") >= 6
    shown = page.split("are classified correctly")[0].rsplit("; ", 1)[1].strip()
    assert shown == f"{100 * last['knn_top1']:.2f} %"


def test_the_first_screen_has_the_verdict_the_command_and_how_to_load_the_run(run):
    folder, last, _ = run
    page = html.unescape((folder / "report.html").read_text())
    verdict = page.split('class="verdict"')[1].split("</p>")[0]
    assert f"k-NN {100 * last['knn_top1']:.1f} % ±" in verdict and "raw pixels" in verdict
    assert "8 images that were classified" in verdict
    (start,) = read_starts(folder)
    shown = page.replace("<span>", "").replace("</span>", "")
    assert f"<code>{start['command']} </code>" in shown and start["machine"] in page
    load = page.split('aria-labelledby="load"><code>')[1].split("</code>")[0]
    assert load.count("\n") == 2 and f"gsg_jax.load({str(folder)!r})" in load
    assert page.index('class="verdict"') < page.index('class="cards"') < page.index("<nav")


def test_what_is_missing_stands_where_it_would_be(copy):
    (copy / "baselines.json").unlink()
    (copy / "evaluation.json").write_text("{")
    _, page = report(copy, "--config.data.dir=/nowhere")
    for section, said in (
        ("curves", "baselines.json is missing"),
        ("map", "/nowhere"),
        ("evaluations", "evaluation.json is damaged"),
    ):
        part = page.split(f'<section id="{section}"')[1].split("</section>")[0]
        assert said in part.partition('class="missing">')[2]
        assert page.count(f'href="#{section}"') == 1
    assert page.count('class="missing"') == 3


def test_evaluations_are_shares_with_their_intervals(copy):
    figures = {"linear_top1": 0.83, "linear_top1_interval": [0.81, 0.855], "linear_l2": 0.001}
    record = {"figures": {"probe": figures, "knn": {"knn_top1": 0.5}}, "about": {"step": 10}}
    (copy / "evaluation.json").write_text(json.dumps(record))
    _, page = report(copy, "--config.data.dir=/nowhere")
    rows = page.split('<section id="evaluations"')[1].split("<tbody>")[1].split("</tbody>")[0]
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in rows.strip().split("\n")]
    assert cells == [["linear_top1", "83.00", "81.00 to 85.50"], ["knn_top1", "50.00", ""]]


def test_a_page_asks_no_other_machine_for_anything_and_names_are_no_markup(run):
    page = (run[0] / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    assert "default-src 'none'" in page
    assert EVIL not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "\\u003cimg src=x" in page


def _shows(page, part):
    """Whether a page has a part, and not only its title and the reason why it is missing."""
    _, found, rest = page.partition(f'<section id="{part}"')
    content = rest.partition("</h2>")[2].partition("</section>")[0]
    return bool(found) and bool(
        re.sub(r'<p class="missing">.*?</p>', "", content, flags=re.S).strip()
    )


def test_a_report_that_cannot_be_written_does_not_lose_the_run(copy, images, trained):
    (copy / "report.html").unlink()
    (copy / "report.html" / "in the way").mkdir(parents=True)
    last, err = done(*tiny("simsiam_gsg", images, copy, "--config.run.report=true"))
    assert last["step"] == 10
    assert "warning: the run is done, but not its report" in err
    shutil.rmtree(copy / "report.html")
    _, err = done(*tiny("simsiam_gsg", images, copy, "--config.run.report=false"))
    assert "writing" not in err and not (copy / "report.html").exists()


def test_images_without_labels_are_coloured_by_cluster(copy, tmp_path):
    last, page = report(copy, f"--config.data.dir={write_photos(tmp_path / 'photos', 30)}")
    assert last["num_images"] == 30
    assert any("no labels" in sentence for sentence in last["missing"])
    assert "cluster 1" in page and _shows(page, "neighbours") and not _shows(page, "classes")
    assert "no labels" in page


@pytest.mark.extended
def test_a_name_that_is_no_text_is_shown_with_a_sign_in_its_place(copy, tmp_path):
    photos = write_photos(tmp_path / "photos", 6)
    (photos / "0.png").rename(os.fsdecode(os.fsencode(photos) + b"/caf\xe9.png"))
    last, page = report(copy, f"--config.data.dir={photos}")
    assert last["num_images"] == 6
    assert "photos/caf?.png" in page


@pytest.mark.parametrize(
    ("module", "name"), [(jobs_report, "embed_source"), (pictures, "augmentation_sheet")]
)
def test_sigterm_during_the_report_stops_it_and_the_run_is_done(
    module, name, copy, images, trained, monkeypatch
):
    original = getattr(module, name)

    def signalled(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    monkeypatch.setattr(module, name, signalled)
    (copy / "report.html").unlink()
    before = signal.getsignal(signal.SIGTERM)
    last, err = done(*tiny("simsiam_gsg", images, copy, "--config.run.report=true"))
    assert last["step"] == 10
    assert "stopped before the report was written" in err
    assert not (copy / "report.html").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_damaged_images_do_not_keep_a_report_from_being_written(copy, tmp_path, monkeypatch):
    for limit in ("FULL_CHECK_LIMIT", "SMALL_PIXELS"):  # found only when decoded
        monkeypatch.setattr(f"gsg_jax.data.folder.{limit}", 0)
    photos = write_photos(tmp_path / "photos", 30)
    for path in sorted(photos.iterdir())[::29]:  # the first and the last
        content = bytearray(path.read_bytes())
        content[60:80] = bytes(20)
        path.write_bytes(content)
        with pytest.raises(OSError):
            Image.open(path).load()
    last, page = report(copy, f"--config.data.dir={photos}")
    assert last["num_images"] == 30 and _shows(page, "views") and _shows(page, "neighbours")


def test_one_image_has_its_views_and_no_map(copy, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (14, 14), "red").save(tmp_path / "photos" / "only.png")
    last, page = report(copy, f"--config.data.dir={tmp_path / 'photos'}")
    assert last["num_images"] == 1
    assert _shows(page, "views") and not _shows(page, "map") and not _shows(page, "neighbours")
    text = " ".join(last["missing"])
    assert "There are 1 images; a map" in text and "it has no neighbours" in text


def test_a_run_whose_figures_are_no_numbers_has_a_report_that_says_so(copy):
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        line["loss"] = float("nan")
    lines[-1]["embedding_rank"] = float("inf")
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    last, page = report(copy)
    where = f"at {len(lines) - 1} of the {len(lines)} logged steps"
    assert f"loss is not a finite number {where}" in page
    assert "not a number" in page
    assert "NaN" not in page.split("<script>")[0]
    assert len(last["missing"]) == 2


@pytest.mark.parametrize(
    ("gone", "said", "without"),
    [
        ("checkpoints", "holds no checkpoint", "map"),
        ("metrics.jsonl", "metrics.jsonl is missing", "loss"),
        ("config.json", "config.json is missing", "map"),
    ],
)
def test_an_old_workdir_with_missing_files_has_a_report_that_names_them(copy, gone, said, without):
    path = copy / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    last, page = report(copy)
    assert any(said in sentence for sentence in last["missing"]), last["missing"]
    assert _shows(page, "map") == (without != "map")
    assert ("<figcaption>Loss <span" in page) == (without != "loss")
    assert 'class="missing"' in page


def test_max_images_limits_the_map_evenly(copy, images):
    last, page = report(copy, "--config.report.max_images=5")
    assert last["num_images"] == 5
    data = json.loads(page.split('id="map-data">')[1].split("</script>")[0])
    paths = sorted((images / "test").rglob("*.png"))
    chosen = [paths[n] for n in np.linspace(0, 7, 5).round().astype(int)]
    assert data["names"] == ["/".join(path.parts[-2:]) for path in chosen]


@pytest.mark.parametrize(
    ("value", "said", "has_map"),
    [(1.0, "the run has collapsed.", True), (np.nan, "hold NaN or infinity", False)],
)
def test_collapsed_and_diverged_embeddings_have_a_report_that_says_so(
    copy, monkeypatch, value, said, has_map
):
    monkeypatch.setattr(
        "gsg_jax.jobs.report.embed_source",
        lambda embed, source, **_: np.full((len(source), 6), value, np.float32),
    )
    last, page = report(copy)
    assert said in " ".join(last["missing"])
    assert _shows(page, "curves") and not _shows(page, "spectrum")
    assert _shows(page, "map") == has_map
