"""Runs of several hosts, each a process on this machine: what they compute is what one computes."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.runs import ROOT, call, config, figures, tiny, write_images

pytestmark = pytest.mark.slow

METHODS = ("simsiam_gsg", "byol_gsg", "moco_v2")  # the last has a memory
STEPS = ("--config.run.num_steps=20", "--config.run.log_every_steps=1")
# Rounding grows from step to step, by MoCo's own temperature and rate to 1e-4 of a loss of 5.
CALM = {"moco_v2": ("--config.optim.learning_rate=0.02", "--config.method.temperature=1.0")}
SECONDS = 400  # of a run on a loaded machine


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images."""
    return write_images(tmp_path_factory.mktemp("images"), 80, 16)


def environment(num_devices):
    fakes = f"--xla_force_host_platform_device_count={num_devices}"
    return os.environ | {"XLA_FLAGS": f"{fakes} --xla_backend_optimization_level=0"}


def start_hosts(*flags, num_hosts=2, num_devices=4):
    """Starts the hosts of a run: their processes, host 0 first; the last flags are all others'."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "gsg_jax.main", *flags[min(host, len(flags) - 1)]),
                *(
                    f"--host_index={host}",
                    f"--coordinator=127.0.0.1:{port}",
                    f"--num_hosts={num_hosts}",
                ),
            ],
            cwd=ROOT,
            env=environment(num_devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in range(num_hosts)
    ]


def finish_hosts(processes):
    """Waits for all: [(status, standard output, standard error)]."""
    told = [process.communicate(timeout=SECONDS) for process in processes]
    return [(p.returncode, *texts) for p, texts in zip(processes, told, strict=True)]


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module", params=METHODS)
def two_hosts(request, images, tmp_path_factory):
    """A whole run of a method on two hosts with four devices each, by the launch script."""
    workdir = tmp_path_factory.mktemp("two")
    calm = CALM.get(request.param, ())
    flags = tiny(request.param, images, workdir, *STEPS, *calm, "--config.run.report=true")
    run = subprocess.run(
        [ROOT / "launch" / "local_multihost.sh", "2", *flags],
        env=environment(4) | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return request.param, workdir, figures(run.stdout), run.stderr


def test_two_hosts_train_as_one_with_as_many_devices_and_as_one_device(two_hosts, images, tmp_path):
    name, workdir, last, _ = two_hosts
    steps = (*STEPS, *CALM.get(name, ()))
    assert call(*tiny(name, images, tmp_path / "eight", *steps))[0] == 0
    one = subprocess.run(
        [sys.executable, "-m", "gsg_jax.main", *tiny(name, images, tmp_path / "one", *steps)],
        cwd=ROOT,
        env=environment(1),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert len(losses(workdir)) == 20
    for other in ("eight", "one"):
        np.testing.assert_allclose(losses(workdir), losses(tmp_path / other), rtol=0, atol=1e-5)
    assert figures(one.stdout).keys() == last.keys()
    for key in ("step", "knn_top1", "knn_top1_untrained"):
        assert figures(one.stdout)[key] == last[key]


def test_the_report_of_two_hosts_is_whole(two_hosts):
    page = (two_hosts[1] / "report.html").read_text()
    assert '<section id="map"' in page and 'id="missing"' not in page


def test_only_the_first_host_speaks_and_writes(two_hosts):
    _, workdir, _, err = two_hosts
    assert err.count("2 hosts, 8 devices") == 1 and "host 1:" not in err
    assert err.count("k-NN top-1 to beat") == 1
    events = list((workdir / "tensorboard").iterdir())
    assert len(events) == 1
    steps = [json.loads(x)["step"] for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21))
    assert not [path for path in workdir.rglob("*") if "partial" in path.name]


def test_a_run_of_two_hosts_goes_on_where_one_is_told_to_stop_and_on_one_host_too(images, tmp_path):
    long = (*STEPS[1:], "--config.run.num_steps=60", "--config.run.checkpoint_every_steps=20")
    whole = tiny("simsiam_gsg", images, tmp_path / "whole", *long)
    assert call(*whole)[0] == 0
    flags = tiny("simsiam_gsg", images, tmp_path / "parts", *long)
    hosts = start_hosts(flags)
    wait_for_step(tmp_path / "parts", 5, hosts)
    hosts[1].send_signal(signal.SIGTERM)
    (status, out, err), (other, other_out, _) = finish_hosts(hosts)
    assert (status, other, other_out.count("{")) == (0, 0, 0), err
    stopped = figures(out)["step"]
    assert 5 <= stopped < 60 and f"stopped at step {stopped} and saved" in err
    status, out, err = call(*flags)  # on one host, of eight devices
    assert status == 0 and f"resuming from the checkpoint of step {stopped}" in err
    np.testing.assert_allclose(
        losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=0, atol=1e-5
    )


def wait_for_step(workdir: pathlib.Path, step, processes):
    """Waits until a step is logged."""
    deadline = time.monotonic() + SECONDS
    path = workdir / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < step:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


def test_a_host_that_does_not_come_is_named(images, tmp_path):
    flags = tiny("simsiam", images, tmp_path / "run")
    hosts = start_hosts([*flags, "--host_timeout=8"], num_hosts=3)
    hosts[1].kill()
    found = finish_hosts(hosts)
    for status, out, err in (found[0], found[2]):
        assert (status, out) == (1, "")
        assert "host 1 is missing of 3" in err.splitlines()[-1]
        assert "Traceback" not in err
    assert found[2][2].startswith("host 2: error: ")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_only_the_first_host_has_is_told(images, tmp_path):
    unscored = "--config.eval.knn_every_epochs=0"
    flags = [tiny("simsiam", images, tmp_path / name, unscored) for name in ("here", "there")]
    (here, out, err), (there, _, other_err) = finish_hosts(start_hosts(*flags))
    assert (here, there) == (1, 1) and "{" not in out  # Gloo says there who is connected
    assert "is not the folder that host 0 has made" in other_err
    assert "error: host 1 ended: --workdir=" in err


@pytest.mark.parametrize("two_hosts", METHODS[:1], indirect=True)
@pytest.mark.parametrize("job", ["knn", "linear"])
def test_an_evaluation_of_two_hosts_says_what_one_says(two_hosts, job):
    _, workdir, _, _ = two_hosts
    flags = [config(job), f"--config.pretrained={workdir}", "--config.eval.batch_size=16"]
    if job == "knn":
        flags.append("--config.eval.knn_k=(3,5)")
    (status, out, err), (other, *_) = finish_hosts(start_hosts(flags, num_devices=2))
    assert (status, other) == (0, 0), err
    status, alone, _ = call(*flags)
    assert status == 0 and figures(alone) == figures(out)
