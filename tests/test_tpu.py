"""benchmarks/tpu.py and scaling.py: what they count, and that every method compiles for TPUs."""

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
# A gather of four devices beside a sum, whose fusion passes the gather's buffers on; a sum of which
# each device keeps a part; a branch that only logged steps take; a scatter.
IN_PASSING = """\
%fused_computation.1 (p: f32[16]) -> (f32[16], f32[64]) {
  %p = f32[16]{0} parameter(0)
  %all-gather.1 = f32[64]{0} all-gather(%p), channel_id=2, dimensions={0}
  ROOT %call = (f32[16]{0}, f32[64]{0}) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%all-reduce-scatter (input: f32[4]) -> f32[1] {
  %input = f32[4]{0} parameter(0)
  %all-reduce = f32[4]{0} all-reduce(%input), channel_id=3
}

%branch (p: f32[16]) -> f32[64] {
  %p = f32[16]{0} parameter(0)
  ROOT %all-gather.3 = f32[64]{0} all-gather(%p), channel_id=4, dimensions={0}
}

%async_collective_fusion (p: f32[16], q: f32[64], r: f32[4]) -> (f32[4], f32[16], f32[64]) {
  %p = f32[16]{0} parameter(0)
  %all-gather.2 = f32[64]{0} all-gather(%p), channel_id=2, dimensions={0}
}

ENTRY %main (x: f32[16], y: f32[4], queue: f32[1024], rows: f32[8]) -> f32[4] {
  %x = f32[16]{0} parameter(0)
  %y = f32[4]{0} parameter(1)
  %queue = f32[1024]{0} parameter(2)
  %rows = f32[8]{0} parameter(3)
  %start = (f32[16]{0}, f32[64]{0}) fusion(%x), kind=kCustom, \
output_to_operand_aliasing={{0}: (0, {})}, calls=%fused_computation.1
  %gte = f32[16]{0} get-tuple-element(%start), index=0
  %gte.1 = f32[64]{0} get-tuple-element(%start), index=1
  %sum = (f32[4]{0}, f32[16]{0}, f32[64]{0}) fusion(%gte, %gte.1, %y), kind=kOutput, \
output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})}, calls=%async_collective_fusion
  %gte.2 = f32[4]{0} get-tuple-element(%sum), index=0
  %fusion = f32[1]{0} fusion(%gte.2), kind=kCustom, calls=%all-reduce-scatter
  %logged = f32[64]{0} conditional(%p, %x, %x), branch_computations={%branch, %branch.1}
  %scatter = f32[1024]{0} fusion(%queue, %rows), kind=kCustom, calls=%fused_computation.2, \
metadata={op_name="jit(step)/jvp()/scatter"}, \
backend_config={"aliasing_operands":{"lists":[{"indices":["0","2"]}]}}
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
    assert read.collectives(PROGRAM) == sent


def test_what_is_passed_on_in_place_is_not_moved_and_a_gather_beside_a_sum_counts_once(load):
    read = load("tpu_program")
    moved = read.moved_bytes(read.read_program(IN_PASSING))
    assert moved == {"start": 64 * 4, "sum": 2 * 4 * 4, "fusion": 5 * 4, "scatter": 8 * 4}
    sent = {"all-gather": {"count": 1, "bytes": 64 * 4, "asynchronous": 1}}
    sent["reduce-scatter"] = {"count": 1, "bytes": 4 * 4, "asynchronous": 0}
    assert read.collectives(IN_PASSING) == sent


@pytest.mark.parametrize(
    ("of_an_image", "limit"),
    [(2**24, 88), (2**24, 1000), (2**27, 120), (2**27, 130), (2**30, 8), (2**31, 7)],
)
def test_the_largest_batch_is_found_in_few_trials(load, of_an_image, limit):
    tpu, tried = load("tpu"), []

    def look(point):
        images = point["images"]
        tried.append(images)
        memory = {"argument_bytes": 2**30, "temporary_bytes": images * of_an_image}
        return point | ({"error": "does not fit"} if images > limit else memory)

    found = tpu.largest(look, {"slice": "v5e:2x4", "images": 30})
    assert found["images"] == (limit // 8 * 8 or 8)
    assert ("error" in found) == (limit < 8)
    fits = [images for images in tried if images <= limit]
    assert tried[0] == 32 and len(tried) <= 20 and len(fits) <= 6
    expected = 15 * 2**30 // of_an_image  # 1 GiB of the 16 is the state's
    if limit == expected // 8 * 8:
        assert len(fits) <= 2


def test_the_longer_term_of_the_roofline_predicts(load):
    tpu = load("tpu")
    figures = {"slice": "v5e:2x4", "images": 32, "operations": 197e12, "bytes": 2 * 819e9}
    assert tpu.predicted(figures) == (1.0, 2.0)
    memory = {"argument_bytes": 2**30, "temporary_bytes": 2**31}
    of_kind = {"count": 2, "bytes": 3_000_000, "asynchronous": 1}
    kinds = {"all-reduce": of_kind, "all-gather": of_kind}
    texts = tpu.cells(figures | memory | {"collectives": kinds})
    assert texts == [
        *("3.00 of 16", "197,000", "1638.0", "4 (2)", "6", "1000.0", "2000.0"),
        *("16", "128"),  # a second, of a chip and of all eight
    ]


def test_a_point_is_compiled_once_for_the_same_libraries(load, monkeypatch, tmp_path):
    tpu, compiled = load("tpu"), []

    def compile_in_a_process(key, text):
        compiled.append(json.loads(key)["images"])
        return {"bytes_by_part": {"views": 5}, **tpu.versions()}

    monkeypatch.setattr(tpu, "compile_in_a_process", compile_in_a_process)
    monkeypatch.setattr(tpu, "versions", lambda: {"jax": "0.10.2", "libtpu": "1"})
    for images in (8, 16, 8):
        figures = tpu.Known(tmp_path / "tpu.json").look({"images": images})
        assert figures == {"images": images, "bytes_by_part": {"views": 5}} | tpu.versions()
    assert compiled == [8, 16]
    monkeypatch.setattr(tpu, "versions", lambda: {"jax": "0.10.2", "libtpu": "2"})
    assert tpu.Known(tmp_path / "tpu.json").look({"images": 8})["libtpu"] == "2"


def test_the_page_of_scaling_shows_what_was_compiled(load):
    tpu, scaling = load("tpu"), load("scaling")
    page, known = ROOT / "docs/scaling.md", tpu.Known(ROOT / "docs/scaling.json", compiles=False)
    assert known.figures and scaling.filled_in(page.read_text(), known) == page.read_text()


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
