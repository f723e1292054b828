# %% [markdown]
# # 07 · Ablations and results: what each part is worth, and what a number lets you claim
#
# <!-- badges -->
#
# **What you will learn**
#
# - what an ablation is, and when a comparison of two rows is fair;
# - how to read a table of results: seeds, spread, the threshold, time and memory;
# - how to count how often a difference arises by chance;
# - how to look beyond the score of a row: all thresholds, the errors in a section, one neuron in 3D, fewer labels;
# - which claims of the paper our measurements can support, and which they cannot;
# - how to run a small ablation of your own.
#
# **Before you start.** Lesson 03 explains the model, and lesson 05 VOI and the threshold; you can start without either.
#
# <!-- times -->

# %% tags=["parameters"]
PROFILE = "cpu"  # fast | cpu | gpu | full
DATASET = "phantom"  # phantom | fib25 | any name in fgnet_lib.datasets.DATASETS with a part "train"
DATA_DIR = ""  # folder with your data sets; empty: $FGNET_DATA_DIR
OUT_DIR = ""  # folder for results; empty: out/
DEVICE = "auto"  # auto | cpu | cuda | mps
SEED = 0

# %% tags=["setup"]
from fgnet_lib.course.session import start_session

session = start_session(PROFILE, DATASET, DATA_DIR, OUT_DIR, DEVICE, SEED)

# %% [markdown]
# ## 1 · What we measured, and what we did not
#
# An **ablation** removes or replaces one part of a method and measures again. Each variant is a **row**. `make results`
# trains the rows, which takes hours, and records each run in the table of results: a row trained with one **seed**
# (another seed means other first weights and other patches). This lesson reads that table, so its text quotes few
# scores. If a run is missing, you see the command that makes it.
#
# Tables show five rows; click on a triangle to unfold more. $A_s$ are affinities from SAM2 alone, $A_r$ those from the
# *FGE*, lesson 03's Fine-Grained Encoder. VOI counts splits and merges in bits, ARAND wrong pairs of voxels; both are 0
# if all is right. A *frozen* encoder is not trained. So far, *SAM2* is a small stand-in for SAM2's encoder. *Three
# views* is the shipped model applied along z, y and x where voxels are cubes; the lowest affinity counts.

# %%
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np

from fgnet_lib.course import checks, quiz
from fgnet_lib.study import statistics, table
from fgnet_lib.study.rows import QUESTIONS, REFERENCES, ROWS, TITLES, Row, build_model, training
from fgnet_lib.study.runs import load_pictures
from fgnet_lib.views import charts, plots
from fgnet_lib.views.tables import fold_table

results = table.load_rows()
rows = table.trained_rows(results)
full = table.fully_labelled_rows(results)
few = {name: runs for name, runs in rows.items() if name not in full}
print(table.describe_gaps(results))

# %% [markdown]
# These are the rows that have runs:


# %%
def by_amount(line):
    """The groups of a table that has `line(name, runs)` for each row."""
    amounts = {"all labelled sections": full, "5 or 20 labelled sections": few}
    return {amount: [line(*row) for row in part.items()] for amount, part in amounts.items()}


def describe_runs(name, runs):
    dates = sorted({run["date"] for run in runs})
    return [TITLES[name], ", ".join(str(run["seed"]) for run in runs), ", ".join(dates)]


fold_table(["row", "seeds", "measured on"], by_amount(describe_runs))

# %% [markdown]
# All but the shipped model train on the first sections of FIB-25's training part (fly brain). All rows are judged on
# sections 144 to 183, its validation part, and on other tissue. What does a run record? Here is the first:

# %%
first = next((run for runs in rows.values() for run in runs), None)
if first:
    print(f"{first['row']}, seed {first['seed']}, made on: {first['machine']}")
    print(f"it records: {', '.join(first)}")
    print(f"thresholds, chosen on training data: {first['thresholds']}")
    print(f"judged on: {', '.join(first['volumes'])}")

# %% [markdown]
# ## 2 · A fair comparison changes one thing
#
# If two rows differ in two things, you cannot tell which of them made the difference. Here are four rows side by side:

# %%
from dataclasses import asdict


def settings(name: str) -> dict:
    row = asdict(ROWS[name])
    del row["title"]
    config, weights = row.pop("config"), row.pop("encoder")
    return {**config, "first weights": weights if config["encoder"] else None, **row}


def describe(side: dict, key: str) -> str:
    without = side["encoder"] is None and key in ("encoder", "first weights", "frozen")
    return "–" if without else str(side[key])


names = "unet", "random_frozen", "pretrained_frozen", "fine_tuned"
sides = [settings(name) for name in names]
lines = [[key, *(describe(side, key) for side in sides)] for key in sides[0]]
fold_table(["setting", *names], {"": [line for line in lines if len(set(line[1:])) > 1]})

# %% [markdown]
# The list leaves out the settings that all four share: patch size, iterations, learning rate, augmentation, the
# decoder. It also leaves out everything *behind* the network. **Post-processing is fixed**: fragments and
# agglomeration use the same code and the same settings for every row. Each run records the version of both, so you
# should see a single line here.

# %%
for version, runs in table.postprocessings(results).items():
    print(f"version {version}, runs: {len(runs)}")

# %%
quiz.ask("07", "pretraining")

# %% [markdown]
# The rows were made to answer these questions. Questions that compare with the same row form a group:


# %%
def what_differs(question, first, second):
    both = settings(first), settings(second)
    changed = [key for key in both[0] if both[0][key] != both[1][key]]
    return [question, f"{first} against {second}", ", ".join(changed)]


