# %% [markdown]
# # 07 · Ablations and results: what each part is worth, and what a number allows to say
#
# <!-- badges -->
#
# **What you will learn**
#
# - what an ablation is, and when a comparison of two rows is a fair one;
# - how to read a table of results: seeds, spread, the threshold, time and memory;
# - how often a difference is chance, by counting;
# - how to look at rows beyond their scores: all thresholds, the errors in a section, one neuron in 3D, fewer labels;
# - which claims of the paper the measurements here can support, and which they cannot;
# - how to run a small ablation of your own.
#
# **Before you start.** Lesson 03 explains the model, lesson 05 VOI and the threshold; neither is required.
#
# <!-- times -->

# %% tags=["parameters"]
PROFILE = "cpu"  # fast | cpu | gpu | full
DATASET = "phantom"  # phantom | fib25 | any name in fgnet_lib.datasets.DATASETS
DATA_DIR = ""  # folder with your data sets; empty: $FGNET_DATA_DIR
OUT_DIR = ""  # folder for results; empty: out/
DEVICE = "auto"  # auto | cpu | cuda | mps
SEED = 0

# %% tags=["setup"]
from fgnet_lib.course.session import start_session

session = start_session(PROFILE, DATASET, DATA_DIR, OUT_DIR, DEVICE, SEED)

# %% [markdown]
# ## 1 · What was measured, and what was not
#
# An **ablation** takes one part away, or exchanges it, and measures again. Each variant is a **row**. Rows are trained by
# `make results`, which takes hours; it writes one run for each row and **seed** (another seed: other first weights, other
# patches) into one table, `docs/measured/results`. This lesson reads that table. It shows what the table holds on the day you run
# it, so no number is in the text: where runs are missing, you see the command that makes them.

# %%
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np

from fgnet_lib.course import checks, quiz
from fgnet_lib.study import statistics, table
from fgnet_lib.study.rows import QUESTIONS, REFERENCES, ROWS, TITLES, Row, training, untrained
from fgnet_lib.study.runs import load_pictures
from fgnet_lib.views import plots

results = table.load_rows()
rows = table.trained(results)
for name, runs in rows.items():
    dates = ", ".join(sorted({run["date"] for run in runs}))
    print(f"{TITLES[name]:56} seeds {[run['seed'] for run in runs]}, {dates}")
print(f"\n{table.unmeasured(results)}")

# %% [markdown]
# All rows have the same task: trained on the first sections of FIB-25's training part, judged on its validation part, sections
# 144 to 183, and on volumes of other tissue. What does such a file say? The first of them:

# %%
first = next((run for runs in rows.values() for run in runs), None)
if first:
    print(f"{first['row']}, seed {first['seed']}, made on: {first['machine']}")
    print(f"what is in it: {', '.join(first)}")
    print(f"thresholds, chosen on training data: {first['thresholds']}")
    print(f"judged on: {', '.join(first['volumes'])}")

# %% [markdown]
# ## 2 · A fair comparison changes one thing
#
# If two rows differ in two things, nobody can tell which of them made the difference. Four rows of the list, side by side:

# %%
from dataclasses import asdict


def settings(name: str) -> dict:
    row = asdict(ROWS[name])
    del row["title"]
    config, weights = row.pop("config"), row.pop("encoder")
    return {**config, "first weights": weights if config["encoder"] else None, **row}


names = "unet", "random_frozen", "pretrained_frozen", "fine_tuned"
sides = [settings(name) for name in names]
print(f"{'':16}" + "".join(f"{name:>20}" for name in names))
for key in sides[0]:
    values = [str(side[key]) for side in sides]
    if len(set(values)) > 1:
        print(f"{key:16}" + "".join(f"{value:>20}" for value in values))

# %% [markdown]
# Settings that all four share are left out: patch size, iterations, learning rate, augmentation, the decoder. So is everything
# *behind* the network. **Post-processing is held fixed**: fragments and agglomeration are the same code with the same settings for
# every row. Whoever changes network and watershed at once measures a sum of two things. Is it so in these files? Each notes the
# version of the post-processing; there should be one line.

# %%
for version, runs in table.postprocessings(results).items():
    print(f"version {version}, runs: {len(runs)}")

# %%
quiz.ask("07", "pretraining")

