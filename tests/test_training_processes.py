"""Training in two processes, joined by gloo on the CPU as GPUs are by NCCL: the same gradients, the same resume."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import CONFIG, Tiny, cells, replace, state

from fgnet_lib.fgnet import MINI, load_model
from fgnet_lib.training import train

TWO = {"iterations": 4, "batch": 1, "accumulate": 2}
SCRIPT = """
import json, os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from test_training import cells, die_in_a_write, replace
from fgnet_lib import training
from fgnet_lib.fgnet import MINI, FGNet

torch.set_num_threads(1)
out, changes = sys.argv[1], json.loads(sys.argv[2])
rank = os.environ.get("RANK", "0")
gradients = []

class Recorded(torch.optim.AdamW):
    def step(self, *args):
        gradients.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return super().step(*args)

training.AdamW, training.GRADIENT_NORM = Recorded, 1e9  # clipping would hide a wrong scale
config = training.TrainConfig(patch=(2, 32, 32), freeze_encoder=False, ema=0.9, checkpoint_every=2, **changes)
torch.manual_seed(0)
model = FGNet(replace(MINI, widths=(4, 4, 4, 4, 4), coarse_width=4))

def tell(history):
    print("iteration", len(history.loss), flush=True)
    if sys.argv[3:] == ["iteration 3"] and len(history.loss) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3:] == ["write"] and rank == "1":
    die_in_a_write()
history = training.train(model, [cells()], config, out, tell)
torch.save((gradients, history.loss, model.state_dict()), out + "/found" + rank)
"""


def launcher(processes: int) -> list[str]:
    """What `accelerate launch` does on GPUs; on a CPU it would start one process only."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def command(tmp_path: Path, processes: int, name: str, **changes: int) -> list[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    return [*launcher(processes), str(script), str(tmp_path / name), json.dumps(changes)]


def run(tmp_path: Path, processes: int, name: str, **changes: int) -> list[tuple]:
    """What each process found: gradients of every iteration, losses, weights."""
    done = subprocess.run(command(tmp_path, processes, name, **changes), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("iteration")]
    assert told == [*range(told[0], changes["iterations"] + 1)]  # one process tells, the other does not repeat it
    return [torch.load(tmp_path / name / f"found{rank}", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple], Path]:
    """Two processes, left alone: what each found, and their folder."""
    folder = tmp_path_factory.mktemp("together")
    return run(folder, 2, "together", **TWO), folder / "together"


def test_two_processes_have_the_gradients_of_one_with_twice_the_batch(together: tuple, tmp_path: Path) -> None:
    ((gradients, losses, _),) = run(tmp_path, 1, "alone", **TWO | {"batch": 2})
    for found, curve, weights in together[0]:
        assert curve == pytest.approx(losses, rel=1e-4)
        for one, other in zip(found[0], gradients[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
        for name, value in weights.items():
            assert torch.equal(value, together[0][0][2][name]), f"{name} differs between the processes"


def test_two_killed_processes_resume_on_the_same_curve(together: tuple, tmp_path: Path) -> None:
    """The first dies after iteration 3, then the other in the checkpoint of iteration 4; none is left waiting."""
    folder, left = tmp_path / "killed", ["checkpoint-0000002"]
    for moment in ("iteration 3", "write"):
        victims = subprocess.run([*command(tmp_path, 2, "killed", **TWO), moment], capture_output=True, timeout=300)
        assert victims.returncode != 0
        assert sorted(path.name for path in folder.iterdir()) == left + ["partial"] * (moment == "write")
    resumed = run(tmp_path, 2, "killed", **TWO)
    for (_, curve, weights), (_, expected, undisturbed) in zip(resumed, together[0], strict=True):
        assert curve == expected  # to the last bit
        assert all(torch.equal(value, undisturbed[name]) for name, value in weights.items())
    assert "optimizer.bin" in state(folder) and state(folder) == state(together[1])


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    train(Tiny(), [cells()], replace(CONFIG, iterations=1), tmp_path)
    settings = next(tmp_path.glob("*/settings.json"))
    settings.write_text(settings.read_text().replace('"processes": 1', '"processes": 4'))
    with pytest.raises(ValueError, match="processes was 4, is now 1"):
        train(Tiny(), [cells()], replace(CONFIG, iterations=2), tmp_path)


def test_the_command_trains_in_two_processes_and_leaves_one_model(tmp_path: Path) -> None:
    options = ["--patch", "4", "32", "32", "--iterations", "2", "--fine-tune", "--out"]
    train_py = Path(__file__).parents[1] / "tools" / "train.py"
    subprocess.run([*launcher(2), str(train_py), *options, str(tmp_path)], check=True, timeout=300, capture_output=True)
    assert load_model(tmp_path / "model.safetensors").config == MINI
