"""Train the student of lesson 10 (`make student`), or the rows that say what its losses and widths are worth (--rows).

The teacher is the shipped FGNet. What it makes of FIB-25's training part (sections 0-119) is computed once and kept in
the work folder, in a folder of each teacher's own. You may stop the command at any time and start it again: a training
goes on from its checkpoint, and a row that is in the table is not trained again unless the teacher has changed. Several
terminals may share the rows.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: rows are equal in the time of one core

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch
from commands import describe_run
from results import choose_threshold, open_choosing_part
from torch import Tensor, nn

from fgnet_lib import REPOSITORY
from fgnet_lib.checkpoints import History
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import atomic, write_atomically
from fgnet_lib.inference import predict
from fgnet_lib.metrics import evaluate
from fgnet_lib.neighbours.distillation import (
    Distillation,
    LossWeights,
    TaughtPatches,
    Teaching,
    ask_teacher,
    distillation_loss,
    grafting_loss,
    truth_loss,
    used_answers,
)
from fgnet_lib.segmentation import segment
from fgnet_lib.student import Student, embedding_affinities
from fgnet_lib.study.rows import SECTIONS
from fgnet_lib.study.runs import MODEL, STUDENT, add_runs, do_missing, name_weights
from fgnet_lib.study.statistics import summary
from fgnet_lib.study.students import (
    ITERATIONS,
    PUPILS,
    QUESTIONS,
    SLIM_UNET,
    STUDENTS,
    Pupil,
    describe_missing_students,
    list_students,
    read_students,
    section_milliseconds,
    student_answer,
    student_scores,
    student_training,
)
from fgnet_lib.training import TrainConfig, fit
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import PRETRAINED, load_model, load_pretrained, read_notes, save_model

SHIPPED = PUPILS["cross"]
MINUTES = 60  # of the training that ships
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
turns with the slim 3D U-Net (28/36/48/64/80 channels) of `make bench`; the columns have the medians over runs. Other
programs ran meanwhile, so trust the ratio more than the milliseconds.
`python tools/benchmarks/measure_student.py` compares with the field's published 3D U-Net, too.

{missing}
"""
ANSWERS = """\
## Questions

You see VOI of the first and of the second row, their difference (negative: the first is better), and how often chance
alone separates the runs as much (*p*, by permutation; with three runs of each it is at least 0.10).

| question | first | second | difference | p |
| --- | ---: | ---: | ---: | ---: |"""


def open_teaching(volume: Volume, folder: Path) -> Teaching:
    """A volume and what the shipped FGNet says of it, computed once and then read from the folder."""
    paths = {name: folder / f"{name}.npy" for name in ("affinities", "features", "guide")}
    if not all(path.is_file() for path in paths.values()):
        for name, array in ask_teacher(load_pretrained(), volume.raw).items():
            with atomic(paths[name]) as part, part.open("wb") as file:
                np.save(file, array)
    return Teaching(volume, {name: np.load(path, mmap_mode="r") for name, path in paths.items()})


def open_fib25(work: Path) -> Teaching:
    """Sections 0-119 of FIB-25's training part, which the rows learn from."""
    return open_teaching(open_dataset("fib25", "train").load()[:SECTIONS, :, :], work / "fib25")


def build_distillation(pupil: Pupil, teachings: Sequence[Teaching], seed: int) -> Distillation:
    """A student before its training, the same for the same seed, with what its losses need."""
    torch.manual_seed(seed)
    weights, student = LossWeights(**pupil.losses), Student(pupil.config)
    head = train_graft_head(teachings, pupil.config.embedding, seed) if weights.graft else None
    return Distillation(student, weights, head, len(teachings[0].answers["guide"]))


