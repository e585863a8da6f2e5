"""Values that do not fit together are refused with the fix, in one line."""

import pytest

from gsg_jax.config.check import check_pretraining
from tests.small import load, refusal


def test_steps_to_keep_that_are_not_saved_are_refused_with_the_nearest_that_are():
    config = load()
    config.run.update({"checkpoint_every_steps": 1000, "keep_every": 2500})
    message = refusal(config)
    assert "--config.run.keep_every=2500" in message and "take 2000 or 3000" in message
    for right in (0, 1000, 3000):
        config.run.keep_every = right
        check_pretraining(config)


def test_a_misspelt_key_of_a_config_file_is_refused_with_the_nearest_right_one():
    config = load()
    config.optim.learning_rat = 1.0
    message = refusal(config)
    assert "optim.learning_rat:" in message and "--config.optim.learning_rate?" in message


def test_keys_that_do_not_fit_together_are_refused():
    config = load("simsiam_gsg")
    config.method.pairing = "permutation"
    assert "--config.method.num_views=4" in refusal(config)
    config.method.num_views = 4
    check_pretraining(config)
    config = load("simsiam_gsg")
    config.method.pairing = "halves"
    config.data.batch_size = 127
    assert "127" in refusal(config) and "--config.data.batch_size=128" in refusal(config)
    config = load("simsiam")
    config.method.name = "byol_gsg"
    assert "--config=byol_gsg" in refusal(config)
    config = load()
    config.views.jitter = (0.4, 0.4, 0.4, 0.6)
    assert "0.5" in refusal(config)
    config = load()
    config.views.mean = (0.1, 0.2, 0.3)
    assert "views.std" in refusal(config)


def test_groups_of_batchnorm_that_do_not_divide_a_microbatch_are_refused_with_the_fix():
    config = load()
    config.data.batch_size = 96
    config.model.bn_group_images = 32
    check_pretraining(config)
    config.optim.num_microbatches = 4
    for wrong, right in ((32, 24), (11, 12), (1, 2)):
        config.model.bn_group_images = wrong
        assert refusal(config) == (
            f"--config.model.bn_group_images={wrong}: must be 0, or two or more that divide the 24 "
            f"images of a batch or microbatch; set --config.model.bn_group_images={right}"
        )
        config.model.bn_group_images = right
        check_pretraining(config)


@pytest.mark.parametrize(
    ("changes", "said", "fixes"),
    [
        (
            {"backbone": "vit_micro", "patch_size": 9},
            "--config.views.size=28: must be a multiple of model.patch_size, 9; set ",
            [{"views.size": 27}, {"model.patch_size": 7}],
        ),
        ({"backbone": "vit_small", "patch_size": 100}, "", [{"views.size": 100}]),
        (
            {"norm": "group", "width": 24},
            "--config.model.norm_groups=32: must divide model.width, 24, the channels of the "
            "first stage; set ",
            [{"model.norm_groups": 24}],
        ),
        (
            {"backbone": "vit_micro", "patch_size": 7, "norm": "group"},
            "--config.model.norm=group: vit_micro has no such thing; set ",
            [{"model.norm": "batch"}],
        ),
        (
            {"backbone": "vit_micro", "patch_size": 7, "weight_standardization": True},
            "",
            [{"model.weight_standardization": False}],
        ),
        (
            {"freeze_patches": True},
            "--config.model.freeze_patches=True: resnet10 has no such thing; set ",
            [{"model.freeze_patches": False}],
        ),
        ({"drop_path": 0.1}, "", [{"model.drop_path": 0.0}]),
    ],
)
def test_a_network_that_cannot_be_built_as_asked_is_refused_with_the_fix(changes, said, fixes):
    config = load()
    config.model.update(changes)
    message = refusal(config)
    told = [f"--config.{key}={value}" for fix in fixes for key, value in fix.items()]
    assert said + " or ".join(told) in message
    for fix in fixes:
        config = load()
        config.model.update(changes)
        config.update_from_flattened_dict(fix)
        check_pretraining(config)
