"""Train the student of lesson 10 (`make student`), or the rows that say what its losses and widths are worth (--rows).

The teacher is the shipped FGNet. What it makes of FIB-25's training part (sections 0-119) is computed once and kept in
the work folder. You may stop the command at any time and start it again: a training goes on from its checkpoint, and a
row that is in the table is not trained again. Several terminals may share the rows.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: rows are equal in the time of one core

import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch
from results import open_choosing_part
from torch import Tensor, nn
from train_mini import PARTS, THRESHOLDS, best_threshold, choose_on_parts, score, score_part

from fgnet_lib import REPOSITORY
from fgnet_lib.affinities import affinities_from_labels, affinity_mask, widen_borders
from fgnet_lib.checkpoints import History
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import atomic
from fgnet_lib.files.locks import LockedError, lock
from fgnet_lib.inference import predict
from fgnet_lib.machine import hardware
from fgnet_lib.metrics import evaluate
from fgnet_lib.neighbours.distillation import (
    Distillation,
    LossWeights,
    distillation_loss,
    grafting_loss,
    truth_loss,
    turn,
)
from fgnet_lib.patches import Samples
from fgnet_lib.segmentation import segment, sweep
from fgnet_lib.student import Student, embedding_affinities
from fgnet_lib.study.evaluation import postprocessing_version
from fgnet_lib.study.rows import SECTIONS
from fgnet_lib.study.runs import add_runs, read_runs
from fgnet_lib.study.statistics import summary
from fgnet_lib.study.students import (
    FIELD_UNET,
    ITERATIONS,
    PUPILS,
    QUESTIONS,
    STUDENTS,
    Pupil,
    describe_missing,
    list_runs,
    read_students,
    section_milliseconds,
    student_answer,
    student_scores,
    student_training,
)
from fgnet_lib.training import TrainConfig, fit
from fgnet_lib.volumes import IGNORE, Region, Volume
from fgnet_lib.weights import PRETRAINED, load_pretrained, pretrained_threshold, read_notes, save_model

SHIPPED, ITERATIONS_SHIPPED = PUPILS["cross"], 12_000
HEAD_ITERATIONS = 200  # of the head that gives the teacher embeddings, for feature grafting
PAGE = REPOSITORY / "docs" / "measured" / "student.md"
INTRODUCTION = """\
# A student of two dimensions

<!-- written by tools/results/train_student.py from docs/measured/student; edit that tool instead -->

These are the rows of [lesson 10](../../notebooks/10_twenty_times_faster.ipynb), declared in
`fgnet_lib/study/students.py`. Every student trains for {iterations} iterations on the same crops of FIB-25's sections
0-119, and no learning rate was tuned. The teacher is the shipped FGNet. VOI (bits) and ARAND are those of FIB-25's
validation part; the threshold of each run is chosen on sections 120-139.

Milliseconds are the processor's for a section of 160 x 160 voxels, in PyTorch on one thread. A run times its student in
turns with the field's 3D U-Net (28/36/48/64/80 channels) of `make bench`; the columns have the medians over runs. Other
programs ran meanwhile, so trust the ratio more than the milliseconds.

{missing} You may stop that command and start it again.
"""
ANSWERS = """\
## Questions

You see VOI of the first and of the second row, their difference (negative: the first is better), and how often chance
alone separates the runs as much (*p*, by permutation; with three runs of each it is at least 0.10).

