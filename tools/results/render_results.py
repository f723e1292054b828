"""Write docs/results.md and its figures from the files in docs/results/, and from nothing else (`make results`)."""

from __future__ import annotations

import matplotlib.pyplot as plt
from train_mini import chosen_scores

from fgnet_lib.study.evaluation import VOLUMES
from fgnet_lib.study.rows import REFERENCES, SECTIONS, SEEDS, TITLES
from fgnet_lib.study.statistics import compared, paired, summary
from fgnet_lib.study.table import (
    RESULTS,
    SET_TO,
    attention_statistics,
    by_sections,
    curve,
    fully_labelled,
    lacking,
    load,
    output_of,
    postprocessings,
    questions,
    rates,
    references,
    scores,
    trained,
    with_sections,
)
from fgnet_lib.views import plots

PAGE = RESULTS.parent / "results.md"
HEAD = f"""# Results

Written by `make results` from the files in [results/](results/), one per row and seed; no number is typed by hand, and
[lesson 07](../notebooks/07_ablations_and_results.ipynb) reads the same files.

**How to read it.** VOI in bits, ARAND from 0 to 1; lower is better. Numbers are means ± standard deviation over seeds.
**A row with one seed has no spread, and its difference from another row may be chance**; {len(SEEDS)} seeds are
declared for each row that is trained here. Rows are trained on sections 0-{SECTIONS - 1} of FIB-25's training part, or
on the first 5 or 20 of them. Thresholds were chosen on its sections {SECTIONS}-139, never on what is reported;
fragments and agglomeration are the same for all rows. The minutes are those of training on the machines named below,
and leave out what made a pretrained encoder; peak memory is that of the whole run, training and evaluation (of the
shipped model's evaluation alone). The rows had one thread each, and another run beside them on the second core; MVox/s
of the shipped model are with both cores for itself, so they must not be compared with those of the rows.

**Other volumes.** The labels that rows learned from are FIB-25's alone, so gala, AC4 and CREMI B are tissue that they
never saw. The *shipped* model was also trained on gala's training volume and on another phantom. The pretrained encoder
has learned from six other phantoms, affinities included: the phantom's column says how rows without it do on a new kind
of texture, and no more. AC4 and CREMI B have sections of 6 and 4 nm a pixel: they are rescaled to FIB-25's 10 nm
in-plane before the network, and its affinities back to their own pixels, in which all is scored; z (30 and 40 nm) is
left as it is, and fragments are made section by section.
"""
COLUMNS = "row|parameters (trained)|iterations|minutes|MVox/s|peak MB|VOI split|VOI merge|VOI|ARAND|seeds"
ERRORS = ("split", "merge")
AIM, AIM_ARAND = 0.80, 0.06  # VOI and ARAND that the shipped model was to reach on FIB-25's validation part
TRIED = f"""## The shipped model: what was tried

FIB-25, after each stage of its training; the aim was VOI {AIM:.2f} and ARAND {AIM_ARAND} on sections 144-183, at the
threshold that sections 120-139 choose. The last column is the least VOI at any threshold up to 0.9. Where it is far
below, one join of two large parts of a neuron comes at a higher threshold than these sections choose. What else was
tried stands in [decisions.md](decisions.md), under "The shipped model".

![VOI of the shipped model after each stage of its training](results/tried.png)"""
ASKED = """## What the rows were made to ask, FIB-25

Each question compares two rows, named by their keys in `ROWS` of `fgnet_lib/study/rows.py`. All have equal iterations,
unless the question says otherwise. At equal time the U-Net and the frozen FGNet train for more iterations, which on an
undisturbed machine take as long as those of fine-tuned FGNet; what a frozen encoder knows changes nothing in the time
of an iteration. Even if each of three runs is better than each of three others, dealing them at random does so, one way
or the other, in 10% of all cases; and among so many questions some come out like that by chance alone.
`make results ENCODER=tiny` (or small, base_plus, large) asks the same of SAM2.1's own checkpoint where it is in the
cache, at equal iterations: random and frozen, pretrained and frozen, fine-tuned, and what is added, each with 5, 20 and
120 sections. At equal time it does not, for how long an iteration takes then depends on the machine."""
ATTENTION = """## Attention on FIB-25: used, or decoration?

AUC: how well attention tells membranes from interiors, 0.5 not at all, 1 without error. Whether membranes get the
higher or the lower weights is chance in each training, so either counts, and the next column says in how many runs
they got the lower ones. The correlation is given without its sign, too. VOI is that of A_r's segmentation at the row's
threshold, as it is and with a map replaced; *its mean* is that over each window of the prediction, 16 sections of
160 x 160 voxels."""
PICTURES = """

![VOI split against VOI merge of every row on FIB-25](results/curves.png)

![VOI against the number of labelled sections](results/efficiency.png)
"""


