"""The transfer job: each set by its own splits and metric, and none that is missing fails it."""

import io

import numpy as np
import pytest
from PIL import Image

from gsg_jax.config.transfer_sets import SETS
from gsg_jax.data.tfds import multi_label_row, open_tfds
from gsg_jax.jobs import transfer as transfer_job
from tests.runs import done, job, refused, warnings

COLORS = ((250, 0, 0), (0, 250, 0), (0, 0, 250))
SMALL = ("--config.lbfgs.num_l2=3", "--config.lbfgs.l2=(1e-4,1e-2)", "--config.eval.batch_size=16")


def encoded(color, seed):
    """A noisy image of a colour, encoded, of a shape of its own."""
    rng = np.random.default_rng(seed)
    shape = (14 + seed % 3, 20, 3)
    pixels = np.clip(np.array(color) + rng.integers(-40, 40, shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A folder with sets under three of the suite's names: colours are their classes."""
    import tensorflow_datasets as tfds

    tf = tfds.features
    one = {"image": tf.Image(shape=(None, None, 3)), "label": tf.ClassLabel(names=["r", "g", "b"])}
    labels = tf.Sequence(tf.ClassLabel(names=["r", "g", "b", "nowhere"]))
    several = {"image": one["image"], "labels": labels, "labels_no_difficult": labels}

    class Colors(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tf.FeaturesDict(self.made_of), disable_shuffling=True
            )

        def _split_generators(self, manager):
            sizes = {split: 12 + 3 * n for n, split in enumerate(self.split_names)}
            return {split: self._generate_examples(size) for split, size in sizes.items()}

        def _generate_examples(self, num_examples):
            for n in range(num_examples):
                color = n % 3
                label = {"label": color}
                if "labels" in self.made_of:
                    sure = [color] if n % 4 else []
                    label = {"labels": [color], "labels_no_difficult": sure}
                yield n, {"image": encoded(COLORS[color], n), **label}

    folder = tmp_path_factory.mktemp("suite")
    for name, made_of, split_names in (
        ("cifar10", one, ("train", "test")),
        ("dtd", one, ("train", "validation", "test")),
        ("voc", several, ("train", "validation", "test")),
    ):
        versions = [tfds.core.BuilderConfig(name="2007")] if name == "voc" else []
        fields = {"name": name, "made_of": made_of, "split_names": split_names}
        fields["BUILDER_CONFIGS"] = versions
        made = type(name, (Colors,), fields, skip_registration=True)
        made(data_dir=folder).download_and_prepare(file_format="array_record")
    return folder


def command(pretrained, folder, sets):
    """The job on sets of a folder."""
    flags = (f"--config.pretrained={pretrained}", f"--config.transfer.dir={folder}")
    return job("transfer", *flags, f"--config.transfer.sets=({sets},)", *SMALL)


def transfer(*asked):
    """The last line of the job and its standard error."""
    return done(*command(*asked))


@pytest.mark.usefixtures("on_one_device")
def test_sets_on_the_machine_are_scored_and_the_others_are_named(suite, pretrained):
    last, err = transfer(pretrained, suite, "'cifar10','pets','voc2007'")
    assert (last["encoder"], last["step"], last["transfer_missing"]) == ("pretrained", 6, ["pets"])
    for name, metric in (("cifar10", "top1"), ("voc2007", "map_11_point")):
        key = f"transfer_{name}_{metric}"
        assert last[key] > 0.8 and key in err
        low, high = last[f"{key}_interval"]
        assert low <= last[key] <= high
        assert 1e-4 <= last[f"transfer_{name}_l2"] <= 1e-2


def test_a_machine_without_any_set_says_so_and_does_not_fail(pretrained, tmp_path):
    last, err = transfer(pretrained, tmp_path, "'dtd','pets'")
    assert last["transfer_missing"] == ["dtd", "pets"]
    assert "not on this machine: dtd, pets" in err


@pytest.mark.extended
def test_a_set_that_cannot_be_scored_does_not_take_the_others_with_it(
    suite, pretrained, monkeypatch
):
    without_validation = SETS["cifar10"]._replace(validation="validation")
    monkeypatch.setitem(SETS, "cifar10", without_validation)
    last, err = transfer(pretrained, suite, "'cifar10','dtd'")
    assert last["transfer_dtd_top1"] > 0.8
    assert "no split 'validation'" in last["transfer_unfit"]["cifar10"]
    assert any("cifar10 cannot be scored" in line for line in warnings(err))
    monkeypatch.setattr(transfer_job, "image_channels", lambda *_: 1)  # as if of grey images
    last, _ = transfer(pretrained, suite, "'dtd'")
    assert last["transfer_unfit"] == {"dtd": "its images have 3 channels, unlike the run's"}
    monkeypatch.setattr(transfer_job, "are_several", lambda: True)  # whose others would wait
    assert "no split 'validation'" in refused(*command(pretrained, suite, "'cifar10','dtd'"))


def test_several_labels_are_shown_not_shown_or_difficult(suite):
    source = open_tfds("voc/2007", str(suite), "train", 0, multi_label=True)
    expected = np.zeros((12, 4), int)
    for n in range(12):
        expected[n, n % 3] = 1 if n % 4 else -1
    np.testing.assert_array_equal(source.labels, expected)
    source.image(5)  # whose label is then at hand
    np.testing.assert_array_equal(source.labels, expected)
    assert source.class_names == ("r", "g", "b", "nowhere")
    assert open_tfds("voc/2007", str(suite), "train", 0).class_names == ()
    assert multi_label_row(3, {"labels": [2, 0]}).tolist() == [1, 0, 1]
