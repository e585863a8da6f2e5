"""PyTorch's own files: its modules have the names that we know, and only tensors are loaded."""

import argparse
import collections
import os
import pathlib
import subprocess
import zipfile
from functools import partial

import numpy as np
import pytest

import gsg_jax
from tests.interop import checkpoints, networks
from tests.interop.checkpoints import EMBEDDING, HIDDEN, PROJECTION, SHAPES, WIDTH, tensors
from tests.interop.networks import nn, predictor, projector, torch
from tests.interop.test_import_export import to_file, to_run
from tests.interop.test_refusals import flags, refused
from tests.runs import call, done

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extended

resnet = partial(networks.resnet, num_stages=2)
BIAS = "encoder.bn1.bias"
SIZES = (EMBEDDING, HIDDEN, PROJECTION)
HEAD = predictor(PROJECTION, checkpoints.BOTTLENECK)
NUMBERED = nn.Sequential(*list(resnet().children())[:-1])
MOCO = resnet(nn.Sequential(nn.Linear(SIZES[0], SIZES[0]), nn.ReLU(), nn.Linear(SIZES[0], 16)))
MODULES = {
    "torchvision": networks.resnet(nn.Linear(8 * WIDTH, 10)),
    "simsiam": {"encoder": resnet(projector(*SIZES, last_bias=True)), "predictor": HEAD},
    "moco": {"encoder_q": MOCO, "encoder_k": MOCO},
    "barlow_twins": {
        "backbone": resnet(),
        "projector": projector(*SIZES, last_norm=False),
        "bn": nn.BatchNorm1d(PROJECTION, affine=False),
    },
    "unigrad": {
        "encoder": NUMBERED,
        "projector": projector(*SIZES),
        "predictor": HEAD,
        "momentum_encoder": NUMBERED,
        "momentum_projector": projector(*SIZES),
    },
}


@pytest.mark.parametrize("name", MODULES)
def test_pytorchs_modules_have_these_names_and_shapes(name):
    made = MODULES[name]
    module = nn.ModuleDict(made) if isinstance(made, dict) else made
    found = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    assert found == {key: of for key, of in SHAPES[name].items() if not key.startswith("queue")}


@pytest.mark.parametrize("num_classes", [0, 10])
def test_timms_vit_has_these_names_and_shapes(num_classes):
    sizes = {"embed_dim": 96, "depth": 4, "num_heads": 3, "patch_size": 4, "img_size": 8}
    network = timm.models.VisionTransformer(num_classes=num_classes, **sizes)
    found = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert found == checkpoints.vit(num_classes)


def as_torch(given, prefix=""):
    return {prefix + name: torch.from_numpy(np.array(array)) for name, array in given.items()}


@pytest.mark.parametrize("wrapper", ["state_dict", ""])
def test_a_pickle_comes_back_bit_equal_under_its_wrapper(wrapper, tmp_path):
    given = as_torch(tensors("moco"), "module.")
    content = {"epoch": 3, "arch": "resnet10", wrapper: given} if wrapper else given
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    to_run(tmp_path / "checkpoint.pth.tar", tmp_path)
    back, _ = to_file(tmp_path, "back.pth", "reference")
    found = torch.load(back, weights_only=True)
    found = found[wrapper] if wrapper else found
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def pickled(folder, content, name="checkpoint.pth"):
    torch.save(content, folder / name)
    return refused(folder, name=name)


@pytest.mark.parametrize("kept", [0, 10, 1000, -1000])
def test_files_cut_short_are_called_damaged(kept, tmp_path):
    torch.save(as_torch(tensors("simsiam")), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:kept])
    assert "damaged or cut short" in refused(tmp_path, name="cut.pth")


class Attack:
    """Makes a file when it is unpickled, in one of several ways."""

    def __init__(self, path, how):
        self.path, self.how = str(path), how

    def __reduce__(self):
        return {
            "function": (os.mkdir, (self.path,)),
            "builtin": (eval, (f"__import__('os').mkdir({self.path!r})",)),
            "class": (subprocess.Popen, (["mkdir", self.path],)),
        }[self.how]


class Settings(dict):
    """As Lightning's AttributeDict."""


def test_of_a_pickle_that_holds_more_than_tensors_nothing_else_is_looked_at_or_run(tmp_path):
    given, trap = as_torch(tensors("simsiam")), tmp_path / "trap"
    attacks = [Attack(trap, how) for how in ("function", "builtin", "class")]
    hyper_parameters = Settings(lr=0.1, args=argparse.Namespace(a=1), path=pathlib.Path("x"))
    content = {
        "state_dict": collections.OrderedDict(given),
        "hyper_parameters": hyper_parameters,
        "callbacks": {"ModelCheckpoint": {"best": torch.tensor(0.5), "of": [Settings, {1, 2}]}},
        "loops": [*attacks, collections.defaultdict(list, {"a": [1]})],
        "optimizer_states": [{"state": {0: {"step": np.float64(3)}}}],
    }
    torch.save(content, tmp_path / "last.ckpt")
    with zipfile.ZipFile(tmp_path / "last.ckpt") as whole:
        assert sum(name.endswith("data.pkl") for name in whole.namelist()) == 1
    _, err = done(*flags(tmp_path, "last.ckpt"))
    assert "holds more than tensors; not looked at: " in err and not trap.exists()
    back, _ = to_file(tmp_path, "back.pth", "reference")
    found = torch.load(back, weights_only=True)["state_dict"]
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())


def test_a_trap_among_the_tensors_is_refused(tmp_path):
    given = as_torch(tensors("simsiam")) | {BIAS: Attack(tmp_path / "trap", "function")}
    torch.save({"state_dict": given}, tmp_path / "last.ckpt")
    status, out, err = call(*flags(tmp_path, "last.ckpt"))
    assert (status, out) == (1, "") and BIAS in err.splitlines()[-1]
    assert not (tmp_path / "trap").exists()


def test_of_dinos_student_and_teacher_the_teacher_is_taken(tmp_path):
    teacher, student = tensors("dino"), {k: np.asarray(x + 1) for k, x in tensors("dino").items()}
    content = {"student": as_torch(student, "module."), "teacher": as_torch(teacher)}
    content |= {"args": argparse.Namespace(arch="vit"), "epoch": 3}
    torch.save(content, tmp_path / "checkpoint.pth")
    kernel = gsg_jax.load(tmp_path / "checkpoint.pth").encoder.params["conv1"]["kernel"]
    wanted = teacher["backbone.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, wanted)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], ["holds no state dict"]),
        ({"epoch": 3}, ["'epoch' is not a tensor with a name"]),
        ({BIAS: torch.ones(WIDTH, dtype=torch.complex64)}, [BIAS, "is complex64"]),
        ({BIAS: torch.ones(WIDTH).to_sparse()}, ["not dense"]),
        ({7: torch.ones(WIDTH)}, ["7", "not a tensor with a name"]),
    ],
)
def test_what_only_pickles_can_hold_is_refused(content, said, tmp_path):
    if isinstance(content, dict) and content.keys() & {BIAS, 7}:
        content = as_torch(tensors("simsiam")) | content
    err = pickled(tmp_path, content)
    assert all(text in err for text in said)