# %% [markdown]
# These are the questions that the rows were made for. Each is a pair:

# %%
for question, (one, other) in QUESTIONS.items():
    both = settings(one), settings(other)
    changed = [key for key in both[0] if both[0][key] != both[1][key]]
    print(f"{question:48} {one} against {other}: {', '.join(changed)}")

# %% [markdown]
# **What to see.** Pairs in which more than one word stands at the end answer their question less clearly than the others. Say for each of
# them what else could explain a difference.
#
# The last four questions are about the form of the attention. By default $F' = F + F \odot a$ with one map $a$: where $a$ is high, the fine
# features $F$ are stressed (lesson 03). *F' = F a* leaves out the first $F$, so attention can also erase. *One map per channel* weighs each
# channel of $F$ with a map of its own. In *F' = F + W_v S a* SAM2's features $S$, projected by $W_v$ to as many channels, are **added**: with
# the default, all that SAM2 can say about a place is one number; here it also says what it sees there. We added the last form after the frozen,
# pretrained guide had brought little with the default; so the same seeds and sections suggested it and judge it.
#
# **Exercise 7.1: fair pairs.** `rows` is a dictionary from names to settings, each a dictionary, too. Give back the pairs of names whose
# settings differ in *exactly one* thing, each pair once. A setting that only one of the two has is a difference.


# %% tags=["task"]
def my_fair_pairs(rows):
    return ...


# %% tags=["solution"]
def my_fair_pairs(rows):
    pairs, names = [], list(rows)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            a, b = rows[one], rows[other]
            changed = [key for key in {**a, **b} if key not in a or key not in b or a[key] != b[key]]
            if len(changed) == 1:
                pairs.append((one, other))
    return pairs


# %%
checks.fair_pairs(my_fair_pairs)

# %% [markdown]
# ## 3 · The table
#
# Lower is better in VOI and ARAND. *trained*: parameters that training could change; *minutes*: of that training; *MVox/s*: million voxels
# of prediction in a second; *MB*: the largest peak of memory among the runs. What came with the data stands last; it has no training that
# we could count. Numbers are mean ± spread over seeds. **A number without ± is a single run**: how far another seed would be from it,
# nobody knows.

# %%
print(f"{'row':56} {'trained':>10} {'minutes':>13} {'MVox/s':>12} {'MB':>6} {'VOI':>14} {'ARAND':>14}")
for name, runs in rows.items():
    costs = [run["training"] for run in runs]
    minutes = statistics.summary([cost["minutes"] for cost in costs], 1)
    rate = statistics.summary(table.rates(runs), 2)
    memory = max(run["peak_memory_mb"] for run in runs)
    voi, arand = (statistics.summary(table.scores(runs, key)) for key in ("voi", "arand"))
    trained = f"{costs[0]['trainable']:10,} {minutes:>13} {rate:>12} {memory:6.0f}"
    print(f"{TITLES[name]:56} {trained} {voi:>14} {arand:>14}")
for name, title in REFERENCES.items():
    for voi in table.scores(results.get("references", []), "voi", output=name):
        (arand,) = table.scores(results["references"], "arand", output=name)
        print(f"{title:101} {voi:14.3f} {arand:14.3f}")

# %% [markdown]
# Four things to know before you compare:
#
# - **Trained parameters are not all parameters.** A frozen encoder computes, but has nothing to learn.
# - **Equal iterations are not equal time.** A row that computes more in an iteration had more of the machine. Rows can be
#   made equal in one of the two, seldom in both, so the list has a U-Net and a frozen FGNet that train for longer.
# - **The shipped model is no row of the ablation.** It is wider, and had other data, another recipe and far more minutes. It is
#   there to show what the same code reaches; nothing follows from a comparison with it. The rows are small networks, so that
#   three seeds of each can be trained in hours; what they show need not hold for large ones.
# - **MVox/s depend on the machine and on what else it does.** The rows were measured on one core with another run beside it, the
#   shipped model on two cores with nothing beside it.

# %%
quiz.ask("07", "one-seed")

# %% [markdown]
# All runs, one dot each:

