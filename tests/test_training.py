"""Training: patches as a pure function of seed and index, a real kill -9, budgets, refusals, regimes."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.models import Tiny
from helpers.training import CONFIG, state
from helpers.volumes import rods

from fgnet_lib import training
from fgnet_lib.affinities import affinities_from_labels, affinity_mask, widen_borders
from fgnet_lib.augment import Augment
from fgnet_lib.checkpoints import CHECKSUMS, History, _checksums
from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet, FGNetOutput
from fgnet_lib.files.formats import read_volume
from fgnet_lib.files.locks import lock
from fgnet_lib.patches import PatchDataset, Samples
from fgnet_lib.phantom import make_phantom
from fgnet_lib.training import train
from fgnet_lib.volumes import IGNORE, Volume


@pytest.fixture(scope="module")
def volume() -> Volume:
    return rods()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the order of additions, and so the last digits, depends on the number of threads


class Lost(Exception):
    """The session ended."""


def lose_at(iteration: int) -> Callable[[History], None]:
    def lose(history: History) -> None:
        if len(history) == iteration:
            raise Lost

    return lose


def labelled(name: str, value: int, shape: tuple[int, int, int] = (4, 32, 32)) -> Volume:
    return Volume(np.full(shape, value, np.uint8), (40, 8, 8), np.full(shape, value, np.uint64), name=name)


def test_a_patch_is_a_function_of_seed_and_index(volume: Volume) -> None:
    first, second = (PatchDataset([volume], (4, 32, 32), Augment(), seed=5) for _ in range(2))
    expected = {index: first[index] for index in (0, 7, 3)}
    for index in (3, 0, 7):
        assert all(torch.equal(a, b) for a, b in zip(expected[index], second[index], strict=True))
    reseeded = PatchDataset([volume], (4, 32, 32), Augment(), seed=6)
    assert not any(torch.equal(patch[0], reseeded[0][0]) for patch in (first[0], first[1]))
    whole = PatchDataset([volume[:4, :32, :32]], (4, 32, 32), Augment(), seed=5)  # patches differ in augmentation alone
    assert not torch.equal(first[0][0], first[1][0]) and not torch.equal(whole[0][0], whole[1][0])


def test_patches_begin_everywhere_up_to_the_far_corner() -> None:
    z, y, x = np.indices((5, 34, 33))
    raw = np.select([(z < 2) & (y < 3) & (x < 2)], [6 * z + 2 * y + x], 255).astype(np.uint8)
    dataset = PatchDataset([Volume(raw, (40, 8, 8), np.ones(raw.shape, np.uint64))], (4, 32, 32), None)
    assert {round(dataset[index][0][0, 0, 0, 0].item() * 255) for index in range(200)} == set(range(12))


def check_targets(volume: Volume, in_3d: bool) -> None:
    raw, target, mask = PatchDataset([volume], volume.shape, augment=None)[0]
    assert torch.equal((raw[0] * 255).round().byte(), torch.from_numpy(np.asarray(volume.raw)))
    assert torch.equal(target, torch.from_numpy(affinities_from_labels(widen_borders(volume.labels, in_3d))).float())
    assert torch.equal(mask, torch.from_numpy(affinity_mask(volume.labels)))
    augmented = PatchDataset([volume], (4, 32, 32), Augment())[0]
    assert 0.3 < augmented[1][:, augmented[2].all(0)].mean() < 1 and augmented[0].shape == (1, 4, 32, 32)


@pytest.mark.parametrize(("voxel_size", "in_3d"), [((40.0, 8.0, 8.0), False), ((10.0, 10.0, 10.0), True)])
def test_borders_are_widened_in_plane_or_in_3d_if_a_volume_is_isotropic(voxel_size, in_3d) -> None:
    check_targets(make_phantom((8, 64, 64), seed=0, voxel_size=voxel_size), in_3d)


def test_isotropic_em_has_borders_widened_in_3d(em_data: Path) -> None:
    check_targets(read_volume(em_data / "val" / "fib25_t2_val_z144-183.h5")[:6, :64, :64], in_3d=True)


def test_a_volume_smaller_than_a_patch_is_mirrored_and_unknown_outside(volume: Volume) -> None:
    raw, _, mask = PatchDataset([volume[:3, :24, :]], (4, 32, 32), augment=None)[0]
    assert raw.shape == (1, 4, 32, 32) and torch.equal(raw[0, :, 24:], raw[0, :, 16:24].flip(1))
    assert mask[:, 1:3, 1:24, 1:].all() and not mask[:, 3:].any() and not mask[:, :, 24:].any()


def test_patches_are_drawn_where_labels_are() -> None:
    labels = np.full((4, 256, 256), IGNORE)
    labels[:, 64:160, 64:160] = 1
    volume = Volume(np.zeros(labels.shape, np.uint8), (40, 8, 8), labels)
    dataset = PatchDataset([volume], (4, 64, 64), augment=None)
    assert np.mean([dataset[index][2][:, 1:].float().mean() > 0.4 for index in range(40)]) > 0.8


def test_weights_choose_the_volume() -> None:
    volumes = [labelled("a", 10), labelled("b", 20), labelled("c", 30)]
    dataset = PatchDataset(volumes, (4, 32, 32), None, weights=(1, 0, 3))
    drawn = [round(dataset[index][0].mean().item() * 255) for index in range(200)]
    assert set(drawn) == {10, 30} and 30 < drawn.count(10) < 70
    by_voxels = PatchDataset([volumes[0], labelled("big", 20, (12, 32, 32))], (4, 32, 32), None)
    assert by_voxels.share == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("weights", [(1,), (1, -1), (0, 0)])
def test_weights_that_do_not_fit(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="2 volumes need as many weights"):
        PatchDataset([labelled("a", 1), labelled("b", 2)], (4, 32, 32), None, weights=weights)


def test_volumes_without_labels_and_no_volumes(volume: Volume) -> None:
    with pytest.raises(ValueError, match="nobody has no labels"):
        PatchDataset([volume, replace(volume, labels=None, name="nobody")], (4, 32, 32), None)
    with pytest.raises(ValueError, match="no volume to train on"):
        train(Tiny(), [], CONFIG, "nowhere")


VICTIM = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from fgnet_lib.training import train
from helpers.models import Tiny
from helpers.training import CONFIG, die_in_a_write
from helpers.volumes import rods
torch.set_num_threads(1)
def die(history):
    if len(history.loss) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
if {in_a_write}:
    die_in_a_write()
train(Tiny(), [rods()], CONFIG, {out!r}, None if {in_a_write} else die)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_on_the_same_curve(volume: Volume, tmp_path: Path) -> None:
    folder, left = tmp_path / "killed", ["checkpoint-0000006"]
    for in_a_write in (False, True):  # the second goes on from iteration 6, and dies in the checkpoint of iteration 9
        script = VICTIM.format(tests=str(Path(__file__).parent), out=str(folder), in_a_write=in_a_write)
        victim = subprocess.run([sys.executable, "-c", script], timeout=300)
        assert victim.returncode == -signal.SIGKILL
        assert sorted(path.name for path in folder.iterdir()) == [*left, "lock", *["partial"] * in_a_write]

    lengths, survivor, undisturbed = [], Tiny(), Tiny()
    resumed = train(survivor, [volume], CONFIG, folder, lambda h: lengths.append(len(h.loss)))
    straight = train(undisturbed, [volume], CONFIG, tmp_path / "straight")
    assert lengths == [7, 8, 9, 10]  # it did go on, and did not begin again
    assert (resumed.loss, resumed.learning_rate) == (straight.loss, straight.learning_rate)  # to the last bit
    assert all(torch.equal(a, b) for a, b in zip(survivor.parameters(), undisturbed.parameters(), strict=True))
    assert "optimizer.bin" in state(folder) and state(folder) == state(tmp_path / "straight")


def test_a_half_written_checkpoint_is_ignored(volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "model.safetensors").write_bytes(b"half of it")
    history = train(Tiny(), [volume], replace(CONFIG, iterations=2), tmp_path)
    assert len(history.loss) == 2 and {path.name for path in tmp_path.iterdir()} == {"checkpoint-0000002", "lock"}


@pytest.fixture(scope="module")
def finished(volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that came to its end."""
    folder = tmp_path_factory.mktemp("training") / "finished"
    train(Tiny(), [volume], CONFIG, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.safetensors", "random_states_0.pkl", "history.json", CHECKSUMS])
@pytest.mark.parametrize("damage", [lambda path: os.truncate(path, path.stat().st_size // 2), Path.unlink])
def test_a_damaged_checkpoint_is_said_to_be_one(
    volume: Volume, finished: Path, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    damage(folder / "checkpoint-0000010" / file)
    with pytest.raises(OSError, match="checkpoint-0000010 is damaged; remove it, and train again"):
        train(Tiny(), [volume], CONFIG, folder)
    shutil.rmtree(folder / "checkpoint-0000010")
    assert len(train(Tiny(), [volume], replace(CONFIG, iterations=1), folder).loss) == 1


def test_checkpoints_of_others_are_neither_resumed_nor_removed(volume: Volume, tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("checkpoint-zzz", "checkpoint-12", "checkpoint-0000009-old")]
    for path in others:
        path.mkdir()
        (path / "thesis.docx").touch()
    (tmp_path / "checkpoint-9999999").touch()  # a file
    config = replace(CONFIG, iterations=4)
    history = train(Tiny(), [volume], config, tmp_path)
    assert train(Tiny(), [volume], config, tmp_path) == history and len(history.loss) == 4
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {path.name for path in others} | {"checkpoint-9999999", "checkpoint-0000004", "lock"}
    assert all((path / "thesis.docx").exists() for path in others)


FULL_DISK = """
import resource, sys
sys.path.insert(0, {tests!r})
import torch
from fgnet_lib.training import train
from helpers.models import Tiny
from helpers.training import CONFIG
from helpers.volumes import rods
torch.set_num_threads(1)
def fill(history):
    if len(history.loss) == 4:  # the system refuses to write on, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
train(Tiny(), [rods()], CONFIG, {out!r}, fill)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100, 1500])
def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(volume: Volume, tmp_path: Path, limit: int) -> None:
    """Whichever of the checkpoint's files is cut: Python, PyTorch and safetensors have errors of their own."""
    script = FULL_DISK.format(tests=str(Path(__file__).parent), out=str(tmp_path / "run"), limit=limit)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    error = run.stderr.strip().splitlines()[-1]
    assert error.startswith("OSError: ") and "checkpoint-0000006 could not be written, the checkpoint before" in error
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint-0000003", "lock"}
    assert len(train(Tiny(), [volume], CONFIG, tmp_path / "run").loss) == 10


def test_a_second_training_in_the_same_folder_is_refused(volume: Volume, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as thread, lock(tmp_path), pytest.raises(RuntimeError, match="is being written by"):
        thread.submit(train, Tiny(), [volume], CONFIG, tmp_path).result()


def test_a_finished_run_is_not_trained_again(volume: Volume, tmp_path: Path) -> None:
    trained, again, steps = Tiny(), Tiny(), []
    config = replace(CONFIG, iterations=4, ema=0.9)
    history = train(trained, [volume], config, tmp_path)
    assert train(again, [volume], config, tmp_path, steps.append) == history and not steps
    assert torch.equal(again.head.weight, trained.head.weight) and not again.training
    (tmp_path / "checkpoint-0000003").mkdir()  # of a run that was killed while it removed this one
    assert train(Tiny(), [volume], config, tmp_path, steps.append) == history and not steps


def test_another_configuration_is_refused_and_said(volume: Volume, tmp_path: Path) -> None:
    train(Tiny(), [volume], replace(CONFIG, iterations=1), tmp_path)
    with pytest.raises(ValueError, match=r"learning_rate was 0.01, is now 0.02; weights was None, is now \[1\]"):
        train(Tiny(), [volume], replace(CONFIG, iterations=1, learning_rate=0.02, weights=(1,)), tmp_path)
    with pytest.raises(ValueError, match="volumes was .* is now .*other"):
        train(Tiny(), [replace(volume, name="other")], replace(CONFIG, iterations=1), tmp_path)
    larger = Tiny()
    larger.more = torch.nn.Linear(1, 1)  # as adapters do, which the model's configuration does not tell
    with pytest.raises(ValueError, match=r"checkpoint-0000001 was made by another model \(.*more.weight.*new folder"):
        train(larger, [volume], replace(CONFIG, iterations=1), tmp_path)
    settings = json.loads((tmp_path / "checkpoint-0000001" / "settings.json").read_text())
    assert settings["learning_rate"] == 0.01  # the refusals changed nothing


def test_a_run_goes_on_where_float16_is_scaled(volume: Volume, tmp_path: Path, monkeypatch) -> None:
    """From an L4 or a CPU to a T4, whose scaler no checkpoint of theirs has; a scaler on a CPU plays the T4's."""

    class Scaling(Accelerator):
        def __init__(self, **keywords: object) -> None:
            super().__init__(**keywords)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)

    with pytest.raises(Lost):
        train(Tiny(), [volume], CONFIG, tmp_path, lose_at(3))  # stopped right after its checkpoint
    monkeypatch.setattr(training, "Accelerator", Scaling)
    lengths = []
    train(Tiny(), [volume], CONFIG, tmp_path, lambda history: lengths.append(len(history)))
    assert lengths == [4, 5, 6, 7, 8, 9, 10]
    assert [path.name for path in tmp_path.glob("*/scaler.pt")] == ["scaler.pt"]  # the next session has its scale


def test_training_stays_on_the_gpu_that_the_model_is_on(monkeypatch) -> None:
    current: list[torch.device] = []

    @contextlib.contextmanager
    def choose(device: torch.device):
        current.append(device)
        yield
        current.remove(device)

    monkeypatch.setattr(torch.cuda, "device", choose)
    monkeypatch.setattr(training, "precision", lambda _: "no")
    monkeypatch.setattr(training, "Accelerator", lambda **_: list(current))
    second = torch.device("cuda", 1)
    with training._accelerate(second, 1) as seen:
        assert seen == current == [second]
    assert current == []


class Evil:
    """What an attacker would put into a file that is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_a_checkpoint_cannot_run_code(volume: Volume, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    train(Tiny(), [volume], replace(CONFIG, iterations=2, ema=0.9), tmp_path / "run")
    files = [path for path in (tmp_path / "run").glob("*/*") if path.suffix not in (".json", ".safetensors")]
    for path in files:
        kept = path.read_bytes()
        path.write_bytes(pickle.dumps(Evil(mark)))
        (path.parent / CHECKSUMS).write_text(json.dumps(_checksums(path.parent)))
        with contextlib.suppress(Exception):  # refused, or ignored
            train(Tiny(), [volume], replace(CONFIG, iterations=2, ema=0.9), tmp_path / "run")
        path.write_bytes(kept)
    assert len(files) == 2 and not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()  # or the test could not fail


def test_a_time_budget_counts_over_sessions(volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = count(start=0.0, step=0.1)  # each look at the clock is 0.1 hours after the one before
    monkeypatch.setattr("fgnet_lib.training.time", SimpleNamespace(monotonic=lambda: 3600 * next(hours)))
    config = replace(CONFIG, iterations=10**6, minutes=5 * 60)
    with pytest.raises(Lost):
        train(Tiny(), [volume], config, tmp_path, lose_at(30))
    for _ in range(1000):  # a night between the sessions, which no budget has to pay
        next(hours)
    history = train(Tiny(), [volume], config, tmp_path)
    assert len(history.loss) == pytest.approx(50, abs=2)
    assert history.seconds == sorted(history.seconds) and history.seconds[-1] == pytest.approx(5 * 3600, rel=0.01)
    assert history.learning_rate[-1] < 0.01 * max(history.learning_rate)  # the schedule came to its end
    assert len(train(Tiny(), [volume], replace(config, iterations=3), tmp_path / "short").loss) == 3  # ends first


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(volume: Volume, tmp_path: Path) -> None:
    model = Tiny()

    def poison(history: History) -> None:
        if len(history.loss) == 4:
            model.head.bias.data[0] = torch.nan

    with pytest.raises(FloatingPointError, match="nan at iteration 4.*learning_rate"):
        train(model, [volume], CONFIG, tmp_path, poison)
    assert torch.isfinite(model.head.weight).all()
    assert len(train(Tiny(), [volume], CONFIG, tmp_path).loss) == 10  # the checkpoint before is good


def test_accumulated_batches_change_the_weights_once(volume: Volume, tmp_path: Path) -> None:
    model, weights = Tiny(), []
    config = replace(CONFIG, iterations=3, accumulate=4)
    history = train(model, [volume], config, tmp_path, lambda h: weights.append(model.head.weight.clone()))
    assert model.calls == 12 and len(history.loss) == len(weights) == 3
    assert not any(torch.equal(a, b) for a, b in zip(weights, weights[1:], strict=False))


def test_patches_are_those_of_the_configuration(volume: Volume, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(training, "fit", lambda model, dataset, *_: dataset)
    volumes, config = [volume, labelled("flat", 90)], replace(CONFIG, seed=3, weights=(2, 1))
    ours = train(Tiny(), volumes, config, tmp_path)
    theirs = PatchDataset(volumes, config.patch, Augment(), 3, (2, 1))
    for k in range(4):
        assert all(torch.equal(a, b) for a, b in zip(ours[k], theirs[k], strict=True))


def test_chance_inside_the_model_follows_from_the_seed(volume: Volume, tmp_path: Path) -> None:
    losses = []
    for number in (1, 2):
        model = Tiny()
        torch.manual_seed(number)
        losses.append(train(model, [volume], replace(CONFIG, iterations=2), tmp_path / str(number)).loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("frozen", [True, False])
def test_the_encoder_is_frozen_or_moves_slowly(volume: Volume, tmp_path: Path, frozen: bool) -> None:
    model, start = Tiny(), Tiny()
    train(model, [volume], replace(CONFIG, iterations=1, warmup=0, freeze_encoder=frozen), tmp_path)
    step = {
        name: (p - q).abs().max().item()
        for (name, p), q in zip(model.named_parameters(), start.parameters(), strict=True)
    }
    assert step["head.weight"] == pytest.approx(CONFIG.learning_rate, rel=0.05)  # AdamW's first step is the rate
    assert step["encoder.weight"] == pytest.approx(0 if frozen else 0.1 * CONFIG.learning_rate, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_both_regimes_of_fgnet_itself(volume: Volume, tmp_path: Path, frozen: bool) -> None:
    model, modes = FGNet(MINI), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = replace(CONFIG, patch=(2, 32, 32), iterations=2, freeze_encoder=frozen)
    parts = (model.encoder, model.fine_encoder)
    train(model, [volume], config, tmp_path, lambda history: modes.append(tuple(part.training for part in parts)))
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(dict(model.named_children())) - ({"encoder"} if frozen else set())
    assert modes == [(not frozen, True)] * 2 and not model.training


@pytest.mark.slow
def test_the_model_ends_with_the_moving_average(volume: Volume, tmp_path: Path) -> None:
    last, averaged, path = Tiny(), Tiny(), []
    train(last, [volume], CONFIG, tmp_path / "a", lambda h: path.append(last.head.weight.detach().clone()))
    train(averaged, [volume], replace(CONFIG, ema=0.5), tmp_path / "b")
    expected = path[0]
    for n, weight in enumerate(path[1:], 1):
        expected = expected + (1 - min(0.5, (1 + n) / (10 + n))) * (weight - expected)
    torch.testing.assert_close(averaged.head.weight.data, expected)
    assert not torch.allclose(averaged.head.weight, last.head.weight)


def test_precision_follows_the_device_and_may_change(volume: Volume, tmp_path: Path, monkeypatch) -> None:
    """A GPU's mixed precision, played on the CPU: used while training, gone afterwards, another one the next time."""
    for kind in ("bf16", "no"):
        monkeypatch.setattr("fgnet_lib.training.precision", lambda device, kind=kind: kind)
        model = Tiny()
        loss = train(model, [volume], replace(CONFIG, iterations=2), tmp_path / kind).loss
        assert np.isfinite(loss).all() and model.in_half == {kind == "bf16"}
        output = model(torch.rand(1, 1, 4, 32, 32))
        assert isinstance(output, FGNetOutput) and output.refined.dtype == model.head.weight.dtype == torch.float32
        assert False in model.in_half


def pace(monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float) -> None:
    """Play a CPU with bfloat16, on whose clock a batch takes these seconds."""
    passed, forward = [0.0], Tiny.forward

    def timed(model: Tiny, raw: torch.Tensor) -> FGNetOutput:
        passed.append(bfloat16 if torch.is_autocast_enabled("cpu") else float32)
        return forward(model, raw)

    monkeypatch.setattr(Tiny, "forward", timed)
    monkeypatch.setattr("fgnet_lib.training.time.process_time", lambda: sum(passed))
    monkeypatch.setattr("fgnet_lib.training.has_bfloat16", lambda: True)


TRYING = replace(CONFIG, try_bfloat16=True)


def test_the_faster_arithmetic_is_chosen_and_said(volume: Volume, tmp_path: Path, monkeypatch, capsys) -> None:
    pace(monkeypatch, 0.4, 0.3)
    model = Tiny()
    history = train(model, [volume], TRYING, tmp_path)
    assert history.bfloat16 and model.in_half == {True} and np.isfinite(history.loss).all()
    assert model.head.weight.dtype == torch.float32
    captured = capsys.readouterr()
    assert "the processor 0.400 s in float32, 0.300 s in bfloat16: training in bfloat16" in captured.out
    assert "bfloat16" in captured.err  # the progress bar
    plain = train(Tiny(), [volume], CONFIG, tmp_path / "float32").loss
    assert history.loss == pytest.approx(plain, rel=0.02) and history.loss != plain


def test_a_trial_that_chooses_float32_leaves_no_trace(volume: Volume, tmp_path: Path, monkeypatch, capsys) -> None:
    plain, tried = Tiny(), Tiny()
    expected = train(plain, [volume], CONFIG, tmp_path / "plain")
    pace(monkeypatch, 0.3, 0.4)
    history = train(tried, [volume], TRYING, tmp_path / "tried")
    assert "training in float32" in capsys.readouterr().out and not history.bfloat16
    assert (history.loss, tried.in_half, tried.calls) == (expected.loss, {False}, CONFIG.iterations)
    assert state(tmp_path / "tried") == state(tmp_path / "plain")  # weights, optimiser and generators, to the last bit


def test_a_resumed_run_keeps_what_its_first_start_chose(volume: Volume, tmp_path: Path, monkeypatch, capsys) -> None:
    pace(monkeypatch, 0.4, 0.3)
    undisturbed = train(Tiny(), [volume], TRYING, tmp_path / "straight")
    with pytest.raises(Lost):
        train(Tiny(), [volume], TRYING, tmp_path / "lost", lose_at(4))
    capsys.readouterr()
    monkeypatch.setattr("fgnet_lib.training.has_bfloat16", lambda: False)  # another machine, and another wish
    survivor = Tiny()
    resumed = train(survivor, [volume], CONFIG, tmp_path / "lost")
    assert survivor.in_half == {True} and resumed.bfloat16 and capsys.readouterr().out == ""
    assert resumed.loss == undisturbed.loss
    assert state(tmp_path / "lost") == state(tmp_path / "straight")


def test_a_cpu_without_bfloat16_is_not_tried(volume: Volume, tmp_path: Path, monkeypatch) -> None:
    pace(monkeypatch, 0.4, 0.3)
    monkeypatch.setattr("fgnet_lib.training.has_bfloat16", lambda: False)
    monkeypatch.setattr("fgnet_lib.training._is_faster_in_bfloat16", lambda *_: pytest.fail("it was tried"))
    model = Tiny()
    history = train(model, [volume], replace(TRYING, iterations=2), tmp_path)
    assert not history.bfloat16 and model.in_half == {False}


def test_patches_of_two_sections_stay_in_float32(volume: Volume, tmp_path: Path, monkeypatch) -> None:
    """In bfloat16, oneDNN's gradient of a depthwise kernel of 3 x 3 x 3 reads memory that nobody wrote."""
    pace(monkeypatch, 0.4, 0.3)
    model = Tiny()
    history = train(model, [volume], replace(TRYING, iterations=2, patch=(2, *CONFIG.patch[1:])), tmp_path)
    assert not history.bfloat16 and model.in_half == {False}


@pytest.mark.slow
def test_training_learns(volume: Volume, tmp_path: Path) -> None:
    config = replace(CONFIG, iterations=40, learning_rate=0.05, freeze_encoder=False)
    loss = train(Tiny(), [volume], config, tmp_path).loss
    assert np.mean(loss[-5:]) < 0.9 * np.mean(loss[:5])


@pytest.mark.parametrize(("device", "others"), [("cpu", False), ("mps", False), ("cuda", True)])
def test_other_processes_prepare_batches_beside_a_cuda_gpu_alone(device, others):
    """On a Mac they would be spawned, and what reads a file lazily cannot be sent to them."""
    one = SimpleNamespace(num_processes=1, process_index=0, device=torch.device(device))
    assert (training._loader(PatchDataset([rods()], CONFIG.patch, None), CONFIG, 0, one).num_workers > 0) == others


@pytest.mark.parametrize(
    ("setting", "value"),
    [("batch", 0), ("accumulate", 0), ("iterations", 0), ("checkpoint_every", 0), ("minutes", 0), ("minutes", -1.0)],
)
def test_what_trains_nothing_or_never_ends_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting} is {value}"):
        replace(CONFIG, **{setting: value})


class Numbers(Samples):
    """Item k is drawn from seed k; the model of `a_line` learns from it."""

    volumes = ()

    def __getitem__(self, k):
        return torch.randn(4, generator=torch.Generator().manual_seed(k))


def a_line() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 1)


SUMS = replace(CONFIG, iterations=4, accumulate=3, checkpoint_every=2, learning_rate=0.01, ema=None)


def square(model, batch):
    return (model(batch) - batch.sum(1, keepdim=True)).square().mean()


def test_accumulated_batches_are_one_large_batch(tmp_path):
    large, several = a_line(), a_line()
    expected = training.fit(large, Numbers(), square, replace(SUMS, batch=3, accumulate=1), tmp_path / "a")
    history = training.fit(several, Numbers(), square, replace(SUMS, batch=1, accumulate=3), tmp_path / "b")
    assert history.loss == pytest.approx(expected.loss)
    torch.testing.assert_close(several.weight, large.weight)


def test_a_steep_batch_counts_no_more_than_another(tmp_path):
    """Gradients are shortened, here all of them, so that only their directions count."""
    weights = []
    for steep in (100, 10_000):
        model, batches = a_line(), count()

        def loss(model, batch, steep=steep, batches=batches):
            return (steep if next(batches) == 1 else 100) * square(model, batch)

        training.fit(model, Numbers(), loss, replace(SUMS, accumulate=1), tmp_path / str(steep))
        weights.append(model.weight)
    torch.testing.assert_close(*weights, rtol=1e-4, atol=0)


def test_a_run_that_stops_between_two_batches_goes_on_as_if_it_had_not(tmp_path):
    undisturbed, stopped, batches = a_line(), a_line(), []

    def stop(model, batch):
        batches.append(batch)
        if len(batches) == 9:
            raise KeyboardInterrupt
        return square(model, batch)

    training.fit(undisturbed, Numbers(), square, SUMS, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        training.fit(stopped, Numbers(), stop, SUMS, tmp_path / "b")
    assert not stopped.training and stopped.weight.grad is not None  # half an iteration's
    training.fit(stopped, Numbers(), square, SUMS, tmp_path / "b")
    torch.testing.assert_close(stopped.weight, undisturbed.weight, rtol=0, atol=0)


@pytest.mark.parametrize("at", [2, 4])
def test_a_gradient_that_is_no_number_reaches_neither_weights_nor_checkpoint(tmp_path, at):
    model, batches = a_line(), []

    def steep(model, batch):  # a finite loss with an infinite slope
        batches.append(batch)
        slope = (0 * model.weight.sum()).abs().sqrt() if len(batches) == 3 * at else 0
        return square(model, batch) + slope

    with pytest.raises(FloatingPointError, match=f"the gradient is nan at iteration {at - 1}"):
        training.fit(model, Numbers(), steep, replace(SUMS, checkpoint_every=1), tmp_path)
    assert torch.isfinite(model.weight).all()
    again = a_line()
    training.fit(again, Numbers(), square, replace(SUMS, checkpoint_every=1), tmp_path)
    assert torch.isfinite(again.weight).all()


def test_files_that_others_put_beside_a_checkpoint_do_not_damage_it(tmp_path):
    training.fit(a_line(), Numbers(), square, SUMS, tmp_path)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    (checkpoint / ".DS_Store").write_bytes(b"a file browser's")
    (checkpoint / ".ipynb_checkpoints").mkdir()
    assert len(training.fit(a_line(), Numbers(), square, SUMS, tmp_path).loss) == 4
    (checkpoint / "history.json").write_text("{}")
    with pytest.raises(OSError, match="is damaged"):
        training.fit(a_line(), Numbers(), square, SUMS, tmp_path)
