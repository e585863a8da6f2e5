"""The configs of the evaluations: what they share, and the numbers of each.

configs/features.py, knn.py, linear.py, finetune.py, transfer.py and evaluate_all.py are made of
these groups; a recipe after the config's name changes their numbers.
"""

from ml_collections import ConfigDict

from gsg_jax.config.recipes import check_recipe
from gsg_jax.config.transfer_sets import SETS

# What the evaluations take after a colon: numbers for small images, or those of the papers.
RECIPES = ("default", "imagenet")


def evaluation(job: str, recipe: str = "default") -> ConfigDict:
    """What every evaluation reads.

    Args:
      job: one of JOBS.
      recipe: one of RECIPES.

    Returns:
      A config with the groups data and eval.

    Raises:
      UsageError: where there is no such recipe.
    """
    check_recipe(recipe, RECIPES)
    config = ConfigDict()
    config.job = job
    config.recipe = recipe
    config.pretrained = ""  # the --workdir of a pretraining run
    config.encoder = "pretrained"  # or "untrained", as the run drew it, or "pixels"
    config.data = ConfigDict(
        {  # "" = as in pretraining
            "name": "",
            "dir": "",
            "train_split": "",
            "test_split": "",
            "crop": "",  # "device" takes images whole, "host" cuts their centre
        }
    )
    config.eval = ConfigDict({"batch_size": 500})
    return config


def add_knn(config: ConfigDict) -> None:
    """Adds what the k-NN classifier reads.

    Source: Wu et al., CVPR 2018 (arXiv 1805.01978), section 3.4.
    """
    config.eval.update(
        {
            "knn_k": (20, 200),
            "knn_temperature": 0.2,
        }
    )


def report() -> ConfigDict:
    """What a run's report reads."""
    config = evaluation("report")
    config.report = ConfigDict(
        {
            "max_images": 2000,  # on the map, evenly spaced where there are more
            "num_queries": 12,  # rows of the gallery of neighbours
            "num_neighbours": 10,  # in each
            "umap": False,  # a map by UMAP besides t-SNE and PCA; takes gsg_jax[report]
        }
    )
    return config


def add_probe(config: ConfigDict) -> None:
    """Adds what linear probes on cached embeddings read: a grid, all of it trained at once."""
    _add_seed(config)
    config.probe = ConfigDict(
        {
            "learning_rates": (0.03, 0.1, 0.3, 1.0, 3.0),  # per 256 images
            "weight_decays": (0.0, 1e-4, 1e-3, 1e-2),
            "num_epochs": 100,
            "batch_size": 256,
            "momentum": 0.9,
            "held_out": 0.2,  # share of the training split that the choice is made on
        }
    )


def add_lbfgs(config: ConfigDict) -> None:
    """Adds what logistic regression by L-BFGS reads.

    Source: Kornblith et al., CVPR 2019 (arXiv 1805.08974), appendix A: 45 values.
    """
    _add_seed(config)
    config.lbfgs = ConfigDict(
        {
            "l2": (1e-6, 1e5),  # the least and the greatest of those tried
            "num_l2": 45,
            "held_out": 0.2,  # where the set has no validation split
        }
    )


def add_linear_protocol(config: ConfigDict) -> None:
    """Adds the linear protocol on images: LARS on a linear layer behind a frozen backbone.

    Source: Chen & He, CVPR 2021 (arXiv 2011.10566), appendix A.
    """
    is_paper = config.recipe == "imagenet"
    _add_training(config)
    config.optim.update({"name": "lars", "learning_rate": 0.1, "cosine_per": "epoch"})
    config.data.batch_size = 4096 if is_paper else 256
    config.run.num_epochs = 90


def add_finetuning(config: ConfigDict) -> None:
    """Adds fine-tuning of all weights, with a rate for the backbone and one for the linear layer.

    Source: Grill et al., NeurIPS 2020 (arXiv 2006.07733), appendix C.
    """
    is_paper = config.recipe == "imagenet"
    _add_training(config)
    config.optim.update(
        {
            "name": "sgd",
            "backbone_learning_rates": (0.01, 0.02, 0.05) if is_paper else (0.05, 0.2),
            "head_learning_rates": (0.1, 0.5, 1.0) if is_paper else (0.2, 1.0),
            "cosine_per": "step",
        }
    )
    config.data.batch_size = 1024 if is_paper else 32
    config.run.update({"num_epochs": 30, "held_out": 0.2})


def add_transfer(config: ConfigDict) -> None:
    """Adds what the transfer to other sets reads.

    Source: Kornblith et al., CVPR 2019 (arXiv 1805.08974), appendix A.
    """
    config.transfer = ConfigDict(
        {
            "sets": tuple(SETS),
            "dir": "",  # TFDS folder ("" = its default)
        }
    )


def _add_training(config: ConfigDict) -> None:
    """Adds what a classifier on images is trained by."""
    _add_seed(config)
    is_paper = config.recipe == "imagenet"
    config.optim = ConfigDict(
        {
            "momentum": 0.9,
            "weight_decay": 0.0,
            "decay_weights_only": True,
            "trust_coefficient": 1e-3,  # of LARS
            "warmup_epochs": 0.0,
        }
    )
    config.views = ConfigDict(
        {
            "crop_area": (0.08, 1.0) if is_paper else (),  # () = as in pretraining
            "flip_probability": 0.5,
        }
    )


def _add_seed(config: ConfigDict) -> None:
    """Adds the seed of all that is drawn."""
    if "run" not in config:
        config.run = ConfigDict({"seed": 0})
