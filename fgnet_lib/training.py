"""Lesson 04's loop (`_loop`), with what hours of training need: mixed precision and accumulation by accelerate,
checkpoints that survive a kill, budgets in iterations and in minutes.

What iteration k sees depends on the seed and k alone, so a run that was killed and resumed from its last checkpoint
follows the same loss curve as an undisturbed run. Started once for each of several GPUs (by `notebook_launcher` or
`accelerate launch`), the same code shares the batches out.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, send_to_device, set_seed
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, default_collate
from tqdm.auto import tqdm

from fgnet_lib.checkpoints import Checkpoints, History
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.locks import lock
from fgnet_lib.losses import fgnet_loss
from fgnet_lib.machine import has_bfloat16, precision, usable_cores
from fgnet_lib.patches import PatchDataset, Samples
from fgnet_lib.volumes import Volume

GRADIENT_NORM = 1.0
THIN = 2  # sections; of patches so thin, PyTorch 2.11's bfloat16 gradients of depthwise convolutions may be nan
TRIALS = 3  # batches that float32 and bfloat16 are timed on, after one that warms up


@dataclass(frozen=True)
class TrainConfig:
    """How to train. A checkpoint is resumed only with the configuration that began it.

    Attributes:
        patch: Voxels (z, y, x), y = x.
        batch: Patches that pass through the network together, on each GPU if there are several.
        accumulate: Batches whose gradients are added up before the weights change.
        iterations: Changes of the weights at most, each after processes * accumulate * batch patches.
        minutes: Time budget over all sessions, or None; whichever of the two ends first.
        learning_rate: Peak of AdamW's rate (`learning_rate` has the formula). It is used as it is: if you multiply the
            patches of an iteration by n, with more GPUs say, choose it anew (times the square root of n is a usual
            start for Adam).
        warmup: Iterations of linear rise.
        ema: Decay of the moving average of the weights that the model gets at the end, or None for the last weights.
        freeze_encoder: SAM2 stays as it is (True), or is fine-tuned.
        encoder_lr_factor: What SAM2's learning rate is multiplied by when it is fine-tuned.
        checkpoint_every: Iterations between checkpoints.
        weights: How often each volume is drawn, relative to the others; None means by their numbers of voxels.
        seed: Of the patches and their augmentation.
        try_bfloat16: On a CPU with instructions for bfloat16, a run begins by timing a few batches in float32 and in
            bfloat16, prints both times, and trains in what is faster; a resumed run keeps the choice, wherever it goes
            on. Losses agree within the noise, but not to the last bit. Several processes together stay in float32, and
            so do patches of two sections or one.
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
    try_bfloat16: bool = False

    def __post_init__(self) -> None:
        """Refuse what trains nothing, or never ends."""
        for name in ("batch", "accumulate", "iterations", "checkpoint_every"):
            if (number := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {number}; give 1 or more")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes is {self.minutes}; give more than 0, or None for no limit in time")


def train(
    model: FGNet,
    volumes: Sequence[Volume],
    config: TrainConfig,
    out_dir: str | Path,
    on_step: Callable[[History], None] | None = None,
) -> History:
    """Train a model to predict affinities, in place, on the device it is on, and leave it in eval mode.

    Args:
        model: An `FGNet`, or a module that is called as one and has `freeze_encoder`.
        volumes: With labels; in memory they are read faster than lazily.
        config: Patches, budget, learning rate and so on.
        out_dir: Folder of the checkpoints; the newest of them is resumed.
        on_step: Called with the history after every iteration, to draw or to stop by an exception.

    Returns:
        Loss, learning rate and seconds of every iteration, over all sessions.

    Raises:
        ValueError, OSError, RuntimeError, FloatingPointError: As `fit`; ValueError also if the volumes do not fit
            `config`.
    """
    from fgnet_lib.augment import Augment  # imports MONAI, which takes seconds

    dataset = PatchDataset(volumes, config.patch, Augment(), config.seed, config.weights)
    model.freeze_encoder(config.freeze_encoder)
    return fit(model, dataset, patch_loss, config, out_dir, on_step)


