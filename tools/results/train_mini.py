"""Train the mini model that comes with the repository, choose its threshold, and write its model card (`make weights`).

Trained on the phantom, FIB-25 (sections 0-119 of the training part) and gala's training volume; the threshold is chosen
on FIB-25's sections 120-139, which training never saw; the validation parts are looked at after each stage, to report.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch

from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import MINI, FGNet
from fgnet_lib.inference import predict
from fgnet_lib.metrics import evaluate
from fgnet_lib.segmentation import sweep
from fgnet_lib.training import TrainConfig, train
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import PRETRAINED, read_notes, save_model

THRESHOLDS = [round(float(t), 3) for t in np.arange(0.1, 0.91, 0.05)]
RECIPE = TrainConfig(
    patch=(16, 128, 128),
    iterations=3600,
    learning_rate=2e-3,
    warmup=100,
    ema=0.995,
    freeze_encoder=False,  # the encoder is far from what it should be: first at random, then pretrained on phantoms
    encoder_lr_factor=0.25,
    checkpoint_every=100,
    weights=(7, 1, 2),
    seed=0,
)
FAR = (3, 9)  # the last two stages also learn affinities to voxels so far away; their heads are not shipped
STAGES = (
    RECIPE,
    replace(RECIPE, iterations=1000, learning_rate=1e-3, warmup=20, ema=0.99, weights=(7, 1.5, 1.5), seed=1),
    replace(RECIPE, iterations=700, learning_rate=7e-4, warmup=20, ema=0.99, weights=(8, 1, 1), seed=2),
    replace(RECIPE, iterations=4000, learning_rate=1.5e-3, warmup=50, ema=0.998, weights=(8, 1, 1), seed=3),
    replace(RECIPE, iterations=4000, learning_rate=1.5e-3, warmup=50, ema=0.998, weights=(8, 1, 1), seed=4),
)


def begun(number: int, model: FGNet) -> FGNet:
    """What stage `number` trains, from what the stages before it made of `model`.

    The last two have heads for far affinities; in the last, the pretrained encoder takes the place of the one so far.
    """
    if number < len(STAGES) - 1:
        return model
    taught = FGNet(replace(MINI, far=FAR), PRETRAINED / "encoder_mini.pt")
    keep_encoder = number < len(STAGES)
    learned = model.state_dict().items()
    taught.load_state_dict({k: v for k, v in learned if keep_encoder or not k.startswith("encoder.")}, strict=False)
    return taught


def scores(model: FGNet, volume: Volume, thresholds: list[float]) -> dict[float, dict[str, float]]:
    """VOI split, VOI merge and ARAND of a labelled volume, per agglomeration threshold."""
    affinities = predict(model, volume.raw).refined
    segmentations = sweep(affinities, volume.voxel_size, thresholds)
    return {t: asdict(evaluate(segmentation, volume.labels)) for t, segmentation in segmentations.items()}


def best_threshold(found: dict[float, dict[str, float]]) -> float:
    """The threshold with the least VOI split + VOI merge."""
    return min(found, key=lambda t: found[t]["voi_split"] + found[t]["voi_merge"])


def after_stage(model: FGNet, stages: list[TrainConfig], minutes: float) -> dict:
    """How far the stages so far have come: scores at every threshold where it is chosen, and, to report, on validation.

    Returns:
        `iterations` and `minutes` of all stages so far; `threshold`, the best of sections 120-139; and for `training`
        (these sections) and `validation` a list of threshold, VOI split, VOI merge, ARAND.
    """
    found = {}
    for part, volume in (
        ("training", open_dataset("fib25", "train").load()[120:, :, :]),
        ("validation", open_dataset("fib25", "val").load()),
    ):
        found[part] = scores(model, volume, THRESHOLDS)
    rows = {
        part: [[t, one["voi_split"], one["voi_merge"], one["arand"]] for t, one in per_threshold.items()]
        for part, per_threshold in found.items()
    }
    iterations = sum(stage.iterations for stage in stages)
    return {"iterations": iterations, "minutes": minutes, "threshold": best_threshold(found["training"]), **rows}


def chosen_scores(stage: dict, part: str) -> tuple[float, float]:
    """VOI and ARAND of a stage at the threshold that training sections choose; `part` as in `after_stage`."""
    _, split, merge, arand = next(row for row in stage[part] if row[0] == stage["threshold"])
    return split + merge, arand


def model_card(weights: Path) -> str:
    """The card of a model, in Markdown, from the notes in its own file."""
    notes = read_notes(weights)
    rows = "\n".join(
        f"| {name}, {part} | {m['voi_split']:.3f} | {m['voi_merge']:.3f} "
        f"| {m['voi_split'] + m['voi_merge']:.3f} | {m['arand']:.3f} |"
        for name, part, m in ((name, *pair) for name, pair in notes["measured"].items())
    )
    recipe = "\n".join(
        "| {iterations} | {patch} | {learning_rate} | {ema} | {weights} | {seed} |".format(**stage)
        for stage in notes["stages"]
    )
    tried = ""
    for stage in notes["tried"]:
        numbers = [*chosen_scores(stage, "training"), *chosen_scores(stage, "validation")]
        tried += f"| {stage['iterations']} | {stage['minutes']:.0f} | {stage['threshold']} | "
        tried += " | ".join(f"{number:.3f}" for number in numbers) + " |\n"
    size = weights.stat().st_size / 1e6
    return CARD.format(name=weights.name, megabytes=size, rows=rows, recipe=recipe, **notes | {"tried": tried})


CARD = """# {name}