| question | first | second | difference | p |
| --- | ---: | ---: | ---: | ---: |"""
GRID = 4  # crops begin at multiples, so that the encoder's features at stride 4 can be cut, too
SLAB, MARGIN = 16, 2  # sections that the teacher sees at once, and those at both ends that are left out


@torch.inference_mode()
def teach(model: FGNet, raw: np.ndarray) -> dict[str, np.ndarray]:
    """Compute what a teacher says of a volume (z, y, x), in float16.

    Returns:
        `affinities` (3, z, y, x); `features` of the refined decoder (C, z, y, x); `guide`, the encoder's finest
        features (G, z, y / 4, x / 4).
    """
    seen: list[Tensor] = []
    hook = model.refined_decoder.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features, guide = [], []
    for z in range(0, len(raw), SLAB - 2 * MARGIN):
        first, last = max(z - MARGIN, 0), min(z + SLAB - MARGIN, len(raw))
        sections = torch.from_numpy(raw[first:last] / np.float32(255))[None, None]
        encoded = model.encode(sections)
        model(sections, encoded)
        kept = slice(z - first, z - first + SLAB - 2 * MARGIN)
        features.append(seen.pop()[0, :, kept, : raw.shape[1], : raw.shape[2]].half().numpy())
        guide.append(encoded[0][0, :, kept].half().numpy())
    hook.remove()
    affinities = predict(model, raw, progress=False, engine="torch").refined
    return {
        "affinities": affinities.astype(np.float16),
        "features": np.concatenate(features, 1),
        "guide": np.concatenate(guide, 1),
    }


@dataclass(frozen=True)
class Teaching:
    """The training volume, what its labels say, and what the teacher has seen in it (as `teach` gives it)."""

    volume: Volume
    seen: dict[str, np.ndarray]
    target: np.ndarray
    mask: np.ndarray
    labels: np.ndarray  # int64, borders widened


def open_teaching(work: Path) -> Teaching:
    """FIB-25's sections 0-119 and what the shipped FGNet says of them, computed once and kept in the work folder."""
    volume = open_dataset("fib25", "train").load()[:SECTIONS, :, :]
    paths = {name: work / f"{name}.npy" for name in ("affinities", "features", "guide")}
    if not all(path.is_file() for path in paths.values()):
        for name, array in teach(load_pretrained(), volume.raw).items():
            with atomic(paths[name]) as part, part.open("wb") as file:
                np.save(file, array)
    seen = {name: np.load(path, mmap_mode="r") for name, path in paths.items()}
    widened = widen_borders(volume.labels.astype(np.uint64), in_3d=True)
    labels = np.where(widened == IGNORE, 0, widened).astype(np.int64)
    return Teaching(volume, seen, affinities_from_labels(widened), affinity_mask(volume.labels), labels)


