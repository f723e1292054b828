"""Write docs/results.md, the pages of details beside it and their figures from the table of runs (`make results`)."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import comb
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from train_mini import THRESHOLDS_FILE, choose_on_parts, chosen_scores

from fgnet_lib import REPOSITORY
from fgnet_lib.study.evaluation import VOLUMES
from fgnet_lib.study.rows import REFERENCES, ROWS, SECTIONS, SEEDS, SEEDS_OF_FEW, TITLES
from fgnet_lib.study.statistics import (
    compare_paired_runs,
    correct_many,
    difference_cells,
    permutation_p,
    show_p,
    summary,
)
from fgnet_lib.study.table import (
    SET_TO,
    Rows,
    attention_statistics,
    by_sections,
    curve,
    describe_gaps,
    fully_labelled_rows,
    load_rows,
    output_of,
    postprocessings,
    questions,
    rates,
    references,
    scores,
    trained_rows,
    with_sections,
)
from fgnet_lib.study.targets import NOISE
from fgnet_lib.views import charts, plots

DOCS = REPOSITORY / "docs"
AIM, AIM_ARAND = 0.80, 0.06  # VOI and ARAND that the shipped model was to reach on FIB-25's validation part
SMALLEST_P, SMALLEST_OF_FEW = (2 / comb(2 * len(seeds), len(seeds)) for seeds in (SEEDS, SEEDS_OF_FEW))  # no overlap
SMALLEST_MIXED = 1 / comb(len(SEEDS) + len(SEEDS_OF_FEW), len(SEEDS))
FINDINGS = {  # title of a table -> its questions, each with the two rows that answer it
    "What photographs taught a frozen guide, against its twin with random weights": (
        ("Does it help, with F' = F + F a?", "natural_residual", "natural_residual_random"),
        ("And with F' = F + W_v S a?", "natural_additive", "natural_additive_random"),
        ("And if the norm sees one voxel?", "natural_additive_channel", "natural_additive_random_channel"),
        ("Does it help A_s, which sees the guide's features alone?", "natural_only", "natural_only_random"),
    ),
    "The guide of photographs against other networks": (
        ("Does adding what it sees help, F' = F + W_v S a instead of F + F a?", "natural_additive", "natural_residual"),
        ("Does it help more than a guide of EM?", "natural_additive", "additive"),
        ("Does it help more than training a U-Net longer?", "natural_additive", "unet_longer"),
        ("Does it beat a U-Net without a guide whose norm sees one voxel?", "natural_additive", "unet_channel"),
        ("And if both have that norm?", "natural_additive_channel", "unet_channel"),
    ),
    "The guide of photographs, trained further or shown larger sections": (
        ("Does fine-tuning help, with F' = F + W_v S a?", "natural_additive_tuned", "natural_additive"),
        ("And with F' = F + F a?", "natural_residual_tuned", "natural_residual"),
        ("And A_s?", "natural_only_tuned", "natural_only"),
        ("Does EM on top of photographs help, with F' = F + W_v S a?", "natural_additive_em", "natural_additive"),
        ("And A_s?", "natural_only_em", "natural_only"),
        ("Does enlarging sections twice help, with F' = F + W_v S a?", "natural_additive_zoom2", "natural_additive"),
    ),
    "A guide that learned from EM, and a U-Net without a guide": (
        ("Does the guide help, at equal time?", "pretrained_frozen_longer", "unet_longer"),
        ("Is it what it learned that helps, with F' = F + F a?", "pretrained_frozen", "random_frozen"),
        ("And with F' = F + W_v S a?", "additive", "additive_random"),
        ("Is it visible in A_s?", "sam2_only", "sam2_only_random"),
        ("Does fine-tuning help, at equal time?", "fine_tuned", "pretrained_frozen_longer"),
        ("Does adding its features help, F' = F + W_v S a instead of F + F a?", "additive", "pretrained_frozen"),
        ("Is a U-Net better with a norm that sees one voxel?", "unet_channel", "unet"),
    ),
}
LIKELY = 0.1  # a p above which a difference that is not the same in all runs is called chance
NOT_MEASURED = "not measured"
NETS = ("unet", "unet_channel")  # without a guide
MIXED = "Not all rows had the same post-processing; compare only rows of one version."

HEAD = f"""# Results

What does a guide add to a 3D U-Net, and how many labels does it save? `make results` trains the rows of
[rows.py](../fgnet_lib/study/rows.py), each with {len(SEEDS)} seeds ({len(SEEDS_OF_FEW)} for *natural images* with 5 or
20 sections), and writes this page from the runs that are done. Where a row has a single run, the page says so.
[Lesson 07](../notebooks/07_ablations_and_results.ipynb) reads the same runs and explains how to judge them.