fold_table(
    ["question", "rows", "what differs"],
    {
        topic: [what_differs(question, *pair) for question, pair in pairs.items()]
        for topic, pairs in table.by_topic(QUESTIONS).items()
    },
)

# %% [markdown]
# **What to see.** Where the last column names a single setting, the pair differs in one thing. Where it names several,
# the pair answers its question less clearly: ask what else could explain a difference. The rows with *natural images*
# have another encoder, which was trained on photographs (ImageNet): a second stand-in for SAM2's. In those with *natural
# images and EM* it learned from EM afterwards, without hand-drawn labels. *Channel norm* looks at the
# channels of a single voxel, GroupNorm at the whole window (lesson 04). With *sections enlarged*, the encoder, or
# *guide*, sees them two or four times larger.
#
# Some questions are about the form of the attention. By default $F' = F + F \odot a$ with one map $a$: where $a$ is
# high, the fine features $F$ are amplified. *F' = F a*, the shipped model's form, leaves out the first $F$, so
# attention can also erase. *One map per channel* gives each channel of $F$ its own map. In *F' = F + W_v S a* SAM2's
# features $S$ are **added**, after $W_v$ projects them to the same number of channels. With the default, SAM2 can say
# only one number about a voxel; here it can also say what it sees there. We added this last form after the frozen,
# pretrained guide had brought little with the default. So the seeds and sections that suggested it are the same that
# judge it.

# %% [markdown]
# ### Further: find fair pairs by a function
#
# **Exercise 7.1: fair pairs.** `rows` is a dictionary from names to settings; each of these is a dictionary too. Return
# the pairs of names whose settings differ in *exactly one* thing, each pair once. A setting that only one of the two
# has is a difference.


# %% tags=["task"]
def my_fair_pairs(rows):
    return ...


# %% tags=["solution"]
def my_fair_pairs(rows):
    pairs, names = [], list(rows)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            a, b = rows[first], rows[second]
            changed = [key for key in {**a, **b} if key not in a or key not in b or a[key] != b[key]]
            if len(changed) == 1:
                pairs.append((first, second))
    return pairs


# %%
checks.fair_pairs(my_fair_pairs)

# %% [markdown]
# ## 3 · The table
#
# Lower is better in VOI and ARAND. Each group answers a question: it begins with the row that the others are compared
# with, and *difference* is VOI minus the VOI of this row, so **a negative difference is a gain**. Numbers are mean ±
# spread over seeds. **A number without ± is a single run**: you do not know how far another seed would be from it. The
# last group has no part in the ablation: the shipped model, published segmentations (FFN: part 5), and two made from
# the ground truth, for comparison.


# %%
def compare(name, reference):
    voi, arand = (table.scores(rows[name], key) for key in ("voi", "arand"))
    difference = np.mean(voi) - np.mean(table.scores(rows[reference], "voi"))
    change = "compared with" if name == reference else f"{difference:+.3f}"
    return [TITLES[name], statistics.summary(voi), change, statistics.summary(arand), str(len(voi))]


groups = {}
for topic, pairs in table.by_topic(table.questions(results), rows).items():
    (reference,) = {second for _, second in pairs.values()}
    groups[topic] = [compare(name, reference) for name in (reference, *(first for first, _ in pairs.values()))]
beside = [compare("shipped", "shipped")] if "shipped" in rows else []
for name, title in REFERENCES.items():
    for voi in table.scores(results.get("references", []), "voi", output=name):
        (arand,) = table.scores(results["references"], "arand", output=name)
        beside.append([title, f"{voi:.3f}", "", f"{arand:.3f}", ""])
groups["No part of the ablation"] = [[title, voi, "", arand, runs] for title, voi, _, arand, runs in beside]
fold_table(["row", "VOI (bits)", "difference", "ARAND", "runs"], groups)

# %% [markdown]
# Before you compare:
#
# - **Equal iterations are not equal time.** A row that computes more in each iteration gets more of the machine. You
#   can make rows equal in one of the two, seldom in both. So the table also has a U-Net and a frozen FGNet that train
#   for longer.
# - **The shipped model is not a row of the ablation.** It is wider, has another guide, norm, attention and recipe,
#   other data and far more minutes. It shows what the same code can reach, and a comparison with it proves nothing. The
#   rows are small networks, so that three seeds of each can be trained in hours; large networks may behave differently.

# %%
quiz.ask("07", "one-seed")

# %% [markdown]
# Here are all runs with all labelled sections, one dot each. A black stroke is the mean of a row:

# %% alt="One line for each row that had all labelled sections, from the shipped model down, and on it a dot for the VOI of each of its runs; where a row has several seeds, a bar marks their mean. The number of runs follows each name."
figure, ax = plt.subplots(figsize=(11, 1.5 + 0.35 * len(full)))
vois = {TITLES[name]: table.scores(runs, "voi") for name, runs in full.items()}
charts.runs_of_rows(ax, vois, "VOI on FIB-25, validation part (bits); in brackets: runs")
plt.show()
ranges = [(min(values), max(values)) for values in vois.values() if len(values) > 1]
overlaps = [a[0] < b[1] and b[0] < a[1] for a, b in combinations(ranges, 2)]
print(f"the dots of {sum(overlaps)} of {len(overlaps)} pairs of rows overlap")
assert np.mean(overlaps or [1]) > 0.25  # "many", as the text says