<!-- written by `make weights` from the notes inside the file; edit tools/results/train_mini.py instead -->

A mini FGNet ({parameters:,} parameters, {megabytes:.1f} MB, safetensors): a small Hiera built from the classes of
the `sam2` package, and a narrow Fine-Grained Encoder. It lets every lesson run on a CPU without a download. **These are
not SAM2's pretrained weights**: until the last stage the encoder was one that had started at random; then the one that
`make encoder` pretrains without labels of people took its place. It was trained together with the rest, on electron
microscopy and phantoms only.

**Data.** FIB-25 (Takemura et al. 2015, doi 10.1073/pnas.1509820112; CC BY), sections 0-119 of its training part; the
training volume of gala (Nunez-Iglesias et al. 2013, doi 10.1371/journal.pone.0071715; BSD-style, HHMI); this
repository's phantom; for the pretrained encoder also FIB-25's unlabelled sections and more phantoms. Nothing under a
non-commercial licence was used.

**Recipe.** `make weights`: {minutes} minutes on {device}, {date}. One run only: no spread is known. AdamW with warm-up
and a cosine, one patch an iteration, a moving average of the weights at the end of each stage; the encoder has a
quarter of the learning rate. The last two stages also learned affinities to voxels {far} away, in heads of their own
that are not in the file:

| iterations | patch (z, y, x) | learning rate | moving average | drawn from FIB-25 : gala : phantom | seed |
|---|---|---|---|---|---|
{recipe}

**Measured.** VOI in bits and adapted Rand error at full coverage, ground-truth 0 ignored. The agglomeration threshold
{threshold} was chosen on FIB-25's sections 120-139, which training did not see.

| volume | VOI split | VOI merge | VOI | ARAND |
|---|---|---|---|---|
{rows}

After each stage, on FIB-25, at the threshold that sections 120-139 then choose (drawn in
[results.md](../../docs/results.md)):

| iterations | minutes | threshold | VOI, 120-139 | ARAND | VOI, 144-183 | ARAND |
|---|---|---|---|---|---|---|
{tried}
**Limits.** Trained on 10 nm isotropic FIB-SEM of the fly's brain and on a synthetic phantom: other tissue, stains and
voxel sizes may need training of your own (lesson 04). A course's example, not a tool for science. The validation
volumes come from the same blocks of tissue as the training volumes.

**Licence.** The weights are under CC BY 4.0, for the attribution above.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PRETRAINED / "fgnet_mini.safetensors")
    parser.add_argument("--work", type=Path, default=Path("out/weights"), help="checkpoints, to resume from")
    arguments = parser.parse_args()

    fib25 = open_dataset("fib25", "train").load()
    volumes = [fib25[:120, :, :], open_dataset("gala", "train").load(), open_dataset("phantom", "train").load()]
    torch.manual_seed(RECIPE.seed)
    model, minutes, tried = FGNet(MINI), 0.0, []
    for number, stage in enumerate(STAGES, start=1):
        torch.manual_seed(stage.seed)  # of the heads for far affinities
        taught = begun(number, model)
        minutes += train(taught, volumes, stage, arguments.work / f"stage{number}").seconds[-1] / 60
        model.load_state_dict({name: taught.state_dict()[name] for name in model.state_dict()})
        tried.append(after_stage(model.eval(), STAGES[:number], minutes))

    chosen, measured = tried[-1]["threshold"], {}
    for name, part in (("fib25", "sections 144-183"), ("gala", "test volume"), ("phantom", "seed 1")):
        measured[name] = (part, scores(model, open_dataset(name, "val").load(), [chosen])[chosen])
    notes = {
        "threshold": chosen,
        "measured": measured,
        "stages": [asdict(stage) for stage in STAGES],
        "far": " and ".join(map(str, FAR)),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tried": tried,
        "minutes": round(minutes),
        "device": f"a CPU (threads: {torch.get_num_threads()})",
        "date": date.today().isoformat(),
    }
    save_model(model, arguments.out, notes)
    (arguments.out.parent / "README.md").write_text(model_card(arguments.out))
    print(model_card(arguments.out))


if __name__ == "__main__":
    main()
