"""Builds a run's parts from its config: the loader, the static experiment, the compiled step."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from gsg_jax.config.load import view_recipe
from gsg_jax.data.crops import CropRecipe
from gsg_jax.data.loader import TrainLoader
from gsg_jax.data.open import Source
from gsg_jax.devices.mesh import by_image, is_cpu, replicated, sharded
from gsg_jax.methods import METHODS
from gsg_jax.methods.guided_sources import guided_sources
from gsg_jax.models.jit import jit_network
from gsg_jax.models.siamese import build_siamese, frozen_params, output_width
from gsg_jax.train.optim import build_optimizer, ema_decay_schedule
from gsg_jax.train.state import Experiment, TrainState
from gsg_jax.train.step import train_step


def build_loader(config: ml_collections.ConfigDict, source: Source) -> TrainLoader:
    """Builds this host's stream of batches from `config.data` and `config.views`."""
    views = config.views
    crops = CropRecipe(
        num_views=config.method.num_views,
        size=views.size,
        area=views.crop_area,
        aspect=views.crop_aspect,
        num_local=views.num_local,
        local_size=views.local_size,
        local_area=views.local_crop_area,
    )
    return open_loader(
        config.data,
        source,
        batch_size=config.data.batch_size,
        seed=config.run.seed,
        with_labels=config.eval.online_linear,
        crops=crops,
    )


def open_loader(
    data: ml_collections.ConfigDict, source: Source, *, crops: CropRecipe, **options
) -> TrainLoader:
    """Opens this host's stream by `config.data`; `crops` are cut if data.crop is "host"."""
    return TrainLoader(
        source,
        host_index=jax.process_index(),
        num_hosts=jax.process_count(),
        num_threads=data.num_threads,
        num_processes=data.num_processes,
        prefetch=data.prefetch,
        crops=crops if data.crop == "host" else None,
        **options,
    )


def build_experiment(
    config: ml_collections.ConfigDict,
    *,
    num_steps: int,
    steps_per_epoch: int,
    num_classes: int = 0,
) -> Experiment:
    """Builds the static parts of the step, the first argument of train_step.

    Args:
      config: resolved.
      num_steps: length of the run.
      steps_per_epoch: steps per epoch.
      num_classes: number of labels; 0 builds no online probe.
    """
    method, row = config.method, METHODS[config.method.name]
    options = {option: method[option] for option in row.options}
    build = partial(build_siamese, config.model, predictor=method.predictor)
    online, target = build(num_views=method.num_views)
    loss = partial(row.loss, stop_gradient=method.stop_gradient, **options)
    if method.sources_by == "guided":
        loss = partial(guided_sources, loss)
    select, num_sources = None, method.num_views
    if method.sources == "selected":
        select = partial(row.select, **options)
        z = jnp.zeros((method.num_views, config.data.batch_size, 1))
        num_sources = len(jax.eval_shape(select, z, jax.random.key(0)))
        online, _ = build(num_views=num_sources)
    local, _ = build(num_views=config.views.num_local)
    frozen = frozen_params(config.model)
    has_probe = config.eval.online_linear and num_classes > 0
    return Experiment(
        online=online,
        local=local,
        target=target,
        target_branch=method.target,
        ema_decay=ema_decay_schedule(method, num_steps=num_steps),
        loss=loss,
        init_memory=partial(row.init_memory, width=output_width(config.model), **options),
        optimizer=build_optimizer(
            config.optim,
            batch_size=config.data.batch_size,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
            frozen=frozen,
            probe_rate=config.eval.online_linear_learning_rate if has_probe else None,
        ),
        frozen=frozen,
        probe=nn.Dense(num_classes) if has_probe else None,
        views=view_recipe(config.views),
        num_views=method.num_views,
        num_sources=num_sources,
        select=select,
        seed=config.run.seed,
        figures_every_steps=config.run.log_every_steps,
        inspects_gradients=config.eval.inspect_gradients,
        num_microbatches=config.optim.num_microbatches,
        skips_bad_steps=config.optim.max_skipped_steps > 0,
        grad_norm_limit=config.optim.grad_norm_limit,
    )


def jit_step(experiment: Experiment, mesh: jax.sharding.Mesh, state: TrainState | None = None):
    """Compiles the step over a mesh: state donated, images and labels sharded.

    Args:
      experiment: the static parts.
      mesh: the devices.
      state: arrays or shapes; needed if "fsdp" splits the state, which is otherwise replicated.

    Returns:
      (state, images[, labels]) -> (state, metrics).
    """
    # Within a loop a CPU convolves ten times slower.
    experiment = dataclasses.replace(experiment, unrolls_microbatches=is_cpu(mesh))
    whole, split = replicated(mesh), by_image(mesh)
    of_state, step = whole, partial(train_step, experiment)
    if mesh.shape.get("fsdp", 1) > 1:
        of_state, step = sharded(mesh, state), _step_of_shards(experiment, mesh)
    return jit_network(
        step,
        mesh,
        in_shardings=(of_state, split, split) if experiment.probe else (of_state, split),
        out_shardings=(of_state, whole),
        donate_argnums=0,
    )


def _step_of_shards(experiment: Experiment, mesh: jax.sharding.Mesh):
    """The step on a sharded state: branches run on whole weights, the update on each shard.

    Without these constraints XLA splits convolutions by channel and gathers their activations.
    """

    def update(grads, opt_state, params):
        whole = jax.lax.with_sharding_constraint(grads, replicated(mesh))
        grads, params = (
            jax.lax.with_sharding_constraint(tree, sharded(mesh, tree)) for tree in (whole, params)
        )
        return experiment.optimizer.update(grads, opt_state, params)

    of_shards = dataclasses.replace(
        experiment, optimizer=optax.GradientTransformation(experiment.optimizer.init, update)
    )

    def step(state, *inputs):
        gathered = {
            group: jax.lax.with_sharding_constraint(getattr(state, group), replicated(mesh))
            for group in ("params", "batch_stats", "target_params", "target_batch_stats", "memory")
        }
        return train_step(of_shards, state.replace(**gathered), *inputs)

    return step