# %% alt="One line for each row of the table, from the shipped model down, and on it a dot for the VOI of each of its runs; where a row has several seeds, a bar marks their mean. The number of runs stands behind each name."
figure, ax = plt.subplots(figsize=(11, 1.5 + 0.4 * len(rows)))
vois = {TITLES[name]: table.scores(runs, "voi") for name, runs in rows.items()}
plots.runs_of_rows(ax, vois, "VOI on FIB-25, validation part (bits); in brackets: runs")
plt.show()

# %% [markdown]
# **What to see.** How far apart are dots of one row, and how far apart are rows? Only where the second is clearly more than the first does
# a row say something about its *method*. Rows with one dot cannot be asked.
#
# **Exercise 7.2: mean and spread.** From the scores of a row's runs to their mean and their spread: the standard deviation as one estimates
# it from a sample, which divides by the number of runs minus one. A single run has no spread: give `None` for it, not 0.


# %% tags=["task"]
def my_summary(scores):
    return ...


# %% tags=["solution"]
def my_summary(scores):
    mean = np.mean(scores)
    spread = np.std(scores, ddof=1) if len(scores) > 1 else None
    return mean, spread


# %%
checks.seed_summary(my_summary)

# %% [markdown]
# ## 4 · When is a difference one?
#
# Suppose that a method makes no difference at all. Then the runs of both rows are draws from one bag, and who got which was
# chance. How often would a deal of the same numbers into two hands give a difference as large as the one we see? That can be
# counted: it needs no theory, and it is called a **permutation test**.

# %%
quiz.ask("07", "three-seeds")

# %%
first, second = [1.00, 1.02, 1.04], [1.10, 1.11, 1.16]  # made up: any of the first is better than any of the second
print(f"dealt at random, as large a difference in {statistics.permutation_p(first, second):.0%} of all cases")
for seeds in (1, 2, 3, 4, 5):
    best = statistics.permutation_p(np.arange(seeds), 100 + np.arange(seeds))
    print(f"{seeds} of each, all of one row better than all of the other: {best:.1%}")

# %% [markdown]
# **Exercise 7.3: how often by chance.** From the scores of two rows to the share of all deals, the real one included, in which
# the two means differ *at least* as much as they do, in either direction. A hand keeps its number of runs.
# (`combinations`, imported in part 1, deals; allow for rounding: two differences within 1e-9 are equal.)


# %% tags=["task"]
def my_chance(ours, theirs):
    return ...


# %% tags=["solution"]
def my_chance(ours, theirs):
    runs = [*ours, *theirs]
    seen = abs(np.mean(ours) - np.mean(theirs))
    as_large = []
    for hand in combinations(range(len(runs)), len(ours)):
        mine = [runs[k] for k in hand]
        rest = [runs[k] for k in range(len(runs)) if k not in hand]
        as_large.append(abs(np.mean(mine) - np.mean(rest)) >= seen - 1e-9)
    return np.mean(as_large)


# %%
checks.chance_of(my_chance)

# %% [markdown]
# Now the questions of part 2, as far as the files go. The sentences are computed: they change when runs are added.

# %%
for question, (one, other) in table.questions(results).items():
    ours, theirs = (table.scores(rows.get(name, []), "voi") for name in (one, other))
    print(f"{question} (runs: {len(ours)} and {len(theirs)})")
    print(f"  VOI of {one}, compared with {other}: {statistics.compare_runs(ours, theirs)}")

# %% [markdown]
# **How to read it.** "Not more than the spread" does not say that there is *no* difference: a smaller one could be there, and more seeds
# would show it. And with several questions in one list, one of them may look good by chance alone. A row that was run because an earlier
# result looked promising needs fresh seeds.
#
# ## 5 · All thresholds at once
#
# A score belongs to one threshold. For every row it was chosen on sections 120 to 139 of the *training* part, which no row was
# trained on, and then kept. What would each row have gained by peeking, that is, by taking the best threshold of the validation part?

# %%
print(f"{'row':56} {'chosen':>14} {'by peeking':>14} {'price of honesty':>17}")
for name, runs in rows.items():
    honest, peeking = [], []
    for run in runs:
        merge, split, chosen = table.curve(run)
        honest.append((merge + split)[chosen])
        peeking.append((merge + split).min())
    columns = [statistics.summary(values) for values in (honest, peeking, np.subtract(honest, peeking))]
    print(f"{TITLES[name]:56} {columns[0]:>14} {columns[1]:>14} {columns[2]:>17}")