# %% [markdown]
# **What to see.** Compare the distance between dots of one row with the distance between rows. A row says something
# about its *method* only if the second distance is clearly larger than the first. Many rows overlap, and a row with one
# dot cannot tell you.
#
# **Exercise 7.2: mean and spread.** Take the scores of a row's runs, and return two values, their mean and their
# spread. The spread is the standard deviation of a sample, which divides by the number of runs minus one. Of a
# single run return its mean and `None`: it has no spread, not even 0.


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
# ### Further: what the rows cost
#
# *Trained* is the number of parameters that training can change: a frozen encoder computes, but does not learn.
# *Minutes* is the duration of training. *MVox/s* is the speed of prediction in million voxels a second, and *MB* the
# largest peak of memory among the runs. The speed depends on the machine and on its other work. All runs shared two
# cores with other work, and some with much of it: [the page of all rows](../docs/measured/rows.md) names the runs whose
# training may have taken longer, and whose prediction may have been slower, than on a free machine.


# %%
def cost(name, runs):
    minutes = statistics.summary([run["training"]["minutes"] for run in runs], 1)
    memory = max(run["peak_memory_mb"] for run in runs)
    trained = f"{runs[0]['training']['trainable']:,}"
    return [TITLES[name], trained, minutes, statistics.summary(table.rates(runs), 2), f"{memory:.0f}"]


fold_table(["row", "trained", "minutes", "MVox/s", "MB"], by_amount(cost))

# %% [markdown]
# ## 4 · When is a difference real?
#
# Suppose that a method makes no difference at all. Then chance alone decided which row got which score, as if the
# scores were cards. If you dealt the same cards at random into two hands, how often would the hands differ as much as
# the two rows do? You can count it, without any theory. This is a **permutation test**.

# %%
quiz.ask("07", "three-seeds")

# %%
first, second = [1.00, 1.02, 1.04], [1.10, 1.11, 1.16]  # invented: every first run beats every second run
print(f"at random, the hands differ at least as much in {statistics.permutation_p(first, second):.0%} of all deals")
for seeds in (1, 2, 3, 4, 5):
    best = statistics.permutation_p(np.arange(seeds), 100 + np.arange(seeds))
    print(f"runs of each row: {seeds}; by chance, every run of one beats every run of the other in {best:.1%} of deals")
assert statistics.permutation_p([1, 2, 3], [4, 5, 6]) == 2 / 20  # as the prediction says

# %% [markdown]
# **Exercise 7.3: how often by chance.** Take the scores of two rows. Return the share of all deals, the real one
# included, in which the two means differ *at least* as much as the real ones, in either direction. Each hand keeps its
# number of runs. (`combinations`, imported in part 1, makes the deals. Allow for rounding: two differences within 1e-9
# are equal.)


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
# We return to the questions of part 2, as far as the table answers them. *p* is the share of all deals in which the
# means differ at least as much. The numbers are computed, so they change when you add runs.


# %%
def answer(question, first, second):
    ours, theirs = (table.scores(rows[name], "voi") for name in (first, second))
    p = statistics.show_p(statistics.permutation_p(ours, theirs)) if min(len(ours), len(theirs)) > 1 else "single run"
    difference = f"{np.mean(ours) - np.mean(theirs):+.3f}"
    return [question, statistics.summary(ours), statistics.summary(theirs), difference, p]


HEADS = ["question", "VOI (bits)", "compared with", "difference", "p"]
topics = table.by_topic(table.questions(results), rows)
fold_table(HEADS, {topic: [answer(key, *pairs[key]) for key in pairs] for topic, pairs in topics.items()})

# %% [markdown]
# **How to read it.** Compare the difference with the spread, the number after ±. A difference within the spread does
# not mean that there is *no* difference. And in a list of many questions, one may look good by chance alone. If you
# ran a row because an earlier result looked promising, it needs fresh seeds.
#
# ## 5 · All thresholds at once
#
# A score belongs to one threshold. We chose it on sections 120 to 139 of the *training* part, which taught no row, and
# for the shipped model on all 140. What would each row gain by peeking, that is, with the best threshold of the
# validation part?


# %%
def price(name, runs):
    honest, peeking = [], []
    for run in runs:
        merge, split, chosen = table.curve(run)
        honest.append((merge + split)[chosen])
        peeking.append((merge + split).min())
    columns = (honest, peeking, np.subtract(honest, peeking))
    return [TITLES[name], *(statistics.summary(values) for values in columns)]


fold_table(["row", "chosen", "by peeking", "price of honesty"], by_amount(price))

# %% [markdown]
# If the price of honesty differs much from row to row, a table made by peeking may have another order. Here are the
# curves of the rows with 120 sections, near the chosen thresholds (they continue beyond the picture). Three rows are in
# colour, and all others in grey; change `HIGHLIGHTED` to look at other rows. Rows with fewer sections follow in part 7.

# %% alt="VOI split against VOI merge on FIB-25's validation part: a curve for each row, three of them in colour and the others in grey, with a dot at the threshold chosen on training data, and black marks for segmentations without a threshold. Lower left is better."
HIGHLIGHTED = {name: TITLES[name] for name in ("unet", "pretrained_frozen", "fine_tuned")}
figure, ax = plt.subplots(figsize=(14, 5.5))
curves = {TITLES[name]: table.curve(runs[0]) for name, runs in full.items()}
points = table.references(results)
charts.split_against_merge(ax, curves, points, HIGHLIGHTED.values())
ax.set(title="FIB-25, validation part; first seed of each row")
plt.show()
ignored, filled = (sum(points.get(REFERENCES[name], ())) for name in ("ffn_ignored", "ffn_filled"))
assert not ignored or not filled or ignored < filled  # gaps ignored look better than filled ones, as the text says