class TaughtPatches(Samples):
    """Crops of the training volume with what labels and teacher say, as `distillation_loss` takes them.

    Item k depends on the seed and on k alone. Only raw is turned and varied. `names` says which of the teacher's arrays
    an item has.
    """

    def __init__(self, data: Teaching, names: tuple[str, ...], config: TrainConfig) -> None:
        self.volumes, self.data, self.names = [data.volume], data, names
        self.patch, self.seed = config.patch, config.seed

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        rng, volume = np.random.default_rng((self.seed, index)), self.data.volume
        number = int(rng.integers(16))
        start = [int(rng.integers((n - p) // GRID + 1)) * GRID for n, p in zip(volume.shape, self.patch, strict=True)]
        region = Region.at(start, self.patch)
        coarse = Region(region.z, *(slice(s.start // GRID, s.stop // GRID) for s in (region.y, region.x)))
        raw = vary(volume.raw[*region] / np.float32(255), rng)
        item = {
            "raw": turn(torch.from_numpy(raw)[None], number).contiguous(),
            "turn": number,
            "target": torch.from_numpy(self.data.target[:, *region].astype(np.float32)),
            "mask": torch.from_numpy(self.data.mask[:, *region].copy()),
            "labels": torch.from_numpy(self.data.labels[*region].copy()),
            "known": torch.from_numpy(volume.labels[*region] != IGNORE),
        }
        for name in self.names:
            cut = coarse if name == "guide" else region
            item[name] = torch.from_numpy(self.data.seen[name][:, *cut].astype(np.float32))
        return item


def vary(raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary brightness and contrast of each section, gamma, and noise of a crop (z, y, x) in [0, 1]."""
    sections = (len(raw), 1, 1)
    raw = raw * rng.uniform(0.8, 1.2, sections) + rng.uniform(-0.1, 0.1, sections)
    raw = raw.clip(0, 1) ** rng.uniform(0.7, 1.4)
    raw = raw + rng.normal(0, rng.uniform(0, 0.05), raw.shape)
    return raw.clip(0, 1).astype(np.float32)


def build_distillation(pupil: Pupil, data: Teaching, seed: int) -> Distillation:
    """A student before its training, the same for the same seed, with what its losses need."""
    torch.manual_seed(seed)
    weights = LossWeights(**pupil.losses)
    student = Student(pupil.config)
    head = train_graft_head(data, pupil.config.embedding, seed) if weights.graft else None
    return Distillation(student, weights, head, len(data.seen["guide"]))


def train_graft_head(data: Teaching, embedding: int, seed: int) -> nn.Module:
    """Train a head from the teacher's features to embeddings, briefly; the teacher itself stays as it is."""

    def loss(head: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        embeddings = head(batch["features"])
        near = truth_loss(embedding_affinities(embeddings), batch["target"], batch["mask"])
        return near + grafting_loss(embeddings, embeddings, batch["labels"], batch["known"])

    head = nn.Conv3d(len(data.seen["features"]), embedding + 1, 1)
    config = replace(student_training(seed, HEAD_ITERATIONS), learning_rate=1e-2, warmup=10)
    with tempfile.TemporaryDirectory() as folder:
        fit(head, TaughtPatches(data, ("features",), config), loss, config, folder)
    return head


def train_pupil(pupil: Pupil, data: Teaching, config: TrainConfig, folder: Path) -> tuple[Student, History, float]:
    """Train a student; also returns its history and the seconds of one core that training took."""
    model = build_distillation(pupil, data, config.seed)
    used = {"affinities": model.weights.cross, "features": model.weights.graft, "guide": model.weights.features}
    names = tuple(name for name, weight in used.items() if weight)
    started = time.process_time()
    history = fit(model, TaughtPatches(data, names, config), distillation_loss, config, folder)
    return model.student, history, time.process_time() - started


def measure_pupil(student: Student) -> dict[str, Any]:
    """Choose the threshold on sections 120-139, and score FIB-25's validation part; time one section."""
    part, val = open_choosing_part(), open_dataset("fib25", "val").load()
    steps = sweep(predict(student, part.raw, progress=False).refined, part.voxel_size, THRESHOLDS, strict=False)
    threshold = best_threshold({t: asdict(evaluate(step, part.labels)) for t, step in steps.items()})
    affinities = predict(student, val.raw, progress=False).refined
    scores = asdict(evaluate(segment(affinities, val.voxel_size, threshold, strict=False), val.labels))
    times = section_milliseconds({"student": student, "unet": FGNet(FIELD_UNET).eval()})
    return {"threshold": threshold, "milliseconds": times} | {k: scores[k] for k in ("voi_split", "voi_merge", "arand")}


def run_pupil(name: str, seed: int, data: Teaching) -> None:
    """Do one run and add it to the table."""
    pupil = PUPILS[name]
    with tempfile.TemporaryDirectory() as folder:
        student, history, seconds = train_pupil(pupil, data, student_training(seed), Path(folder))
    run = {
        "row": name,
        "seed": seed,
        "declared": json.loads(json.dumps(asdict(pupil))),
        "machine": hardware(),
        "load": round(os.getloadavg()[0], 1),
        "postprocessing": postprocessing_version(),
        "date": date.today().isoformat(),
        "parameters": sum(p.numel() for p in student.parameters()),
        "core_seconds": round(seconds, 1),
        "loss": [round(sum(history.loss[k : k + 20]) / 20, 4) for k in range(0, len(history), 20)],
        **measure_pupil(student),
    }
    add_runs([run], STUDENTS)
    write_page()


def train_missing(data: Teaching, minutes: float, work: Path) -> None:
    """Do every declared run that is neither in the table nor being done by another terminal."""
    started = time.monotonic()
    for name, seed in list_runs():
        if (time.monotonic() - started) / 60 >= minutes:
            return
        try:
            with lock(work / f"{name}-{seed}"):
                if (name, seed) in {(run["row"], run["seed"]) for run in read_runs(STUDENTS)}:
                    continue
                print(f"{name}, seed {seed}, after {(time.monotonic() - started) / 60:.0f} minutes", flush=True)
                run_pupil(name, seed, data)
        except LockedError as error:
            print(f"{name}, seed {seed}: {error}")  # another terminal does it


def _rows_table(rows: dict[str, list[dict]]) -> list[str]:
    lines = [
        "| student | parameters | ms a section | times as fast as the 3D U-Net | VOI | ARAND | runs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in rows.items():
        times = [run["milliseconds"] for run in runs]
        ours, ratio = np.median([t["student"] for t in times]), np.median([t["unet"] / t["student"] for t in times])
        arand = summary([run["arand"] for run in runs])
        lines.append(
            f"| {PUPILS[name].title} | {runs[0]['parameters']:,} | {ours:.1f} | {ratio:.1f} "
            f"| {summary(student_scores(rows, name))} | {arand} | {len(runs)} |"
        )
    return lines


def page() -> str:
    """The page of the runs."""
    rows = read_students()
    lines = [INTRODUCTION.format(iterations=ITERATIONS, missing=describe_missing(rows))]
    if rows:
        lines += [*_rows_table(rows), ""]
        answers = {question: student_answer(rows, pair) for question, pair in QUESTIONS.items()}
        lines += [ANSWERS, *(f"| {q} | {' | '.join(answer)} |" for q, answer in answers.items() if answer), ""]
    return "\n".join(lines)


def write_page() -> None:
    """Write the page of the runs that are in the table now."""
    with atomic(PAGE) as part:
        part.write_text(page(), encoding="utf-8")


def ship(data: Teaching, work: Path, out: Path, iterations: int) -> None:
    """Train the student that ships, as long as `iterations`, choose its threshold, and write it with its card."""
    config = replace(student_training(0, iterations), ema=0.998)
    student, history, seconds = train_pupil(SHIPPED, data, config, work / "shipped")
    fib25, val = open_dataset("fib25", "train").load(), open_dataset("fib25", "val").load()
    threshold = choose_on_parts([score_part(student, fib25, part) for part in PARTS])
    teacher = load_pretrained()
    networks = {"student": student, "teacher": teacher, "unet": FGNet(FIELD_UNET).eval()}
    notes = {
        "threshold": threshold,
        "measured": score(student, val, [threshold])[threshold],
        "teacher": score(teacher, val, [pretrained_threshold()])[pretrained_threshold()],
        "milliseconds": section_milliseconds(networks, rounds=5),
        "losses": asdict(LossWeights(**SHIPPED.losses)),
        "training": asdict(config),
        "loss": round(float(np.mean(history.loss[-100:])), 4),
        "parameters": sum(p.numel() for p in student.parameters()),
        "core_minutes": round(seconds / 60, 1),
        "date": date.today().isoformat(),
    }
    save_model(student, out, notes)
    with atomic(out.with_name("STUDENT.md")) as part:
        part.write_text(student_card(out), encoding="utf-8")


def student_card(weights: Path) -> str:
    """Write the card of the student, in Markdown, from the notes in its own file."""
    notes = read_notes(weights)
    times = notes["milliseconds"]
    rows = "\n".join(
        f"| {title} | {scores['voi_split']:.3f} | {scores['voi_merge']:.3f} "
        f"| {scores['voi_split'] + scores['voi_merge']:.3f} | {scores['arand']:.3f} | {times[name]:.1f} |"
        for name, title, scores in (
            ("student", "the student", notes["measured"]),
            ("teacher", "its teacher", notes["teacher"]),
        )
    )
    texts = notes | notes["training"] | {"weights": ", ".join(f"{k} {v:g}" for k, v in notes["losses"].items())}
    ratios = {"faster": times["unet"] / times["student"], "unet": times["unet"]}
    size = weights.stat().st_size / 1e6
    return CARD.format(name=weights.name, megabytes=size, rows=rows, **texts | ratios)


CARD = """# {name}

<!-- written by `make student` from the notes inside the file; edit tools/results/train_student.py instead -->

A 2D network ({parameters:,} parameters, {megabytes:.1f} MB, safetensors) that learned from labels and from
[fgnet_mini](README.md): the student of lesson 10. `load_model("student")` loads it, and `predict` takes it as it takes
an FGNet. The design and the losses are those of CAD (CVPR 2024), written from the equations; the network's inside,
three sections as input and the boundary as a channel of the embedding are ours.

**Data.** FIB-25 (Takemura et al. 2015, doi 10.1073/pnas.1509820112; CC BY), sections 0-119 of its training part, labels
and the teacher's affinities. The teacher has learned from gala and from this repository's phantom, too.

**Recipe.** `make student`: {core_minutes:.0f} minutes of one core, {date}; once, so its spread is unknown. {iterations}
iterations of {batch} crops of {patch} voxels, AdamW with warm-up and a cosine from {learning_rate}, a moving average of
{ema}; crops are turned into 16 poses, and brightness, contrast and noise are varied. Weights of the losses: {weights}.

**Measured** on FIB-25's validation part (sections 144-183): VOI in bits and adapted Rand error at full coverage,
ground-truth 0 ignored. The threshold {threshold} has the least mean VOI over seven crops of the training part. The last
column is the processor's time for a section of 160 x 160 voxels, in PyTorch on one thread, all in turns in one run.

| network | VOI split | VOI merge | VOI | ARAND | ms a section |
|---|---|---|---|---|---|
{rows}
| the field's 3D U-Net, 28/36/48/64/80 channels (time alone) | | | | | {unet:.1f} |

In that run the student was {faster:.1f} times as fast as the 3D U-Net.

**Limits.** It has seen one tissue, in isotropic voxels of 10 nm. For each section it sees the two neighbours and no
more, so it knows less than its teacher of membranes that lie in the plane of a section.

**Licence.** The weights are under CC BY 4.0; credit as above.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", action="store_true", help="train the rows of lesson 10 instead")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further row after so long")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "out" / "student", help="teacher, checkpoints, locks")
    parser.add_argument("--out", type=Path, default=PRETRAINED / "student.safetensors")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # rows are equal in the time of one core
    data = open_teaching(arguments.work)
    if arguments.rows:
        train_missing(data, arguments.minutes, arguments.work)
        write_page()
    else:
        ship(data, arguments.work, arguments.out, ITERATIONS_SHIPPED)


if __name__ == "__main__":
    main()