def patch_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Compute the loss of a batch of raw, target affinities and mask, as `PatchDataset` gives them."""
    raw, target, mask = batch
    return fgnet_loss(model(raw), target, mask)


def fit(
    model: nn.Module,
    dataset: Samples,
    loss_function: Callable[[nn.Module, Any], Tensor],
    config: TrainConfig,
    out_dir: str | Path,
    on_step: Callable[[History], None] | None = None,
) -> History:
    """Minimise a loss function over the samples of a data set, within a budget, resuming where a run was lost.

    With a budget in iterations a resumed run equals an undisturbed run; with a budget in minutes the learning rate
    follows the clock, and no two runs are equal. A run that was stopped before its first checkpoint begins again, from
    the weights that the model has by then; build the model anew for what it had. A resumed run has the weights of its
    checkpoint, the frozen ones too: to begin with another encoder, use another folder.

    In n processes, batch k of the run goes to process k modulo n, and gradients are averaged: the same as one process
    with n times the batch. What is random inside the model has a seed of its own in each process. The first process
    keeps the clock, the progress bar and `on_step`.

    Args:
        model: Trained in place, where it requires gradients, on its device; left in eval mode, even by an error.
        dataset: Item k is sample k of the run; names and shapes of its volumes belong to the configuration.
        loss_function: Called with the model and a batch on its device, returns a scalar.
        config: How to train.
        out_dir: Folder of the checkpoints.
        on_step: Called after every iteration (and its checkpoint) with the history so far, to draw or to stop by an
            exception.

    Returns:
        Loss, learning rate and seconds of every iteration, over all sessions.

    Raises:
        ValueError: If the checkpoint was made with another configuration.
        OSError: If the checkpoint is damaged, or the next cannot be written.
        RuntimeError: If another run trains in this folder.
        FloatingPointError: If the loss or its gradient is not finite; the last checkpoint is kept.
    """
    device, folder = next(model.parameters()).device, Path(out_dir).expanduser()
    with _alone(folder), _accelerate(device, config.accumulate) as accelerator:
        try:
            return _loop(accelerator, model, dataset, loss_function, config, folder, on_step)
        finally:
            accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            model.eval()


def _loop(
    accelerator: Accelerator,
    model: nn.Module,
    dataset: Samples,
    loss_function: Callable[[nn.Module, Any], Tensor],
    config: TrainConfig,
    out_dir: Path,
    on_step: Callable[[History], None] | None,
) -> History:
    """Repeat until the budget is used: a batch, its loss, backwards, one step of the optimizer."""
    set_seed(config.seed, device_specific=True)
    model.to(accelerator.device).train()
    history, average = History(), AveragedModel(model, avg_fn=_moving_average(config.ema)) if config.ema else None
    prepared, optimizer = accelerator.prepare(model, _optimizer(model, config))  # the same model, for this device
    checkpoints = Checkpoints(accelerator, out_dir, _settings(accelerator, model, dataset, config), history, average)
    checkpoints.resume()
    model.zero_grad()  # an earlier run may have been stopped between two batches of an iteration
    on_cpu, alone = accelerator.device.type == "cpu", accelerator.num_processes == 1
    may_change = on_cpu and alone and has_bfloat16() and config.patch[0] > THIN
    if config.try_bfloat16 and len(history) == 0 and may_change:
        history.bfloat16 = _is_faster_in_bfloat16(model, dataset, loss_function, config)
    in_bfloat16 = history.bfloat16 and on_cpu
    batches = iter(_loader(dataset, config, len(history), accelerator))
    started = time.monotonic() - (history.seconds[-1] if history.seconds else 0)
    used = _used(config, len(history), _seconds_since(started, accelerator))
    with _progress_bar(used, disable=not accelerator.is_main_process) as bar:
        while used < 1:
            k, losses = len(history), []
            rate = learning_rate(config, k, used)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            for batch in islice(batches, config.accumulate):
                with accelerator.accumulate(prepared):  # the optimizer waits for the last batch of an iteration
                    with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
                        loss = loss_function(prepared, send_to_device(batch, accelerator.device))
                    losses.append(_finite("loss", accelerator.reduce(loss.detach(), "mean").item(), k, rate))
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(prepared.parameters(), GRADIENT_NORM)
                        if accelerator.scaler is None:  # a scaler leaves out such steps itself
                            _finite("gradient", float(norm), k, rate)
                    optimizer.step()
                    optimizer.zero_grad()
            history.append(float(np.mean(losses)), rate, _seconds_since(started, accelerator))
            if average is not None:
                average.update_parameters(model)
            if len(history) % config.checkpoint_every == 0:
                checkpoints.save()
            used = _used(config, len(history), history.seconds[-1])
            words = f"iteration {len(history)}, loss {np.mean(history.loss[-20:]):.3f}" + ", bfloat16" * in_bfloat16
            bar.set_postfix_str(words, refresh=False)
            bar.update(min(used, 1.0) - bar.n)
            if on_step and accelerator.is_main_process:
                on_step(history)
    checkpoints.save()
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    return history


def _is_faster_in_bfloat16(
    model: nn.Module, dataset: Samples, loss_function: Callable[[nn.Module, Any], Tensor], config: TrainConfig
) -> bool:
    """Time batches in float32 and in bfloat16, by turns, and print both; neither the model nor its chance changes."""
    twin, batch = deepcopy(model), default_collate([dataset[k] for k in range(config.batch)])
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with torch.random.fork_rng(devices=[]):
        for _ in range(1 + TRIALS):
            for in_bfloat16, times in seconds.items():
                start = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
                    loss = loss_function(twin, batch)
                loss.backward()
                times.append(time.process_time() - start)
    float32, bfloat16 = (min(times[1:]) for times in seconds.values())  # other work only makes times longer
    chosen = "bfloat16" if bfloat16 < float32 else "float32"
    print(f"a batch takes the processor {float32:.3f} s in float32, {bfloat16:.3f} s in bfloat16: training in {chosen}")
    return bfloat16 < float32


def learning_rate(config: TrainConfig, k: int, used: float) -> float:
    """Compute the learning rate of iteration `k` (from 0) when the share `used` of the budget is over.

    A linear warm-up times a cosine that falls to 0; with a budget in iterations, `used` is k / iterations.

    Example:
        >>> config = TrainConfig(iterations=100, warmup=10, learning_rate=0.01)
        >>> [round(learning_rate(config, k, k / 100), 4) for k in (0, 9, 50, 99)]
        [0.001, 0.0098, 0.005, 0.0]
    """
    warmup = min(1.0, (k + 1) / max(config.warmup, 1))
    return config.learning_rate * warmup * (1 + math.cos(math.pi * used)) / 2


def _alone(folder: Path) -> AbstractContextManager[None]:
    """The folder's lock, in the first process; the others come with it, and go when it is refused."""
    return lock(folder) if int(os.environ.get("RANK", 0)) == 0 else nullcontext()


