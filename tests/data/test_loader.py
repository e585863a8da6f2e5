"""Batches: order, shares, crops, and a clean end."""

import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from gsg_jax.config.check_images import fit_batch
from gsg_jax.console import UserError
from gsg_jax.data import crops, loader
from gsg_jax.data.crops import CropRecipe
from gsg_jax.data.loader import TrainLoader, eval_batches
from gsg_jax.data.open import ArraySource
from gsg_jax.data.reader import CROP_STREAM
from gsg_jax.data.source import BrokenImage
from gsg_jax.report.pictures import thumbnail
from tests.runs import ROOT
from tests.small import load


def numbered(num_images, shape=(3, 2, 1)):
    """A source whose image i is filled with i."""
    images = np.zeros((num_images, *shape), np.uint8)
    images += np.arange(num_images, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ArraySource("numbered", images)


class Photos:
    """Images of differing shapes that are made when they are read."""

    name, labels, class_names, image_shape, paths = "photos", None, (), None, ()

    def __init__(self, num_images, channels=3):
        self.num_images, self.channels = num_images, channels

    def __len__(self):
        return self.num_images

    def image(self, i):
        rng = np.random.default_rng(i)
        time.sleep(rng.uniform(0, 0.002))  # threads finish in any order
        return rng.integers(0, 256, (40 + i, 70 - i, self.channels), dtype=np.uint8)


def take(stream, num_batches):
    batches = [batch["image"] for batch in itertools.islice(stream, num_batches)]
    stream.close()
    return batches


def numbers(batches):
    return [batch[:, 0, 0, 0].tolist() for batch in batches]


@pytest.mark.parametrize("num_images", [23, 20])
def test_every_epoch_is_a_new_permutation_without_its_remainder(num_images):
    train = TrainLoader(numbered(num_images), batch_size=5, seed=0)
    assert train.steps_per_epoch == 4
    epochs = np.array(numbers(take(train.iterate(0), 12))).reshape(3, 20)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 20
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_every_image_is_left_out_equally_often():
    batches = numbers(take(TrainLoader(numbered(7), batch_size=4, seed=0).iterate(0), 700))
    counts = np.bincount(np.concatenate(batches), minlength=7)
    # 700 draws of probability 4/7: 400 each, standard deviation 13.
    assert np.abs(counts - 400).max() < 60


def test_the_seed_sets_the_order_and_neighbouring_seeds_share_no_epoch():
    streams = [
        numbers(take(TrainLoader(numbered(20), batch_size=20, seed=seed).iterate(0), 3))
        for seed in (0, 0, 1, 2)
    ]
    assert streams[0] == streams[1]
    assert len({tuple(epoch) for stream in streams[1:] for epoch in stream}) == 9


@pytest.mark.parametrize("first_step", [0, 3, 4, 1000])
def test_a_stream_taken_up_at_a_step_goes_on_as_the_whole_one(first_step):
    train = TrainLoader(numbered(23), batch_size=5, seed=3)
    whole = numbers(take(train.iterate(0), first_step + 6 if first_step < 100 else 1006))
    assert numbers(take(train.iterate(first_step), 6)) == whole[first_step : first_step + 6]


@pytest.mark.parametrize("crop", [{}, {"crops": CropRecipe(2, 8)}])
@pytest.mark.parametrize("num_hosts", [2, 3])
def test_hosts_share_the_batch_of_one_host_in_order(num_hosts, crop):
    def batches(**hosts):
        source = Photos(14) if crop else numbered(14)
        return take(TrainLoader(source, batch_size=6, seed=0, **crop, **hosts).iterate(1), 4)

    shares = [batches(host_index=host, num_hosts=num_hosts) for host in range(num_hosts)]
    assert all(len(part) == 6 // num_hosts for share in shares for part in share)
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), batches())


@pytest.mark.parametrize(("num_threads", "prefetch"), [(1, 0), (5, 2)])
def test_the_stream_depends_neither_on_threads_nor_on_prefetch_nor_on_the_start(
    num_threads, prefetch
):
    def stream(start, **settings):
        train = TrainLoader(Photos(13), batch_size=9, seed=5, crops=CropRecipe(3, 6), **settings)
        return take(train.iterate(start), 3)

    expected = stream(2)
    found = stream(2, num_threads=num_threads, prefetch=prefetch)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(stream(3, num_threads=num_threads)[:2], expected[1:])


