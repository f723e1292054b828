# %% [markdown]
# # 18 · Your own study: from a question to a claim that holds
#
# <!-- badges -->
#
# **What you will learn**
#
# - how to turn an idea into a question that a laptop can answer, and write the answer's rules down before you train;
# - how many seeds you need, from the spread that our tables have measured;
# - the **winner's curse**: what choosing the best of many runs gains without any better method;
# - what happens to *p* when you ask twenty questions, and how **Holm's correction** repairs it;
# - to run a small study from plan to report, and to say what it does not show.
#
# **Before you start.** Lesson 07 explains seeds, spread and *p* by permutation.
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
# ## 1 · Questions, and questions that can be answered
#
# "Is attention good?" cannot be answered. "With five labelled sections, is VOI on the validation part lower with
# `attention="additive"` than with `"residual"`, at equal iterations?" can. A question that can be answered names
# five things:
#
# | what | example |
# | --- | --- |
# | two **rows** that differ in one thing | additive and residual attention |
# | what is **equal** | iterations, or the time of one core |
# | the **measure**, and the volume | VOI, on a part that no choice was made on |
# | the number of **seeds** | chosen before, see part 2 |
# | the **rule** | "better" if the mean is lower and *p* < 0.05 |
#
# **Write these down before the first training.** Afterwards every result looks as if you had expected it.
#
# **What is known and what is ours.** The statistics of this lesson are in textbooks; references are at the end. The
# numbers come from the tables in this repository.

# %%
from itertools import combinations, product

import matplotlib.pyplot as plt
import numpy as np
import torch

from fgnet_lib.augment import Augment
from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.course import checks, quiz
from fgnet_lib.fgnet import FGNet
from fgnet_lib.patches import PatchDataset
from fgnet_lib.study import statistics, table
from fgnet_lib.training import TrainConfig, fit, patch_loss
from fgnet_lib.views import charts
from fgnet_lib.views.tables import fold_table

# %% [markdown]
# ## 2 · How many seeds?
#
# Lesson 07 counts *p* by dealing the runs of two rows anew. The number of deals limits how small *p* can get.
#
# **Exercise 18.1: the smallest p.** Two rows have `runs` runs each, all different, and all runs of one row are
# better than all of the other. Return *p*: the share of deals into two hands of `runs` whose means differ at least
# as much, in either direction.


# %% tags=["task"]
def my_smallest_p(runs):
    return ...


# %% tags=["solution"]
def my_smallest_p(runs):
    deals = len(list(combinations(range(2 * runs), runs)))
    return 2 / deals


# %%
checks.smallest_p(my_smallest_p)

# %% [markdown]
# Predict first, then let the library deal:

# %%
quiz.ask("18", "seeds")

# %%
for runs in (2, 3, 4, 5, 6):
    apart = statistics.permutation_p(range(runs), range(100, 100 + runs))
    print(f"{runs} seeds a row: p is at least {apart:.3f}" + ", so it can never be below 0.05" * (apart >= 0.05))

# %% [markdown]
# That is the best case. How often will a real difference be *seen*? That share is called the **power**. It depends
# on the difference in units of the spread, the standard deviation over seeds, so we need the spread. Our tables have it:
# here it is for the rows of lesson 07 with at least three seeds. *Typical* means their median.

# %%
rows = table.trained_rows(table.load_rows())
vois = {name: table.scores(runs, "voi") for name, runs in rows.items()}
spreads = {name: statistics.spread(scores) for name, scores in vois.items() if len(scores) > 2}
typical, widest = np.median([*spreads.values()]), max(spreads, key=spreads.get)
print(f"{len(spreads)} rows; typical spread of single runs: {typical:.3f} bits of VOI")
print(f"the widest: {table.TITLES[widest]}, {spreads[widest]:.3f} bits")

# %% [markdown]
# We draw runs from two bell curves that lie a known difference apart, and count how often *p* < 0.05:


# %%
def power(difference, runs, trials=300):
    draw = np.random.default_rng(SEED)
    ours, theirs = draw.normal(size=(2, trials, runs)) + np.array([0, difference]).reshape(2, 1, 1)
    values = np.concatenate([ours, theirs], axis=1)
    hands = np.array(list(combinations(range(2 * runs), runs)))
    sums = values[:, hands].sum(2)  # of one hand, for each trial and deal
    apart = np.abs(2 * sums - values.sum(1, keepdims=True))
    p = (apart >= apart[:, :1] - 1e-12).mean(1)  # the first deal is the real one
    return (p < 0.05).mean()


differences = np.linspace(0, 4, 9)
curves = {runs: [power(d, runs) for d in differences] for runs in (3, 4, 5, 6)}

