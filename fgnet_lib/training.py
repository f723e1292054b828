"""Training by accelerate: mixed precision, accumulation, checkpoints that survive a kill, iteration and time budgets.

What iteration k sees depends on the seed and k alone, so a run that was killed and resumed from its last checkpoint
follows the same loss curve as one that was left alone. Started once for each of several GPUs (by `notebook_launcher` or
`accelerate launch`), the same code shares the batches out.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, send_to_device, set_seed
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from fgnet_lib.augment import Augment
from fgnet_lib.checkpoints import History, _Checkpoints
from fgnet_lib.files.locks import locked
from fgnet_lib.losses import fgnet_loss
from fgnet_lib.machine import memory_kept, precision
from fgnet_lib.patches import PatchDataset
from fgnet_lib.volumes import Volume

GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """How to train. A checkpoint is only resumed with the configuration that began it.

    Attributes:
        patch: Voxels (z, y, x), y = x.
        batch: Patches that pass through the network together, on each GPU if there are several.
        accumulate: Batches whose gradients are added up before the weights change.
        iterations: Changes of the weights at most, each after processes * accumulate * batch patches.
        minutes: Time budget over all sessions, or None; whichever of the two ends first.
        learning_rate: Of AdamW, reached after `warmup` iterations, then falling to 0 along a cosine. It is used as it
            is: who multiplies the patches of an iteration by n, with more GPUs say, chooses it anew (times the square
            root of n is a usual start for Adam).
        warmup: Iterations of linear rise.
        ema: Decay of the moving average of the weights that the model gets at the end, or None for the last weights.
        freeze_encoder: SAM2 as it is (True), or fine-tuned with `encoder_lr_factor` times the learning rate.
        encoder_lr_factor: See above.
        checkpoint_every: Iterations between checkpoints.
        weights: How often each volume is drawn, relative to the others; None means by their numbers of voxels.
        seed: Of the patches and their augmentation.
    """

    patch: tuple[int, int, int] = (16, 128, 128)
    batch: int = 1
    accumulate: int = 1
    iterations: int = 1000
    minutes: float | None = None
    learning_rate: float = 1e-3
    warmup: int = 50
    ema: float | None = None
    freeze_encoder: bool = True
    encoder_lr_factor: float = 0.1
    checkpoint_every: int = 200
    weights: tuple[float, ...] | None = None
    seed: int = 0


def train(
    model: nn.Module,
    volumes: Sequence[Volume],
    config: TrainConfig,
    out_dir: str | Path,
    on_step: Callable[[History], None] | None = None,
) -> History:
    """Train a model to predict affinities, in place, on the device it is on, and leave it in eval mode; see `fit`.

    Args:
        model: An `FGNet`, or what is called as one, with its `config` and `freeze_encoder`.
        volumes: With labels; in memory they are read faster than lazily.
        config: See `TrainConfig`.
        out_dir: Folder of the checkpoints.
        on_step: As in `fit`.

    Raises:
        ValueError: If the checkpoint was made with another configuration, or the volumes do not fit it.
        FloatingPointError: If the loss is not finite; the last checkpoint is kept.
    """
    dataset = PatchDataset(volumes, config.patch, Augment(), config.seed, config.weights, model.config.far)
    model.freeze_encoder(config.freeze_encoder)
    return fit(model, dataset, _affinity_loss, config, out_dir, on_step)


def _affinity_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    raw, target, mask = batch
    return fgnet_loss(model(raw), target, mask)


def fit(
    model: nn.Module,
    dataset: Dataset,
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor],
    config: TrainConfig,
    out_dir: str | Path,
    on_step: Callable[[History], None] | None = None,
) -> History:
    """Minimise a loss, with everything that a long run needs.

    Starts from the newest checkpoint in `out_dir` if there is one. With a budget in iterations a resumed run equals an
    undisturbed one; with a budget in minutes the learning rate follows the clock, and no two runs are equal.

    In n processes, batch k of the run goes to process k modulo n, and gradients are averaged: the same as one process
    with n times the batch. What is random inside the model has a seed of its own in each process. The first process
    keeps the clock, the progress bar and `on_step`.

    Args:
        model: Trained in place, where it requires gradients, on the device it is on; left in eval mode.
        dataset: Item k is sample k of the run; has `volumes`, whose names and shapes belong to the configuration.
        loss: Called with the model and a batch on its device, returns a scalar.
        config: See `TrainConfig`.
        out_dir: Folder of the checkpoints.
        on_step: Called after every iteration (and its checkpoint) with the history so far, to draw or to stop by an
            exception.

    Raises:
        ValueError: If the checkpoint was made with another configuration.
        OSError: If the checkpoint is damaged.
        RuntimeError: If another run trains in this folder.
        FloatingPointError: If the loss is not finite; the last checkpoint is kept.
    """
    device = next(model.parameters()).device
    with memory_kept(), _alone(Path(out_dir)), _accelerate(device, config.accumulate) as accelerator:
        return _fit(accelerator, model, dataset, loss, config, Path(out_dir), on_step)


def _alone(folder: Path) -> AbstractContextManager:
    """The folder's lock, in the first process; the others come with it, and go when it is refused."""
    return locked(folder) if int(os.environ.get("RANK", 0)) == 0 else nullcontext()