**How to read it.** VOI is in bits; lower is better. Numbers are means ± standard deviation over seeds. The rows learn
from the first 5, 20 or {SECTIONS} sections of FIB-25's training part and are judged on its validation part, sections
144-183. Training sections {SECTIONS}-139 chose the threshold; fragments and agglomeration are the same for all rows.
A_s are the coarse affinities, from the guide's features S alone; A_r the refined ones, from the fine features F too.
The pretrained encoder is our small one (`make encoder`): it learned from EM without hand-drawn labels and has never
seen a photograph. Rows of *natural images* are guided by EfficientNet-Lite0 with ImageNet's weights, a stand-in for
SAM2's encoder. In rows of *natural images and EM* it was trained on the small one's EM afterwards. Norms are GroupNorm
unless a row is named by its *channel norm*.

**How large is p?** *p (permutation)* is the share of all deals of the same runs into two groups in which the means
differ at least as much. With {len(SEEDS)} runs against {len(SEEDS)} it is never below {SMALLEST_P:.2f}, so such a
difference does not rule out chance by itself; with {len(SEEDS_OF_FEW)} against {len(SEEDS_OF_FEW)} it is never
below {SMALLEST_OF_FEW:.3f}, with {len(SEEDS_OF_FEW)} against {len(SEEDS)} never below {SMALLEST_MIXED:.2f}. And among
so many comparisons a few come out small by chance.

![VOI against the number of labelled sections, one line per row](measured/voi_by_sections.png)
"""
OTHER_TISSUE = """
## Tissue that no row has seen

VOI of the same runs on a fly volume (gala), a synthetic one, and serial sections of mouse (AC4) and fly (CREMI B),
rescaled to 10 nm, at the threshold that FIB-25's training sections chose. Rows of FGNet are guided by *natural images*
or by their random twin.
"""
CEILING = """
## The ceiling, published segmentations and the shipped model

A crop cuts neurites that leave and come back into pieces, which no segmentation of the crop alone can join. So VOI is
given twice: against neurons, as everywhere on these pages, and against *components*, the connected pieces of the ground
truth, where 0 can be reached. [Lesson 05](../notebooks/05_affinities_to_neurons.ipynb) computes the ceiling.
"""
COMPARISONS = """# All comparisons of the results

Written by `make results`; [results.md](../results.md) has the findings and explains p.

Rows are named by their keys in `ROWS`. *Equal time* means that the U-Net and the frozen FGNet trained for more
iterations, as long as fine-tuned FGNet takes. Where a question says that the U-Net trains longer, it has 2050
iterations; otherwise both rows have equal ones. A negative difference says that the first row is better. VOI is that
against neurons; [every row](rows.md) also has VOI against components, as far as its runs were measured so.
"""
DETAILS = """
## Details

- [All comparisons](measured/comparisons.md): every question of the ablation, with the difference and p.
- [Every row](measured/rows.md): parameters, time, memory, all scores, A_s against A_r, other volumes, the worst errors.
- [Attention](measured/attention.md): what each map is related to, and what happens when it is replaced.
- [The shipped model](measured/shipped.md): its scores after each stage of training.
- [Cheap adaptation](measured/adaptation.md): parameters trained in the encoder against VOI, with p (lesson 11).
- [Fewer bits](measured/bits.md): bits of weights and activations against VOI, with p (lesson 16).
- [runs.jsonl.gz](measured/results/runs.jsonl.gz): every run with all of its numbers, one JSON object a line.
"""

ROWS_HEAD = """# Every row of the results

Written by `make results`; [results.md](../results.md) has the findings.