@contextmanager
def _accelerate(device: torch.device, accumulate: int) -> Iterator[Accelerator]:
    """An Accelerator that leaves nothing behind; else a notebook could never change device, precision or processes."""
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # else accelerate takes the first
            yield Accelerator(
                cpu=device.type == "cpu", mixed_precision=precision(device), gradient_accumulation_steps=accumulate
            )
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def _progress_bar(used: float, disable: bool) -> tqdm:
    """A bar that shows the share of the budget that is used, and the time left."""
    form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    return tqdm(total=1.0, initial=min(used, 1.0), bar_format=form, disable=disable)


def _finite(what: str, value: float, k: int, rate: float) -> float:
    """A loss or gradient, if it is a number; otherwise stop, in all processes, before it reaches the weights."""
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the {what} is {value} at iteration {k}: look at the volumes, or lower learning_rate ({rate:.2g}) "
            "and train in a new folder; the last checkpoint is kept"
        )
    return value


def _loader(dataset: Samples, config: TrainConfig, done: int, accelerator: Accelerator) -> DataLoader[Any]:
    """This process's batches from iteration `done` on; beside a CUDA GPU, other processes prepare them.

    Not on a Mac: there they would be started anew, which takes seconds and cannot hand over a volume in a file.
    """
    processes, on_cuda = accelerator.num_processes, accelerator.device.type == "cuda"
    first, last = (iteration * config.accumulate * processes for iteration in (done, config.iterations))
    numbers = range(first + accelerator.process_index, last, processes)
    return DataLoader(
        dataset,
        batch_sampler=(list(range(k * config.batch, (k + 1) * config.batch)) for k in numbers),
        num_workers=min(8, usable_cores() // processes) if on_cuda else 0,
        pin_memory=on_cuda,
        generator=torch.Generator(),  # its own, or a resumed run would draw one random number more than another
    )


def _optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """AdamW over what is not frozen; `factor` multiplies the learning rate of a group."""
    encoder: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (encoder if name.startswith("encoder.") else others).append(parameter)
    groups = (encoder, config.encoder_lr_factor), (others, 1.0)
    return AdamW([{"params": parameters, "factor": factor} for parameters, factor in groups if parameters])


def _used(config: TrainConfig, iterations: int, seconds: float) -> float:
    """The share of the budget that is used, of iterations or of minutes, whichever is larger; 1 means done."""
    return max(iterations / config.iterations, seconds / (60 * config.minutes) if config.minutes else 0.0)


def _seconds_since(started: float, accelerator: Accelerator) -> float:
    """By the clock of the first process, so that all agree on when the time is used up."""
    return broadcast(torch.tensor(time.monotonic() - started, device=accelerator.device)).item()


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """Exponential moving average that starts quickly, so that the first random weights are soon forgotten."""
    return lambda average, current, n: average + (1 - min(decay, (1 + n) / (10 + n))) * (current - average)


def _settings(accelerator: Accelerator, model: nn.Module, dataset: Samples, config: TrainConfig) -> dict[str, Any]:
    """What must stay the same between sessions, as JSON gives it back."""
    declared = asdict(config)
    del declared["try_bfloat16"]  # the history has what it chose
    return json.loads(json.dumps(declared)) | {
        "model": repr(getattr(model, "config", type(model).__name__)),
        "volumes": [[volume.name, *volume.shape] for volume in dataset.volumes],
        "processes": accelerator.num_processes,
    }