@contextmanager
def _accelerate(device: torch.device, accumulate: int) -> Iterator[Accelerator]:
    """An Accelerator that leaves nothing behind; else a notebook could never change device, precision or processes."""
    try:
        yield Accelerator(
            cpu=device.type == "cpu", mixed_precision=precision(device), gradient_accumulation_steps=accumulate
        )
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def _fit(
    accelerator: Accelerator,
    model: nn.Module,
    dataset: Dataset,
    loss: Callable,
    config: TrainConfig,
    out_dir: Path,
    on_step: Callable[[History], None] | None,
) -> History:
    first = accelerator.is_main_process
    set_seed(config.seed, device_specific=True)
    model.to(accelerator.device).train()
    history, average = History(), AveragedModel(model, avg_fn=_moving_average(config.ema)) if config.ema else None
    wrapped, optimizer = accelerator.prepare(model, _optimizer(model, config))
    settings = _settings(model, dataset.volumes, config) | {"processes": accelerator.num_processes}
    checkpoints = _Checkpoints(accelerator, out_dir, settings, history, average)
    checkpoints.resume()
    batches = iter(_loader(dataset, config, len(history.loss), accelerator))
    started = time.monotonic() - (history.seconds[-1] if history.seconds else 0)
    used = _progress(config, len(history.loss), _seconds_since(started, accelerator))
    form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=1.0, initial=used, bar_format=form, disable=not first) as bar:
        while used < 1:
            rate = _set_learning_rate(optimizer, config, len(history.loss), used)
            found = _iteration(accelerator, wrapped, optimizer, loss, batches, config.accumulate)
            _refuse_nan(found, len(history.loss), rate)
            history.append(found, rate, _seconds_since(started, accelerator))
            if average is not None:
                average.update_parameters(model)
            if len(history.loss) % config.checkpoint_every == 0:
                checkpoints.save()
            bar.set_postfix_str(f"iteration {len(history.loss)}, loss {np.mean(history.loss[-20:]):.3f}", refresh=False)
            used = _progress(config, len(history.loss), history.seconds[-1])
            bar.update(min(used, 1.0) - bar.n)
            if on_step and first:
                on_step(history)
    checkpoints.save()
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    model.eval()
    return history


def _iteration(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, loss: Callable, batches: Iterator, accumulate: int
) -> float:
    """One change of the weights; returns the mean loss of its batches, and stops before a NaN reaches the weights.

    All processes see the mean of all, so that they stop together.
    """
    losses = []
    for _ in range(accumulate):
        batch = send_to_device(next(batches), accelerator.device)
        with accelerator.accumulate(model):
            found = loss(model, batch)
            losses.append(accelerator.reduce(found.detach(), "mean").item())
            if not math.isfinite(losses[-1]):
                return losses[-1]
            accelerator.backward(found)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad()
    return float(np.mean(losses))


def _refuse_nan(loss: float, iteration: int, rate: float) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} at iteration {iteration}: look at the volumes, or lower learning_rate ({rate:.2g}) "
            "and train in a new folder; the last checkpoint is kept"
        )


def _loader(dataset: Dataset, config: TrainConfig, done: int, accelerator: Accelerator) -> DataLoader:
    """This process's batches from iteration `done` on; beside a GPU, other processes prepare them."""
    processes, on_cpu = accelerator.num_processes, accelerator.device.type == "cpu"
    first, last = (iteration * config.accumulate * processes for iteration in (done, config.iterations))
    numbers = range(first + accelerator.process_index, last, processes)
    return DataLoader(
        dataset,
        batch_sampler=(range(k * config.batch, (k + 1) * config.batch) for k in numbers),
        num_workers=0 if on_cpu else min(8, os.cpu_count() // processes),
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # its own, or a resumed run would draw one random number more than another
    )


def _optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """AdamW over what is not frozen; `scale` multiplies the learning rate of a group."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith("encoder.")].append(parameter)
    scales = {True: config.encoder_lr_factor, False: 1.0}
    return AdamW([{"params": groups[key], "scale": scales[key]} for key in groups if groups[key]])


def _set_learning_rate(optimizer: Optimizer, config: TrainConfig, iteration: int, progress: float) -> float:
    """Linear warm-up times a cosine over the budget; returns the rate of the parts that are not SAM2."""
    warm = min(1.0, (iteration + 1) / max(config.warmup, 1))
    rate = config.learning_rate * warm * (1 + math.cos(math.pi * progress)) / 2
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    return rate


def _progress(config: TrainConfig, iteration: int, seconds: float) -> float:
    """Share of the budget that is used, of iterations or of minutes, whichever is larger; 1 means done."""
    return max(iteration / config.iterations, seconds / (60 * config.minutes) if config.minutes else 0.0)


def _seconds_since(started: float, accelerator: Accelerator) -> float:
    """By the clock of the first process, so that all agree on when the time is used up."""
    return broadcast(torch.tensor(time.monotonic() - started, device=accelerator.device)).item()


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Exponential moving average that starts quickly, so that the first random weights are soon forgotten."""
    return lambda average, current, n: average + (1 - min(decay, (1 + n) / (10 + n))) * (current - average)


def _settings(model: nn.Module, volumes: Sequence[Volume], config: TrainConfig) -> dict:
    """What must stay the same between sessions, as JSON gives it back."""
    settings = {**asdict(config), "model": repr(getattr(model, "config", type(model).__name__))}
    settings["volumes"] = [[volume.name, *volume.shape] for volume in volumes]
    return json.loads(json.dumps(settings))