# %% [markdown]
# If the price of honesty differs much from row to row, a table made by peeking could have another order. Here are the curves of the rows with 120
# sections, near the thresholds that were chosen (they run on beyond the picture); those with fewer sections come in part 7.

# %% alt="VOI split against VOI merge on FIB-25's validation part: a curve for each row, with a dot at the threshold that was chosen on training data, and crosses for the segmentations that came with the data. Lower left is better."
full = table.fully_labelled(results)
figure, ax = plt.subplots(figsize=(14, 5.5))
curves = {TITLES[name]: table.curve(runs[0]) for name, runs in full.items()}
plots.split_against_merge(ax, curves, table.references(results))
ax.set(title="FIB-25, validation part; first seed of each row")
plt.show()

# %% [markdown]
# **What to see.** A curve that is nearer to the lower left corner all along is better at every trade of splits for merges. Where curves cross, the
# order of two rows depends on the threshold, and a single number hides it. A cross is a segmentation without a threshold. The
# published FFN segmentation leaves voxels out; to ignore them flatters it, to fill them does the opposite, so both stand there.
#
# ## 6 · Look at it
#
# Two rows may have the same score and different errors. Each run keeps one section of its segmentation, section 20 of the
# validation part, with the voxels that are wrong there. (Not the EM: these data have a licence of their own. With
# `DATASET = "fib25"` the EM lies beneath.)

# %%
from skimage.segmentation import find_boundaries

from fgnet_lib.datasets import open_dataset

VOXEL = (10, 10, 10)
kept = {name: load_pictures(runs[0]) for name, runs in full.items()}
kept = {name: arrays for name, arrays in kept.items() if arrays}
print(f"shown: {', '.join(kept)}")


def background(arrays: dict) -> np.ndarray:
    if session.dataset == "fib25":
        return open_dataset("fib25", "val").raw[int(arrays["z"])]
    return np.where(find_boundaries(arrays["section"]), 90, 235).astype(np.uint8)