# %% [markdown]
# **What to see.** A curve that lies nearer to the lower left corner all along is better at every trade of splits for
# merges. Where curves cross, the order of two rows depends on the threshold, and a single number hides that. A black
# mark is a segmentation without a threshold; two of these come from the ground truth. The published segmentation by a
# flood-filling network (FFN) leaves voxels out. It looks better than it is if you ignore them, and worse if you fill
# them, so the figure shows both.
#
# ## 6 · Look at it
#
# Two rows can have the same score and different errors. The first run of each row with all labelled sections keeps one
# section, number 20 of the validation part, and marks the wrong voxels in it. (Not the EM, which has a licence of its
# own; with `DATASET = "fib25"` you see it beneath.) Here are the shipped model and the three rows of the curves:

# %%
from skimage.segmentation import find_boundaries

from fgnet_lib.datasets import open_dataset

VOXEL = (10, 10, 10)
kept = {name: load_pictures(full[name][0]) for name in ("shipped", *HIGHLIGHTED) if name in full}
kept = {name: arrays for name, arrays in kept.items() if arrays}
pictured = [name for name, runs in full.items() if load_pictures(runs[0])]
print(f"shown: {', '.join(kept)}; all that have pictures: {', '.join(pictured)}")


def background(arrays: dict) -> np.ndarray:
    if session.dataset == "fib25":
        return open_dataset("fib25", "val").raw[int(arrays["z"])]
    return np.where(find_boundaries(arrays["section"]), 90, 235).astype(np.uint8)


