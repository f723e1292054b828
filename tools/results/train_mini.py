"""Train the mini model that comes with the repository, choose its threshold, and write its model card (`make weights`).

Trained on the phantom, FIB-25 (sections 0-119 of the training part) and gala's training volume; the threshold is chosen
on seven parts of FIB-25's training part, of which training never saw the last, sections 120-139; the validation parts
are looked at after each stage, to report.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch
from far_affinities import FAR, add_far_heads, far_loss, remove_far_heads
from teacher import (
    BORDER,
    INSIDE,
    ORDERS,
    SHARE,
    STAGES,
    TeacherPatches,
    taught_folder,
    teach_once,
    train_stage,
    turn_volume,
)

from fgnet_lib import REPOSITORY
from fgnet_lib.checkpoints import History
from fgnet_lib.configuration import MINI
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import predict
from fgnet_lib.machine import choose_device, hardware
from fgnet_lib.metrics import evaluate
from fgnet_lib.segmentation import sweep
from fgnet_lib.study.rows import SHIPPED
from fgnet_lib.study.runs import MODEL, name_weights
from fgnet_lib.training import TrainConfig, fit
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import PRETRAINED, read_notes, save_model

THRESHOLDS = [round(float(t), 3) for t in (*np.arange(0.1, 0.91, 0.05), *np.arange(0.92, 0.99, 0.02))]
PARTS = tuple(f"{first}-{first + 19}" for first in range(0, 140, 20))  # sections of FIB-25's training part
THRESHOLDS_FILE = REPOSITORY / "docs" / "measured" / "thresholds.json"  # the shipped model's scores on these parts
CONFIG = replace(MINI, encoder="natural", attention="plain", norm="channel")
RECIPE = TrainConfig(
    patch=(16, 128, 128),
    iterations=4200,
    learning_rate=2e-3,
    warmup=100,
    ema=0.998,
    freeze_encoder=False,
    encoder_lr_factor=0.25,
    checkpoint_every=100,
    weights=(4, 2, 2, 1, 1),  # FIB-25 with its sections along z, y and x, gala, the phantom
    seed=11,
    try_bfloat16=True,
)


def train_taught(
    model: FGNet, volumes: Sequence[Volume], raw: np.ndarray, taught: np.ndarray, work: Path, recipe: TrainConfig
) -> History:
    """Train a model in place, from random weights around the encoder of photographs, on labels and on what was taught.

    Args:
        model: Of `CONFIG`.
        volumes: FIB-25, of which sections along all three axes are seen, gala and the phantom.
        raw: A volume without labels.
        taught: Affinities of it, as `teach` gives them.
        work: Folder of the checkpoints.
        recipe: `RECIPE`, or a change of it.
    """
    torch.manual_seed(recipe.seed)
    model.load_state_dict(FGNet(CONFIG, PRETRAINED / SHIPPED["natural"]).state_dict())
    turned = [turn_volume(volumes[0], order) for order in ORDERS]
    add_far_heads(model)
    model.freeze_encoder(recipe.freeze_encoder)
    history = fit(model, TeacherPatches([*turned, *volumes[1:]], recipe, raw, taught), far_loss, recipe, work)
    remove_far_heads(model)
    return history


def score(
    model: FGNet, volume: Volume, thresholds: list[float], three_views: bool = False
) -> dict[float, dict[str, float]]:
    """Predict and segment a labelled volume; its VOI split, VOI merge and ARAND per agglomeration threshold."""
    affinities = predict(model, volume.raw, progress=False, three_views=three_views).refined
    segmentations = sweep(affinities, volume.voxel_size, thresholds, strict=False)
    return {t: asdict(evaluate(segmentation, volume.labels)) for t, segmentation in segmentations.items()}


def score_part(model: FGNet, volume: Volume, part: str, three_views: bool = False) -> list[list[float]]:
    """Score a part of the training volume, one of `PARTS`, as a crop of its own, at every threshold.

    Returns:
        A list of threshold, VOI split, VOI merge, ARAND.
    """
    first, last = map(int, part.split("-"))
    return _list_scores(score(model, volume[first : last + 1, :, :], THRESHOLDS, three_views))


def _list_scores(scores: dict[float, dict[str, float]]) -> list[list[float]]:
    return [[t, each["voi_split"], each["voi_merge"], each["arand"]] for t, each in scores.items()]


def best_threshold(scores: dict[float, dict[str, float]]) -> float:
    """Choose the threshold with the least VOI split + VOI merge."""
    return min(scores, key=lambda t: scores[t]["voi_split"] + scores[t]["voi_merge"])


def choose_on_parts(parts: Sequence[list[list[float]]]) -> float:
    """Choose the threshold with the least mean VOI over some parts, each as `score_part` gives it."""
    sums = np.array(parts)[:, :, 1:3].sum(axis=2).mean(axis=0)
    return parts[0][int(sums.argmin())][0]


def score_stage(model: FGNet, stages: Sequence[TrainConfig], minutes: float) -> dict:
    """Score a model after some stages, at every threshold, where the threshold is chosen and on validation.

    Returns:
        `iterations` and `minutes` of all stages so far; `threshold`, that of the least mean VOI over `PARTS`; and for
        `training` (sections 120-139) and `validation` a list of threshold, VOI split, VOI merge, ARAND.
    """
    fib25 = open_dataset("fib25", "train").load()
    parts = [score_part(model, fib25, part) for part in PARTS]
    return {
        "iterations": sum(stage.iterations for stage in stages),
        "minutes": minutes,
        "threshold": choose_on_parts(parts),
        "training": parts[-1],
        "validation": _list_scores(score(model, open_dataset("fib25", "val").load(), THRESHOLDS)),
    }


def chosen_scores(stage: dict, part: str) -> tuple[float, float]:
    """VOI and ARAND of a stage, as `score_stage` gives it, at the threshold that training sections choose.

    Args:
        stage: Of `score_stage`.
        part: "training" or "validation".
    """
    _, split, merge, arand = next(row for row in stage[part] if row[0] == stage["threshold"])
    return split + merge, arand


def model_card(weights: Path) -> str:
    """Write the card of a model, in Markdown, from the notes in its own file."""
    notes = read_notes(weights)
    rows = "\n".join(
        f"| {name}, {part} | {scores['voi_split']:.3f} | {scores['voi_merge']:.3f} "
        f"| {scores['voi_split'] + scores['voi_merge']:.3f} | {scores['arand']:.3f} |"
        for name, (part, scores) in notes["measured"].items()
    )
    recipe = "\n".join(
        "| {iterations} | {batch} | {patch} | {learning_rate} | {ema} | {weights} | {seed} |".format(**stage)
        for stage in notes["stages"]
    )
    tried = ""
    for stage in notes["tried"]:
        numbers = [*chosen_scores(stage, "training"), *chosen_scores(stage, "validation")]
        tried += f"| {stage['iterations']} | {stage['minutes']:.0f} | {stage['threshold']} | "
        tried += " | ".join(f"{number:.3f}" for number in numbers) + " |\n"
    size = weights.stat().st_size / 1e6
    chosen_on = notes.get("chosen_on", "sections 120-139, which training did not see")
    taught = {"share": SHARE, "border": BORDER, "inside": INSIDE}
    texts = notes | taught | {"tried": tried, "chosen_on": chosen_on}
    return CARD.format(name=weights.name, megabytes=size, rows=rows, recipe=recipe, **texts)


CARD = """# {name}