# %% alt="Power against the difference of two rows in units of the spread: with three seeds the curve stays at 0, with four, five and six seeds it rises, the sooner the more seeds."
figure, ax = plt.subplots(figsize=(8.5, 4.5), layout="constrained")
for (runs, shares), mark in zip(curves.items(), "osD^", strict=True):
    ax.plot(differences, shares, marker=mark, label=f"{runs} seeds a row")
ax.axhline(0.8, color="black", lw=0.8, ls=":")
ax.text(differences[0], 0.81, "8 of 10 seen", ha="left", va="bottom")
ax.set(xlabel="true difference / spread of single runs", ylabel="power: share of studies with p < 0.05")
bits = ax.secondary_xaxis("top", functions=(lambda d: d * typical, lambda b: b / typical))
bits.set_xlabel(f"the same in bits of VOI, at the typical spread of {typical:.3f} bits")
ax.legend(bbox_to_anchor=(1.02, 1), loc="upper left", frameon=False)
plt.show()
assert max(curves[3]) == 0 and curves[4][-1] <= curves[6][-1]
seen = np.interp(0.8, curves[5], differences)
print(f"five seeds see {seen:.1f} spreads in 8 of 10 studies, typically {seen * typical:.2f} bits of VOI")
assert 1.8 < seen < 2.5 and max(shares[0] for shares in curves.values()) < 0.1  # as the text says

# %% [markdown]
# **What to see.** With three seeds the curve lies at 0: no difference, however large, brings *p* below 0.05. At a
# difference of 0 the curves show how often luck is taken for an effect; the rule allows one time in twenty. Five
# seeds see a difference of about two spreads in 8 of 10 studies, and the printed line says how many bits that is. **Smaller
# effects need another question, more seeds, or a measure with less spread.**
#
# ## 3 · The winner's curse
#
# A training has a random part, so you could run it often and keep the best run. What does that change?

# %%
quiz.ask("18", "best")

# %% [markdown]
# **Exercise 18.2: the best of k.** `scores` are the runs of one row, lower is better. Somebody runs the row `k`
# times and reports the best run. Return what they report on average, over every choice of `k` different runs among
# `scores`.


# %% tags=["task"]
def my_best_of(scores, k):
    return ...


# %% tags=["solution"]
def my_best_of(scores, k):
    return np.mean([min(chosen) for chosen in combinations(scores, k)])


# %%
checks.best_of(my_best_of)

# %% [markdown]
# To see how far that goes we need more runs than a row has. So we draw them from a bell curve, as in part 2, with the
# typical spread:

# %%
draws = np.random.default_rng(SEED).normal(scale=typical, size=(4000, 20))
tries = np.arange(1, 21)
gain = [draws[:, :k].min(1).mean() for k in tries]

# %% alt="What the best of k runs reports on average, relative to the true mean of the method: it starts at 0 and falls ever more slowly, by more than the typical spread, although the method stays the same."
figure, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
ax.plot(tries, gain, "o-")
ax.axhline(0, color="black", lw=0.8)
ax.axhline(-typical, color="black", lw=0.8, ls=":")
ax.text(tries[-1], -typical, "one typical spread", ha="right", va="bottom")
ax.set(xlabel="runs, of which the best is reported", ylabel="reported VOI − true mean (bits)", xticks=tries[::3])
ax.set(title="the same method, reported by its best run")
plt.show()
print(f"best of 5: {gain[4]:+.3f} bits; best of 20: {gain[19]:+.3f} bits, without a better method")
assert 1 < -gain[4] / typical < 1.5 < -gain[19] / typical  # as the text says

# %% [markdown]
# **What to see.** The curve is what "we report our best run" is worth: with five runs already more than one spread, with
# twenty more than one and a half, and the method has stayed the same. It also happens when you choose a threshold, a
# number of iterations or a crop on the part that judges: each choice is a try. Report the mean of all runs, and choose
# on other data.
#
# ## 4 · Twenty questions
#
# With enough seeds, about one question in twenty has *p* < 0.05 even if no method does anything. **Holm's
# correction** makes a list of questions as strict as a single one. Sort the *p* values from the smallest. Multiply
# the first by the number of questions $m$, the second by $m - 1$, and so on; the last by 1. No value may be smaller
# than the one before it, and none larger than 1:
#
# $$\tilde p_{(i)} = \min\left(1, \max_{j \le i} (m - j + 1)\, p_{(j)}\right)$$
#
# **Exercise 18.3: Holm's correction.** `ps` is a list of *p* values. Return the corrected values as an array, in the
# order of `ps`.


# %% tags=["task"]
def my_holm(ps):
    return ...