def train_graft_head(teachings: Sequence[Teaching], embedding: int, seed: int) -> nn.Module:
    """Train a head from the teacher's features to embeddings, briefly; the teacher itself stays as it is."""

    def loss(head: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        embeddings = head(batch["features"])
        near = truth_loss(embedding_affinities(embeddings), batch["target"], batch["mask"])
        return near + grafting_loss(embeddings, embeddings, batch["labels"], batch["known"])

    head = nn.Conv3d(len(teachings[0].answers["features"]), embedding + 1, 1)
    config = replace(student_training(seed, HEAD_ITERATIONS), learning_rate=1e-2, warmup=10)
    with tempfile.TemporaryDirectory() as folder:
        fit(head, TaughtPatches(teachings, ("features",), config), loss, config, folder)
    return head


def train_pupil(
    pupil: Pupil, teachings: Sequence[Teaching], config: TrainConfig, folder: Path
) -> tuple[Student, History]:
    """Train a student; also returns the history of its training."""
    model = build_distillation(pupil, teachings, config.seed)
    patches = TaughtPatches(teachings, used_answers(model.weights), config)
    history = fit(model, patches, distillation_loss, config, folder)
    return model.student, history


def measure_pupil(student: Student) -> dict[str, Any]:
    """Choose the threshold on sections 120-139, and score FIB-25's validation part; time one section."""
    part, val = open_choosing_part(), open_dataset("fib25", "val").load()
    threshold = choose_threshold(predict(student, part.raw, progress=False).refined, part)
    affinities = predict(student, val.raw, progress=False).refined
    scores = asdict(evaluate(segment(affinities, val.voxel_size, threshold, strict=False), val.labels))
    times = section_milliseconds({"student": student, "unet": FGNet(SLIM_UNET).eval()})
    return {"threshold": threshold, "milliseconds": times} | {k: scores[k] for k in ("voi_split", "voi_merge", "arand")}


def run_pupil(name: str, seed: int, data: Teaching, weights: Mapping[str, str]) -> None:
    """Do one run, taught by the teacher with these weights, and add it to the table."""
    pupil, started = PUPILS[name], time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        student, history = train_pupil(pupil, [data], student_training(seed), Path(folder))
    seconds = time.process_time() - started
    run = describe_run(
        name,
        seed,
        asdict(pupil),
        weights,
        parameters=sum(p.numel() for p in student.parameters()),
        core_seconds=round(seconds, 1),
        loss=[round(sum(history.loss[k : k + 20]) / 20, 4) for k in range(0, len(history), 20)],
        **measure_pupil(student),
    )
    add_runs([run], STUDENTS)
    write_atomically(PAGE, page())


def train_students(data: Teaching, minutes: float, work: Path) -> None:
    """Do every declared run that is neither in the table nor being done by another terminal."""
    weights = name_weights(MODEL)  # now: the file may be replaced while students learn
    runs = {(name, seed): partial(run_pupil, name, seed, data, weights) for name, seed in list_students()}
    do_missing(runs, STUDENTS, work, minutes)


def _rows_table(rows: dict[str, list[dict]]) -> list[str]:
    lines = [
        "| student | parameters | ms a section | times as fast as the slim U-Net | VOI | ARAND | runs |",
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
    lines = [INTRODUCTION.format(iterations=ITERATIONS, missing=describe_missing_students(rows))]
    if rows:
        lines += [*_rows_table(rows), ""]
        answers = {question: student_answer(rows, pair) for question, pair in QUESTIONS.items()}
        lines += [ANSWERS, *(f"| {q} | {' | '.join(answer)} |" for q, answer in answers.items() if answer), ""]
    return "\n".join(lines)


def ship(work: Path, out: Path, minutes: float) -> None:
    """Train the student that ships within a budget, and write it with what is measured of it and its card."""
    config = replace(student_training(0, 100_000), minutes=minutes, try_bfloat16=True)
    weights = name_weights(MODEL)  # now: the file may be replaced while the student learns
    student, history = train_pupil(SHIPPED, [open_fib25(work)], config, work / "shipped")
    notes = {
        **measure_pupil(student),
        "weights": weights,
        "losses": asdict(LossWeights(**SHIPPED.losses)),
        "training": asdict(config),
        "iterations": len(history),
        "date": date.today().isoformat(),
    }
    save_model(student, out, notes)
    write_atomically(out.with_name("STUDENT.md"), student_card(out))


def student_card(weights: Path) -> str:
    """Write the card of the student, in Markdown, from the notes in its own file and in its teacher's."""
    notes, (_, teacher) = read_notes(weights), read_notes("fgnet_mini")["measured"]["fib25"]
    rows = "\n".join(
        f"| {title} | {scores['voi_split']:.3f} | {scores['voi_merge']:.3f} "
        f"| {scores['voi_split'] + scores['voi_merge']:.3f} | {scores['arand']:.3f} |"
        for title, scores in (("the student", notes), ("its teacher", teacher))
    )
    texts = {
        "name": weights.name,
        "parameters": sum(p.numel() for p in load_model(weights).parameters()),
        "megabytes": weights.stat().st_size / 1e6,
        "rows": rows,
        "budget": notes["training"]["minutes"],
        "faster": notes["milliseconds"]["unet"] / notes["milliseconds"]["student"],
        "losses": ", ".join(f"{name} {weight:g}" for name, weight in notes["losses"].items()),
    }
    return CARD.format(**notes["training"] | notes | notes["milliseconds"] | texts)


CARD = """# {name}

<!-- written by `make student` from the notes inside the file; edit tools/results/train_student.py instead -->

A 2D network ({parameters:,} parameters, {megabytes:.1f} MB, safetensors) that learned from labels and from
[fgnet_mini](README.md): the student of lesson 10. `load_model("student")` loads it, and `predict` takes it as it takes
an FGNet. The design and the losses are those of CAD (CVPR 2024), written from the equations; the network's inside,
three sections as input and the boundary as a channel of the embedding are ours.

**Data.** FIB-25 (Takemura et al. 2015, doi 10.1073/pnas.1509820112; CC BY), sections 0-119 of its training part: labels
and the teacher's affinities. The teacher has learned from gala and from this repository's phantom, too.

**Recipe.** `make student MINUTES={budget:g}`, on one core, {date}; once, so its spread is unknown. {iterations}
iterations of {batch} crops of {patch} voxels, AdamW with warm-up and a cosine from {learning_rate}, a moving average of
{ema}; crops are turned into 16 poses, and brightness, contrast and noise are varied. Weights of the losses: {losses}.

**Measured** on FIB-25's validation part (sections 144-183): VOI in bits and adapted Rand error at full coverage,
ground-truth 0 ignored. The threshold {threshold} was chosen on sections 120-139, which training did not see.

| network | VOI split | VOI merge | VOI | ARAND |
|---|---|---|---|---|
{rows}

In PyTorch on one thread, beside other work, a section of 160 x 160 voxels took {student:.2f} ms of the processor. A
slim 3D U-Net (28/36/48/64/80 channels) took {unet:.1f} ms in the same run, {faster:.1f} times as long.
`python tools/benchmarks/measure_student.py` measures this again.

**Limits.** It has seen one tissue, in isotropic voxels of 10 nm. For each section it sees the two neighbours and no
more, so it knows less than its teacher of membranes that lie in the plane of a section.

**Licence.** The weights are under CC BY 4.0; credit as above.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", action="store_true", help="train the rows of lesson 10 instead")
    parser.add_argument("--minutes", type=float, help="train so long (60); with --rows, start no row after so long")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "out" / "student", help="teacher, checkpoints, locks")
    parser.add_argument("--out", type=Path, default=PRETRAINED / STUDENT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # rows are equal in the time of one core
    work = arguments.work / name_weights(MODEL)[MODEL]  # what another teacher has said or taught is not gone on with
    if arguments.rows:
        train_students(open_fib25(work), arguments.minutes or float("inf"), work)
        write_atomically(PAGE, page())
    else:
        ship(work, arguments.out, arguments.minutes or MINUTES)


if __name__ == "__main__":
    main()