# %% alt="A section of FIB-25 once for each row: borders of its segments as dark lines, voxels that are wrongly split in blue and wrongly merged in orange. Where the colours lie differs from row to row."
columns = max(1, min(4, len(kept)))
picture_rows = max(1, -(-len(kept) // columns))
figure, axes = plt.subplots(picture_rows, columns, figsize=(min(3.75 * columns, 15), 4.2 * picture_rows), squeeze=False)
for ax in axes.flat:
    ax.set_axis_off()
for ax, (name, arrays) in zip(axes.flat, kept.items(), strict=False):
    splits, merges = arrays["errors"] & 1 > 0, arrays["errors"] & 2 > 0
    plots.error_map(ax, background(arrays), splits, merges, VOXEL, title=TITLES[name].replace(", ", ",\n", 1))
plt.show()

# %% [markdown]
# **What to see.** Blue and orange rims along borders are a disagreement of one voxel about a membrane, and cost little.
# Filled profiles are what counts: a blue profile is the smaller part of a neuron that was cut somewhere, in this
# section or far above it. Profiles that are wrong in every picture are hard.

# %% [markdown]
# ### Further: one neuron in 3D
#
# Now look at one neuron in each of these rows. Of the ten largest neurons in one piece, it is the one that fills the
# smallest share of the box around it. You see the segments that cover it, each in its own colour. A neuron in one colour
# was found whole; several colours are splits. A piece that reaches out where other rows have nothing is a merge. A
# segment that joins the neuron to a much larger one would hide everything else. So each segment is cut off 80 nm away
# from the voxels that any row assigns mainly to this neuron, and segments that hold less than a twentieth of it are left
# out.

# %%
from scipy import ndimage


def mostly_this_neuron(arrays: dict) -> np.ndarray:
    sizes = np.bincount(arrays["parts"].ravel(), minlength=1 + len(arrays["covered"]))[1:]
    return np.isin(arrays["parts"], 1 + np.flatnonzero(arrays["covered"] > 0.5 * sizes))


around = np.any([mostly_this_neuron(arrays) for arrays in kept.values()], axis=0) if kept else np.zeros((1, 1, 1), bool)
near = ndimage.distance_transform_edt(~around, VOXEL) < 80
near_neuron = {}
for name, arrays in kept.items():
    large = 1 + np.flatnonzero(arrays["covered"] > 0.05 * arrays["covered"].sum())
    near_neuron[name] = np.where(near & np.isin(arrays["parts"], large), arrays["parts"], 0)

# %% alt="The same neuron in 3D once for each row, drawn as the segments that cover it, each in a colour of its own. One colour means that the row found it in one piece."
from fgnet_lib.views.meshes import largest_ids, neuron_meshes

figure = plt.figure(figsize=(min(4.6 * columns, 15), 3.6 * picture_rows))
for number, (name, parts) in enumerate(near_neuron.items(), start=1):
    ax = figure.add_subplot(picture_rows, columns, number, projection="3d")
    largest = largest_ids(parts, 8)
    meshes, colors = neuron_meshes(parts, VOXEL, largest, max_triangles=1500), plots.neighbour_colors(parts, largest)
    plots.neurons_3d(ax, meshes, TITLES[name].replace(", ", ",\n", 1), colors)
    ax.xaxis.labelpad, ax.yaxis.labelpad = 8, 36  # in small axes the numbers need room
    ax.get_legend().remove()
plt.show()

# %% [markdown]
# The picture shows *one* neuron and one seed. It tells you what kind of error a row makes, but not how often; the score
# tells you that.

# %% [markdown]
# ### Further: how much of the neuron lies in one segment?
#
# At most eight segments of a run are kept, without the crumbs.


# %%
def coverage(name, arrays):
    covered = arrays["covered"]
    sizes = np.bincount(arrays["parts"].ravel())[1:]
    return [TITLES[name], f"{covered[0] / covered.sum():.0%}", f"{1 - covered[0] / sizes[0]:.0%}"]


heads = ["row", "of the neuron in its largest segment", "of this segment not in the neuron"]
fold_table(heads, {"": [coverage(*picture) for picture in kept.items()]})

# %% [markdown]
# ## 7 · How many labels does it take?
#
# Labelling one section takes an expert hours. What a pretrained encoder knows should help most where labels are few. So
# many rows were also trained with only the first 20 or 5 sections. All else is equal, even the number of iterations.

# %% alt="VOI against the number of labelled sections, 5, 20 and 120, on a logarithmic axis: one line for each row that was also trained on fewer sections, three of them in colour and the others in grey, with bars for the spread over seeds and a small dot for each run."
amounts = table.by_sections(results)
figure, ax = plt.subplots(figsize=(13, 5))
charts.against_sections(ax, amounts, HIGHLIGHTED.values())
ax.set(title="FIB-25, validation part")
plt.show()

# %% [markdown]
# **What to see.** If pretraining replaces labels, the *distance* between two lines is larger on the left than on the
# right. Compare it with the bars (the spread over seeds) before you believe it. **Mind the horizontal axis:**
# neighbouring sections of 10 nm are nearly the same picture, so 20 of them teach far less than 20 from different places.

# %% [markdown]
# ### What do photographs teach?
#
# SAM2 has learned from photographs. Does that help in EM? Its weights are not measured here (`make results
# ENCODER=tiny`), so we ask a second stand-in, the guide of the rows with *natural images*: EfficientNet-Lite0, frozen.
# Its twin has random weights.

# %% alt="Three panels, for 5, 20 and 120 labelled sections. Each has six rows of dots, one dot for each training, over VOI: three ways to use a guide, each with the guide of natural images and below it its twin with random weights. Where a row has several dots, a black line marks their mean."
WAYS = {"natural_only": "$A_s$ alone", "natural_residual": "$F' = F + F a$", "natural_additive": "$F' = F + W_v S a$"}
figure, axes = plt.subplots(3, 1, figsize=(10, 9), sharex=True)
for ax, sections, end in zip(axes, (5, 20, 120), ("_5", "_20", ""), strict=True):
    dots = {}
    for way, words in WAYS.items():
        names = f"{way}{end}", f"{way}_random{end}"
        photographs, untrained = (table.scores(rows.get(name, []), "voi") for name in names)
        dots |= {f"{words}, natural images": photographs, f"{words}, random weights": untrained}
        difference = statistics.compare_runs(photographs, untrained)
        print(f"{sections} sections, {words.replace('$', '')}: VOI with natural images is {difference}")
    charts.runs_of_rows(
        ax, dots, "VOI (bits) on FIB-25's validation part; in brackets: trainings" if ax is axes[2] else ""
    )
    ax.set_title(f"{sections} labelled sections")
plt.show()

# %% [markdown]
# **What to see.** With 5 sections every dot of *natural images* lies left of every dot of its random twin: the guide
# brings something that 5 sections did not teach. With 20 and 120 sections this still holds for $A_s$, which knows
# nothing but the guide. In $A_r$ it depends on the form. With $F + F a$ the rows overlap. With $F +
# W_v S a$ they just do not touch with 120 sections; with 20, one random dot is the leftmost of all. $A_s$ gains as much
# with 120 as with 5; in $A_r$ the gain shrinks. Perhaps the Fine-Grained Encoder learns it from labels; we did not
# test that.

# %% [markdown]
# ### Further: all rows, and the questions of part 4, with few sections

# %%
lines = [
    [title, *(statistics.summary(vois[n]) if n in vois else "" for n in (5, 20, 120))]
    for title, vois in amounts.items()
]
fold_table(["VOI (bits)", "5 sections", "20 sections", "120 sections"], {"": lines})

# %%
groups = {}
for sections in (5, 20):
    for topic, pairs in table.by_topic(table.questions(results), rows, sections).items():
        groups[f"{sections} sections: {topic}"] = [answer(question, *pair) for question, pair in pairs.items()]
fold_table(HEADS, groups)

# %% [markdown]
# **What to see.** With 5 sections, find *3D U-Net, channel norm*. It has no guide at all, only another norm, and is
# closer to the guides of photographs than to the plain U-Net. So a lead of 0.5 bits over the plain U-Net does not show
# what a *guide* is worth: that U-Net may be a weak one. The guide's twin with random weights is the fair partner. So
# compare the two rows of $F + W_v S a$ with *channel norm*: VOI is lower with photographs than with random weights, and
# lower than that of the U-Net with this norm, which photographs with GroupNorm were not shown to beat (1.39 and 1.51, p
# = 0.12). With 20 sections and this norm all three are about equal: 1.30 with photographs, 1.31 with random weights (p
# = 0.84), 1.34 without a guide (p = 0.73). On other tissue (part 8) the norm does not replace the guide.

# %% [markdown]
# ## 8 · Further: tissue that no row has seen
#
# FIB-25's validation part comes from the same block as its training part. What happens elsewhere? Here are another fly
# volume, the phantom, and serial sections of mouse and fly (AC4 and CREMI B). The serial sections have pixels of 6 and
# 4 nm; we rescale them to 10 nm for the network, and scale the affinities back. Beside each segmentation you see the
# fragments that it started from, so you can check that agglomeration gained something.

# %%
groups = {}
for volume in ("gala", "phantom", "ac4", "cremi_b_mini"):
    groups[volume] = lines = []
    for name, runs in full.items():
        own = table.scores(runs, "voi", volume)
        start = table.scores(runs, "voi", volume, f"{table.output_of(runs[0])}_fragments")
        if own:
            lines.append([TITLES[name], statistics.summary(own), statistics.summary(start)])
if {"sam2_only", "sam2_only_random"} <= full.keys():  # the order changes, as the text below says
    gains = {
        volume: np.mean(table.scores(full["sam2_only_random"], "voi", volume))
        - np.mean(table.scores(full["sam2_only"], "voi", volume))
        for volume in ("phantom", "gala", "ac4")
    }
    assert np.isnan([*gains.values()]).any() or gains["phantom"] > 0 > max(gains["gala"], gains["ac4"])
fold_table(["row", "VOI (bits)", "VOI of its fragments"], groups)

# %% alt="Four panels, one for each other volume. Each has four rows of dots, one dot for each training with 20 labelled sections, over VOI: FGNet with the guide of natural images, its twin with random weights, and the U-Net with either norm."
WITH_20 = {"natural_additive": "natural images", "natural_additive_random": "random weights"}
WITH_20 |= {"unet": "no guide: U-Net", "unet_channel": "U-Net, channel norm"}
figure, axes = plt.subplots(2, 2, figsize=(13, 5.5))
for ax, volume in zip(axes.flat, ("gala", "phantom", "ac4", "cremi_b_mini"), strict=True):
    dots = {words: table.scores(rows.get(f"{name}_20", []), "voi", volume) for name, words in WITH_20.items()}
    charts.runs_of_rows(ax, dots, "VOI (bits); in brackets: trainings")
    ax.set_title(volume)
plt.show()

# %% [markdown]
# **What to see.** On AC4 every dot of *natural images* ($F' = F + W_v S a$) lies left of all others, by 0.3 bits at
# least, and so with 5 and 120 sections ([table](../docs/results.md#tissue-that-no-row-has-seen)). More labels
# of a fly do not teach what mouse tissue looks like; photographs seem to. On gala and CREMI B there is no such gap. Four
# small cubes are four cases, no rule.
#
# **And in the table:** the order of the rows changes from volume to volume. SAM2 alone, for example, gains from pretraining
# on the phantom and loses on gala and AC4. If a method loses its lead on other tissue, it has learned the tissue. Two
# volumes are less new than they look: the shipped model also saw gala's training volume and a phantom, and the
# pretrained encoder, like that of *natural images and EM*, learned from six other phantoms, labels included. The phantom
# is new to all other rows.

# %% [markdown]
# ## 9 · Further: is attention used, or decoration?
#
# Lesson 03 looks at the attention of one model, and at affinities. `make results` asks the same of every model that it
# trains, on all of FIB-25's validation part, and goes on to the segmentation. For each map you see the AUC for
# membranes (how often a random membrane voxel has a higher weight than a random other one; 0.5 says nothing), the
# correlation with the error of $A_r$, and how VOI changes when the map is replaced by 0, by its mean, or by 1. The
# threshold stays that of the untouched model, so only the map changes.
#
# The sign is arbitrary: it may flip from one training to the next. So that signs do not cancel in a mean, an AUC of
# 0.2 counts as 0.8 here, and *darker* says in how many runs membranes had the lower weights. Correlations are given
# without their sign too.


# %%
def effects(m):
    changes = [statistics.summary(np.subtract(m.set_to[value], m.voi)) for value in table.SET_TO]
    auc = f"{statistics.summary(m.auc, 2)}; darker in {m.darker} of {len(m.auc)}"
    return [m.level, auc, statistics.summary(m.correlation, 2), *changes]


maps = sorted(table.attention_statistics(full), key=lambda m: m.row not in HIGHLIGHTED)
groups = {TITLES[m.row]: [effects(other) for other in maps if other.row == m.row] for m in maps}
fold_table(["map", "AUC", "correlation with error", "set to 0", "set to its mean", "set to 1"], groups)

# %% alt="Three panels with one line for each attention map of two models: the AUC for membranes, either sign, with a dotted line at 0.5, the correlation with the error of A_r, without its sign, and how VOI changes when the map is set to 0, to its mean or to 1."
shown = [m for m in maps if m.row in HIGHLIGHTED]
labels = [f"{TITLES[m.row]}, ${m.level[0]}_{m.level[1]}$" for m in shown]
figure, axes = plt.subplots(1, 3, figsize=(15, 1.8 + 0.32 * len(shown)), sharey=True)
panels = {"AUC for membranes": [m.auc for m in shown], "correlation with error": [m.correlation for m in shown]}
for ax, (name, values) in zip(axes, panels.items(), strict=False):
    charts.runs_of_rows(ax, dict(zip(labels, values, strict=True)), f"{name}, either sign")
for value, style in zip(table.SET_TO, ("C0v", "C1s", "C2^"), strict=True):
    for y, m in enumerate(shown):
        label = None if y else "its mean" if value == "mean" else value[0]
        axes[2].plot(np.subtract(m.set_to[value], m.voi), [y] * len(m.voi), style, ls="", alpha=0.7, label=label)
axes[2].set(xlabel="change of VOI (bits)")
axes[2].legend(title="map set to", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
axes[2].grid(axis="x", alpha=0.4)
for ax, nothing in zip(axes, (0.5, 0, 0), strict=True):
    ax.axvline(nothing, color="black", ls=":")
axes[0].set_xlim(left=0.47)  # no AUC of either sign is below 0.5, and the line there should be seen
plt.show()
assert np.mean([np.mean(m.auc) < 0.75 for m in maps]) > 0.5 or not maps  # as the text says

# %% [markdown]
# **What to see.** In the left panel a map at the dotted line says nothing about membranes; 1 would be a map of
# membranes. Of all maps in the table, most lie nearer to 0.5 than to 1. In the right panel each mark is one run, and a
# map whose marks lie on the line can be replaced without harm. The *mean* is the fairest replacement: it keeps how
# strongly a level is stressed, and takes away only *where* (within each window of the prediction, because the mean is
# taken there). 0 and 1 also change the scale of what the next layers get, and may do damage for that reason alone.
#
# Look for the shipped model in the table, too. With *F' = F a*, all that the next layers get has passed the map. Two of
# its maps are used: with $a_1$ set to its mean, VOI rises by more than 0.1 bits, and with $a_2$ by more than 2. Where
# $a_3$ attends makes no difference on these sections. It is one model from one training, so it shows what this form can
# do, and not that another form cannot.
#
# What does fine-tuning do to the maps? These sentences are computed from the stored results:

# %%
of = {(m.row, m.level): m for m in maps}
rises = [np.subtract(m.set_to["mean"], m.voi).mean() for m in maps if m.row == "shipped"]
assert not rises or rises[0] > 0.1 and rises[1] > 2 and abs(rises[2]) < 0.02  # as the text says
for level in ("a1", "a2", "a3"):
    tuned, frozen = (of.get((name, level)) for name in ("fine_tuned", "pretrained_frozen"))
    difference = statistics.compare_runs(tuned.auc if tuned else [], frozen.auc if frozen else [])
    print(f"{level}, AUC (either sign) of the fine-tuned model, compared with the frozen one: {difference}")

# %% [markdown]
# A difference within the spread says *not shown*: fine-tuning may or may not have changed this map. With a single run,
# the change holds for that model only; another training may not show it.

# %% [markdown]
# ## 10 · What you may claim
#
# The paper says: SAM2, trained on photographs and videos, guides a light 3D network. That network segments neurons well
# with SAM2 frozen, and better with SAM2 fine-tuned. Its attention refines what SAM2's features give alone. We compare
# each claim with what was measured *here*.

# %%
groups = {"all labelled sections": [], "5 or 20 labelled sections": []}
for name, runs in rows.items():
    if {"refined", "coarse"} <= runs[0]["thresholds"].keys():
        refined, coarse = (table.scores(runs, "voi", output=output) for output in ("refined", "coarse"))
        change = statistics.compare_paired_runs(refined, coarse)
        amount = "all labelled sections" if name in full else "5 or 20 labelled sections"
        groups[amount].append([TITLES[name], statistics.summary(coarse), statistics.summary(refined), change])
fold_table(["row", "VOI of A_s", "VOI of A_r", "change in the same runs"], groups)

# %%
for name in (name for name in rows if name in ROWS and ROWS[name].encoder.startswith("sam2.1")):
    print(f"{TITLES[name]:56} runs: {len(rows[name])}")
print(table.describe_gaps(results))

# %% [markdown]
# | claim | what would show it | can our table tell? |
# | --- | --- | --- |
# | photographs teach features that help in EM | SAM2.1's checkpoints against the same encoder with random weights | only if SAM2.1's rows have runs; the rows with *natural images* ask it of a stand-in, in part 7; no other encoder of the ablation has seen a photograph |
# | a frozen guide is enough | frozen against no guide, and against fine-tuned | yes, for *this* encoder and these data: read part 4; with 5 sections its lead also depends on the norm (part 7) |
# | fine-tuning gains | fine-tuned against frozen | yes, with the same limits, at equal iterations and at equal time: read part 4 |
# | $A_r$ is better than $A_s$ | both from the same runs | yes: read the table above |
# | the network uses *where* it attends | replace the maps, and train without them | half: part 9 replaces the maps; no row leaves out the maps alone: the U-Net also lacks SAM2 |
# | better than other methods | the same data, split and score for both | hardly: there is one published segmentation of one small cube, in part 5 |
#
# Some limits hold for every row: a small model, a short training, one data set to train on, and one cube of two and a
# half million voxels to judge on. We looked at the validation part while we made the recipe. And this is a
# reconstruction of FGNet: if a row does badly, our version may be at fault and not the idea.
#
# The pretrained rows, also *natural images and EM*, have one more limit. Before their encoder guided anything, it filled
# in hidden parts of unlabelled sections and learned from synthetic volumes, whose neurons are known; the U-Net began at
# random. So a gain over the U-Net may come from the guide's layers or from these *data*. Would a U-Net that had seen the
# same data gain as much? No row here asks that.

# %% [markdown]
# ## 11 · Further: run an ablation yourself
#
# Use the same functions on a smaller scale: two rows of the list, on the data set of this notebook. Change `PAIR` to
# ask something else: any two names of `ROWS` will do if the weights that they begin with are on this machine. (All of
# them get the same sections and iterations here, whatever their names say.) Three quarters of the training volume of
# this notebook teach, the last quarter chooses the threshold, and the validation part judges.
#
# If SAM2.1's tiny checkpoint is on this machine, the notebook also runs the question that the table may not answer: the
# same encoder with what it learned from photographs, and with random weights.

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
    print("SAM2.1 tiny is not on this machine, so the question about photographs is left out. With internet, once:")
    print('  fgnet_lib.datasets.fetch("sam2.1_hiera_tiny.pt")  # then run this again, or `make results ENCODER=tiny`')
seeds = range(SEED, SEED + (1 if session.profile.name == "fast" else 2))
minutes = min(session.profile.minutes, 20) / 2 / len(seeds) / len(chosen_rows)
iterations = session.profile.iterations // 3
print(f"rows: {len(chosen_rows)}, seeds: {len(seeds)}")
print(f"each training ends after {iterations} iterations, or after {minutes:.1f} minutes if that is sooner")

# %%
from fgnet_lib.files.locks import clear
from fgnet_lib.inference import predict
from fgnet_lib.metrics import voi as voi_of
from fgnet_lib.segmentation import segment, sweep
from fgnet_lib.training import train

labelled, unseen = session.volume("train"), session.volume("val")
border = 3 * labelled.shape[0] // 4
teaching, choosing = labelled[:border, :, :], labelled[border:, :, :]
folder = session.out_dir / "ablations"


def rerun(title: str, row: Row, seed: int) -> float:
    model = build_model(row, seed).to(session.device)
    recipe = replace(training(row, seed), patch=(8, 96, 96), iterations=iterations, minutes=minutes)
    clear(folder)  # otherwise it would resume an earlier training
    history = train(model, [teaching], recipe, folder)
    print(f"{title}, seed {seed}: {len(history.loss)} iterations in {history.seconds[-1] / 60:.2f} minutes")
    outputs = (predict(model, volume.raw, progress=False) for volume in (choosing, unseen))
    to_choose, to_judge = (p.coarse if p.refined is None else p.refined for p in outputs)  # SAM2 alone has A_s only
    tried = sweep(to_choose, choosing.voxel_size, np.arange(0.2, 0.9, 0.1))
    best = min(tried, key=lambda threshold: sum(voi_of(tried[threshold], choosing.labels)))
    return sum(voi_of(segment(to_judge, unseen.voxel_size, best), unseen.labels))


# %% [markdown]
# Every training begins anew here. `make results`, in contrast, keeps finished runs and resumes interrupted ones. If the
# minutes end a training before its iterations do, the rows have equal time, not equal iterations: compare the printed
# numbers.

# %% alt="One line for each row of your own ablation and a dot for the VOI of each of its runs on the validation part of this notebook's data set."
own = {title: [rerun(title, row, seed) for seed in seeds] for title, row in chosen_rows.items()}
figure, ax = plt.subplots(figsize=(10, 1.2 + 0.5 * len(own)))
charts.runs_of_rows(ax, own, f"VOI on {DATASET}, validation part (bits)")
plt.show()
for title, values in own.items():
    print(f"{title:45} VOI {statistics.summary(values)}")
titles = list(own)
for first, second in zip(titles[::2], titles[1::2], strict=False):
    print(f"{first} compared with {second}: {statistics.compare_runs(own[first], own[second])}")

# %% [markdown]
# **What to see.** With `PROFILE = "fast"` you see only that it runs: a handful of iterations teaches nothing, and any
# difference is noise. With `cpu` each training has a minute or so. What would you need before you believe the last
# sentence above: more seeds? Longer training? Another volume?

# %% [markdown]
# ## Your exercises

# %%
checks.report("07")

# %% [markdown]
# ## What you learned
#
# - A fair comparison changes one thing. It keeps the post-processing, the data and the way the threshold is chosen
#   fixed.
# - A single run has no spread, and a difference between single runs is no result. With three seeds each, even the
#   clearest outcome arises by chance in one of ten deals.
# - Equal iterations, equal time, equal parameters: say which. They are seldom equal together.
# - Look at all thresholds, at the errors, at other tissue, at few labels: a score is one point on one curve.
# - If you have not measured something, say so, and give the command that would measure it.
#
# ## Try it
#
# - Set `SEEDS` in `fgnet_lib/study/rows.py` to `range(5)`; `make results ROWS="unet random_frozen"` in a terminal then
#   adds four runs (half an hour). Run this lesson again: which sentences have changed?
# - Put your own row into `ROWS` in `fgnet_lib/study/rows.py`: another patch size, another width. What is its fair
#   partner?
# - In part 4, run the permutation test on twenty pairs of rows of three random numbers each. How many of them come out
#   at or below 10 %?
# - Write down, *before* you run a row, which difference you would call a success.
#
# ## References
#
# - Li, Chen, Sun, Li, Hu: *Leveraging Feature-Guided Attention to Refine SAM2 for 3D EM Neuron Segmentation.* AAAI
#   2026, [doi:10.1609/aaai.v40i8.37606](https://doi.org/10.1609/aaai.v40i8.37606)
# - Bouthillier et al.: *Accounting for variance in machine learning benchmarks.* MLSys 2021,
#   [arXiv:2103.03098](https://arxiv.org/abs/2103.03098): seeds, data order and splits as sources of spread
# - Good: *Permutation, Parametric and Bootstrap Tests of Hypotheses.* Springer 2005,
#   [doi:10.1007/b138696](https://doi.org/10.1007/b138696)
# - Januszewski et al.: *High-precision automated reconstruction of neurons with flood-filling networks.* Nature Methods
#   15, 2018, [doi:10.1038/s41592-018-0049-4](https://doi.org/10.1038/s41592-018-0049-4): the published segmentation of
#   part 5
