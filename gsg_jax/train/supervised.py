"""Training a classifier on labelled images: the linear protocol and fine-tuning share a step."""

import copy
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from gsg_jax.config.load import view_recipe
from gsg_jax.console import UserError, counting
from gsg_jax.data.augment import ViewRecipe, make_views
from gsg_jax.data.crops import CropRecipe
from gsg_jax.data.open import Source
from gsg_jax.data.source import num_channels
from gsg_jax.devices.mesh import by_image, global_batch, replicated
from gsg_jax.evaluation.encoder import Encoder
from gsg_jax.evaluation.features import backbone_embed, embed_source
from gsg_jax.models.jit import jit_network
from gsg_jax.run.checkpoint import Checkpoints
from gsg_jax.train.build import open_loader
from gsg_jax.train.guards import stop_signals
from gsg_jax.train.optim import build_by_branch, run_length
from gsg_jax.train.state import DROP_PATH_STREAM

SAVE_EVERY_SECONDS = 30.0
SAVE_EVERY_STEPS = 200  # on several hosts
# Views of supervised training are only cropped, mirrored and normalised.
PLAIN = {"jitter": (0.0,) * 4, "blur_probability": (0.0,), "solarize_probability": (0.0,)}
PLAIN |= {"jitter_probability": 0.0, "grayscale_probability": 0.0}


class Diverged(UserError):
    """A training's loss is no longer finite."""


class Classifier(nn.Module):
    """A linear layer on embeddings that scores classes.

    Attributes:
      backbone: maps images to embeddings h.
      num_classes: C.
      freeze_backbone: whether the backbone stays in evaluation mode and gets no gradient.
    """

    backbone: nn.Module
    num_classes: int
    freeze_backbone: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps normalised images [N, H, W, C] to scores [N, num_classes], float32."""
        h = self.backbone(images, train=train and not self.freeze_backbone)
        if self.freeze_backbone:
            h = jax.lax.stop_gradient(h)
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="head")
        return head(h.astype(jnp.float32))


class ClassifierState(flax.struct.PyTreeNode):
    """Everything that a step changes.

    Attributes:
      step: steps done, int32 scalar.
      params: {backbone, head}.
      batch_stats: running statistics of the backbone, {backbone}; {} without BatchNorm.
      opt_state: of the optimizer.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class ClassifierTask:
    """Everything that stays the same from step to step; static under `jit`.

    Attributes:
      model: the backbone with its linear layer.
      optimizer: of the parameters.
      views: how a training image is cut and mirrored.
      seed: of all randomness.
    """

    model: Classifier
    optimizer: optax.GradientTransformation
    views: ViewRecipe
    seed: int


