"""The benchmarks: each says what it does, and the counted ones count right."""

import functools
import json
import subprocess
import sys

import pytest

from tests.runs import ROOT

BENCHMARKS = ROOT / "benchmarks"
# Those that other ones import or start.
PARTS = {"torch_step.py", "torch_input.py"}
SCRIPTS = sorted({path.name for path in BENCHMARKS.glob("*.py")} - PARTS)


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import growth

    return growth


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import scaling

    return scaling


@pytest.fixture
def run_all(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import run_all

    return run_all


def run(name: str, *flags: str) -> str:
    """Standard output of a benchmark."""
    command = [sys.executable, BENCHMARKS / name, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_what_it_does(name):
    summary = (BENCHMARKS / name).read_text().splitlines()[0].strip('"')
    told = " ".join(run(name, "--help").split())
    assert told.startswith(f"usage: {name}") and summary in told


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  %a.1 = f32[4,8]{1,0} all-reduce(%x), channel_id=1", {"all-reduce": 128}),
        ("  ROOT %a = (f32[], bf16[3]{0}, pred[2]) all-reduce(%x)", {"all-reduce": 4 + 6 + 2}),
        ("  %a = ((f32[2]{0}), (f32[4]{0})) all-gather-start(%x)", {}),
        ("  %a = f32[4]{0:T(8)S(1)} all-gather-done(%a)", {"all-gather": 16}),
        ("  %a = (f32[1]{0}, /*index=1*/f32[1]{0}) all-to-all(%x, %y)", {"all-to-all": 8}),
        ("  %a = f32[4]{0} fusion(%all-reduce.1), calls=%all-gather", {}),
    ],
)
def test_a_collective_counts_once_by_its_result(growth, line, expected):
    assert growth.collective_bytes(line) == expected


def test_a_product_in_a_loop_is_noticed(growth):
    inside = 'f32[2] dot(%x, %y), metadata={op_name="jit(f)/while/body/dot_general"}'
    outside = 'f32[2] dot(%x, %y), metadata={op_name="jit(f)/dot_general"}'
    assert growth.products_in_loops(f"%a = {inside}\n%b = {outside}") == 1


def test_one_axis_varies_at_a_time(growth):
    points = growth.points_of({"batch": [8, 16], "devices": [2, 1, 4]})
    assert [tuple(point.values()) for point in points] == [(8, 2), (16, 2), (8, 1), (8, 4)]


@pytest.mark.slow
def test_two_devices_share_the_work_and_exchange_the_gradient():
    flags = ("--recipe=default", "--batch=8", "--views=2", "--width=4", "--devices=2,1")
    told = json.loads(run("growth.py", "--method=simsiam", *flags).splitlines()[-1])
    two, one = told["results"]
    gradient = 4 * two["parameters"]
    assert gradient <= two["collective_bytes"] < 2 * gradient
    assert two["collective_bytes"] == sum(two["collective_bytes_by_kind"].values())
    assert one["collective_bytes"] == 0
    assert 0.5 * one["flops"] <= two["flops"] < 0.7 * one["flops"]
    assert two["products_in_loops"] == one["products_in_loops"] == 0