def cells(runs: list[dict], volume: str = "fib25", output: str = "") -> list[str] | None:
    """VOI split, VOI merge, VOI, ARAND of the runs that have this output on this volume."""
    found = [scores(runs, key, volume, output) for key in ("voi_split", "voi_merge", "voi", "arand")]
    return [summary(one) for one in found] if found[0] else None


def table(head: str, columns: str, lines: list[list[str]]) -> str:
    """A part of the page; columns are parted by bars."""
    if not lines:
        return f"\n{head}\n\nNothing of this is measured here yet.\n"
    names = columns.split("|")
    rows = [names, ["---"] * len(names), *lines]
    return f"\n{head}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def took(runs: list[dict]) -> list[str]:
    """Parameters, iterations, minutes, rate of inference, and the largest peak of memory of a run."""
    training = [run["training"] for run in runs]
    return [
        f"{training[0]['parameters']:,} ({training[0]['trainable']:,})",
        str(training[0]["iterations"]),
        summary([one["minutes"] for one in training], 1),
        summary(rates(runs), 2),
        f"{max(run['peak_memory_mb'] for run in runs):.0f}",
    ]


def trained_table(found: dict[str, list[dict]]) -> str:
    """The table of FIB-25: references, the shipped model, all rows, and what of them is not measured here."""
    missing, lines = lacking(found), []
    for key, title in REFERENCES.items():
        if own := cells(found.get("references", []), output=key):
            covered = found["references"][0]["volumes"]["fib25"][key].get("coverage", 1)
            lines.append([title + f" ({covered:.0%} of the voxels)", *[""] * 5, *own, ""])
    for name, title in TITLES.items():
        if name in found and name != "references":
            lines.append([title, *took(found[name]), *cells(found[name]), str(len(found[name]))])
        elif name in missing:
            lines.append([title, missing[name], *[""] * 9])
    runs = [run for runs in trained(found).values() for run in runs]
    machines = sorted({run["machine"] for run in runs})
    dates = sorted({run["date"] for runs in found.values() for run in runs})
    span = " to ".join(sorted({*dates[:1], *dates[-1:]}))
    measured = f"\nMeasured {span} on: {'; '.join(machines)}.\n" if machines else ""
    measured += disturbed(found)
    versions = postprocessings(found)
    if len(versions) > 1:
        measured += "\n**Not all rows had the same post-processing; compare within a line only.**\n\n"
        measured += "".join(f"- version {version}: {'; '.join(runs)}\n" for version, runs in versions.items())
    partly = [f"{TITLES[name]}: {said}" for name, said in missing.items() if name in found]
    head = "## FIB-25, validation part, sections 144-183"
    return table(head, COLUMNS, lines) + measured + "".join(f"\n- {line}" for line in partly)


def disturbed(found: dict[str, list[dict]]) -> str:
    """Which seeds of which rows ran beside other work, so that nobody compares their minutes."""
    busy: dict[str, list[str]] = {}
    for run in (run for runs in trained(found).values() for run in runs):
        if run["load"] > run["cores"] + 1:  # a run on each core, and a little of something else, is as it should be
            busy.setdefault(TITLES[run["row"]], []).append(str(run["seed"]))
    rows = "; ".join(f"{title} ({', '.join(seeds)})" for title, seeds in busy.items())
    return f"\nOther work shared the machine, so minutes and MVox/s may be too slow (seeds): {rows}.\n" if rows else ""