def classifier_step(
    task: ClassifierTask, state: ClassifierState, images: jax.Array, labels: jax.Array
) -> tuple[ClassifierState, jax.Array]:
    """One step: one view per image -> scores -> cross-entropy -> gradient -> update.

    Args:
      task: the static parts.
      state: before the step.
      images: uint8 [B, H, W, C], or crops cut by the host [B, 1, size, size, C].
      labels: int32 [B].

    Returns:
      (state, loss): the state after the step; the loss of the batch, a scalar.
    """
    key = jax.random.fold_in(jax.random.key(task.seed), state.step)
    drop_key = jax.random.fold_in(key, DROP_PATH_STREAM)
    views = make_views(images, key, task.views, 1)  # [B, size, size, C]

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        scores, updates = task.model.apply(
            variables, views, train=True, mutable=["batch_stats"], rngs={"drop_path": drop_key}
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()
        return loss, updates.get("batch_stats", {})

    (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
    state = ClassifierState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return state, loss


class ClassifierRun:
    """One training of a classifier on an encoder, resumed from its folder."""

    def __init__(
        self,
        encoder: Encoder,
        source: Source,
        config: ml_collections.ConfigDict,
        *,
        backbone_rate: float,
        head_rate: float,
    ):
        """Checks the request; trains nothing yet.

        Args:
          encoder: its backbone is where the training starts.
          source: labelled training images.
          config: reads views, optim, data and run.
          backbone_rate: learning rate per 256 images; 0 freezes the backbone.
          head_rate: learning rate per 256 images of the linear layer.

        Raises:
          UserError: if no batch can be made.
        """
        self.encoder = encoder
        self._channels = num_channels(source)
        run, num_devices = encoder.run, encoder.mesh.devices.size
        batch_size = min(config.data.batch_size, len(source))
        batch_size -= batch_size % num_devices
        if not batch_size:
            raise UserError(
                f"--config.data.batch_size={config.data.batch_size}: {len(source)} images cannot "
                f"be shared by {num_devices} devices; give more images or fewer devices"
            )
        area = config.views.crop_area or run.views.crop_area
        self.loader = open_loader(
            _for_this_machine(run.data),
            source,
            batch_size=batch_size,
            seed=config.run.seed,
            with_labels=True,
            crops=CropRecipe(
                num_views=1, size=run.views.size, area=area, aspect=run.views.crop_aspect
            ),
        )
        self.num_steps = run_length(config, self.loader.steps_per_epoch)
        self.task = ClassifierTask(
            model=Classifier(encoder.backbone, len(source.class_names), backbone_rate == 0),
            optimizer=build_by_branch(
                config.optim,
                {"backbone": backbone_rate, "head": head_rate},
                batch_size=batch_size,
                num_steps=self.num_steps,
                steps_per_epoch=self.loader.steps_per_epoch,
            ),
            views=dataclasses.replace(
                view_recipe(run.views),
                crop_area=area,
                flip_probability=config.views.flip_probability,
                **PLAIN,
            ),
            seed=config.run.seed,
        )

    def train(self, folder: pathlib.Path, what: str) -> ClassifierState:
        """Trains to the end and returns the last state.

        Args:
          folder: gets checkpoints, every half minute (on several hosts every 200 steps) and at the
            end; a stopped training resumes there. This process has claimed it or its parent.
          what: name of the training, for messages.

        Raises:
          UserError: if asked to stop; the training is saved, and the same command resumes.
        """
        signals = stop_signals()
        with signals as stop_requested, Checkpoints(folder, 1) as checkpoints:
            state = self._first_state()
            if newest := checkpoints.newest_step():
                state = checkpoints.restore(newest, state)
            return self._loop(state, checkpoints, stop_requested, what)

    def scores(self, state: ClassifierState, source: Source, batch_size: int) -> np.ndarray:
        """Scores of the classes, float32 [N, C]; raises Diverged if one is not finite."""
        score = backbone_embed(
            self.task.model,
            state.params,
            state.batch_stats,
            self.encoder.run.views,
            self.encoder.mesh,
        )
        scores = embed_source(score, source, batch_size=batch_size, size=self.encoder.crop_size)
        if not np.isfinite(scores).all():
            raise Diverged("the scores are not finite: lower the learning rates")
        return scores

    def _first_state(self) -> ClassifierState:
        size, key = self.encoder.run.views.size, jax.random.key(self.task.seed)
        images = jnp.zeros((1, size, size, self._channels))

        def init(params, batch_stats):
            drawn = self.task.model.init(key, images, train=False)["params"]
            params = {"backbone": params, "head": drawn["head"]}
            return ClassifierState(
                step=jnp.zeros((), jnp.int32),
                params=params,
                batch_stats={"backbone": batch_stats} if batch_stats else {},
                opt_state=self.task.optimizer.init(params),
            )

        whole = replicated(self.encoder.mesh)
        return jax.jit(init, out_shardings=whole)(self.encoder.params, self.encoder.batch_stats)

    def _loop(
        self,
        state: ClassifierState,
        checkpoints: Checkpoints,
        stop_requested: Callable[[], bool],
        what: str,
    ) -> ClassifierState:
        mesh, first_step = self.encoder.mesh, int(state.step)
        step_fn = jit_classifier_step(self.task, mesh)
        batches = self.loader.iterate(first_step)
        saved, loss = time.monotonic(), 0.0
        with counting(f"{what}: step", self.num_steps, first_step) as show:
            for step in range(first_step + 1, self.num_steps + 1):
                try:
                    images = next(batches)
                except Exception:
                    # Several hosts only save together.
                    if jax.process_count() == 1 and step - 1 > (checkpoints.newest_step() or 0):
                        _check_finite(float(loss), step - 1, what)
                        checkpoints.save(state, None)
                    raise
                batch = global_batch(mesh, images)
                state, loss = step_fn(state, batch["image"], batch["label"])
                show(step)
                is_due = time.monotonic() - saved > SAVE_EVERY_SECONDS
                if jax.process_count() > 1:  # whose clocks differ
                    is_due = step % SAVE_EVERY_STEPS == 0
                # Asked once a step, as on all hosts. After the last step, the next block asks.
                is_stopping = step < self.num_steps and stop_requested()
                if is_due or step == self.num_steps or is_stopping:
                    _check_finite(float(loss), step, what)
                    checkpoints.save(state, None)
                    saved = time.monotonic()
                if is_stopping:
                    raise UserError(f"stopped at step {step} and saved: the same command resumes")
        return state


def _for_this_machine(data: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A run's data settings, which may come from a larger machine."""
    data, num_cores = copy.deepcopy(data), os.cpu_count() or 1
    data.num_threads = min(data.num_threads, num_cores)
    data.num_processes = min(data.num_processes, num_cores)
    return data


def jit_classifier_step(task: ClassifierTask, mesh: jax.sharding.Mesh) -> Callable:
    """Compiles the step over a mesh: state replicated and donated, images and labels sharded."""
    whole, split = replicated(mesh), by_image(mesh)
    return jit_network(
        partial(classifier_step, task),
        mesh,
        in_shardings=(whole, split, split),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )


def _check_finite(loss: float, step: int, what: str) -> None:
    if not np.isfinite(loss):
        raise Diverged(f"{what}: the loss is {loss} at step {step}: lower the learning rates")