Means ± standard deviation over seeds. Minutes are those of training on the machines named below, without the
pretraining of an encoder; peak memory is that of the whole run (of the shipped model's evaluation alone). All runs
had one thread each and shared two cores with other work. *Components* is VOI against the connected pieces of the ground
truth: the crop's faces cut neurites that leave and come back, and no segmentation of the crop alone can join those
pieces. Runs from before 2026-11-28 were not measured so, and say it.
"""
COLUMNS = (
    "row|parameters (trained)|iterations|minutes|MVox/s|peak MB|VOI split|VOI merge|VOI|ARAND|against components|seeds"
)
OTHERS = """## Other volumes

The rows learned from FIB-25's labels alone, so gala, AC4 and CREMI B are unseen tissue. Two exceptions: the *shipped*
model was also trained on gala's training volume and on another phantom; the pretrained encoder and that of *natural
images and EM* learned from six other phantoms, affinities included. AC4 and CREMI B have pixels of 6 and 4 nm: their
sections are rescaled to FIB-25's 10 nm before the network, and the affinities back, so that scores are in their own
voxels; z (30 and 40 nm) stays as it is, and fragments are made section by section."""
WORST = """## The worst split and the worst merge on FIB-25, first seed

Positions are voxels z, y, x of the crop."""
ATTENTION = """# Attention on FIB-25: used, or decoration?

Written by `make results`; [lesson 07](../../notebooks/07_ablations_and_results.ipynb) draws it.

*AUC* says how well attention tells membranes from interiors: 0.5 not at all, 1 without error. Chance decides in each
training whether membranes get the higher or the lower weights, so both signs count, and *membranes darker* says in how
many runs they got the lower ones. The correlation is without its sign, too; it also counts the crop's low faces, where
there is no affinity and 0 is taken for right, which makes it a little smaller (by up to 0.02 for the shipped model, by
hand). *VOI* is that of A_r's segmentation at the row's threshold, as it is and with a map replaced. *Its mean* is the
mean over each window of the prediction."""
SHIPPED = f"""# The shipped model after each stage of its training

Written by `make results`; [trials.md](trials.md) tells what else was tried.

The aim was VOI {AIM:.2f} and ARAND {AIM_ARAND} on FIB-25's sections 144-183, at the threshold that training sections
choose. All lines but the last are the teacher's stages. **The last is the model that ships**: another network, which
began anew and was taught by the teacher; its iterations and minutes include the teacher's. *By peeking* is the least
VOI at any threshold up to 0.9. It is far lower for the teacher, which joins two large parts of a neuron at 0.85; the
model that ships joins them near 0.96 ([below](#the-whole-curves)), and training sections choose less for both.

![VOI of the shipped model and of its teacher after each stage of training](shipped.png)
"""

CROSS_VALIDATED = """
## Is the threshold an accident of the sections that chose it?

`python tools/results/thresholds.py` predicted seven parts of FIB-25's training volume as crops of their own. For each
part, the other six choose the threshold with their least mean VOI, and the part is scored there. *Its own best* is what
peeking would choose. Training learned from sections 0-119 and not from 120-139. Sections 144-183 chose nothing here:
their scores are those of the table of runs, at every threshold.

![VOI of the shipped model at each threshold, in every part of the training volume](thresholds.png)
"""
Parts = dict[str, list[list[float]]]  # sections -> a list of threshold, VOI split, VOI merge, ARAND


def cells(runs: list[dict], volume: str = "fib25", output: str = "") -> list[str] | None:
    """VOI split, VOI merge, VOI and ARAND of the runs that have this output on this volume, None if none has."""
    values = [scores(runs, key, volume, output) for key in ("voi_split", "voi_merge", "voi", "arand")]
    return [summary(value) for value in values] if values[0] else None


def against_components(runs: list[dict], volume: str = "fib25", output: str = "") -> str:
    """VOI against the connected pieces of the ground truth, or that none of the runs was measured so."""
    values = scores(runs, "voi_components", volume, output)
    return summary(values) if values else NOT_MEASURED


def table(columns: str, lines: list[list[str]]) -> str:
    """A table in Markdown; bars separate the columns."""
    if not lines:
        return "\nNothing of this is measured yet.\n"
    names = columns.split("|")
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in [names, ["---"] * len(names), *lines])


def answer(ours: list[float], theirs: list[float]) -> str:
    """The answer to a question of `FINDINGS` in words, with p: a lower VOI of the first row is a yes."""
    difference, p, single = np.mean(ours) - np.mean(theirs), permutation_p(ours, theirs), 1 in (len(ours), len(theirs))
    if single:
        verdict = f"VOI is {'lower' if difference < 0 else 'higher'}, but a single run shows nothing"
    elif abs(difference) < NOISE:
        verdict = "No difference is seen"
    elif max(ours) < min(theirs):
        verdict = "Yes, in every run"
    elif min(ours) > max(theirs):
        verdict = "No, in no run"
    elif p > LIKELY:
        verdict = "Not shown, chance may do as much"
    else:
        verdict = f"On average {'yes' if difference < 0 else 'no'}, but single runs overlap"
    with_p = "" if single else f", p = {show_p(p)}"
    return f"{verdict}: {summary(ours)} against {summary(theirs)}{with_p}"


def compared(rows: Rows, pair: Sequence[str]) -> Iterator[tuple[int, list[float], list[float]]]:
    """The numbers of labelled sections, each with the VOI of all runs of the first row and of the second."""
    for sections in (5, 20, SECTIONS):
        ours, theirs = (scores(rows.get(with_sections(name, sections) or "", []), "voi") for name in pair)
        yield sections, ours, theirs


def findings_table(rows: Rows, questions: Sequence[tuple[str, str, str]]) -> str:
    """A question a line and its answer for each number of labelled sections, empty if nothing of it is measured."""
    lines = []
    for question, *pair in questions:
        values = [(ours, theirs) for _, ours, theirs in compared(rows, pair)]
        answers = [answer(*both) if all(both) else NOT_MEASURED for both in values]
        if {*answers} != {NOT_MEASURED}:
            lines.append([f"**{question}** `{pair[0]}` against `{pair[1]}`", *answers])
    return table(f"question|5 sections|20 sections|{SECTIONS} sections", lines) if lines else ""


def count_small(rows: Rows) -> str:
    """How many of all comparisons have a small p, before and after a correction for their number."""
    pairs = [pair for question in questions(rows).values() for _, *pair in compared(rows, question)]
    ps = [permutation_p(ours, theirs) for ours, theirs in pairs if min(len(ours), len(theirs)) >= len(SEEDS)]
    if not ps:
        return ""
    before, after = (sum(np.less(values, 0.05)) for values in (ps, correct_many(ps)))
    return (
        f"\nOf {len(ps)} comparisons {before} have p < 0.05, where chance alone would bring some {len(ps) / 20:.0f}. "
        f"Holm's correction for so many questions leaves {after} ([lesson 18](../notebooks/18_your_own_study.ipynb)). "
        "Every p below is without it.\n"
    )


def findings(rows: Rows) -> str:
    """What came out: tables of comparisons, then sentences; a question whose rows are not measured is left out."""
    tables = {title: findings_table(rows, questions) for title, questions in FINDINGS.items()}
    lines = []
    both = [
        run for runs in trained_rows(rows).values() for run in runs if {"coarse", "refined"} <= run["thresholds"].keys()
    ]
    if both:
        better = np.sum(np.less(scores(both, "voi", output="refined"), scores(both, "voi", output="coarse")))
        lines.append(f"- **Does A_r refine A_s?** Its VOI is the lower one in {better} of {len(both)} runs.")
    changes = [
        f"{TITLES[m.row]}: {compare_paired_runs(m.set_to['mean'], m.voi)}"
        for m in attention_statistics({name: rows[name] for name in ("fine_tuned", "shipped") if name in rows})
        if m.level == "a2"
    ]
    if changes:
        lines.append(f"- **Does it matter where a2 attends?** VOI when a2 is set to its mean: {'; '.join(changes)}.")
    if own := cells(rows.get("shipped", [])):
        lines.append(
            f"- **Does the shipped model reach its aim, VOI {AIM} and ARAND {AIM_ARAND}?** It has {own[2]} "
            f"and {own[3]}."
        )
        for name in ("ffn_filled", "ffn_ignored"):
            if published := cells(rows.get("references", []), output=name):
                lines[-1] += f" The {REFERENCES[name]}: {published[2]} and {published[3]}."
    ceiling, cut = (cells(rows.get("references", []), output=name) for name in ("perfect", "components"))
    if ceiling and cut:
        lines.append(
            f"- **How good could any network be?** Perfect affinities through the same steps have VOI {ceiling[2]} and "
            f"ARAND {ceiling[3]}; the ground truth itself, in the pieces that the crop leaves, has {cut[2]}."
        )
    single, three = (rows.get(name, []) for name in ("shipped", "shipped_three_views"))
    if single and three:
        pairs = [
            f"{volume} {scores(three, 'voi', volume)[0]:.3f} against {scores(single, 'voi', volume)[0]:.3f}"
            for volume in ("fib25", "gala")
            if scores(single, "voi", volume) and scores(three, "voi", volume)
        ]
        chosen = [f"{runs[0]['thresholds']['refined']:g}" for runs in (three, single)]
        lines.append(
            "- **Does the shipped model gain by looking along three axes?** VOI of three views against one, each at "
            f"the threshold that training sections chose ([{' and '.join(chosen)}](measured/shipped.md)): "
            f"{'; '.join(pairs)}. On fib25 it takes {rates(single)[0] / rates(three)[0]:.1f} times as long, in a large "
            "cube three times. One model: another training may differ."
        )
    text = "".join(f"\n### {title}\n{cells}" for title, cells in tables.items() if cells)
    if lines:
        text += "\n### Attention, the shipped model and the ceiling\n\n" + "\n".join(lines) + "\n"
    return "\n## Findings\n" + count_small(rows) + (text or "\nNothing is measured yet.\n")


def comparisons_page(rows: Rows) -> str:
    """docs/measured/comparisons.md: each question, for each number of labelled sections that has both rows."""
    lines = []
    for question, pair in questions(rows).items():
        for sections, ours, theirs in compared(rows, pair):
            if cells_of_pair := difference_cells(ours, theirs):
                cells_of_pair.insert(2, f"{len(ours)}, {len(theirs)}")
                lines.append([question, f"{pair[0]} against {pair[1]}", str(sections), *cells_of_pair])
    columns = "question|rows|sections|VOI of the first|of the second|runs|difference|p (permutation)"
    return COMPARISONS + table(columns, lines)


def ceiling_table(rows: Rows) -> str:
    """FIB-25: the shipped model beside what it is compared with, against neurons and against their pieces."""
    kinds = [("references", key, title) for key, title in REFERENCES.items()]
    kinds += [(name, "", TITLES[name]) for name in ("shipped", "shipped_three_views")]
    lines = []
    for name, output, title in kinds:
        if own := cells(rows.get(name, []), output=output):
            lines.append([title, *own, against_components(rows[name], output=output)])
    return table("sections 144-183 of FIB-25|VOI split|VOI merge|VOI|ARAND|VOI against components", lines)


def other_tissue(rows: Rows) -> str:
    """VOI on other volumes around photographs and around random weights, and without a guide."""
    lines = []
    for volume, sections in itertools.product(("gala", "phantom", "ac4", "cremi_b_mini"), (5, 20, SECTIONS)):
        names = ("natural_additive", "natural_additive_random", "natural_residual", "natural_residual_random")
        guided = [scores(rows.get(with_sections(name, sections) or "", []), "voi", volume) for name in names]
        if not all(guided):
            continue
        nets = [scores(rows.get(with_sections(name, sections) or "", []), "voi", volume) for name in NETS]
        lines.append([volume, str(sections)])
        for ours, theirs in (guided[:2], guided[2:]):
            lines[-1] += [summary(ours, 2), summary(theirs, 2), show_p(permutation_p(ours, theirs))]
        lines[-1] += [summary(voi, 2) if voi else NOT_MEASURED for voi in nets]
    columns = "volume|sections|F' = F + W_v S a|its twin|p|F' = F + F a|its twin|p|3D U-Net|3D U-Net, channel norm"
    return OTHER_TISSUE + table(columns, lines) if lines else ""


def results_page(rows: Rows) -> str:
    """docs/results.md: one figure, the findings, and the ceiling."""
    warning = "" if len(postprocessings(rows)) < 2 else f"\n**{MIXED}** See [every row](measured/rows.md).\n"
    parts = HEAD + warning + findings(rows) + other_tissue(rows) + CEILING + ceiling_table(rows)
    return parts + f"\n{describe_gaps(rows)}\n" + DETAILS


def costs(runs: list[dict]) -> list[str]:
    """Parameters, iterations, minutes, rate of inference, and the largest peak of memory of a row's runs."""
    training = [run["training"] for run in runs]
    return [
        f"{training[0]['parameters']:,} ({training[0]['trainable']:,})",
        str(training[0]["iterations"]),
        summary([run["minutes"] for run in training], 1),
        summary(rates(runs), 2),
        f"{max(run['peak_memory_mb'] for run in runs):.0f}",
    ]


def fib25_table(rows: Rows) -> str:
    """FIB-25: references, the shipped model and all rows, and on which machines they were measured."""
    lines = []
    for key, title in REFERENCES.items():
        if own := cells(rows.get("references", []), output=key):
            coverage = rows["references"][0]["volumes"]["fib25"][key].get("coverage", 1)
            cut = against_components(rows["references"], output=key)
            lines.append([f"{title} ({coverage:.0%} of the voxels)", *[""] * 5, *own, cut, ""])
    for name, runs in trained_rows(rows).items():
        lines.append([TITLES[name], *costs(runs), *cells(runs), against_components(runs), str(len(runs))])
    runs = [run for runs in trained_rows(rows).values() for run in runs]
    notes = ""
    if runs:
        dates = sorted(run["date"] for runs in rows.values() for run in runs)
        machines = "; ".join(sorted({run["machine"] for run in runs}))
        notes = f"\nMeasured {dates[0]} to {dates[-1]} on: {machines}.\n" + describe_disturbances(rows)
    versions = postprocessings(rows)
    if len(versions) > 1:
        notes += f"\n**{MIXED}**\n\n" + "".join(
            f"- version {name}: {'; '.join(own)}\n" for name, own in versions.items()
        )
    return "\n## FIB-25, validation part, sections 144-183\n" + table(COLUMNS, lines) + notes


def describe_disturbances(rows: Rows) -> str:
    """Which seeds of which rows ran beside other work, so that their minutes are not compared."""
    busy: dict[str, list[str]] = {}
    for run in (run for runs in trained_rows(rows).values() for run in runs):
        if run["load"] > run["cores"] + 1:  # a run on each core, and a little of something else, is as it should be
            busy.setdefault(TITLES[run["row"]], []).append(str(run["seed"]))
    text = "; ".join(f"{title} ({', '.join(seeds)})" for title, seeds in busy.items())
    return f"\nOther work shared the machine, so minutes and MVox/s may be too slow (seeds): {text}.\n" if text else ""


def coarse_table(rows: Rows) -> str:
    """A_s beside A_r of the same runs."""
    lines = []
    for name, runs in trained_rows(rows).items():
        if {"coarse", "refined"} <= runs[0]["thresholds"].keys():
            coarse, refined = (scores(runs, "voi", output=output) for output in ("coarse", "refined"))
            change = compare_paired_runs(refined, coarse)
            cut = [against_components(runs, output=output) for output in ("coarse", "refined")]
            lines.append([TITLES[name], summary(coarse), summary(refined), change, *cut, str(len(runs))])
    columns = "row|VOI of A_s|VOI of A_r|change from A_s to A_r|A_s against components|A_r against components|runs"
    return "\n## A_s against A_r of the same runs, FIB-25\n" + table(columns, lines)


def unseen_table(rows: Rows) -> str:
    """VOI and ARAND on the other volumes, beside the fragments that each segmentation starts from."""
    volumes = [name for name in VOLUMES if name != "fib25"]
    heads = [f"{name}: VOI|ARAND|VOI against components|VOI of fragments" for name in volumes]
    kinds = [("references", key, title) for key, title in REFERENCES.items()] if "references" in rows else []
    kinds += [(name, "", TITLES[name]) for name in trained_rows(rows)]
    lines = []
    for name, output, title in kinds:
        runs, line = rows[name], [title]
        for volume in volumes:
            own = cells(runs, volume, output)
            start = None if output else cells(runs, volume, f"{output_of(runs[0])}_fragments")
            cut = against_components(runs, volume, output) if own else ""
            line += [own[2] if own else "", own[3] if own else "", cut, start[2] if start else ""]
        lines += [line] if any(line[1:]) else []
    return f"\n{OTHERS}\n" + table("|".join(["row", *heads]), lines)


def worst_table(rows: Rows) -> str:
    """The largest split and the largest merge of each row's first seed."""
    lines = []
    for name, runs in rows.items():
        volume = runs[0]["volumes"]["fib25"]
        for key in REFERENCES if name == "references" else [output_of(runs[0])]:
            if key not in volume:
                continue
            errors = [next((e for e in volume[key]["worst"] if e["kind"] == kind), None) for kind in ("split", "merge")]
            text = [f"{e['bits']:.3f} bits, {e['parts']} parts, at {tuple(e['voxel'])}" if e else "" for e in errors]
            lines.append([REFERENCES.get(key, TITLES[name]), str(volume[key]["segments"]), *text])
    return f"\n{WORST}\n" + table("row|segments|worst split neuron|worst merging segment", lines)


def rows_page(rows: Rows) -> str:
    """docs/measured/rows.md."""
    figure = "\n![VOI split against VOI merge of every row on FIB-25](voi_by_threshold.png)\n"
    return ROWS_HEAD + fib25_table(rows) + figure + coarse_table(rows) + unseen_table(rows) + worst_table(rows)


def attention_page(rows: Rows) -> str:
    """docs/measured/attention.md: what each map is related to, and what VOI does when it is replaced."""
    lines = [
        [TITLES[m.row], m.level, summary(m.auc, 2), f"{m.darker} of {len(m.auc)}"]
        + [summary(m.correlation, 2), summary(m.std, 2)]
        + [summary(m.voi), *(summary(m.set_to[value]) for value in SET_TO)]
        for m in attention_statistics(rows)
    ]
    values = [f"set to {'its mean' if value == 'mean' else value}" for value in SET_TO]
    columns = "row|map|AUC|membranes darker|correlation with A_r's error, either sign|s.d. of the map|VOI"
    return f"{ATTENTION}\n" + table("|".join([columns, *values]), lines)


def shipped_page(rows: Rows) -> str:
    """docs/measured/shipped.md: the shipped model after each stage, beside its aim and the published segmentation."""
    lines = []
    for stage in (stage for run in rows.get("shipped", []) for stage in run["training"]["tried"]):
        numbers = [*chosen_scores(stage, "training"), *chosen_scores(stage, "validation")]
        best = min(split + merge for _, split, merge, _ in stage["validation"])
        line = [f"{stage['iterations']}", f"{stage['minutes']:.0f}", f"{stage['threshold']}"]
        lines.append([*line, *(f"{number:.3f}" for number in numbers), f"{best:.3f}"])
    beside = [["the aim", f"{AIM:.3f}", f"{AIM_ARAND:.3f}", ""]]
    for title, name, output in (
        (TITLES["shipped"], "shipped", ""),
        (TITLES["shipped_three_views"], "shipped_three_views", ""),
        (REFERENCES["ffn_filled"], "references", "ffn_filled"),
        (REFERENCES["ffn_ignored"], "references", "ffn_ignored"),
    ):
        if own := cells(rows.get(name, []), output=output):
            beside.append([title, *own[2:], against_components(rows[name], output=output)])
    columns = "iterations|minutes|threshold|VOI, 120-139|ARAND|VOI, 144-183|ARAND|VOI, 144-183, by peeking"
    stages = SHIPPED + table(columns, lines)
    return stages + table("sections 144-183|VOI|ARAND|VOI against components", beside) + thresholds_section(rows)


def load_parts() -> dict[str, Parts]:
    """Scores of the shipped model on parts of the training volume, by row of the results; empty where none are here."""
    parts = json.loads(THRESHOLDS_FILE.read_text(encoding="utf-8")) if THRESHOLDS_FILE.is_file() else {}
    return {row: scores for row, scores in parts.items() if row != "weights"}


def at_threshold(part: list[list[float]], threshold: float) -> tuple[float, float]:
    """VOI and ARAND of a part at a threshold."""
    _, split, merge, arand = next(line for line in part if line[0] == threshold)
    return split + merge, arand


def validation_curve(rows: Rows, name: str) -> dict[float, float]:
    """VOI on sections 144-183 at each threshold, of a row's first run."""
    return {t: split + merge for t, split, merge in rows[name][0]["volumes"]["fib25"]["refined_curve"]}


def cross_validated(rows: Rows, name: str, parts: Parts) -> str:
    """What each part chooses, and what all parts choose together, for one row of `load_parts`."""
    lines, own = [], {part: choose_on_parts([scores]) for part, scores in parts.items()}
    for part, part_scores in parts.items():
        chosen = choose_on_parts([other for key, other in parts.items() if key != part])
        voi, arand = at_threshold(part_scores, chosen)
        best = at_threshold(part_scores, own[part])[0]
        lines.append([part, f"{chosen:g}", f"{voi:.3f}", f"{arand:.3f}", f"{own[part]:g}", f"{best:.3f}"])
    together, curve = choose_on_parts(list(parts.values())), validation_curve(rows, name)
    used = rows[name][0]["thresholds"]["refined"]
    columns = "sections|the others choose|VOI there|ARAND|its own best|VOI there"
    last = ", the last that was tried" if together == max(curve) else ""
    return (
        f"\n### {TITLES[name][0].upper()}{TITLES[name][1:]}\n"
        + table(columns, lines)
        + (
            f"\nThe parts' own best thresholds are {summary(list(own.values()), 2)}, from {min(own.values()):g} to "
            f"{max(own.values()):g}. **Together they choose {together:g}**{last}: VOI {curve[together]:.3f} on "
            f"sections 144-183. Sections 120-139 alone chose {used:g}: VOI {curve[used]:.3f}. By peeking: "
            f"{min(curve.values()):.3f}.\n"
        )
    )


def thresholds_section(rows: Rows) -> str:
    """How thresholds were chosen on several parts of the training volume, and the whole curves."""
    measured = {name: parts for name, parts in load_parts().items() if name in rows}
    if not measured:
        return ""
    names, lines = list(measured), []
    for i, line in enumerate(next(iter(measured[names[0]].values()))):
        cells_of = [f"{line[0]:g}"]
        for name in names:
            values = [sum(part[i][1:3]) for part in measured[name].values()]
            cells_of += [summary(values), f"{validation_curve(rows, name)[line[0]]:.3f}"]
        lines.append(cells_of)
    columns = ["threshold", *(f"{TITLES[name]}: VOI of the parts|VOI, 144-183" for name in names)]
    text = CROSS_VALIDATED + "".join(cross_validated(rows, name, parts) for name, parts in measured.items())
    return text + "\n### The whole curves\n" + table("|".join(columns), lines)


def draw_parts(rows: Rows) -> plt.Figure:
    """VOI at each threshold: every part of the training volume, their mean, and sections 144-183."""
    measured = {name: parts for name, parts in load_parts().items() if name in rows}
    figure, axes = plt.subplots(1, max(1, len(measured)), figsize=(13, 5), sharey=True, squeeze=False)
    for ax, (name, parts) in zip(axes[0], measured.items(), strict=False):
        curves = {part: [(line[0], sum(line[1:3])) for line in scores] for part, scores in parts.items()}
        for part, points in curves.items():
            unseen = part == "120-139"
            color, label = ("tab:orange", "sections 120-139, not learned from") if unseen else ("0.7", None)
            ax.plot(*zip(*points, strict=True), color=color, label=label, zorder=2 + unseen)
        ax.plot([], [], color="0.7", label="other training sections, 20 each")
        mean = np.mean([list(zip(*points, strict=True))[1] for points in curves.values()], axis=0)
        ax.plot([t for t, _ in points], mean, color="black", linewidth=3, label="mean of the seven parts")
        validation = validation_curve(rows, name)
        ax.plot(list(validation), list(validation.values()), "--", color="tab:blue", label="sections 144-183")
        ax.axvline(choose_on_parts(list(parts.values())), color="black", linestyle=":", label="what the parts choose")
        ax.set(title=TITLES[name], xlabel="threshold of agglomeration", ylim=(0, 2.5))
    axes[0, 0].set_ylabel("VOI (bits)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def panels_by_guide(lines: Mapping[str, Any], beside: int = 0) -> tuple[plt.Figure, Iterator[tuple[Axes, dict]]]:
    """A figure with a panel for each network around a guide of photographs, after one for all other rows.

    Rows of one network share its architecture; they differ in the guide's weights, in whether it learns, in how large
    it sees sections, and in labelled sections. Each panel is as high as the list of names beside it, which would
    squeeze it otherwise.

    Args:
        lines: title of a row -> what is drawn of it.
        beside: names in each list that are no rows.

    Returns:
        The figure, and each panel, which has its title, with its lines.
    """
    networks = {row.title: row.config for row in ROWS.values()}
    first = {row.config: row.title.replace(", frozen", "") for row in reversed(ROWS.values())}
    groups = defaultdict(dict)
    for title, line in lines.items():
        natural = title in networks and networks[title].encoder == "natural"
        group = first[replace(networks[title], guide_zoom=1)] if natural else "Other networks"
        groups[group][title] = line
    groups = groups or {"": {}}
    heights = [max(3.4, 0.32 * (len(group) + beside + 2)) for group in groups.values()]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(12, sum(heights)), height_ratios=heights, sharey=True, squeeze=False
    )
    for ax, name in zip(axes.flat, groups, strict=True):
        ax.set_title(name)
    figure.suptitle("FIB-25's validation part")
    return figure, zip(axes.flat, groups.values(), strict=True)


def draw_thresholds(rows: Rows) -> plt.Figure:
    """VOI split against VOI merge over thresholds, one line per row (first seed), a dot at the chosen threshold."""
    curves = {TITLES[name]: curve(runs[0]) for name, runs in fully_labelled_rows(rows).items()}
    points = references(rows)
    figure, panels = panels_by_guide(curves, beside=len(points) + 1)
    for ax, lines in panels:
        charts.split_against_merge(ax, lines, points)
    return figure


def draw_sections(rows: Rows) -> plt.Figure:
    """VOI against labelled sections, mean and standard deviation over seeds."""
    figure, panels = panels_by_guide(by_sections(rows))
    for ax, lines in panels:
        charts.against_sections(ax, lines)
        ax.set_xlim(4, 1.3 * SECTIONS)  # also where rows have one number of sections
    return figure


def draw_shipped(rows: Rows) -> plt.Figure:
    """The teacher's stages and the shipped model: VOI at the chosen threshold, and validation's at every threshold."""
    figure, (ax, at_all) = plt.subplots(1, 2, figsize=(13, 5), sharey=True)
    stages = [stage for run in rows.get("shipped", []) for stage in run["training"]["tried"]]
    iterations = [stage["iterations"] for stage in stages]
    for part, label in (("training", "sections 120-139"), ("validation", "sections 144-183")):
        scores = [chosen_scores(stage, part)[0] for stage in stages]
        (line,) = ax.plot(iterations[:-1], scores[:-1], "o-", label=f"the teacher, {label}")
        ax.plot(iterations[-1:], scores[-1:], "*", markersize=14, color=line.get_color(), label=f"shipped, {label}")
    ax.set(xlabel="iterations, those of the teacher included", ylabel="VOI (bits)", ylim=(0.6, 1.6))
    ax.set_title("at the threshold that training data choose")
    for number, stage in enumerate(stages):
        thresholds, split, merge, _ = zip(*stage["validation"], strict=True)
        color = plt.colormaps["viridis"](number / max(len(stages), 2))
        at_all.plot(thresholds, np.add(split, merge), color=color)
        label = f"{stage['iterations']} iterations{', shipped' * (stage is stages[-1])}"
        at_all.plot(stage["threshold"], chosen_scores(stage, "validation")[0], "o", color=color, label=label)
    at_all.set(xlabel="threshold of agglomeration", xlim=(0.5, 0.92))
    at_all.set_title("sections 144-183; dot: the chosen threshold")
    for axes in (ax, at_all):
        axes.axhline(AIM, color="0.5", linestyle="--", label=f"aim: {AIM}")
        axes.legend()
    return figure


PAGES = {
    "results.md": results_page,
    "measured/comparisons.md": comparisons_page,
    "measured/rows.md": rows_page,
    "measured/attention.md": attention_page,
    "measured/shipped.md": shipped_page,
}
FIGURES = {
    "measured/voi_by_sections.png": draw_sections,
    "measured/voi_by_threshold.png": draw_thresholds,
    "measured/shipped.png": draw_shipped,
}
if THRESHOLDS_FILE.is_file():
    FIGURES["measured/thresholds.png"] = draw_parts

if __name__ == "__main__":
    rows = load_rows()
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(rows), encoding="utf-8")
    plots.style()
    for name, draw in FIGURES.items():
        draw(rows).savefig(DOCS / name, dpi=80, pil_kwargs={"optimize": True})
