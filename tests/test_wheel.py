"""The wheel works in an environment of its own, outside the clone."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

from tests.runs import ROOT, write_images

pytestmark = pytest.mark.extended

NOT_COPIED = (".git", ".venv*", "runs", "site", "build", "*.egg-info", "__pycache__")
SDIST = "from setuptools import build_meta as b; import sys; b.build_sdist(sys.argv[1])"


def run(*words: str | pathlib.Path, cwd: pathlib.Path) -> tuple[str, str]:
    """Runs a command that knows nothing of the clone: standard output, standard error."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=1"
    found = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True, timeout=900
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout, found.stderr


def pip_wheel(source: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Builds the wheel of a source tree or archive."""
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder)
    run(*pip, source, cwd=folder.parent)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the working tree, since building a wheel leaves files behind."""
    copy = tmp_path_factory.mktemp("source") / "clone"
    ignore = shutil.ignore_patterns(*NOT_COPIED)
    return shutil.copytree(ROOT, copy, symlinks=True, ignore=ignore)


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    """The wheel, built from the clone."""
    return pip_wheel(clone, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def place(wheel, tmp_path_factory):
    """A new environment with the wheel, beside an empty folder to work in.

    The wheel's dependencies are those of this environment, read through a .pth file.
    """
    place = tmp_path_factory.mktemp("place")
    run(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    site = next((place / "venv").glob("lib/python*/site-packages"))
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    pip = (sys.executable, "-m", "pip", "--python", place / "venv/bin/python", "install")
    run(*pip, "--quiet", "--no-deps", "--ignore-installed", wheel, cwd=place)
    return place


def test_wheel_and_source_archive_hold_every_file_of_the_package(clone, wheel, tmp_path):
    package = clone / "gsg_jax"
    wanted = {
        str(pathlib.Path(folder, name).relative_to(clone))
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
    }
    found = set(zipfile.ZipFile(wheel).namelist())
    assert wanted <= found and "gsg_jax/configs/simsiam_gsg.py" in wanted
    others = {name for name in found - wanted if ".dist-info/" not in name}
    assert not others
    licences = {name.rpartition("/")[2] for name in found if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "LICENSE.fashion-mnist"}
    run(sys.executable, "-c", SDIST, tmp_path, cwd=clone)
    again = pip_wheel(next(tmp_path.glob("*.tar.gz")), tmp_path / "wheel")
    assert set(zipfile.ZipFile(again).namelist()) == found


def test_an_installed_wheel_trains_evaluates_and_searches(place):
    python, command = place / "venv/bin/python", place / "venv/bin/gsg-jax"
    work = place / "work"
    write_images(work / "photos")
    where, _ = run(python, "-c", "import gsg_jax; print(gsg_jax.__file__)", cwd=work)
    assert pathlib.Path(where.strip()).is_relative_to(place / "venv")
    run(command, "simsiam_gsg", "--config.run.num_steps=20", "--workdir=w", cwd=work)
    assert json.loads((work / "w/figures.json").read_text())["step"] == 20
    assert (work / "w/report.html").exists()
    out, _ = run(command, "knn", "--config.pretrained=w", cwd=work)
    assert json.loads(out.splitlines()[-1])["job"] == "knn"
    out, _ = run(command, "search", "w", "--folder=photos", "--duplicates", cwd=work)
    assert json.loads(out.splitlines()[-1])["num_images"] == 48
    photo, *_, other = sorted((work / "photos").rglob("*.png"))
    Image.open(photo).save(work / "a.jpg")
    shutil.copy(other, work / "b.png")
    embed = "import gsg_jax; print(gsg_jax.load('w').embed(['a.jpg', 'b.png']).shape)"
    shape, _ = run(python, "-c", embed, cwd=work)
    assert shape == "(2, 160)\n"
