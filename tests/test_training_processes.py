"""Training in two processes, joined by gloo on the CPU as GPUs are by NCCL: the same gradients, the same resume."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.models import Tiny
from helpers.training import CONFIG, state
from helpers.volumes import rods

from fgnet_lib import REPOSITORY
from fgnet_lib.checkpoints import CHECKSUMS, _checksums
from fgnet_lib.configuration import MINI
from fgnet_lib.training import train
from fgnet_lib.weights import load_model

pytestmark = pytest.mark.slow  # starts and kills processes that train

TWO = {"iterations": 4, "batch": 1, "accumulate": 2}
SCRIPT = """
import json, os, signal, sys
from dataclasses import replace
sys.path.insert(0, {tests!r})
import torch
from accelerate import notebook_launcher
from accelerate.utils.other import get_free_port
from helpers.training import die_in_a_write
from helpers.volumes import rods
from fgnet_lib import training
from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet

torch.set_num_threads(1)
out, changes, how = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
gradients = []

class Recorded(torch.optim.AdamW):
    def step(self, *args):
        gradients.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return super().step(*args)

def tell(history):
    print("iteration", len(history.loss), flush=True)
    if how == "killed after iteration 3" and len(history.loss) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

def main():
    rank = os.environ.get("RANK", "0")
    training.AdamW, training.GRADIENT_NORM = Recorded, 1e9  # clipping would hide a wrong scale
    config = training.TrainConfig(patch=(2, 32, 32), freeze_encoder=False, ema=0.9, checkpoint_every=2, **changes)
    torch.manual_seed(0)
    model = FGNet(replace(MINI, widths=(4, 4, 4, 4, 4), coarse_width=4))
    if how == "killed in a write" and rank == "1":
        die_in_a_write()
    history = training.train(model, [rods()], config, out, tell)
    torch.save((gradients, history.loss, model.state_dict()), out + "/found" + rank)

if how == "from a notebook":
    notebook_launcher(main, num_processes=2, use_port=str(get_free_port()))
else:
    main()
"""


def launcher(processes: int) -> list[str]:
    """`accelerate launch`; its `--multi_gpu` starts processes, and theirs is the choice of device."""
    several = ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else ["--cpu"]
    return [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes), *several]


def command(tmp_path: Path, name: str, how: str, **changes: int) -> list[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    return [str(script), str(tmp_path / name), json.dumps(changes), how]


def run(tmp_path: Path, start: list[str], name: str, how: str = "undisturbed", **changes: int) -> list[tuple]:
    """What each process found: gradients of every iteration, losses, weights."""
    done = subprocess.run(
        [*start, *command(tmp_path, name, how, **changes)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("iteration")]
    assert told == [*range(told[0], changes["iterations"] + 1)]  # one process tells, the other does not repeat it
    files = sorted((tmp_path / name).glob("found*"))
    return [torch.load(path, weights_only=True) for path in files]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple], Path]:
    """Two processes, left alone: what each found, and their folder."""
    folder = tmp_path_factory.mktemp("together")
    return run(folder, launcher(2), "together", **TWO), folder / "together"


def test_two_processes_have_the_gradients_of_one_with_twice_the_batch(together: tuple, tmp_path: Path) -> None:
    ((gradients, losses, _),) = run(tmp_path, launcher(1), "alone", **TWO | {"batch": 2})
    assert len(together[0]) == 2
    for gradients_here, curve, weights in together[0]:
        assert curve == pytest.approx(losses, rel=1e-4)
        for gradient, expected in zip(gradients_here[0], gradients[0], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
        for name, value in weights.items():
            assert torch.equal(value, together[0][0][2][name]), f"{name} differs between the processes"


def test_two_killed_processes_resume_on_the_same_curve(together: tuple, tmp_path: Path) -> None:
    """The first dies after iteration 3, then the other in the checkpoint of iteration 4; none is left waiting."""
    folder, left = tmp_path / "killed", ["checkpoint-0000002"]
    for how in ("killed after iteration 3", "killed in a write"):
        victims = [*launcher(2), *command(tmp_path, "killed", how, **TWO)]
        assert subprocess.run(victims, capture_output=True, timeout=600).returncode != 0
        names = {path.name for path in folder.iterdir()}  # the process that is left may still remove what is partial
        assert names - {"partial"} == {*left, "lock"}
    resumed = run(tmp_path, launcher(2), "killed", **TWO)
    for (_, curve, weights), (_, expected, undisturbed) in zip(resumed, together[0], strict=True):
        assert curve == expected  # to the last bit
        assert all(torch.equal(value, undisturbed[name]) for name, value in weights.items())
    assert "optimizer.bin" in state(folder) and state(folder) == state(together[1])


def test_a_notebook_starts_the_same_two_processes(together: tuple, tmp_path: Path) -> None:
    results = run(tmp_path, [sys.executable], "notebook", "from a notebook", **TWO)
    assert [curve for _, curve, _ in results] == [curve for _, curve, _ in together[0]]
    assert len(results) == 2 and state(tmp_path / "notebook") == state(together[1])


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    train(Tiny(), [rods()], replace(CONFIG, iterations=1), tmp_path)
    settings = next(tmp_path.glob("*/settings.json"))
    settings.write_text(settings.read_text().replace('"processes": 1', '"processes": 4'))
    (settings.parent / CHECKSUMS).write_text(json.dumps(_checksums(settings.parent)))
    with pytest.raises(ValueError, match="processes was 4, is now 1"):
        train(Tiny(), [rods()], replace(CONFIG, iterations=2), tmp_path)


def test_torchrun_trains_in_two_processes_too_and_leaves_one_model(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--patch", "4", "32", "32", "--iterations", "2", "--fine-tune", "--out"]
    train_py = REPOSITORY / "tools" / "results" / "train.py"
    subprocess.run([*torchrun, str(train_py), *options, str(tmp_path)], check=True, timeout=600, capture_output=True)
    assert load_model(tmp_path / "model.safetensors").config == MINI