def test_views_of_an_image_and_epochs_of_it_are_cropped_differently():
    train = TrainLoader(Photos(2), batch_size=2, seed=0, crops=CropRecipe(4, 8))
    first, second = take(train.iterate(0), 2)
    assert first.shape == (2, 4, 8, 8, 3)
    assert first.dtype == np.uint8
    views = np.concatenate([first, second]).reshape(16, -1)
    assert len({view.tobytes() for view in views}) == 16


def drawn(source, seed, epoch, first, step):
    """By the plain way, a step's images, from `first` of its epoch's order, and their draws."""
    shuffle = np.random.SeedSequence(seed, spawn_key=(loader._SHUFFLE_STREAM, epoch))
    order = np.random.Generator(np.random.PCG64(shuffle)).permutation(len(source))
    for place, i in enumerate(order[first:]):
        seeds = np.random.SeedSequence(seed, spawn_key=(CROP_STREAM, step, place))
        yield source.image(int(i)), np.random.Generator(np.random.PCG64(seeds))


def test_local_crops_come_beside_the_global_ones_and_leave_them_as_they_are():
    box, locals_of = {"aspect": (0.4, 0.6)}, {"num_local": 3, "local_size": 6}
    without, batch = (
        next(TrainLoader(Photos(7), batch_size=3, seed=4, crops=recipe).iterate(5))
        for recipe in (
            CropRecipe(2, 12, **box),
            CropRecipe(2, 12, **box, **locals_of, local_area=(0.05, 0.1)),
        )
    )
    assert set(without) == {"image"} and set(batch) == {"image", "local"}
    np.testing.assert_array_equal(batch["image"], without["image"])
    assert batch["local"].shape == (3, 3, 6, 6, 3) and batch["local"].dtype == np.uint8
    # Step 5 is the second of epoch 2.
    for found, (pixels, rng) in zip(batch["local"], drawn(Photos(7), 4, 2, 3, 5), strict=False):
        for _ in range(2):
            crops.draw_box(rng, *pixels.shape[:2], (0.2, 1.0), (0.4, 0.6))
        expected = crops.random_crops(pixels, rng, num_views=3, size=6, area=(0.05, 0.1), **box)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_is_pillows_crop_and_bilinear_resize_of_the_drawn_box(channels):
    source = Photos(4, channels)
    train = TrainLoader(source, batch_size=4, seed=2, crops=CropRecipe(2, 16))
    (batch,) = take(train.iterate(7), 1)  # epoch 7, of one batch
    for views, (pixels, rng) in zip(batch, drawn(source, 2, 7, 0, 7), strict=True):
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        for view in views:
            box = crops.draw_box(rng, *pixels.shape[:2], (0.2, 1.0))
            expected = np.asarray(image.crop(box).resize((16, 16), Image.Resampling.BILINEAR))
            np.testing.assert_array_equal(view, expected.reshape(16, 16, channels))


