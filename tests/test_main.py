"""The command line: its contract, and one clear line for whatever is wrong."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from gsg_jax import jobs
from gsg_jax.config.command_line import parse_flags
from tests.runs import call, config, figures, hashes, tiny


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A finished run: its flags, workdir, and what it printed."""
    workdir = tmp_path_factory.mktemp("run") / "made"
    measured = ("--config.eval.knn_pixels=true", "--config.eval.few_label=true")
    flags = tiny("simsiam_gsg", images, workdir, *measured)
    return flags, workdir, call(*flags)


def test_a_run_prints_one_object_of_figures_and_the_rest_goes_to_standard_error(finished):
    _, workdir, (status, out, err) = finished
    assert status == 0 and out.count("\n") == 1
    names = "job method step num_steps loss views_per_second train_seconds state_digest".split()
    names += [f"knn_top1{who}" for who in ("", "_untrained", "_pixels")] + ["knn_k"]
    few = [f"few_label_{k}{who}" for k in (1, 5, 10) for who in ("", "_untrained", "_pixels")]
    assert set(json.loads(out)) == {*names, *few, *(f"{name}_error" for name in few)}
    last = figures(out)
    assert (last["job"], last["method"], last["step"]) == ("pretrain", "simsiam_gsg", 10)
    assert last["num_steps"] == 10
    assert -1 <= last["loss"] <= 1 and last["views_per_second"] > 0 and last["train_seconds"] > 0
    assert all(0 <= last[name] <= 1 for name in last if name.startswith(("knn_top1", "few_label_")))
    assert last["knn_top1_pixels"] == 1 and last["few_label_1_pixels"] > 0.9
    assert re.fullmatch("[0-9a-f]{64}", last["state_digest"])
    begin = "pretraining simsiam_gsg, recipe default, on folder: 40 images in 2 classes, 8 to test"
    assert err.startswith(f"{begin}; workdir {workdir}\n")
    assert "step 10/10" in err and f"to beat: untrained {last['knn_top1_untrained']:.4f}" in err
    row = f"{100 * last['few_label_5']:.1f} ± {100 * last['few_label_5_error']:.1f}"
    assert re.search(f"^5 labelled a class +{re.escape(row)} ", err, re.MULTILINE)


def test_a_workdir_holds_record_metrics_events_and_checkpoints(finished):
    _, workdir, (_, out, _) = finished
    assert json.loads((workdir / "config.json").read_text())["method"]["target"] == "online"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4, 5, 6, 8, 9, 10]
    assert all({"step", "epoch", "loss", "learning_rate", "grad_norm"} <= set(x) for x in lines)
    assert [x["step"] for x in lines if "knn_top1" in x] == [4, 8, 10]
    assert [x["step"] for x in lines if "projection_std" in x] == [3, 6, 9]
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert lines[-1]["loss"] == figures(out)["loss"]
    assert [x["step"] for x in lines if "few_label_1" in x] == [10]
    for name in ("knn_top1", "few_label_5", "few_label_5_error"):
        assert lines[-1][name] == figures(out)[name]
    baselines = json.loads((workdir / "baselines.json").read_text())
    assert baselines.items() <= figures(out).items() and "few_label_1_untrained" in baselines
    assert lines[-1]["epoch"] == 5.0
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    assert (workdir / "checkpoints" / "10").is_dir()


def test_a_finished_run_prints_its_figures_again_and_does_nothing_else(finished, monkeypatch):
    flags, workdir, (_, out, _) = finished
    monkeypatch.setattr(jax, "jit", None)
    monkeypatch.setattr(jobs, "JOBS", {})
    before = hashes(workdir)
    status, again, err = call(*flags)
    assert (status, again) == (0, out)
    assert f"{workdir} holds this run, finished at step 10: nothing is left to train" in err
    assert err.endswith("to train longer, give --config.run.num_steps above 10\n")
    assert hashes(workdir) == before