def coarse_table(found: dict[str, list[dict]]) -> str:
    """A_s beside A_r of the same runs."""
    lines = []
    for name, runs in trained(found).items():
        if {"coarse", "refined"} <= runs[0]["thresholds"].keys():
            coarse, refined = (scores(runs, "voi", output=output) for output in ("coarse", "refined"))
            lines.append([TITLES[name], summary(coarse), summary(refined), paired(refined, coarse), str(len(runs))])
    return table(
        "## A_s against A_r of the same runs, FIB-25", "row|VOI of A_s|VOI of A_r|change from A_s to A_r|runs", lines
    )


def unseen_table(found: dict[str, list[dict]]) -> str:
    """VOI and ARAND on the other volumes, beside the fragments that each segmentation starts from."""
    volumes = [name for name in VOLUMES if name != "fib25"]
    heads = [f"{name}: VOI|ARAND|VOI of fragments" for name in volumes]
    lines = []
    for name, runs in found.items():
        reference = name == "references"
        line = [REFERENCES["fragments"] if reference else TITLES[name]]
        for volume in volumes:
            own = cells(runs, volume, "fragments" if reference else "")
            start = None if reference else cells(runs, volume, f"{output_of(runs[0])}_fragments")
            line += [own[2] if own else "", own[3] if own else "", start[2] if start else ""]
        lines.append(line)
    return table("## Other volumes", "|".join(["row", *heads]), lines)


def questions_table(found: dict[str, list[dict]]) -> str:
    """Each question that the rows were made for, for each number of labelled sections."""
    lines = []
    for question, pair in questions(found).items():
        for sections in (SECTIONS, 20, 5):
            names = [with_sections(name, sections) for name in pair]
            if None not in names:
                ours, theirs = (scores(found.get(name, []), "voi") for name in names)
                values = [f"{summary(one)} ({len(one)})" if one else "" for one in (ours, theirs)]
                asked = [question, f"{pair[0]} against {pair[1]}", str(sections)]
                lines.append([*asked, *values, compared(ours, theirs)])
    return table(ASKED, "question|rows|sections|VOI of the first (runs)|of the second|the first is", lines)


def worst_table(found: dict[str, list[dict]]) -> str:
    """The largest split and the largest merge of each row's first seed."""
    lines = []
    for name, runs in found.items():
        volume = runs[0]["volumes"]["fib25"]
        for key in REFERENCES if name == "references" else [output_of(runs[0])]:
            if key in volume:
                first = [next((e for e in volume[key]["worst"] if e["kind"] == kind), None) for kind in ERRORS]
                said = [f"{e['bits']:.3f} bits, {e['parts']} parts, at {tuple(e['voxel'])}" if e else "" for e in first]
                lines.append([REFERENCES.get(key, TITLES[name]), str(volume[key]["segments"]), *said])
    head = "## The worst split and the worst merge on FIB-25, first seed\n\nPlaces are voxels z, y, x of the crop."
    return table(head, "row|segments|worst split neuron|worst merging segment", lines)


def attention_table(found: dict[str, list[dict]]) -> str:
    """Per map: what it is related to, and what VOI does when it is replaced."""
    lines = [
        [TITLES[one.row], one.level, summary(one.auc, 2), f"{one.darker} of {len(one.auc)}"]
        + [summary(one.correlation, 2), summary(one.std, 2)]
        + [summary(one.voi), *(summary(one.set_to[value]) for value in SET_TO)]
        for one in attention_statistics(found)
    ]
    values = [f"set to {'its mean' if value == 'mean' else value}" for value in SET_TO]
    columns = "row|map|AUC|membranes darker|correlation with A_r's error, either sign|s.d. of the map|VOI"
    return table(ATTENTION, "|".join([columns, *values]), lines)


def draw_curves(found: dict[str, list[dict]]) -> plt.Figure:
    """VOI split against VOI merge over thresholds, one line per row (first seed), a dot at the chosen threshold."""
    figure, ax = plt.subplots(figsize=(12, 5.5))
    curves = {TITLES[name]: curve(runs[0]) for name, runs in fully_labelled(found).items()}
    plots.split_against_merge(ax, curves, references(found))
    ax.set(title="FIB-25, validation part: thresholds from low to high")
    return figure


