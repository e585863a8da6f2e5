"""benchmarks/tpu.py: what it counts, and that every method compiles for TPUs."""

import importlib
import json

import pytest

from gsg_jax.methods import METHODS
from tests.runs import ROOT

# One convolution whose result is normalised and stored, a loop, a prefetch and a sum of devices.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%fused (p0: bf16[4,8], p1: f32[8]) -> (bf16[4,8], f32[8]) {
  %p0 = bf16[4,8]{1,0} parameter(0)
  %big = f32[999,999]{1,0} broadcast(%p0), dimensions={}
}

%body (arg: (s32[], f32[16])) -> (s32[], f32[16]) {
  %arg = (s32[], f32[16]{0}) parameter(0)
  %one = f32[16]{0} get-tuple-element(%arg), index=1
  ROOT %sum = f32[16]{0} add(%one, %one), metadata={op_name="jit(step)/views/add"}
}

ENTRY %main.7 (x: bf16[4,8], w: f32[8]) -> f32[8] {
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %w = f32[8]{0} parameter(1)
  %copy-start.1 = (f32[8]{0:S(1)}, f32[8]{0}, u32[]) copy-start(%w)
  %copy-done.1 = f32[8]{0:S(1)} copy-done(%copy-start.1)
  %fusion.1 = (bf16[4,8]{1,0}, /*index=1*/f32[8]{0}) fusion(%x, %copy-done.1), kind=kLoop, \
calls=%fused, metadata={op_name="jit(step)/transpose(jvp(Siamese))/backbone/layer1_0/bn1/mul"}
  %gte = f32[8]{0} get-tuple-element(%fusion.1), index=1
  %loop = (s32[], f32[16]{0}) while(%t), condition=%c, body=%body
  ROOT %all-reduce.2 = f32[8]{0} all-reduce(%gte), channel_id=1, to_apply=%fused
}
"""
SMALL = {
    "views.size": 16,
    "views.local_size": 8,
    "model.width": 8,
    "model.num_stages": 1,
    "model.backbone": "resnet10",
    "model.projector_hidden_width": 16,
    "model.projector_width": 16,
    "model.predictor_hidden_width": 8,
}


@pytest.fixture
def load(monkeypatch):
    """Imports a module of benchmarks/."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_bytes_are_counted_where_the_entry_and_its_loops_read_and_write(load):
    read = load("tpu_program")
    program = read.read_program(PROGRAM)
    fusion = 4 * 8 * 2 + 8 * 4 + 4 * 8 * 2 + 8 * 4  # its two results, x and the prefetched w
    assert read.moved_bytes(program) == {"fusion.1": fusion, "sum": 128, "all-reduce.2": 64}
    parts = {name: count for name, count in read.by_part(program).items() if count}
    assert parts == {"norm backward": fusion, "views": 128, "unnamed": 64}
    sent = {"all-reduce": {"count": 1, "bytes": 32, "asynchronous": 0}}
    assert read.collectives(program) == sent


def test_the_largest_batch_is_found_by_halves_and_the_longer_term_predicts(load):
    tpu = load("tpu")
    tried = []

    def look(point):
        tried.append(point["images"])
        return point | ({"error": "does not fit"} if point["images"] > 88 else {})

    assert tpu.largest(look, {"images": 30}) == {"images": 88}
    assert tried[0] == 32 and len(set(tried)) <= 6
    figures = {"slice": "v5e:2x4", "operations": 197e12, "bytes": 2 * 819e9}
    assert tpu.predicted(figures) == (1.0, 2.0)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "method", "fsdp"),
    [*(("v5e:2x2", method, 1) for method in METHODS), ("v5e:4x4", "byol_gsg", 2)],
)
def test_every_method_compiles_for_a_tpu(load, monkeypatch, name, method, fsdp):
    pytest.importorskip("libtpu", reason="libtpu has no wheel for this platform")
    tpu = load("tpu")
    for key, value in tpu.environment().items():
        monkeypatch.setenv(key, value)
    settings = SMALL | ({"method.queue_size": 64} if method == "moco_v2" else {})
    point = {"slice": name, "method": method, "recipe": "cifar10", "images": 4, "fsdp": fsdp}
    figures = tpu.compile_point(point | {"set": [f"{k}={v}" for k, v in settings.items()]})
    kinds = figures["collectives"]
    assert figures["temporary_bytes"] > 0 and figures["operations"] > 0
    assert kinds["all-reduce"]["count"] >= 2
    assert (figures["bytes_by_part"]["views"] > 0) and "error" not in json.dumps(figures)
    assert ("all-gather" in kinds or "collective-permute" in kinds) or fsdp == 1
