"""Wrong input to an evaluation gets one line before anything is written."""

import pytest

from tests.runs import call, hashes, job, refused

DEVICES = "2 images cannot be shared by 8 devices"
ONE_PAIR = (
    "--config.optim.backbone_learning_rates=(0.1,)",
    "--config.optim.head_learning_rates=(1.0,)",
)
REFUSALS = {
    "evaluate_all": [
        (["--config.transfer.sets=('dtdd',)"], "take from food101"),
        ([*ONE_PAIR, "--config.finetune_labels=(0.5,0.01)", "--config.data.batch_size=8"], DEVICES),
        (["--config.parts=('knn','linear')"], "take from knn, few_label, probe"),
        (["--config.parts=(1,2)"], "--config.parts=(1, 2): take from knn, few_label"),
        (["--config.parts=(('knn',),None)"], "--config.parts=(('knn',), None): take from knn"),
        (["--config.parts=()"], "--config.parts=(): take from knn"),
        (["--config.transfer.sets=(1,)"], "--config.transfer.sets=(1,): take from food101"),
        (["--config.encoder=pixels"], "leave finetune and transfer out"),
    ],
    "features": [
        (["--config.splits=('train','holdout')"], "'folder' has no split 'holdout'"),
        (["--config.splits=('train[:50%]','train[50%:]')"], "file names are equal or empty"),
        (["--config.data.test_split=holdout"], "has no such split"),
    ],
    "finetune": [
        (["--config.labels=0"], "must be a number from 1e-06 to 1"),
        (["--config.encoder=pixels"], "has no weights"),
        (["--config.optim.head_learning_rates=(0,)"], "each must be from"),
        (["--config.labels=0.01", "--config.data.batch_size=8"], DEVICES),
    ],
    "knn": [
        (["--config.data.test_split=tset"], "has no such split"),
        (["--config.features=somewhere"], "give one of them"),
    ],
    "few_label": [
        (["--config.few_label.num_images=(0,)"], "each must be from 1"),
        (["--config.few_label.num_images=(1,1.5)"], "takes whole numbers, such as (1,5,10)"),
        (["--config.few_label.num_draws=1"], "must be a number from 2"),
    ],
    "linear": [
        (["--config.protocol=sgd"], "take one of probe, lbfgs, images"),
        (["--config.protocol=images", "--config.encoder=pixels"], "needs a network and images"),
        ([f"--config.probe.{x}=(1e3,)" for x in ("learning_rates", "weight_decays")], "diverged"),
        (["--config.lbfgs.l2=(1.0,1e-4)"], "the first must not exceed the second"),
    ],
    "transfer": [
        (["--config.transfer.sets=('imagenet',)"], "take from food101"),
        (["--config.pretrained="], "--config.pretrained is empty"),
        (["--config.pretrained=/nowhere"], "holds no run"),
    ],
}
SMALL = {"evaluate_all": ["--config.eval.knn_k=(3,)"], "linear": ["--config.probe.num_epochs=30"]}


@pytest.mark.parametrize(
    ("name", "flags", "said"), [(name, *row) for name, rows in REFUSALS.items() for row in rows]
)
def test_wrong_input_gets_one_line(pretrained, tmp_path, name, flags, said):
    before = hashes(pretrained)
    common = [f"--config.pretrained={pretrained}", f"--workdir={tmp_path}", *SMALL.get(name, [])]
    status, out, err = call(*job(name, *common, *flags))
    assert status in (1, 2) and out == "" and said in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ") and hashes(pretrained) == before
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "folder", "said"),
    [
        ("knn", "train/even", "'folder' has no labels"),
        ("linear", "train", "'folder' has no test split"),
    ],
)
def test_images_without_labels_or_a_test_split_are_refused(pretrained, images, name, folder, said):
    flags = (f"--config.pretrained={pretrained}", f"--config.data.dir={images}/{folder}")
    assert said in refused(*job(name, *flags))