STEP = "jit(train_step)"
NORM = f"{STEP}/jvp(Siamese)/backbone/layer1_0"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (  # one group of all devices, the gradient of two kernels
            "%a = (f32[3,8]{1,0}, f32[4]{0}) all-reduce(%x, %y), "
            "replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, metadata={op_name="
            f'"{STEP}/transpose(jvp(Siamese))/(backbone/conv1/conv:backbone/conv2/conv)" id=1}}',
            [("all-reduce", "gradient", 8, 1, 112)],
        ),
        (  # joins what belongs to two parts
            "%a = (f32[16]{0}, f32[2]{0}) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}, "
            f'metadata={{op_name="{STEP}/transpose(jvp(Siamese))/backbone/'
            '(conv1/conv:bn1/reduce_sum)"}',
            [
                ("all-reduce", "gradient", 2, 1, 64),
                ("all-reduce", "norm_backward", 2, 0, 8),
            ],
        ),
        (
            "%a = f32[4]{0} all-reduce(%x), replica_groups=[2,4]<=[8], "
            f'metadata={{op_name="{NORM}/(bn1/reduce_sum:downsample_bn/reduce_sum)"}}',
            [("all-reduce", "norm_forward", 4, 1, 16)],
        ),
        (
            "%a = f32[8]{0} all-gather(%x), replica_groups=mesh['axis_0'=2,'axis_1'=4], "
            "device_ids=([4,2]T(1,0)) {'axis_0'}, "
            'metadata={op_name="jit(step)/sharding_constraint"}',
            [("all-gather", "state", 2, 1, 32)],
        ),
        (  # the array that is scattered is larger than what a device is left with
            "%a = f32[8]{0} reduce-scatter(%x), replica_groups={}, "
            f'metadata={{op_name="{STEP}/transpose(jvp())/dot_general"}}',
            [("reduce-scatter", "loss", 8, 1, 256)],
        ),
        (
            "%a = f32[] collective-permute(%x), source_target_pairs={{0,1},{1,2}}, "
            f'metadata={{op_name="{STEP}/cond/branch_1_fun/slice"}}',
            [("collective-permute", "figures", 2, 1, 4)],
        ),
        ("%a = f32[4]{0} fusion(%all-reduce.1), calls=%all-gather", []),
    ],
)
def test_a_collective_is_known_by_kind_part_and_group(scaling, line, expected):
    found = scaling.collectives_of(line, devices=8)
    assert [tuple(one.values()) for one in found] == expected


def test_a_collective_of_parts_that_cannot_be_told_apart_is_an_error(scaling):
    names = f"{STEP}/transpose(jvp(Siamese))/backbone/(conv1/conv:bn1/reduce_sum)"
    line = f'%a = (f32[1], f32[2], f32[3]) all-reduce(%x), metadata={{op_name="{names}"}}'
    with pytest.raises(scaling.Failed, match="3 arrays of 2 parts"):
        scaling.collectives_of(line, devices=8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b", ["a/b"]),
        ("jit(f)/jvp()/gather", ["jit(f)/jvp()/gather"]),
        ("a/(b:c/d)", ["a/b", "a/c/d"]),
        ("a/(jit(b)/c:d)/e", ["a/jit(b)/c/e", "a/d/e"]),
        ("(a/(b:c):d)", ["a/b", "a/c", "d"]),
    ],
)
def test_joined_names_come_apart(scaling, name, expected):
    assert scaling.names_of(name) == expected


@pytest.mark.parametrize(
    ("name", "chips", "gigabytes", "hops"),
    [
        ("v5e-8", 8, 2 * 50, 1 + 3),  # lines of 2 and 4 chips, one link an axis at their ends
        ("v5e-256", 256, 4 * 50, 8 + 8),  # rings of 16: half way around each
        ("v5p-16", 8, 3 * 100, 1 + 1 + 1),
        ("v5p-1024", 512, 6 * 100, 4 + 4 + 4),
    ],
)
def test_a_slice_has_the_links_of_its_mesh(scaling, name, chips, gigabytes, hops):
    hardware = scaling.SLICES[name]
    found = hardware.chips, hardware.bandwidth, hardware.hops
    assert found == (chips, gigabytes * 1e9, hops)


def test_an_all_reduce_takes_two_passes_and_a_hop_its_latency(scaling):
    hardware = scaling.SLICES["v5e-8"]
    # 7/8 of 800 MB at 100 GB/s are 7 ms; 3 collectives of 4 hops of 1 us are 12 us.
    gather = scaling.seconds_of("all-gather", 800e6, 3, hardware, 1e-6)
    assert gather == pytest.approx((7e-3, 12e-6))
    reduce = scaling.seconds_of("all-reduce", 800e6, 3, hardware, 1e-6)
    assert reduce == pytest.approx((14e-3, 24e-6))


