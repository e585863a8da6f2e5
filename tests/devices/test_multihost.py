"""Two hosts, each a process on this machine, compute what one computes with as many devices."""

import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.runs import (
    ROOT,
    config,
    done,
    figures,
    last_step,
    logged,
    start,
    tiny,
    wait_until,
    write_images,
)

pytestmark = pytest.mark.extended

METHODS = ("simsiam_gsg", "moco_v2")  # the second has an EMA target and a memory
STEPS = ("--config.run.num_steps=8", "--config.run.log_every_steps=1")
# Rounding grows from step to step, by MoCo's own temperature and rate to 1e-4 of a loss of 5.
CALM = {"moco_v2": ("--config.optim.learning_rate=0.02", "--config.method.temperature=1.0")}
SECONDS = 400  # of a run on a loaded machine


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images."""
    return write_images(tmp_path_factory.mktemp("images"), 80, 16)


def xla(num_devices):
    fakes = f"--xla_force_host_platform_device_count={num_devices}"
    return f"{fakes} --xla_backend_optimization_level=0"


def losses(workdir):
    return [line["loss"] for line in logged(workdir)]


def start_hosts(flags, other_flags=None, num_devices=4):
    """Starts the two hosts of a run, host 0 first; `other_flags` are host 1's if given."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = [f"--coordinator=127.0.0.1:{server.getsockname()[1]}", "--num_hosts=2"]
    return [
        start(*own, *place, f"--host_index={host}", xla=xla(num_devices))
        for host, own in enumerate((flags, other_flags or flags))
    ]


def finish_hosts(processes):
    """Waits for both: [(status, standard output, standard error)]."""
    told = [process.communicate(timeout=SECONDS) for process in processes]
    return [(p.returncode, *texts) for p, texts in zip(processes, told, strict=True)]


@pytest.fixture(scope="module", params=METHODS)
def two_hosts(request, images, tmp_path_factory):
    """A whole run of a method on two hosts with four devices each, by the launch script."""
    workdir = tmp_path_factory.mktemp("two")
    calm = CALM.get(request.param, ())
    flags = tiny(request.param, images, workdir, *STEPS, *calm, "--config.run.report=true")
    run = subprocess.run(
        [ROOT / "launch" / "local_multihost.sh", "2", *flags],
        env=os.environ | {"PYTHON": sys.executable, "XLA_FLAGS": xla(4)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return request.param, workdir, figures(run.stdout), run.stderr


def test_two_hosts_train_as_one_with_as_many_devices(two_hosts, images, tmp_path):
    name, workdir, last, err = two_hosts
    alone, _ = done(*tiny(name, images, tmp_path, *STEPS, *CALM.get(name, ())))
    assert len(losses(workdir)) == 8
    np.testing.assert_allclose(losses(workdir), losses(tmp_path), rtol=0, atol=1e-5)
    assert alone.keys() == last.keys()
    for key in ("step", "knn_top1", "knn_top1_untrained"):
        assert alone[key] == last[key]
    # Host 0 alone speaks and writes.
    assert err.count("2 hosts, 8 devices") == 1 and "host 1:" not in err
    assert err.count("k-NN top-1 to beat") == 1
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert not [path for path in workdir.rglob("*") if "partial" in path.name]
    assert 'id="missing"' not in (workdir / "report.html").read_text()


@pytest.mark.parametrize("two_hosts", METHODS[:1], indirect=True)
@pytest.mark.parametrize("job", ["knn", "linear"])
def test_an_evaluation_on_two_hosts_gives_the_figures_of_one(two_hosts, job):
    _, workdir, _, _ = two_hosts
    flags = [config(job), f"--config.pretrained={workdir}", "--config.eval.batch_size=16"]
    if job == "knn":
        flags.append("--config.eval.knn_k=(3,5)")
    (status, out, err), (other, *_) = finish_hosts(start_hosts(flags, num_devices=2))
    assert (status, other) == (0, 0), err
    assert done(*flags)[0] == figures(out)


def test_sigterm_on_one_host_stops_both_at_one_step_and_one_host_resumes(images, tmp_path):
    long = ("--config.run.num_steps=40", *STEPS[1:], "--config.eval.knn_every_epochs=0")
    done(*tiny("simsiam_gsg", images, tmp_path / "whole", *long))
    flags = tiny("simsiam_gsg", images, tmp_path / "parts", *long)
    hosts = start_hosts(flags)
    wait_until(lambda: last_step(tmp_path / "parts") >= 3, hosts[0])
    hosts[1].send_signal(signal.SIGTERM)
    (status, out, err), (other, other_out, _) = finish_hosts(hosts)
    assert (status, other, other_out.count("{")) == (0, 0, 0), err
    stopped = figures(out)["step"]
    assert 3 <= stopped < 40 and f"stopped at step {stopped} and saved" in err
    _, err = done(*flags)  # on one host, of eight devices
    assert f"resuming from the checkpoint of step {stopped}" in err
    # Two hosts add in another order than one: 1e-5 apart by step 24. A lost step is 0.01 apart.
    np.testing.assert_allclose(
        losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=0, atol=2e-4
    )


def test_an_error_of_one_host_is_its_own_line_and_ends_the_other(images, tmp_path):
    more = ("--config.eval.knn_every_epochs=0",)
    flags = [tiny("simsiam", images, tmp_path / name, *more) for name in ("here", "there")]
    flags = [[*own, "--host_timeout=15"] for own in flags]
    (here, out, _), (there, _, err) = finish_hosts(start_hosts(*flags))
    assert there == 1 and "is not the folder that host 0 has made" in err
    assert here not in (0, 1, 2) and "{" not in out