def test_a_finished_run_that_lacks_a_file_is_completed(finished, tmp_path):
    flags, workdir, (_, out, _) = finished
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    (copy / "figures.json").unlink()
    status, again, err = call(*flags, f"--workdir={copy}")
    assert status == 0 and "resuming from the checkpoint of step 10" in err
    assert (copy / "figures.json").read_text() == again
    first, second = figures(out), figures(again)
    assert second.pop("train_seconds") == pytest.approx(first.pop("train_seconds"), rel=0.5)
    assert first == second
    assert not (copy / "report.html").exists()
    done = []
    job = {"pretrain": lambda config, workdir: done.append(workdir) or {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "JOBS", job)
        call(*flags, f"--workdir={copy}", "--config.run.report=true")
        call(*flags, f"--workdir={copy}")
        shutil.rmtree(copy / "checkpoints" / "10")
        call(*flags, f"--workdir={copy}")
    assert done == [copy, copy]  # for the report, and for the lost checkpoint


def test_figures_that_no_run_has_written_are_not_believed(finished, tmp_path, monkeypatch):
    flags, workdir, (_, out, _) = finished
    copy, done = shutil.copytree(workdir, tmp_path / "run"), []
    monkeypatch.setattr(jobs, "JOBS", {"pretrain": lambda *_: done.append(0) or {}})
    wrong = ("10", "a\0b", "../checkpoints/10", "x" * 300, True, None, [10], 11)
    for step in wrong:
        (copy / "figures.json").write_text(json.dumps(figures(out) | {"step": step}))
        assert call(*flags, f"--workdir={copy}")[0] == 0
    assert len(done) == len(wrong)


def test_the_k_nn_job_gives_the_last_figure_of_the_monitor(finished):
    _, workdir, (_, out, _) = finished
    before = hashes(workdir)
    knn = [config("knn"), f"--config.pretrained={workdir}", "--config.eval.batch_size=16"]
    status, again, err = call(*knn, "--config.eval.knn_k=(3,5)")
    last = figures(again)
    assert status == 0 and (last["job"], last["method"], last["step"]) == ("knn", "simsiam_gsg", 10)
    assert last["knn_top1"] == last["knn_top1_k3"] == figures(out)["knn_top1"]
    assert 0 <= last["knn_top1_k5"] <= 1 and "40 images vote" in err
    assert hashes(workdir) == before


def test_a_damaged_run_is_reported_and_left_as_it_is(finished, tmp_path):
    flags, workdir, _ = finished
    for name, damage, said in (
        ("config.json", b"{", "config.json is damaged"),
        ("metrics.jsonl", b"oops\n", "metrics.jsonl, line 1 is damaged"),
        ("throughput.jsonl", b"oops\n", "throughput.jsonl, line 1 is damaged"),
        ("baselines.json", b"", "baselines.json is damaged"),
    ):
        copy = tmp_path / name
        shutil.copytree(workdir, copy)
        (copy / name).write_bytes(damage)
        before = hashes(copy)
        status, out, err = call(*flags, f"--workdir={copy}")
        assert (status, out) == (1, "") and said in err.splitlines()[-1], err
        assert hashes(copy) == before


SIMSIAM_GSG = config("simsiam_gsg")
EMBEDDED = "'embedded'"

# Flags after the config, exit status, what the one line must hold. Every key: tests/config/.
WRONG_INPUT = [
    (["--config.views.crop_area=(0.5"], 2, ["views.crop_area", "(0.5"]),
    (["--config.method.name=simsam"], 2, ["name=simsam", "did you mean simsiam?", "byol_gsg"]),
    (["--config.data.batch_size=15"], 1, ["is 15", "8 devices", "batch_size=8 or 16"]),
    (["--config.data.batch_size=16000"], 1, ["16000", EMBEDDED, "at most 10000"]),
    (["--config.data.name=no_such_set"], 1, ["'no_such_set'", "gsg-jax prepare"]),
    (["--config.data.name=folder", "--config.data.dir=~nobody_of_this_name/x"], 2, ["~nobody_of"]),
    (["--workdir=~nobody_of_this_name/x"], 2, ["--workdir=~nobody_of_this_name/x"]),
    (["--flagfile=MISSING"], 2, ["MISSING"]),
    (["--config.data.name=folder"], 1, ["--config.data.dir=PATH"]),
    (["--config.data.name=folder", "--config.data.dir=EMPTY"], 1, ["EMPTY"]),
    (["--config.data.name=folder", "--config.data.dir=MISSING"], 1, ["MISSING"]),
    (["--config.data.name=folder", "--config.data.dir=FILE"], 1, ["FILE"]),
    (["--wrokdir=x"], 2, ["wrokdir", "workdir"]),
    ([SIMSIAM_GSG, SIMSIAM_GSG], 2, ["--config is given 2 times", "once"]),
    (["--workdir=FILE"], 1, ["--workdir=FILE cannot be written", "may write"]),
]


# Method, its keys, exit status, what the one line must hold.
UNDEFINED = [
    ("simclr", "method.num_views=4", 2, ["num_views is 4", "num_views=2"]),
    ("unigrad", "method.form=simclr", 2, ["method.target is ema", "method.target=online"]),
    ("unigrad", "method.stop_gradient=false", 2, ["stop_gradient is False", "leave it True"]),
    ("unigrad", "method.form=unigrd", 2, ["did you mean unigrad?", "take one of moco"]),
    ("unigrad", "method.form=moco method.target=online", 2, ["is online", "simclr_one_term"]),
    ("unigrad", "method.form=directpred method.balance=7", 2, ["balance is 7.0", "leave it 0"]),
    ("unigrad", "method.form=vicreg views.num_local=2", 2, ["vicreg", "num_local=0"]),
    (
        "unigrad",
        "method.form=barlow_twins views.cutmix_probability=1",
        2,
        ["form=barlow_twins", "cutmix_probability=0"],
    ),
    ("unigrad", "method.form=vicreg_l2 method.sources_by=guided", 2, ["sources_by=method"]),
    ("moco_v2", "method.queue_size=40000", 1, ["queue_size=40000", "at most 10000"]),
    ("moco_v2", "method.queue_size=8", 2, ["queue_size is 8", "queue_size=64 or more"]),
    ("dino", "method.target_temperature=0.2", 2, ["is 0.2", "below 0.1"]),
    ("dino", "method.first_target_temperature=0.1", 2, ["is 0.1", "below 0.1"]),
    ("dino", "model.num_prototypes=0", 2, ["num_prototypes is 0", "num_prototypes=1024"]),
    ("dino", "method.target=ema_positive", 2, ["target=ema_positive", "take simclr, moco_v2"]),
    ("simsiam", "method.target=ema_positive", 2, ["target=ema_positive", "method.target=ema,"]),
    ("simclr", "views.num_local=2", 2, ["num_local=2", "simclr", "num_local=0", "unigrad"]),
    ("vicreg", "views.cutmix_probability=1", 2, ["cutmix_probability=1.0", "take simsiam"]),
    ("vicreg", "method.sources_by=guided", 2, ["sources_by=guided", "take simsiam", "simdino"]),
    ("byol", "method.sources_by=guided method.num_views=3", 2, ["num_views=3", "2 views", "or 4"]),
    ("byol", "views.num_local=2 views.cutmix_probability=1", 2, ["1.0", "2", "one of them to 0"]),
    ("byol_gsg", "method.pairing=halves method.num_views=4", 2, ["method.num_views=2"]),
    ("byol_gsg", "method.pairing=opposites", 2, ["permutation, roll, halves, nearest"]),
    ("byol_gsg", "method.sources=selected", 2, ["roll", 'set --config.method.pairing="halves"']),
    ("byol", "method.sources=selected", 2, ["every view is a source", "sources=all, or take"]),
    (
        "simsiam_gsg",
        "method.sources=selected method.pairing=halves method.stop_gradient=false",
        2,
        ["leave it True"],
    ),
    ("simsiam", "views.cutmix_probability=1 method.stop_gradient=false", 2, ["leave it True"]),
    (
        "byol",
        "model.backbone=vit_micro model.patch_size=7 views.num_local=2 views.local_size=9",
        2,
        ["views.local_size=9", "local_size=7", "patch_size=3"],
    ),
]
WRONG_INPUT += [
    ([config(method), *(f"--config.{key}" for key in keys.split())], *rest)
    for method, keys, *rest in UNDEFINED
]


@pytest.mark.parametrize(("flags", "status", "said"), WRONG_INPUT, ids=lambda x: str(x)[-70:])
def test_wrong_input_gets_one_line_before_any_work_and_changes_no_file(
    tmp_path, monkeypatch, flags, status, said
):
    monkeypatch.setattr(jax, "jit", None)  # nothing is compiled
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").write_text("mine")
    before = hashes(tmp_path)
    places = re.compile("(EMPTY|MISSING|FILE)")
    flags = [places.sub(lambda place: str(tmp_path / place[0]), flag) for flag in flags]
    said = [places.sub(lambda place: str(tmp_path / place[0]), text) for text in said]
    method = [] if flags[0].startswith("--config=") else [SIMSIAM_GSG]
    result = call(*method, f"--workdir={tmp_path}/run", *flags)
    assert result[:2] == (status, "")
    assert result[2].startswith("error: ") and result[2].count("\n") == 1, result[2]
    for text in said:
        assert text in result[2]
    assert hashes(tmp_path) == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--config is missing"),
        (["--config="], "--config is missing"),
        ([config("knn")], "--config.pretrained is empty"),
    ],
)
def test_wrong_usage_before_a_run_gets_one_line(argv, said):
    status, out, err = call(*argv)
    assert (status, out) == (2, "") and said in err
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "key", "more"),
    [
        ("finetune", "pretrained", []),
        ("report", "pretrained", []),
        ("knn", "features", []),
        ("import_torch", "checkpoint", []),
        ("export", "pretrained", ["--config.output=a.pth"]),
    ],
)
def test_a_home_that_is_nobodys_is_named_in_one_line(tmp_path, name, key, more):
    flag = f"--config.{key}=~nosuchuser/x"
    for workdir in ([], [f"--workdir={tmp_path}/made"]):
        status, out, err = call(config(name), flag, *more, *workdir)
        assert (status, out) == (2, "") and err.startswith(f"error: {flag}") and "whole path" in err
        assert err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_k_nn_job_on_images_of_other_channels_does_not_blame_the_checkpoint(finished):
    _, workdir, _ = finished
    knn = [config("knn"), f"--config.pretrained={workdir}", "--config.data.name=embedded"]
    status, out, err = call(*knn)
    last = err.splitlines()[-1]
    assert (status, out) == (1, "") and "give images with as many channels" in last
    assert "remove it" not in last


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ZeroDivisionError(), None),  # a programmer's error is not hidden
        (jax.errors.JaxRuntimeError("INTERNAL: odd"), None),
        (OSError(28, "No space left on device", "/disk/x"), "/disk/x: No space left on device"),
        (OSError("odd"), "odd"),
        (KeyboardInterrupt(), "interrupted"),
        (MemoryError(), "lower --config.data.batch_size"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
            "lower --config.data.batch_size",
        ),
    ],
)
def test_what_the_system_refuses_and_ctrl_c_get_one_line(tmp_path, monkeypatch, raised, said):
    def job(*_):
        raise raised

    monkeypatch.setitem(jobs.JOBS, "pretrain", job)
    if said is None:
        with pytest.raises(type(raised)):
            call(SIMSIAM_GSG, f"--workdir={tmp_path}")
        return
    status, out, err = call(SIMSIAM_GSG, f"--workdir={tmp_path}")
    assert (status, out) == (1, "") and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module\n", "line 1: ModuleNotFoundError"),
        ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
        ("def get_config():\n    return None\n", "must return an ml_collections.ConfigDict"),
    ],
)
def test_a_config_file_that_fails_says_where(tmp_path, text, said):
    path = tmp_path / "mine.py"
    path.write_text(text)
    status, out, err = call(f"--config={path}")
    assert (status, out) == (2, "") and said in err and str(path) in err and err.count("\n") == 1


