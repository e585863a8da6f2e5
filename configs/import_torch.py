"""A PyTorch checkpoint becomes a run: to evaluate, train further, or export in another layout.

    python -m gsg_jax.main --config=configs/import_torch.py[:RECIPE] --config.checkpoint=FILE \
        --workdir=DIR

FILE is .safetensors, or .pth, .pth.tar, .pt, .bin, .ckpt of torch.save (pip install
'gsg_jax[torch]'), in one of the layouts of gsg_jax.interop.known.LAYOUTS, recognised by the names
of its tensors. A folder of an export for timm is taken too.
RECIPE, one of pretraining's, gives what the tensors do not: images, views, schedule.

Source: the layouts are those of torchvision, timm and the papers' own checkpoints.
"""

from ml_collections import ConfigDict

from gsg_jax.config.recipes import RECIPES, check_recipe


def get_config(recipe: str = "imagenet") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    check_recipe(recipe, RECIPES)
    return ConfigDict(
        {
            "job": "import_torch",
            "checkpoint": "",
            "method": "",  # of the run; "" = the layout's
            "recipe": recipe,
            "prefix": "",  # of the backbone's names, such as "model.encoder."; "" = the layout's
            "only_backbone": False,  # leave heads and unknown tensors out
            # What tensors do not tell; () and 0 = by the card, the layout, or the recipe.
            "model": {"num_heads": 0},  # of a ViT
            "views": {"mean": (), "std": ()},
        }
    )