<!-- written by `make weights` from the notes inside the file; edit tools/results/train_mini.py instead -->

A mini FGNet ({parameters:,} parameters, {megabytes:.1f} MB, safetensors): a guide that knows photographs, and a narrow
Fine-Grained Encoder. It lets every lesson run on a CPU without a download. **These are not SAM2's weights**: the guide
is EfficientNet-Lite0 up to stride 16 with the weights of ImageNet (`encoder_natural.safetensors`), a declared stand-in
for SAM2's encoder, fine-tuned with the rest. Attention is F' = F a, and the norm is `ChannelNorm`, which sees one voxel
at a time.

**Data.** FIB-25 (Takemura et al. 2015, doi 10.1073/pnas.1509820112; CC BY), labels of sections 0-119 of its training
part and sections without labels; the training volume of gala (Nunez-Iglesias et al. 2013, doi
10.1371/journal.pone.0071715; BSD-style, HHMI); this repository's phantom. The guide's
authors trained it on ImageNet's photographs, which are given for non-commercial research and teaching, and publish its
weights under Apache-2.0. The other data are free for any use with credit.

**Recipe.** `make weights` trains a teacher first, an FGNet in residual form around the encoder of `make encoder`: all
lines of the table but the last. Then comes the model that ships, from random weights around the guide. {share:.0%} of
its patches are cut from {unlabelled} MVox of FIB-25 without labels; there the targets are what the teacher says when it
looks along z, y and x, where it is sure (below {border} or above {inside}). Both learned affinities {far} voxels away
too (the teacher in its last stages), in heads of their own that are not in the file. AdamW with warm-up and a
cosine, a moving average of the weights at the end; encoders have a quarter of the learning
rate. In the last line FIB-25 counts three times, with sections along z, y and x. It took {minutes} minutes and the time
in which the teacher looks ({device}, {date}), and ran once, so its spread is unknown:

| iterations | patches | size (z, y, x) | learning rate | moving average | drawn from FIB-25 : gala : phantom | seed |
|---|---|---|---|---|---|---|
{recipe}

**Measured.** VOI in bits and adapted Rand error at full coverage, ground-truth 0 ignored. The agglomeration threshold
{threshold} was chosen on FIB-25's {chosen_on};
[seven parts of the training volume](../../docs/measured/shipped.md) say how far such a choice can be trusted.

| volume | VOI split | VOI merge | VOI | ARAND |
|---|---|---|---|---|
{rows}

The teacher after each stage and, in the last line, the model that ships (iterations and minutes with its teacher's), on
FIB-25, at the threshold that training sections chose (drawn in [shipped.md](../../docs/measured/shipped.md)):

| iterations | minutes | threshold | VOI, 120-139 | ARAND | VOI, 144-183 | ARAND |
|---|---|---|---|---|---|---|
{tried}
**Limits.** Trained on 10 nm isotropic FIB-SEM of the fly's brain and on a synthetic phantom: other tissue, stains and
voxel sizes may need training of your own (lesson 04). A course's example, not a tool for science. The validation
volumes come from the same blocks of tissue as the training volumes.

**Licence.** The weights are under CC BY 4.0; credit as above. The guide's training began with EfficientNet-Lite0's
weights, which are under Apache-2.0 (Copyright 2020 ML Illustrated).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PRETRAINED / MODEL)
    parser.add_argument("--work", type=Path, default=Path("out/weights"), help="checkpoints, to resume from")
    parser.add_argument("--batch", type=int, default=1, help="patches at a time in the last stage; 8 or more on a GPU")
    arguments = parser.parse_args()
    device, recipe = choose_device(), replace(RECIPE, batch=arguments.batch)

    fib25 = open_dataset("fib25", "train").load()
    volumes = [fib25[:120, :, :], open_dataset("gala", "train").load(), open_dataset("phantom", "train").load()]
    torch.manual_seed(STAGES[0].seed)
    teacher, minutes, tried = FGNet(MINI).to(device), 0.0, []
    for number in range(1, len(STAGES) + 1):
        minutes += train_stage(number, teacher, volumes, arguments.work).seconds[-1] / 60
        tried.append(score_stage(teacher, STAGES[:number], minutes))
    raw = open_dataset("fib25", "unlabelled").load().raw
    folder, guide = taught_folder(teacher, arguments.work), SHIPPED["natural"]
    taught, model = teach_once(teacher, raw, folder), FGNet(CONFIG).to(device)
    work = folder / name_weights(guide)[guide]  # not to go on with what another teacher or guide began
    minutes += train_taught(model, volumes, raw, taught, work, recipe).seconds[-1] / 60
    tried.append(score_stage(model, [*STAGES, recipe], minutes))

    threshold, measured = tried[-1]["threshold"], {}
    for name, part in (("fib25", "sections 144-183"), ("gala", "test volume"), ("phantom", "seed 1")):
        measured[name] = (part, score(model, open_dataset(name, "val").load(), [threshold])[threshold])
    notes = {
        "threshold": threshold,
        "chosen_on": f"sections {', '.join(PARTS)}, the least mean VOI of these crops",
        "measured": measured,
        "stages": [asdict(stage) for stage in (*STAGES, recipe)],
        "far": " and ".join(map(str, FAR)),
        "unlabelled": round(raw.size / 1e6),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tried": tried,
        "minutes": round(minutes),
        "device": f"a CPU (threads: {torch.get_num_threads()})" if device.type == "cpu" else hardware(),
        "weights": name_weights(SHIPPED["pretrained"], SHIPPED["natural"]),
        "date": date.today().isoformat(),
    }
    save_model(model, arguments.out, notes)
    (arguments.out.parent / "README.md").write_text(model_card(arguments.out), encoding="utf-8")
    print(model_card(arguments.out))


if __name__ == "__main__":
    main()