# %% alt="A section of FIB-25 once for each row: borders of its segments as dark lines, voxels that are wrongly split in blue and wrongly merged in orange. Where the colours lie differs from row to row."
columns = max(1, min(4, len(kept)))
lines = max(1, -(-len(kept) // columns))
figure, axes = plt.subplots(lines, columns, figsize=(min(3.75 * columns, 15), 4.2 * lines), squeeze=False)
for ax in axes.flat:
    ax.set_axis_off()
for ax, (name, arrays) in zip(axes.flat, kept.items(), strict=False):
    splits, merges = arrays["errors"] & 1 > 0, arrays["errors"] & 2 > 0
    plots.error_map(ax, background(arrays), splits, merges, VOXEL, title=TITLES[name].replace(", ", ",\n", 1))
plt.show()

# %% [markdown]
# **What to see.** Blue and orange rims along borders are a voxel of disagreement about where a membrane lies, and cost little. Filled profiles
# are what counts: a blue one is the smaller part of a neuron that was cut somewhere, in this section or far above it. Are the same profiles
# wrong in every row? Then they are hard, and no row of this table solves them.
#
# Now one neuron, the same in each row: the longest of the large ones. Drawn are the segments that cover it, each in its own colour. One
# colour is a neuron found whole; several are splits. What reaches out where the others have nothing is a merge. A segment that joins the
# neuron with a much larger one would hide all else, so each is cut off 80 nm from where some row finds mostly this neuron; and
# segments that hold less than a twentieth of it are left out.

# %%
from scipy import ndimage


def mostly_this_neuron(arrays: dict) -> np.ndarray:
    sizes = np.bincount(arrays["parts"].ravel(), minlength=1 + len(arrays["covered"]))[1:]
    return np.isin(arrays["parts"], 1 + np.flatnonzero(arrays["covered"] > 0.5 * sizes))


around = np.any([mostly_this_neuron(arrays) for arrays in kept.values()], axis=0) if kept else np.zeros((1, 1, 1), bool)
near = ndimage.distance_transform_edt(~around, VOXEL) < 80
shown = {}
for name, arrays in kept.items():
    large = 1 + np.flatnonzero(arrays["covered"] > 0.05 * arrays["covered"].sum())
    shown[name] = np.where(near & np.isin(arrays["parts"], large), arrays["parts"], 0)

# %% alt="The same neuron in 3D once for each row, drawn as the segments that cover it, each in a colour of its own. One colour means that the row found it in one piece."
from fgnet_lib.views.meshes import largest_ids, neuron_meshes

figure = plt.figure(figsize=(min(4.6 * columns, 15), 3.6 * lines))
for number, (name, parts) in enumerate(shown.items(), start=1):
    ax = figure.add_subplot(lines, columns, number, projection="3d")
    meshes = neuron_meshes(parts, VOXEL, largest_ids(parts, 8), max_triangles=1500)
    plots.neurons_3d(ax, meshes, TITLES[name].replace(", ", ",\n", 1))
    ax.yaxis.labelpad = 36  # small axes: numbers are large beside them
    ax.get_legend().remove()
plt.show()

# %% [markdown]
# In numbers: how much of this neuron lies in its largest segment? (Of eight segments at most; crumbs beyond them are not kept.)

# %%
for name, arrays in kept.items():
    covered = arrays["covered"]
    sizes = np.bincount(arrays["parts"].ravel())[1:]
    share, outside = covered[0] / covered.sum(), 1 - covered[0] / sizes[0]
    print(f"{TITLES[name]:56} {share:4.0%} in the largest segment, of which {outside:4.0%} is not this neuron")

# %% [markdown]
# The picture is *one* neuron, and one seed. It shows what kind of error a row makes, not how often: for that there is the score.
#
# ## 7 · How many labels does it take?
#
# Labels are what is expensive: a section takes an expert hours. If a pretrained encoder knows something, it should show where
# there is little to learn from. So nine rows were also declared with the first 20 and with the first 5 sections alone, and all
# else equal, the number of iterations included.

# %%
amounts = table.by_sections(results)
for title, measured in amounts.items():
    for sections, values in sorted(measured.items()):
        print(f"{title:44} {sections:4} sections: VOI {statistics.summary(values)} (runs: {len(values)})")

# %% alt="VOI against the number of labelled sections, 5, 20 and 120, on a logarithmic axis: one line for each of nine rows as far as they were measured, with bars for the spread over seeds and a small dot for each run."
figure, ax = plt.subplots(figsize=(13, 5))
plots.against_sections(ax, amounts)
ax.set(title=f"FIB-25, validation part; {sum(map(len, amounts.values()))} points measured here")
plt.show()

# %% [markdown]
# **What to see.** Is the *distance* between two lines larger on the left than on the right? Compare it with the bars. A line with a single
# point says nothing about labels. In sentences, for the same questions as in part 4:

# %%
for question, pair in table.questions(results).items():
    for sections in (5, 20):
        names = [table.with_sections(name, sections) for name in pair]
        if None not in names:
            ours, theirs = (table.scores(rows.get(name, []), "voi") for name in names)
            print(f"{question}, {sections} sections: {statistics.compare_runs(ours, theirs)}")

# %% [markdown]
# Mind what is on the axis: neighbouring sections of 10 nm are nearly the same picture, so 20 sections
# from one place are far less than 20 from different places.
#
# ## 8 · Tissue that no row has seen
#
# FIB-25's validation part comes from the same block as its training part. Here is what happens elsewhere: another fly volume, the phantom,
# and serial sections of mouse and fly (AC4 and CREMI B). Their pixels of 6 and 4 nm are rescaled to 10 nm for the network, and
# affinities back. A segmentation stands beside the fragments that it began with: agglomeration should be worth something.

# %%
for volume in ("gala", "phantom", "ac4", "cremi_b_mini"):
    print(volume)
    for name, runs in full.items():
        own = table.scores(runs, "voi", volume)
        start = table.scores(runs, "voi", volume, f"{table.output_of(runs[0])}_fragments")
        if own:
            print(f"  {TITLES[name]:56} VOI {statistics.summary(own)}, its fragments {statistics.summary(start)}")

# %% [markdown]
# **What to see.** Does the order of the rows stay the same from volume to volume? A method whose lead is gone on other tissue has learned the
# tissue. Two things are not as new as they look: the shipped model also saw gala's training volume and a phantom, and the pretrained
# encoder learned from six other phantoms, labels included. The phantom is new to the U-Net and to rows with a random encoder only.
#
# ## 9 · What may be claimed
#
# In short, the paper says of its method: guided by SAM2, which was trained on photographs, a light 3D network segments neurons well with SAM2
# frozen, and better with SAM2 fine-tuned; and its attention refines what SAM2's features give alone. Let us hold each part against
# what was measured *here*.

# %%
for name, runs in rows.items():
    if {"refined", "coarse"} <= runs[0]["thresholds"].keys():
        refined, coarse = (table.scores(runs, "voi", output=output) for output in ("refined", "coarse"))
        print(
            f"VOI from A_s to A_r of the same runs, {TITLES[name]}: {statistics.compare_paired_runs(refined, coarse)}"
        )

# %%
for name in (name for name in rows if name in ROWS and ROWS[name].encoder.startswith("sam2.1")):
    print(f"{TITLES[name]:56} runs: {len(rows[name])}")
print(table.unmeasured(results))

# %% [markdown]
# | claim | what would show it | can the files here tell? |
# | --- | --- | --- |
# | photographs teach features that help in EM | SAM2.1's checkpoints against the same encoder with random weights | only if the rows above have runs; the small encoder of the other rows has never seen a photograph |
# | a frozen guide is enough | frozen against no guide, and against fine-tuned | they can, for *this* encoder and data: read part 4 |
# | fine-tuning gains | fine-tuned against frozen | they can, with the same limits, at equal iterations and at equal time: read part 4 |
# | $A_r$ is better than $A_s$ | both from the same runs | they can: read the sentences above |
# | the network uses *where* it attends | replace the maps, and train without them | the first is measured: lesson 03; the second is not: the U-Net lacks all of SAM2, not only the attention |
# | better than other methods | the same data, split and score for both | one published segmentation of one small cube: part 5 |
#
# Some limits hold for every row: a small model, a short training, one data set to train on, one cube of two and a half million voxels to judge on. The
# validation part was looked at when the recipe was made. And this is a reconstruction of FGNet: if a row does badly, it may be ours that is
# bad, and not the idea.
#
# One more for the pretrained rows. The small encoder has learned from synthetic volumes, whose neurons are known, before it guided anything;
# the U-Net began at random. So what these rows gain over the U-Net is what the *pretraining* brings through the guide. Would a U-Net that had
# seen the same synthetic volumes gain as much? No row here asks that. (Of SAM2's photographs no U-Net in 3D can learn, which is the paper's case.)
#
# ## 10 · Run an ablation yourself
#
# The same functions, smaller: two rows of the list, on the data set of this notebook. Change `PAIR` to ask something else (any two names of
# `ROWS`). Three quarters of the training part teach, the last quarter chooses the threshold, the validation part judges.
#
# If SAM2.1's tiny checkpoint is on this machine, the question that the files may not answer is run as well: the same encoder with what it learned from
# photographs, and with random weights.

# %%
from dataclasses import replace

from fgnet_lib.datasets import fetch

PAIR = ("unet", "random_frozen")
chosen_rows = {ROWS[name].title: ROWS[name] for name in PAIR}
try:
    fetch("sam2.1_hiera_tiny.pt", download=False)
    tiny = ROWS["pretrained_frozen_tiny"]
    chosen_rows |= {row.title: row for row in (tiny, ROWS["random_frozen_tiny"])}
except OSError:
    print("SAM2.1 tiny is not on this machine, so photographs are not asked about. With internet, once:")
    print('  fgnet_lib.datasets.fetch("sam2.1_hiera_tiny.pt")  # then run this again, or `make results ENCODER=tiny`')
seeds = range(SEED, SEED + (1 if session.profile.name == "fast" else 2))
minutes = min(session.profile.minutes, 20) / 2 / len(seeds) / len(chosen_rows)
iterations = session.profile.iterations // 3
print(f"rows: {len(chosen_rows)}, seeds: {len(seeds)}")
print(f"each training ends after {iterations} iterations, or after {minutes:.1f} minutes if that is sooner")

# %%
import shutil

from fgnet_lib.inference import predict
from fgnet_lib.metrics import voi as voi_of
from fgnet_lib.segmentation import segment, sweep
from fgnet_lib.training import train

labelled, unseen = session.volume("train"), session.volume("val")
border = 3 * labelled.shape[0] // 4
teaching, choosing = labelled[:border, :, :], labelled[border:, :, :]
folder = session.out_dir / "ablations"


def rerun(title: str, row: Row, seed: int) -> float:
    model = untrained(row, seed).to(session.device)
    recipe = replace(training(row, seed), patch=(8, 96, 96), iterations=iterations, minutes=minutes)
    shutil.rmtree(folder, ignore_errors=True)  # or it would go on with what is there
    history = train(model, [teaching], recipe, folder)
    print(f"{title}, seed {seed}: {len(history.loss)} iterations in {history.seconds[-1] / 60:.1f} minutes")
    tried = sweep(predict(model, choosing.raw, progress=False).refined, choosing.voxel_size, np.arange(0.2, 0.9, 0.1))
    best = min(tried, key=lambda threshold: sum(voi_of(tried[threshold], choosing.labels)))
    affinities = predict(model, unseen.raw, progress=False).refined
    return sum(voi_of(segment(affinities, unseen.voxel_size, best), unseen.labels))


# %% [markdown]
# Every training begins anew here. `make results` keeps what is done, and goes on with a training that was broken off. If the minutes
# end a training before its iterations do, the rows have equal time, not equal iterations: compare the numbers that are printed.

# %% alt="One line for each row of your own ablation and a dot for the VOI of each of its runs on the validation part of this notebook's data set."
own = {title: [rerun(title, row, seed) for seed in seeds] for title, row in chosen_rows.items()}
figure, ax = plt.subplots(figsize=(10, 1.2 + 0.5 * len(own)))
plots.runs_of_rows(ax, own, f"VOI on {DATASET}, validation part (bits)")
plt.show()
for title, values in own.items():
    print(f"{title:45} VOI {statistics.summary(values)}")
titles = list(own)
for one, other in zip(titles[::2], titles[1::2], strict=True):
    print(f"{one} compared with {other}: {statistics.compare_runs(own[one], own[other])}")

# %% [markdown]
# **What to see.** With `PROFILE = "fast"` a handful of iterations teaches nothing: this only shows that it runs, and whatever comes out is
# noise. With `cpu` each training has a minute or so. What would you need before you believed the sentence above: more seeds? Longer
# training? Another volume?
#
# Your exercises:

# %%
checks.report("07")

# %% [markdown]
# ## What you learned
#
# - A fair comparison changes one thing, and holds post-processing, data and the way the threshold is chosen fixed.
# - A single run has no spread, and a difference of single runs is no result. With three seeds each, the clearest outcome there is
#   still comes up by chance in one of ten deals.
# - Equal iterations, equal time, equal parameters: say which. They are seldom equal together.
# - Look at all thresholds, at errors, at other tissue, at few labels: a score is one place on one curve.
# - What was not measured is said to be not measured, with the command that would do it.
#
# ## Try it
#
# - Set `SEEDS` in `fgnet_lib/study/rows.py` to `range(5)`; `make results ROWS="unet random_frozen"` in a terminal then adds four runs (half an
#   hour). Run this lesson again: which sentences have changed?
# - Put your own row into `ROWS` in `fgnet_lib/study/rows.py`: another patch size, another width. What would be its fair partner?
# - In part 4, give `permutation_p` twenty pairs of random numbers. How many of them come out at or below 10 %?
# - Write down, *before* you run a row, which difference you would call a success.
#
# ## References
#
# - Li, Chen, Sun, Li, Hu: *Leveraging Feature-Guided Attention to Refine SAM2 for 3D EM Neuron Segmentation.* AAAI 2026,
#   [doi:10.1609/aaai.v40i8.37606](https://doi.org/10.1609/aaai.v40i8.37606)
# - Bouthillier et al.: *Accounting for variance in machine learning benchmarks.* MLSys 2021,
#   [arXiv:2103.03098](https://arxiv.org/abs/2103.03098): seeds, data order and splits as sources of spread
# - Good: *Permutation, Parametric and Bootstrap Tests of Hypotheses.* Springer 2005,
#   [doi:10.1007/b138696](https://doi.org/10.1007/b138696)
# - Januszewski et al.: *High-precision automated reconstruction of neurons with flood-filling networks.* Nature Methods 15, 2018,
#   [doi:10.1038/s41592-018-0049-4](https://doi.org/10.1038/s41592-018-0049-4): the published segmentation of part 5