def test_images_without_an_array_form_the_same_batches():
    class Read(Photos):
        image_shape = (3, 2, 1)

        def image(self, i):
            return numbered(11).images[i]

    found, expected = (
        take(TrainLoader(source, batch_size=4, seed=0).iterate(0), 5)
        for source in (Read(11), numbered(11))
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (numbered(7), {"batch_size": 8}, "8 is larger than 'numbered', which has 7"),
        (numbered(7), {"batch_size": 4, "num_hosts": 3}, "multiple of 3"),
        (Photos(7), {"batch_size": 4}, 'data.crop="host"'),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(source, settings, message):
    with pytest.raises(UserError, match=message) as refusal:
        TrainLoader(source, **{"seed": 0, **settings})
    assert "\n" not in str(refusal.value)


def test_images_that_fail_or_break_the_promise_of_their_shape_while_training_are_named():
    class Broken(Photos):
        def image(self, i):
            raise UserError("cannot decode cat.jpg")

    class Lying(Photos):
        image_shape = (40, 70, 3)

    for source, recipe, said in (
        (Broken(4), CropRecipe(2, 4), "cat.jpg"),
        (Lying(4), None, 'data.crop="host"'),
    ):
        stream = TrainLoader(source, batch_size=4, seed=0, crops=recipe).iterate(0)
        with pytest.raises(UserError, match=said):
            next(stream)


@pytest.mark.parametrize(("num_images", "batch_size"), [(7, 3), (6, 3), (2, 5), (1, 1)])
def test_evaluation_yields_each_image_once_in_order_and_pads_with_zeros(num_images, batch_size):
    batches = list(eval_batches(numbered(num_images), batch_size=batch_size))
    assert all(batch["image"].shape == (batch_size, 3, 2, 1) for batch in batches)
    images = [batch["image"][: batch["num_valid"]] for batch in batches]
    np.testing.assert_array_equal(np.concatenate(images), numbered(num_images).images)
    assert not batches[-1]["image"][batches[-1]["num_valid"] :].any()
    assert len(batches) == -(-num_images // batch_size)


@pytest.mark.parametrize(("height", "width"), [(50, 91), (91, 50), (7, 400)])
def test_evaluation_resizes_the_short_side_and_cuts_the_centre(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    short = 37  # 32 * 256 / 224
    scaled = (
        (short * width // height, short) if width > height else (short, short * height // width)
    )
    image = Image.fromarray(pixels).resize(scaled, Image.Resampling.BILINEAR)
    left, top = round((scaled[0] - 32) / 2), round((scaled[1] - 32) / 2)
    expected = np.asarray(image.crop((left, top, left + 32, top + 32)))
    np.testing.assert_array_equal(crops.centre_cut(pixels, 32), expected)


@pytest.mark.parametrize("shape", [(1, 65_000, 3), (65_000, 1, 1)])
def test_no_work_is_sized_by_an_aspect_ratio(shape):
    strip = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    sizes, resize = [], crops._resize

    def measured(pixels, height, width):
        sizes.append(height * width)
        return resize(pixels, height, width)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops, "_resize", measured)
        middle = crops.centre_cut(strip, 96)
        CropRecipe(2, 96).cut(strip, np.random.default_rng(0))
    assert middle.shape == (96, 96, shape[2]) and max(sizes) < 2**20
    assert thumbnail(strip, 96).shape == (96, 96, 3)


class Damaged(Photos):
    """Some images are damaged."""

    def __init__(self, num_images, damaged):
        super().__init__(num_images)
        self.damaged = damaged

    def image(self, i):
        if i in self.damaged:
            raise BrokenImage(f"cannot decode {i}.png (cut)")
        return super().image(i)


@pytest.mark.parametrize("hosts", [1, 2])
def test_the_next_image_of_the_permutation_takes_the_place_of_a_damaged_one(hosts, monkeypatch):
    said, damaged, settings = (
        [],
        {3, 4, 11},
        {"batch_size": 6, "seed": 1, "crops": CropRecipe(1, 8)},
    )
    monkeypatch.setattr(loader, "say_everywhere", said.append)

    def stream(source, first, count):
        shares = [
            TrainLoader(source, **settings, with_labels=True, host_index=h, num_hosts=hosts)
            for h in range(hosts)
        ]
        taken = [list(itertools.islice(share.iterate(first), count)) for share in shares]
        skipped = {i for share in shares for i in share.skipped}
        parts = [
            [np.concatenate(parts) for parts in zip(*(b.values() for b in step), strict=True)]
            for step in zip(*taken, strict=True)
        ]
        return parts, skipped

    source = Damaged(14, damaged)
    source.labels = np.arange(14, dtype=np.int32)
    source.class_names = tuple(map(str, range(14)))
    found, skipped = stream(source, 0, 6)
    assert skipped == damaged and {int(line.split()[3][:-4]) for line in said} == damaged
    for step, (images, labels) in enumerate(found):
        order = TrainLoader(source, **settings)._permutation(step // 2)
        start = step % 2 * 6
        for place in range(6):
            wanted = next(int(i) for i in np.roll(order, -start - place) if i not in damaged)
            seeds = np.random.SeedSequence(1, spawn_key=(1, step, place))
            crop = settings["crops"].cut(
                Photos(14).image(wanted), np.random.Generator(np.random.PCG64(seeds))
            )
            assert labels[place] == wanted
            np.testing.assert_array_equal(images[place], crop["image"])
    resumed, _ = stream(source, 3, 3)
    for ours, theirs in zip(resumed, found[3:], strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])


def test_a_source_whose_images_are_all_damaged_ends_the_stream():
    train = TrainLoader(Damaged(5, range(5)), batch_size=2, seed=0, crops=CropRecipe(1, 8))
    with pytest.raises(UserError, match="no image that can be decoded"):
        next(train.iterate(0))


def test_too_little_memory_for_an_image_names_it():
    class Large(Photos):
        def image(self, i):
            raise MemoryError

    with pytest.raises(UserError, match="not enough memory for image 0 of"):
        next(eval_batches(Large(1), batch_size=1, size=8))
    train = TrainLoader(Large(1), batch_size=1, seed=0, crops=CropRecipe(1, 8))
    with pytest.raises(UserError, match="not enough memory for image 0 of"):
        next(train.iterate(0))


def test_a_damaged_image_is_black_in_evaluation_and_named(monkeypatch):
    said = []
    monkeypatch.setattr(loader, "say_everywhere", said.append)
    (batch,) = eval_batches(Damaged(3, {0}), batch_size=3, size=16)
    assert not batch["image"][0].any() and batch["image"][1:].any(axis=(1, 2, 3)).all()
    assert len(said) == 1 and "0.png" in said[0]


def test_an_image_that_was_replaced_by_one_of_another_shape_is_told():
    class Replaced(Photos):
        image_shape = (1, 1, 3)  # which would fit into any other by broadcasting

        def image(self, i):
            return np.zeros((6, 4, 3) if i == 1 else (1, 1, 3), np.uint8)

    with pytest.raises(UserError, match=r"image 1 of .* is \(6, 4, 3\) but others are \(1, 1, 3\)"):
        list(eval_batches(Replaced(3), batch_size=2))


def test_evaluation_of_differing_shapes_needs_a_size():
    with pytest.raises(UserError, match="differ in shape"):
        eval_batches(Photos(3), batch_size=2)
    batches = list(eval_batches(Photos(3), batch_size=2, size=16))
    found = np.concatenate([batch["image"] for batch in batches])
    expected = [crops.centre_cut(Photos(3).image(i), 16) for i in range(3)]
    np.testing.assert_array_equal(found[:3], expected)
    assert found.shape == (4, 16, 16, 3)


SCRIPT = """
import atexit
from gsg_jax.data.crops import CropRecipe
from gsg_jax.data.loader import TrainLoader, eval_batches
from tests.data.pickled import Slow

slow = Slow(False)
next(TrainLoader(slow, batch_size=50, seed=0, crops=CropRecipe(2, 4), prefetch=50).iterate(0))
next(eval_batches(slow, batch_size=50, size=4))
atexit.register(lambda: print(slow.num_read))  # runs after the threads have ended
"""


@pytest.mark.extended
def test_a_script_that_stops_in_the_middle_does_not_work_off_its_queue():
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert output.returncode == 0 and output.stderr == ""
    assert int(output.stdout) < 1250  # 50 batches of 50 images are queued


def test_labels_come_with_the_images_they_belong_to():
    source = numbered(23)
    labelled = ArraySource("numbered", source.images, 100 - np.arange(23, dtype=np.int32))
    for host in range(2):
        train = TrainLoader(
            labelled, batch_size=6, seed=1, host_index=host, num_hosts=2, with_labels=True
        )
        for batch in itertools.islice(train.iterate(2), 5):
            assert batch["label"].dtype == np.int32 and batch["label"].shape == (3,)
            np.testing.assert_array_equal(batch["label"], 100 - batch["image"][:, 0, 0, 0])
    cropped = TrainLoader(labelled, batch_size=6, seed=1, crops=CropRecipe(1, 8), with_labels=True)
    batch = next(cropped.iterate(3))
    np.testing.assert_array_equal(batch["label"], 100 - batch["image"][:, 0, 0, 0, 0])


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 4), (9, 4), (4, 4), (5, 8)])
def test_the_hosts_shares_of_evaluation_batches_are_the_batches(num_images, batch_size):
    source = numbered(num_images)
    whole = eval_batches(source, batch_size=batch_size)
    hosts = [
        eval_batches(source, batch_size=batch_size, host_index=host, num_hosts=2)
        for host in range(2)
    ]
    for batch, *shares in zip(whole, *hosts, strict=True):
        joined = np.concatenate([share["image"] for share in shares])
        np.testing.assert_array_equal(joined, batch["image"])
        assert {share["num_valid"] for share in shares} == {batch["num_valid"]}


def test_evaluation_takes_up_at_any_image():
    batches = list(eval_batches(numbered(11), batch_size=4, first=5))
    assert numbers(batch["image"] for batch in batches) == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert [batch["num_valid"] for batch in batches] == [4, 2]


def test_one_image_cannot_be_trained_on():
    one = ArraySource("folder", np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="'folder' has one image: a pretraining needs at least two"):
        fit_batch(load("simsiam", "folder"), one)