def draw_efficiency(found: dict[str, list[dict]]) -> plt.Figure:
    """VOI against labelled sections, mean and spread."""
    figure, ax = plt.subplots(figsize=(12, 5))
    plots.against_sections(ax, by_sections(found)).set(title="FIB-25, validation part: mean ± s.d. over seeds")
    return figure


def tried_table(found: dict[str, list[dict]]) -> str:
    """The shipped model after each stage of its training."""
    lines = []
    for stage in (stage for run in found.get("shipped", []) for stage in run["training"]["tried"]):
        numbers = [*chosen_scores(stage, "training"), *chosen_scores(stage, "validation")]
        best = min(split + merge for _, split, merge, _ in stage["validation"])
        line = [f"{stage['iterations']}", f"{stage['minutes']:.0f}", f"{stage['threshold']}"]
        lines.append([*line, *(f"{number:.3f}" for number in numbers), f"{best:.3f}"])
    columns = "iterations|minutes|threshold|VOI, 120-139|ARAND|VOI, 144-183|ARAND|VOI, 144-183, by peeking"
    return table(TRIED, columns, lines) + against_published(found)


def against_published(found: dict[str, list[dict]]) -> str:
    """The shipped model beside its aim and the published segmentation."""
    lines = [["the aim", f"{AIM:.3f}", f"{AIM_ARAND:.3f}"]]
    for title, name, output in (
        (TITLES["shipped"], "shipped", ""),
        (REFERENCES["ffn_filled"], "references", "ffn_filled"),
        (REFERENCES["ffn_ignored"], "references", "ffn_ignored"),
    ):
        if own := cells(found.get(name, []), output=output):
            lines.append([title, *own[2:]])
    return table("Beside the aim and the published segmentation:", "sections 144-183|VOI|ARAND", lines)


def draw_tried(found: dict[str, list[dict]]) -> plt.Figure:
    """The shipped model stage by stage: VOI at the chosen threshold, and validation's VOI at every threshold."""
    figure, (ax, at_all) = plt.subplots(1, 2, figsize=(13, 5), sharey=True)
    stages = [stage for run in found.get("shipped", []) for stage in run["training"]["tried"]]
    iterations = [stage["iterations"] for stage in stages]
    for part, label in (("training", "sections 120-139, which choose"), ("validation", "sections 144-183")):
        ax.plot(iterations, [chosen_scores(stage, part)[0] for stage in stages], "o-", label=label)
    ax.set(xlabel="iterations", ylabel="VOI (bits)", ylim=(0.6, 1.6))
    ax.set_title("at the threshold that training data choose")
    for number, stage in enumerate(stages):
        thresholds, split, merge, _ = zip(*stage["validation"], strict=True)
        color = plt.colormaps["viridis"](number / max(len(stages), 2))
        at_all.plot(thresholds, [a + b for a, b in zip(split, merge, strict=True)], color=color)
        label = f"{stage['iterations']} iterations"
        at_all.plot(stage["threshold"], chosen_scores(stage, "validation")[0], "o", color=color, label=label)
    at_all.set(xlabel="threshold of agglomeration", xlim=(0.5, 0.92))
    at_all.set_title("sections 144-183; dot: the chosen threshold")
    for one in (ax, at_all):
        one.axhline(AIM, color="0.5", linestyle="--", label=f"aim: {AIM}")
        one.legend()
    return figure


def page(found: dict[str, list[dict]]) -> str:
    """docs/results.md."""
    tables = (questions_table, coarse_table, unseen_table, worst_table, tried_table, attention_table)
    return HEAD + trained_table(found) + PICTURES + "".join(one(found) for one in tables)


if __name__ == "__main__":
    found = load()
    plots.style()
    PAGE.write_text(page(found), encoding="utf-8")
    draw_curves(found).savefig(RESULTS / "curves.png", dpi=110)
    draw_efficiency(found).savefig(RESULTS / "efficiency.png", dpi=110)
    draw_tried(found).savefig(RESULTS / "tried.png", dpi=110)
