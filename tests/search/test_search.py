"""The search of a folder: a photograph finds itself first, and whatever is wrong is one line."""

import json
import os
import pickle
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import gsg_jax
from gsg_jax.config.command_line import parse_flags
from gsg_jax.config.load import resolve
from gsg_jax.config.recipes import pretraining
from gsg_jax.console import UserError
from gsg_jax.data.open import open_source
from gsg_jax.search import command as search
from gsg_jax.search.contact_sheet import COLUMNS, TILE
from tests.runs import done, figures, hashes, job, tiny
from tests.search.test_contact_sheet import middle, read
from tests.small import save_untrained


def save(path, seed, size=None, **options):
    """A picture of some blotches, of a size and form of its own."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    blotches = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    size = size or tuple(int(side) for side in rng.integers(20, 60, 2))
    Image.fromarray(blotches).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of many sizes, some turned, in folders and beside them."""
    folder = tmp_path_factory.mktemp("photos")
    turned = Image.Exif()
    turned[0x0112] = 6
    for n in range(24):
        options = {"exif": turned} if n % 3 == 0 else {}
        save(folder / f"trip {n % 2}" / f"{n:02}.jpg", n, quality=95, **options)
    return folder


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    """Workdirs of a run on them, and of one on the embedded images before its first step."""
    made = {name: tmp_path_factory.mktemp("runs") / name for name in ("colour", "gray")}
    brief = (
        *("--config.run.num_steps=2", "--config.run.checkpoint_every_steps=1"),
        "--config.eval.knn_every_epochs=0",
    )
    host = ("--config.data.crop=host", "--config.data.num_threads=1")
    done(*tiny("simsiam", photos, made["colour"], *brief, *host, "--config.views.mean=(0.5,)"))

    embedded = ("--config.data.name=embedded", "--config.data.dir=", "--config.views.size=28")
    command = parse_flags(["gsg_jax", *tiny("simsiam", photos, made["gray"], *embedded)])
    save_untrained(made["gray"], resolve(command.config), 1)
    return made


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the run on photographs."""
    return shutil.copytree(runs["colour"], tmp_path / "run")


def searched(capsys, *flags):
    """Exit status, the last line, and what people read."""
    status = search.main([str(flag) for flag in flags])
    told = capsys.readouterr()
    return status, figures(told.out) if told.out else None, told.err


def found(capsys, *flags):
    status, last, err = searched(capsys, *flags)
    assert status == 0, err
    return last


def test_every_photograph_finds_itself_first(run, photos, capsys):
    paths = sorted(photos.rglob("*.jpg"))
    before = hashes(photos), hashes(run)
    last = found(capsys, run, *(f"--image={path}" for path in paths), "--k=3")
    assert (last["job"], last["mode"], last["step"]) == ("search", "image", 2)
    assert (last["num_images"], last["num_embedded"], last["num_left_out"]) == (24, 24, 0)
    for n, path in enumerate(paths):
        first, *others = last["neighbours"][3 * n : 3 * n + 3]
        assert first["query"] == first["path"] == str(path) and first["rank"] == 1
        assert first["similarity"] == pytest.approx(1, abs=1e-5)
        assert all(other["similarity"] <= first["similarity"] for other in others)
    assert hashes(photos) == before[0]
    after = hashes(run)
    again = found(capsys, run, f"--image={paths[0]}", "--k=4")
    assert (again["num_embedded"], again["sheet"]) == (
        0,
        str(run / "search" / f"{paths[0].stem}.png"),
    )
    assert middle(read(again["sheet"]), 0) == middle(
        read(again["sheet"]), 1
    )  # the query, and what it found
    with Image.open(again["sheet"]) as sheet:
        assert sheet.size == (COLUMNS * TILE, TILE)
    assert before[1].items() <= after.items()
    assert all(name.startswith("search/") for name in after.keys() - before[1].keys())


def test_another_folder_has_an_index_of_its_own_which_grows_with_it(run, photos, tmp_path, capsys):
    others = shutil.copytree(photos / "trip 0", tmp_path / "others")
    (others / "again.jpg").write_bytes((others / "02.jpg").read_bytes())
    (others / "broken.jpg").write_bytes(b"no image")
    flags = (run, "--duplicates", "--threshold=0.999999", f"--folder={others}")
    last = found(capsys, *flags)
    assert (last["num_images"], last["num_left_out"], last["num_copies"]) == (13, 1, 1)
    copies = {i["path"]: i["copy_of"] for group in last["groups"] for i in group["images"]}
    assert copies[str(others / "again.jpg")] == str(others / "02.jpg")
    assert copies[str(others / "02.jpg")] is None
    save(others / "new.jpg", 99)
    assert found(capsys, *flags)["num_embedded"] == 1
    assert found(capsys, run, "--outliers")["num_images"] == 24
    assert len(list((run / "search").glob("*.npz"))) == 2


def test_a_newer_checkpoint_makes_the_index_anew(run, capsys, tmp_path):
    newest = run / "checkpoints" / "2"
    newest.rename(tmp_path / "2")
    assert found(capsys, run, "--outliers")["step"] == 1
    (tmp_path / "2").rename(newest)
    status, last, err = searched(capsys, run, "--outliers")
    assert "is of another checkpoint (step 1 there, 2 here): it is rebuilt" in err
    assert (status, last["step"], last["num_embedded"]) == (0, 2, 24)


def test_a_grayscale_run_takes_photographs_without_their_colours(runs, photos, tmp_path, capsys):
    run = shutil.copytree(runs["gray"], tmp_path / "run")
    query = photos / "trip 1" / "07.jpg"
    gray = tmp_path / "gray.png"
    with Image.open(query) as image:
        image.convert("L").save(gray)
    status, last, err = searched(
        capsys, run, f"--image={query}", f"--image={gray}", f"--folder={photos}", "--k=2"
    )
    assert status == 0 and "photographs lose their colours" in err
    assert [n["path"] for n in last["neighbours"] if n["rank"] == 1] == [str(query)] * 2
    assert last["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-5)


def test_images_that_are_no_files_are_numbers(runs, photos, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(runs["gray"], tmp_path / "run")
    listed = search.list_training_images

    def first_hundred(data, **options):
        images = listed(data, **options)
        return images._replace(id=images.id[:100], stamp=images.stamp[:100])

    monkeypatch.setattr(search, "list_training_images", first_hundred)
    last = found(capsys, run, "--outliers", "--k=2", "--show=5")
    assert sorted(last["outliers"][0]) == ["number", "rank", "similarity"]
    source = open_source(pretraining("default").data, "train")
    for place, outlier in enumerate(last["outliers"]):
        centre = source.image(outlier["number"])[14, 14, 0]
        assert middle(read(last["sheet"]), place) == (centre, centre, centre)
    query = photos / "trip 0" / "02.jpg"
    last = found(capsys, run, f"--image={query}")
    assert len({n["number"] for n in last["neighbours"]} & set(range(100))) == 10


@pytest.mark.parametrize(
    ("is_terminal", "flags", "is_printed"),
    [(False, [], True), (True, [], False), (True, ["--json"], True)],
)
def test_the_last_line_is_for_programs(is_terminal, flags, is_printed, capsys, monkeypatch):
    monkeypatch.setattr(search, "search", lambda _: {"job": "search"})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    assert search.main(["run", "--outliers", *flags]) == 0
    assert capsys.readouterr().out == '{"job": "search"}\n' * is_printed


PHOTO = "--image={photos}/trip 0/02.jpg"


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["{tmp}"], 2, "no mode given: give one of --image=FILE, --duplicates and --outliers"),
        (["{run}", "--duplicates", "--outliers"], 2, "--duplicates and --outliers given"),
        ([PHOTO], 2, "DIR"),
        (["{run}", "--imag=a.jpg"], 2, "unrecognized arguments: --imag=a.jpg"),
        (["{run}", "--image="], 2, "--image is empty"),
        (["{run}", "--image=~nobody-of-that-name/a.jpg"], 2, "Give its whole path"),
        (["{run}", PHOTO, "--k=0"], 2, "--k=0: must be a number from 1 to 1,000"),
        (["{run}", PHOTO, "--threshold=0.9"], 2, "is of --duplicates, not of --image"),
        (["{run}", "--duplicates", "--threshold=nan"], 2, "--threshold=nan: must be"),
        (["{run}", "--outliers", "--show=0"], 2, "--show=0: must be a number from 1 to 240"),
        (["{run}", PHOTO, "--sheet=sheet.gif"], 2, "must end in one of .png, .jpg, .jpeg, .webp"),
        (["{run}", PHOTO, "--sheet={tmp}/no/sheet.png"], 1, "there is no folder {tmp}/no"),
        (["{run}", PHOTO, "--sheet={photos}/s.png"], 1, "would become one of them"),
        (["{run}", "--outliers", "--folder={tmp}", "--sheet={photos}/s.png"], 1, "holds no image"),
        (["{tmp}", PHOTO], 1, "holds no run (no config.json): give the --workdir of one"),
        (["{run}", "--image={tmp}/lost.jpg"], 1, "there is no file {tmp}/lost.jpg: check the path"),
        (["{run}", "--image={pipe}"], 1, "cannot decode {pipe} (not a file)"),
        (["{run}", "--image={run}/config.json"], 1, "cannot decode {run}/config.json"),
        (["{run}", PHOTO, "--folder={tmp}/lost"], 1, "there is no folder {tmp}/lost"),
        (["{run}", PHOTO, "--folder={run}/config.json"], 1, "there is no folder {run}/config.json"),
        (["{run}", PHOTO, "--folder="], 2, "--folder is empty"),
    ],
)
def test_wrong_input_gets_one_line_and_nothing_is_written(
    runs, photos, tmp_path, tmp_path_factory, capsys, flags, status, said
):
    pipe = tmp_path_factory.mktemp("pipes") / "pipe.jpg"
    os.mkfifo(pipe)
    given = {"run": runs["colour"], "photos": photos, "tmp": tmp_path, "pipe": pipe}
    before = hashes(runs["colour"]), hashes(photos)
    found_status, last, err = searched(capsys, *(flag.format(**given) for flag in flags))
    assert (found_status, last) == (status, None)
    assert said.format(**given) in err and err.count("\n") == 1 and err.startswith("error: ")
    assert (hashes(runs["colour"]), hashes(photos)) == before and not list(tmp_path.iterdir())


def test_too_little_memory_for_a_photograph_names_it(runs, photos, monkeypatch, capsys):
    def refuse(*_, **__):
        raise MemoryError

    monkeypatch.setattr("gsg_jax.data.decode.image_pixels", refuse)
    query = photos / "trip 0" / "02.jpg"
    status, _, err = searched(capsys, runs["colour"], f"--image={query}")
    said = f"not enough memory for {query}: make it smaller"
    assert status == 1 and err.startswith(f"error: {said}") and err.count("\n") == 1
    with pytest.raises(UserError, match=re.escape(said)):
        gsg_jax.load(runs["colour"]).embed([query])


def test_a_run_without_checkpoint_and_one_without_its_images_are_told(run, tmp_path, capsys):
    record = json.loads((run / "config.json").read_text())
    record["data"]["dir"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(record))
    status, _, err = searched(capsys, run, "--outliers")
    assert status == 1 and err.count("\n") == 1
    assert str(tmp_path / "gone") in err and "or give --folder=PHOTOS" in err
    shutil.rmtree(run / "checkpoints")
    status, _, err = searched(capsys, run, "--outliers")
    assert status == 1 and "holds no checkpoint yet" in err and err.count("\n") == 1


def test_a_workdir_among_its_photographs_is_not_given_a_picture(run, photos, tmp_path, capsys):
    folder = shutil.copytree(photos, tmp_path / "mine")
    inner = shutil.copytree(run, folder / "run")
    status, _, err = searched(capsys, inner, "--outliers", f"--folder={folder}")
    assert status == 1 and "would become one of them: give --sheet=FILE elsewhere" in err
    sheet = tmp_path / "sheet.png"
    last = found(capsys, inner, "--outliers", f"--folder={folder}", f"--sheet={sheet}")
    assert last["num_images"] == 24 and sheet.exists()


def test_a_folder_that_cannot_be_written_is_one_line(run, capsys, monkeypatch):
    (run / "search").touch()  # which is told before anything is embedded
    monkeypatch.setattr(search, "open_encoder", None)
    status, last, err = searched(capsys, run, "--outliers")
    assert (status, last) == (1, None) and f"{run / 'search'} cannot be written" in err


class Planted:
    """Writes a file where it is unpickled."""

    def __init__(self, mark):
        self._mark = str(mark)

    def __reduce__(self):
        return open, (self._mark, "w")


@pytest.mark.extended
def test_nothing_that_lies_in_a_foreign_run_is_executed(run, photos, tmp_path, capsys):
    mark, image = tmp_path / "ran", photos / "trip 0" / "00.jpg"
    last = found(capsys, run, f"--image={image}")
    code = f"open({str(mark)!r}, 'w')"
    for name in ("sitecustomize.py", "conftest.py", "config.py", "own_parts.txt", "gsg_jax.py"):
        (run / name).write_text(code)
    caches = [run / "compilation_cache", run / "search" / "compilation_cache"]
    for folder in caches:
        folder.mkdir()
        (folder / "jit_planted-cache").write_bytes(pickle.dumps(Planted(mark)))
    before = [hashes(folder) for folder in caches]
    np.savez(last["index"], h=np.array([Planted(mark)], object))
    again = found(capsys, run, f"--image={image}")
    assert again["num_embedded"] == last["num_embedded"]
    assert again["neighbours"] == last["neighbours"]
    assert gsg_jax.load(run).embed([image]).shape[0] == 1
    done(*job("knn", f"--config.pretrained={run}", "--config.eval.knn_k=(1,)"))
    assert not mark.exists() and [hashes(folder) for folder in caches] == before
    pickle.loads(pickle.dumps(Planted(mark))).close()
    assert mark.exists()  # as it would have