# %% tags=["solution"]
def my_holm(ps):
    order = np.argsort(ps)
    factors = len(ps) - np.arange(len(ps))
    corrected = np.minimum(1, np.maximum.accumulate(np.asarray(ps)[order] * factors))
    result = np.empty(len(ps))
    result[order] = corrected
    return result


# %%
checks.holm(my_holm)

# %% [markdown]
# The questions of lesson 07 that have at least three runs in both rows, with *p* as it is and after the correction:


# %%
def ask(sections):
    """Question -> p, for rows with so many labelled sections."""
    topics = table.by_topic(table.questions(rows), spreads, sections).values()
    pairs = {question: pair for topic in topics for question, pair in topic.items()}
    return {question: statistics.permutation_p(vois[ours], vois[theirs]) for question, (ours, theirs) in pairs.items()}


asked = {(sections, question): p for sections in (5, 20, 120) for question, p in ask(sections).items()}
ps = [*asked.values()]
corrected_ps = statistics.correct_many(ps)
print(f"{len(ps)} questions; if no method did anything, chance would bring some {len(ps) / 20:.0f} of them below 0.05")
below = [sum(np.less(values, 0.05)) for values in (ps, corrected_ps)]
print(f"below 0.05: {below[0]} before the correction, {below[1]} after it")
assert below[0] > len(ps) / 20 and below[1] == 0  # as the text says
groups = {f"{sections} labelled sections": [] for sections, _ in asked}
for (sections, question), p, corrected in zip(asked, ps, corrected_ps, strict=True):
    groups[f"{sections} labelled sections"].append([question, f"{p:.3f}", f"{corrected:.2f}"])
fold_table(["question", "p", "after Holm's correction"], groups)

# %% [markdown]
# **What to see.** More questions are below 0.05 than chance alone would bring. So something seems to be there, although
# many questions share a row, and one lucky row then counts several times. But the correction leaves none: with five
# seeds for each row *p* is never below 0.008, and times the number of questions that is large. With 120 sections there
# are three seeds, and nothing is below 0.10. A list like this says **which question to ask next**. A single question,
# fixed before its runs, needs no correction.
#
# Twelve trainings can be two rows with six seeds and one question, or four rows with three seeds and six
# questions (one for each pair of rows). **Only the first can end with *p* < 0.05.**
#
# ## 5 · A study, from plan to report
#
# Here is a whole study, small enough for a minute. The question: does **augmentation** (lesson 04) help when the
# network sees few patches? First the plan:

# %%
SEEDS, STEPS = (3, 12) if PROFILE == "fast" else (6, 40)
PLAN = {
    "question": f"Is the loss on a new volume lower with augmentation, after {STEPS} iterations?",
    "rows": {"with augmentation": Augment(), "without": None},
    "equal": f"network, patches, {STEPS} iterations",
    "measure": "mean loss of 4 patches of the validation part, not augmented",
    "seeds": SEEDS,
    "rule": "better if the mean is lower and p < 0.05",
}
print(f"smallest p that this plan allows: {statistics.permutation_p(range(SEEDS), range(9, 9 + SEEDS)):.3f}")

# %%
quiz.ask("18", "claim")

# %% [markdown]
# Both rows get the same seeds, and a seed sets the first weights and the places of the patches. Then we run the
# plan:

# %%
SIDE = 32
crops = {part: session.volume(part, (16, 96, 96)) for part in ("train", "val")}
judged = [PatchDataset([crops["val"]], (8, SIDE, SIDE), None, seed=99)[k] for k in range(4)]
small = FGNetConfig(encoder=None, widths=(4, 8, 12, 16, 16))


def run(augment, seed):
    torch.manual_seed(seed)
    model = FGNet(small).to(session.device)
    recipe = TrainConfig(patch=(8, SIDE, SIDE), iterations=STEPS, learning_rate=3e-3, warmup=4, ema=None, seed=seed)
    samples = PatchDataset([crops["train"]], recipe.patch, augment, seed)
    fit(model, samples, patch_loss, recipe, session.out_dir / f"18_{DATASET}_{PROFILE}_{augment is not None}_{seed}")
    with torch.no_grad():
        losses = [patch_loss(model, tuple(part[None].to(session.device) for part in patch)) for patch in judged]
    return torch.stack(losses).mean().item()


losses = {name: [run(augment, seed) for seed in range(SEEDS)] for name, augment in PLAN["rows"].items()}

# %% [markdown]
# The report has a dot for each run, a black line for each mean, and a sentence that the rule decides. Grey lines join
# the two runs of a seed:

# %% alt="The loss on a new volume of each run, a dot for every seed, in two rows: with and without augmentation. A grey line joins the two dots of each seed, a black line marks the mean of a row."
figure, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
ours, theirs = losses.values()
ax.plot([ours, theirs], [0, 1], color="0.7", zorder=0)
charts.runs_of_rows(ax, losses, "loss on a new volume, lower is better")
plt.show()
p = statistics.permutation_p(ours, theirs)
verdict = "they cannot be told apart" if p >= 0.05 else "better" if np.mean(ours) < np.mean(theirs) else "worse"
print(f"with augmentation: {statistics.compare_runs(ours, theirs)}. By the rule: {verdict}.")

# %% [markdown]
# Look at the grey lines once more. If they hardly cross, a seed that is bad in one row is bad in the other, too, because
# both begin with the same weights. A plan may use that and compare **pairs**: take the difference of each seed, and let
# chance flip its sign. With $n$ pairs there are $2^n$ ways.

# %%
changes = np.subtract(ours, theirs)
flips = np.array(list(product((1, -1), repeat=SEEDS)))
as_large = np.abs((flips * changes).mean(1)) >= abs(changes.mean()) - 1e-12
print(f"differences by seed: {statistics.compare_paired_runs(ours, theirs)}")
print(f"p by flipping signs: {as_large.mean():.3f}; the smallest possible is {2 / 2**SEEDS:.3f}")
print(f"correlation of both rows over seeds: {np.corrcoef(ours, theirs)[0, 1]:.2f}")

# %% [markdown]
# The closer the correlation is to 1, the more of the spread pairing removes. But **this is a second test of the same
# runs**. Our plan had meant the first one, so the verdict stays. Whoever takes the smaller of two *p* values asks two
# questions, as in part 4.
#
# **What to see.** Whatever the verdict is, it belongs to this plan: a tiny network, a few iterations, one volume, a
# loss instead of neurons. "They cannot be told apart" does not mean "there is no effect": the study may have been
# too small to see it, and part 2 says how small an effect it could see. With `PROFILE = "fast"` it cannot see any:
# three seeds never get below 0.1.
#
# ## 6 · Your project
#
# Choose a question that a part of this repository can already train, change one thing, and write the plan before you
# start:
#
# | question | where to begin |
# | --- | --- |
# | Does a guide help when the volume is noisier? | `tools/results/results.py`, lessons 07 and 14 |
# | How narrow may a student be before VOI suffers? | `tools/results/train_student.py`, lesson 10 |
# | Which blocks of the encoder need an adapter? | `tools/results/adapt.py`, lesson 11 |
# | Histogram matching or CLAHE: which is the better first step? | `tools/results/adapt_targets.py`, lesson 12 |
# | Five neighbouring sections, or five far apart? | `tools/results/few_sections.py`, lesson 13 |
# | Which layers can have 4 bits? | `tools/results/measure_bits.py`, lesson 16 |
#
# A report fits on two pages: the plan as it was before; every run as a dot; the sentence that the rule gives; one
# picture of a typical error and one of the worst; what the study cannot show; the commands that repeat it. **A
# negative result is a result**: of what we tried for lessons 10 to 17, much did not help, and the tables say so.
#
# ## Your exercises

# %%
checks.report("18")

# %% [markdown]
# ## What you learned
#
# - A question that can be answered names two rows, what is equal, a measure, a number of seeds, and a rule.
# - With three seeds a row, *p* by permutation is 0.1 at best. Four are the fewest that can get below 0.05.
# - The best of many runs looks better than the method is. Report all runs, and choose on other data.
# - Many questions need a correction: with Holm's, the risk of even one false alarm stays below 5 %.
# - "Cannot be told apart" is a statement about the study, too. Say which effect it could have seen.
#
# ## Try it
#
# 1. Change `power` in part 2, so that one row has six seeds and the other three. Which of the two numbers limits the power?
# 2. In part 5, choose another question: two learning rates, two widths, two numbers of labelled sections. (Give `fit` a
#    new folder for each row. A run in a known folder is loaded, and not done again.)
# 3. Take a paper of your choice. How many seeds does its main table have, and which difference could it have seen?
#
# ## References
#
# - S. Holm. *A Simple Sequentially Rejective Multiple Test Procedure.* Scandinavian Journal of Statistics 6, 1979.
# - P. Good. *Permutation, Parametric and Bootstrap Tests of Hypotheses.* Springer, 2005,
#   [doi:10.1007/b138696](https://doi.org/10.1007/b138696).
# - X. Bouthillier et al. *Accounting for Variance in Machine Learning Benchmarks.* MLSys 2021,
#   [arXiv:2103.03098](https://arxiv.org/abs/2103.03098).