def counts(devices: int, batch: int, own: int = 100, joined: int = 2) -> dict:
    """Counts of a method whose gradient is 80 MB, and whose loss gathers 1 kB an image."""
    images = devices * batch
    fields = ("kind", "part", "count", "bytes")
    rows = [
        ("all-reduce", "gradient", 1, 80_000_000),
        ("all-gather", "loss", 2, 1000 * images),
        ("all-reduce", "figures", 9, 10**12),
    ]
    return {
        "method": "simclr",
        "devices": devices,
        "batch": batch,
        "flops": 10**9 * (7 + own * batch + joined * batch * images),
        "backward_share": 0.5,
        "collectives": [dict(zip(fields, row, strict=True)) for row in rows],
    }


def test_small_modules_say_how_a_large_one_grows(scaling):
    known = [counts(4, 2), counts(4, 6), counts(16, 2)]
    growth = scaling.growth_of([*known, counts(8, 2)], 8)
    assert growth.bytes["all-gather", "loss"] == pytest.approx((0, 1000))
    assert growth.bytes["all-reduce", "gradient"] == pytest.approx((80e6, 0))
    assert scaling.flops_of(growth, 3) == pytest.approx(1e9 * (7 + 100 * 3 + 2 * 3 * 24))
    with pytest.raises(scaling.Failed, match="operations of simclr on 8 devices"):
        scaling.growth_of([*known, counts(8, 2, joined=4)], 8)


def test_the_smallest_batch_is_where_the_gradient_first_hides(scaling):
    hardware = scaling.SLICES["v5e-8"]
    growth = scaling.growth_of([counts(8, 2, joined=0), counts(8, 6, joined=0)], 8)
    # The gradient: 2 x 7/8 x 80 MB at 100 GB/s and two passes of 4 hops, 1.408 ms. The backward
    # pass: half of 7 + 100 GFLOP an image at half of 197 TFLOP/s, 0.508 ms an image.
    times = functools.partial(scaling.times_of, growth, hardware, utilization=0.5, hop=1e-6)
    assert times(batch=1)["hidden"] == pytest.approx(1.408e-3)
    assert times(batch=1)["backward"] == pytest.approx(0.5 * 107e9 / (0.5 * 197e12))
    assert scaling.smallest(lambda one: one["hidden"] <= one["backward"], times) == 3
    assert scaling.smallest(lambda one: one["hidden"] < 0, times) is None
    # The loss: 8 images of 1 kB, gathered, and two collectives of 4 hops.
    assert times(batch=1)["exposed"] == pytest.approx(7 / 8 * 8e3 / 100e9 + 8e-6)


@pytest.mark.slow
@pytest.mark.parametrize("norms", ["model.norm=group,model.head_norm=layer", ""])
def test_the_gradient_is_summed_in_four_bytes_a_parameter(tmp_path, norms):
    path = tmp_path / "counts.json"
    small = "model.width=8,model.norm_groups=4,model.num_stages=1,views.size=16"
    flags = ("--methods=simsiam", "--devices=4", "--batch=2", f"--set={small},{norms}")
    run("scaling.py", *flags, "--recipe=cifar10", f"--counts={path}")
    found = json.loads(path.read_text())
    sizes = {part: 0 for part in ("gradient", "norm_backward")}
    for one in found["collectives"]:
        if one["part"] in sizes:
            sizes[one["part"]] += one["bytes"]
    total = sizes["gradient"] + sizes["norm_backward"]
    if norms:
        assert total == 4 * found["parameters"]
    else:  # a BatchNorm's gradients are made of the sums of its views, which are all sent
        assert sizes["gradient"] < 4 * found["parameters"] < total


def test_the_table_takes_every_number_but_those_that_name_a_line(run_all):
    line = {"method": "byol", "k": 20, "seconds": 0.5, "by_kind": {"k": 3}, "device": "cpu"}
    assert run_all.numbers(line) == {"seconds": 0.5, "by_kind.k": 3}


@pytest.mark.slow
def test_a_benchmark_that_fails_is_named(run_all):
    with pytest.raises(run_all.Failed, match="step_time.py ended with 2"):
        run_all.run("step_time.py", ["--methods=none"])
