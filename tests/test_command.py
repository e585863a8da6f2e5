"""The command `gsg-jax`: what its first word means, and one clear line for what was meant."""

import argparse
import importlib
import logging
import re
import subprocess
import sys

import jax
import pytest
from absl import logging as absl_logging

import gsg_jax
from gsg_jax import __main__ as command
from gsg_jax import main
from gsg_jax.config.command_line import parse_flags
from gsg_jax.config.find import CONFIG_FOLDER, config_names
from gsg_jax.config.load import flat, load_config
from tests.runs import ROOT, call


def run(capsys, *words: str) -> tuple[int, str, str]:
    """Runs gsg-jax in this process: exit status, standard output, standard error."""
    status = command.main(["gsg-jax", *words])
    return (status, *capsys.readouterr())


def test_the_version_is_one_number_beside_that_of_jax(capsys):
    status, out, _ = run(capsys, "--version")
    assert (status, out) == (0, f"gsg_jax {gsg_jax.__version__}, jax {jax.__version__}\n")
    files = [ROOT / "pyproject.toml", ROOT / "mkdocs.yml", *(ROOT / "docs").glob("*.md")]
    files += [path for path in (ROOT / "gsg_jax").rglob("*.*") if path.suffix in (".py", ".html")]
    repeated = [path for path in files if gsg_jax.__version__ in path.read_text()]
    assert repeated == [ROOT / "gsg_jax" / "__init__.py"]


def test_without_a_word_or_with_help_it_says_what_there_is(capsys):
    status, out, err = run(capsys)
    assert (status, out) == (2, "") and "gsg-jax CONFIG[:RECIPE]" in err
    status, out, _ = run(capsys, "--help")
    words = ("gsg-jax CONFIG", "Examples:", "--workdir=", "--print_config", *command.COMMANDS)
    assert status == 0 and all(word in out for word in (*words, *config_names()))
    status, out, _ = call("--help")  # of the other entry
    assert status == 0 and "--config.GROUP.KEY=VALUE" in out


def test_no_command_has_the_name_of_a_config():
    assert not set(command.COMMANDS) & set(config_names())


@pytest.mark.parametrize("name", command.COMMANDS)
def test_a_command_gets_its_flags_and_shows_its_name(capsys, monkeypatch, name):
    module = importlib.import_module(command.COMMANDS[name])
    monkeypatch.setattr(module, "main", lambda flags: flags)
    assert command.main(["gsg-jax", name, "x", "--y"]) == ["x", "--y"]
    monkeypatch.undo()
    monkeypatch.setattr(argparse.ArgumentParser, "exit", lambda *_: (_ for _ in ()).throw(EOFError))
    with pytest.raises(EOFError):
        command.main(["gsg-jax", name, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: gsg-jax {name} ")


def test_a_bare_name_is_a_packaged_config_unless_there_is_such_a_file(tmp_path, monkeypatch):
    assert CONFIG_FOLDER == ROOT / "configs"
    monkeypatch.chdir(tmp_path)
    named, by_path = load_config("byol:cifar10"), load_config(f"{ROOT}/configs/byol.py:cifar10")
    assert flat(named) == flat(by_path)
    (tmp_path / "byol.py").write_text("def get_config():\n    return 1\n")
    assert flat(load_config("byol:cifar10")) == flat(by_path)
    with pytest.raises(main.UsageError, match=r"byol\.py: get_config\(\) must return"):
        load_config("byol.py")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simsiam_gg"], "--config=simsiam_gg: there is no such file or config; did you mean sims"),
        (["configs/knn.p"], "did you mean"),
        (["serach", "w"], "serach: there is no such command; did you mean gsg-jax search?"),
        (["no/such/place.py"], "give a file or one of barlow_twins, byol"),
        (["simsiam_gsg", "--run.num_epochs=2"], "did you mean --config.run.num_epochs=2?"),
        (["simsiam_gsg", "--num_epochs=2"], "did you mean --config.run.num_epochs=2?"),
        (["simsiam_gsg", "--batch_size", "2"], "--config.data.batch_size or --config.eval.batch_s"),
        (["--workdir=w", "simsiam_gsg:folder"], "did you mean --config=simsiam_gsg:folder?"),
        (["simsiam_gsg", "FOLDER"], "did you mean --workdir=FOLDER for a run, or for images --co"),
        (["simsiam_gsg", "train"], "'train' is not a flag: write --config=NAME"),
    ],
)
def test_what_was_meant_is_named_in_one_line(capsys, tmp_path, words, said):
    words = [word.replace("FOLDER", str(tmp_path)) for word in words]
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert said.replace("FOLDER", str(tmp_path)) in err


def test_the_other_entry_asks_for_the_flag_that_a_path_needs():
    path = str(ROOT / "configs/byol.py")
    for argv in ([path], [f"--config={path}", path]):
        status, out, err = call(*argv)
        assert (status, out) == (2, "") and f"did you mean --config={path}?" in err


def test_the_config_is_printed_as_it_would_be_used(capsys):
    words = ("byol:cifar10", "--config.optim.learning_rate=0.125", "--print_config")
    status, out, _ = run(capsys, *words)
    keys = dict(re.match(r"(\S+) += (.*?) *(?:# .*)?$", line).groups() for line in out.splitlines())
    config = parse_flags(["gsg-jax", "--config=byol:cifar10"]).config
    assert status == 0 and keys.keys() == flat(config).keys()
    assert (keys["optim.learning_rate"], keys["recipe"]) == ("0.125", "'cifar10'")
    assert keys["method.target"] == "'ema'"  # not "auto"
    assert all("# " in line for line in out.splitlines() if line[0] not in "jr" or "run." in line)
    status, out, err = run(capsys, "byol", "--config.optim.momentum=3", "--print_config")
    assert (status, out) == (2, "") and "--config.optim.momentum=3" in err
    status, out, _ = run(capsys, "knn", "--print_config")
    assert status == 0 and "eval.knn_k" in out


def test_a_program_ends_at_once_with_the_status_of_what_failed(monkeypatch):
    ends = []
    monkeypatch.setattr(main.os, "_exit", ends.append)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = absl_logging.get_verbosity(), logging.getLogger("asyncio").level
    try:
        for status in (0, 1, 2):
            main.run_process(lambda argv, status=status: status)
        main.run_process(lambda argv: [][0])
    finally:
        absl_logging.set_verbosity(before[0])
        logging.getLogger("asyncio").setLevel(before[1])
    assert ends == [1, 2, main.CRASHED]  # a crash, which the launch scripts start again


@pytest.mark.extended
@pytest.mark.parametrize(
    "entry",
    [
        ["-m", "gsg_jax.main", "--config=simsiam_gg"],
        ["-m", "gsg_jax", "simsiam_gg"],
        ["-c", "from gsg_jax.__main__ import start; start()", "simsiam_gg"],
    ],
)
def test_every_entry_ends_with_the_same_line_and_status(entry):
    found = subprocess.run(
        [sys.executable, *entry], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (found.returncode, found.stdout) == (2, "") and found.stderr.count("\n") == 1
    assert found.stderr.startswith("error: --config=simsiam_gg: there is no such file or config")