def test_flags_set_keys_of_every_type():
    flags = ["--config.model.width=4", "--workdir=~/x", "--config.optim.momentum", "1"]
    flags += ["--config.views.crop_area=(0.5,1)", "--config.data.name=cifar10"]
    flags += ["--noconfig.method.stop_gradient", "--config.optim.decay_weights_only"]
    parsed, workdir, *_ = parse_flags(["main", *flags[:2], "--config", SIMSIAM_GSG[9:], *flags[2:]])
    assert (parsed.model.width, parsed.optim.momentum) == (4, 1.0)
    assert (parsed.views.crop_area, parsed.data.name) == ((0.5, 1), "cifar10")
    assert parsed.method.stop_gradient is False and parsed.optim.decay_weights_only is True
    assert workdir.is_absolute() and "~" not in str(workdir)


def test_two_command_lines_do_not_mix_and_a_run_without_a_workdir_gets_one_of_its_name():
    parse_flags(["main", config("byol", "imagenet"), "--config.model.width=4"])
    again, workdir, *_ = parse_flags(["main", SIMSIAM_GSG, "--config.model.num_stages=2"])
    assert (again.model.width, again.model.num_stages) == (40, 2)
    assert workdir == pathlib.Path("runs/simsiam_gsg-default")
    _, workdir, *_ = parse_flags(["main", config("byol", "imagenet")])
    assert workdir == pathlib.Path("runs/byol-imagenet")
