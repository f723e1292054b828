# %% [markdown]
# # 04 · Training: on a GPU for hours, on a laptop for minutes
#
# <!-- badges -->
#
# **What you will learn**
#
# - what a training patch and its target are, and why the loss must be balanced between the two classes;
# - what fp32, fp16 and bf16 are, and which one your device should use;
# - how to compute where the memory goes, for every size of SAM2;
# - the two regimes of FGNet: SAM2 frozen first, fine-tuned afterwards;
# - how to lose a session in the middle of training, and go on as if nothing had happened.
#
# **Before you start.** Lesson 01 explains targets and lesson 03 the model; you can do without either.
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
# ## 1 · Patches
#
# A whole volume is too large for one pass through the network. Training cuts a random **patch** from it, changes the
# patch at random (lesson 01), and only then computes the target: affinities of labels whose borders were widened by
# one voxel. A **mask** says where the target is known.
#
# Item number *k* of the library's `PatchDataset` depends on the seed and on *k*, and on nothing else. Keep that in
# mind: it will save us in part 6.

# %%
import matplotlib.pyplot as plt
import numpy as np

from fgnet_lib.augment import Augment
from fgnet_lib.course import checks, quiz
from fgnet_lib.datasets import open_dataset
from fgnet_lib.patches import PatchDataset
from fgnet_lib.views import charts, plots

volume = open_dataset(DATASET, "train").load()
side = min(128, *volume.shape[1:])
patches = PatchDataset([volume], patch=(16, side, side), augment=Augment(), seed=SEED)
raw, target, mask = patches[0]
print(f"raw {tuple(raw.shape)}, target {tuple(target.shape)}, mask {tuple(mask.shape)}")
print(f"{mask.float().mean():.0%} of the affinities are known")

# %% alt="Four patches, EM above and target below: the same kind of tissue turned, bent, brighter or darker; the targets are mostly white, with black borders."
figure, axes = plt.subplots(2, 4, figsize=(14, 8.2))
for k, (above, below) in enumerate(axes.T):
    raw, target, _ = patches[k]
    plots.show_section(above, raw[0] * 255, voxel_size=volume.voxel_size, title=f"patch {k}: EM")
    plots.show_affinities(below, target, volume.voxel_size, title=f"patch {k}: target")

# %% [markdown]
# **What to see.** All patches show the same kind of tissue, turned, stretched, darker or brighter. Most of a target is
# white, because neighbouring voxels usually belong to the same neuron. The widened borders are black. In cyan areas
# (no red) the section before shows another neuron: the voxels are joined in-plane, but not along z. The lines along
# the top and the left are the first voxels, which have no predecessor inside the patch; the mask excludes them.
#
# ## 2 · A loss that does not ignore the borders
#
# "Usually" is a trap. Before a network has learned anything, it can do no better than to answer the same probability
# $p$ everywhere. Which one?

# %%
quiz.ask("04", "one-answer")

# %% [markdown]
# Let $s$ be the share of affinities that are 1. Binary cross-entropy then costs
#
# $$-s \log p - (1 - s) \log (1 - p), \qquad \text{least at } p = s.$$
#
# Since $s$ is far above one half, the first thing the network learns is *everything is joined*: one neuron. The cure
# is to average over the two classes separately, which is cross-entropy with $s = 1/2$:
#
# $$-\tfrac12 \log p - \tfrac12 \log (1 - p), \qquad \text{least at } p = \tfrac12.$$
#
# **Exercise 4.1: a balanced loss.** Write this for any answers. `p` has the probabilities that a network gives, and
# `target` the true affinities, 0 or 1, in the same shape. Each class makes up half of the loss, however rare it is.


# %% tags=["task"]
def my_loss(p, target):
    cost = -np.log(np.where(target == 1, p, 1 - p))  # cross-entropy of each affinity
    return ...


# %% tags=["solution"]
def my_loss(p, target):
    cost = -np.log(np.where(target == 1, p, 1 - p))  # cross-entropy of each affinity
    return (cost[target == 1].mean() + cost[target == 0].mean()) / 2


# %%
checks.balanced_loss(my_loss)

# %% [markdown]
# Back to the network that gives one answer everywhere. Here are both costs for all answers:

# %% alt="Cross-entropy over the answer p given everywhere: the plain one is least near the share of ones, the balanced one at one half. Dots mark both."
examples = [patches[k] for k in range(4)]
share = float(np.mean([target[mask].mean() for _, target, mask in examples]))
p = np.linspace(0.02, 0.98, 200)
costs = {"plain": -share * np.log(p) - (1 - share) * np.log(1 - p), "balanced": -(np.log(p) + np.log(1 - p)) / 2}
figure, ax = plt.subplots(figsize=(7, 4))
for name, cost in costs.items():
    line = ax.plot(p, cost, label=f"{name}: least at p = {p[cost.argmin()]:.2f}")[0]
    ax.plot(p[cost.argmin()], cost.min(), "o", color=line.get_color())
ax.set(title="One answer everywhere", xlabel="answer p", ylabel="cross-entropy (nats)", ylim=(0, 2.5))
ax.legend(loc="upper center")
print(f"{100 * share:.1f} % of the affinities are 1")

# %% [markdown]
# The same in gradients. All logits of an undecided network are 0. What pulls on it more strongly, the borders or the
# inside?

# %%
import torch
import torch.nn.functional as F

from fgnet_lib.losses import affinity_loss, fgnet_loss

_, target, mask = (torch.stack(items) for items in zip(*examples, strict=True))
logits = torch.zeros_like(target, requires_grad=True)
plain = F.binary_cross_entropy_with_logits(logits[mask], target[mask])
pulls = []
for name, loss in {"plain cross-entropy": plain, "affinity_loss": affinity_loss(logits, target, mask)}.items():
    pull = torch.autograd.grad(loss, logits)[0].abs()
    pulls.append((pull[target == 0].sum() / pull.sum()).item())
    print(f"{name}: borders pull with {pulls[-1]:.0%} of the whole gradient")
assert pulls[0] < 0.4 < pulls[1] < 0.6 or DATASET != "phantom"  # as the text says

# %% [markdown]
# With plain cross-entropy the inside pulls more; with `affinity_loss` the borders have about half of the gradient.
# `affinity_loss` also adds half a **Dice** term, which compares the predicted borders with the true borders as sets,
# and ignores the inside that both agree on. FGNet has two outputs, the refined affinities A_r and the coarse ones A_s,
# and its loss is the sum over both (`fgnet_loss`).
#
# ## 3 · Precision
#
# A GPU computes faster in 16 bits. There are two ways to use them:

# %%
from fgnet_lib.machine import precision

for dtype in (torch.float32, torch.float16, torch.bfloat16):
    limits, tiny_gradient = torch.finfo(dtype), torch.tensor(1e-8)
    print(
        f"{str(dtype)[6:]:9} largest {limits.max:.1e}   next after 1: {1 + limits.eps:.7f}   "
        f"1e-8 becomes {tiny_gradient.to(dtype).item():.1e}   "
        f"1e-8 x 65536 becomes {(tiny_gradient * 65536).to(dtype).item():.1e}"
    )
print(f"this session: {session.device}, mixed precision: {precision(session.device)}")

# %% [markdown]
# - **fp16** has a fine step and a small range: a gradient of 1e-8 becomes 0. The remedy is **loss scaling**: multiply
#   the loss, and with it all gradients, by a large number, and divide before the weights change. A T4 has fast fp16.
# - **bf16** has the range of fp32 and a coarse step. It needs no scaling. GPUs of the Ampere generation and newer ones
#   have it. On older GPUs PyTorch *emulates* it, slowly, and `torch.cuda.is_bf16_supported()` still says yes unless you
#   pass `including_emulation=False`.
# - A **CPU** stays with fp32, unless it has instructions for bf16: then the training of part 7 tries both, and takes the
#   faster one.
#
# *Mixed* precision keeps the weights in fp32 and uses 16 bits for convolutions and matrix products. Sums over many
# voxels are dangerous in either format, so our loss is always computed in fp32. Hugging Face's `accelerate` does all
# of this. It only needs one word: the one printed above.
#
# ## 4 · Two regimes, and where the memory goes
#
# The encoder of SAM2 was trained on ordinary images, at a cost that we cannot repeat. So training has two stages:
#
# 1. **frozen**: SAM2 stays as it is. It runs in evaluation mode and without gradients, and all other parts learn;
# 2. **fine-tuned**: SAM2 learns too, with a tenth of the learning rate, so that it adapts without forgetting.
#
# The mini FGNet that comes with this repository has a small stand-in for SAM2's encoder, EfficientNet-Lite0, which was
# trained on photographs as well. Whichever encoder a model has, it is the model's **guide**.
#
# What does a regime cost? Every weight takes 4 bytes. Every *trainable* weight takes 12 more, for its gradient and the
# two averages of AdamW. And every layer saves what it needs for the backward pass, the **activations**. PyTorch can
# tell us what is saved. On the device "meta" tensors have a shape and no content, so we can ask about SAM2 large
# without using its memory:

# %%
from accelerate import init_empty_weights
from torch.autograd.graph import saved_tensors_hooks

from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.fgnet import FGNet
from fgnet_lib.weights import PRETRAINED, load_pretrained

SHIPPED = load_pretrained().config  # of the mini FGNet that comes with this repository


def activation_bytes(model: FGNet, shape: tuple[int, ...]) -> int:
    """What one forward pass saves for the backward pass, without the weights themselves."""
    saved, weights = {}, {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = (storage.nbytes(), storage)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        _output = model(torch.empty(shape, device="meta"))
    return sum(size for key, (size, _) in saved.items() if key not in weights)


# %% [markdown]
# SAM2 large has about 8 times as many weights as SAM2 tiny.

# %%
quiz.ask("04", "frozen")

# %% [markdown]
# Here are all sizes in both regimes, and the stand-in in the mini FGNet:

# %%
print("one patch of 16 x 128 x 128 voxels, fp32")
print("guide     regime      weights  trainable  states (GB)  activations (GB)")
frozen_activations = {}  # bytes, by the size of SAM2
for size in ("stand-in", "tiny", "small", "base_plus", "large"):
    with init_empty_weights():
        model = FGNet(SHIPPED if size == "stand-in" else FGNetConfig(encoder=size))
    model.to("meta")
    for frozen in (True, False):
        model.freeze_encoder(frozen)
        every = sum(p.numel() for p in model.parameters())
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        states, activations = 4 * every + 12 * trainable, activation_bytes(model, (1, 1, 16, 128, 128))
        print(
            f"{size:9} {'frozen' if frozen else 'fine-tuned':11} {every / 1e6:5.1f} M    {trainable / 1e6:5.1f} M "
            f"{states / 1e9:12.2f} {activations / 1e9:17.2f}"
        )
        if frozen:
            frozen_activations[size] = activations
        elif size == "large":
            assert min(states - 4 * every, activations - frozen_activations[size]) > 1e9  # gigabytes in both columns
ours, *official = frozen_activations.values()
assert ours < min(official) == max(official), "frozen, SAM2's size does not matter, but mini's other parts are narrower"

# %% [markdown]
# **What to see.** With SAM2 frozen, the activations are the same from tiny to large, because nothing inside SAM2 is
# saved. They come from the other parts, above all from the two that work at full resolution: the decoder of A_r and the
# Fine-Grained Encoder. The mini FGNet saves less, because these other parts are narrower too. Fine-tuning a large SAM2
# adds gigabytes in both columns. Activations grow with the batch and with every side of a patch; in 16 bits they take
# about half of what is printed. These sums are a lower bound: a GPU also needs memory for the computation itself. If
# memory runs out, first try a smaller patch. Then try a smaller batch with **gradient accumulation**: the gradients of
# several small batches are added up before the weights change.
#
# ## 5 · The loop
#
# Training is a short loop. Here it is, for three iterations of a small patch on a mini FGNet with random weights:

# %%
model = FGNet(SHIPPED)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
small = PatchDataset([volume], patch=(8, 64, 64), augment=Augment(), seed=SEED)
for k in range(3):
    raw, target, mask = (item[None] for item in small[k])
    loss = fgnet_loss(model(raw), target, mask)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    print(f"iteration {k}: loss {loss.item():.3f}")

# %% [markdown]
# `fgnet_lib.training.train` is this loop plus what hours of training need: mixed precision and accumulation (by
# `accelerate`), a learning rate that warms up and then falls along a cosine, checkpoints, a time budget, and a
# progress bar with the time left. It also stops with a clear error when the loss is no longer a number.

# %% [markdown]
# ### Further: the learning rate by hand
#
# **Exercise 4.2: the learning rate.** Write the learning rate in iteration $k$ of $n$, counted from 0. With a peak
# rate $r$ and $w$ iterations of warm-up it is
#
# $$r \cdot \min\!\Big(1, \frac{k + 1}{w}\Big) \cdot \frac{1 + \cos(\pi k / n)}{2}.$$


# %% tags=["task"]
def my_rate(k, n, peak, warmup):
    return ...


# %% tags=["solution"]
def my_rate(k, n, peak, warmup):
    cosine = (1 + np.cos(np.pi * k / n)) / 2
    return peak * min(1, (k + 1) / warmup) * cosine


# %% alt="Learning rate over 40 iterations, yours on the left and the expected one on the right: it rises for 8 iterations and falls to 0."
checks.learning_rate(my_rate)

# %% [markdown]
# ## 6 · Losing the session
#
# Colab may close a session at any time. A **checkpoint** must hold everything that the next iteration depends on:
# weights, both averages of AdamW, the iteration number, and the state of the random generators. It is written to a
# temporary folder and renamed when it is complete. So if the session dies in the middle of writing, the checkpoint
# before is still there. Let us lose a session after iteration 8, with a checkpoint every 5 iterations:

# %%
from fgnet_lib.files.locks import clear
from fgnet_lib.training import TrainConfig, train

folder = session.out_dir / "04_lost_session"
config = TrainConfig(patch=(8, 64, 64), iterations=16, warmup=4, checkpoint_every=5, seed=SEED)


def fresh_model() -> FGNet:
    torch.manual_seed(SEED)
    return FGNet(SHIPPED).to(session.device)


# %%
clear(folder)  # an old run would be resumed, and here we want to see the beginning
seen = []


def lose_the_session(history) -> None:
    seen.append(history.loss[-1])
    if len(seen) == 8:
        raise ConnectionError("the session was closed")


try:
    train(fresh_model(), [volume], config, folder / "lost", lose_the_session)
except ConnectionError as error:
    on_disk = [path.name for path in (folder / "lost").glob("checkpoint*")]
    print(f"after iteration {len(seen)}: {error}; on disk: {on_disk}")

# %% [markdown]
# Iterations 6, 7 and 8 are lost. If you make the same call again, it continues from the checkpoint after iteration 5.

# %%
quiz.ask("04", "again")

# %% [markdown]
# To compare, we also train once without any disturbance:

# %%
resumed = train(fresh_model(), [volume], config, folder / "lost")
undisturbed = train(fresh_model(), [volume], config, folder / "undisturbed")
difference = np.abs(np.subtract(resumed.loss, undisturbed.loss)).max()
print(f"{len(resumed.loss)} iterations; largest difference between the two curves: {difference:.1e}")
assert difference < 1e-6 or session.device.type != "cpu"  # one curve, as the text below says

# %% alt="Left, the loss over 16 iterations: the curve of the undisturbed run, the dashed curve of the resumed one, and the crosses of the lost session all lie on each other. Right, the learning rate: up for four iterations, then down along a cosine."
figure, (ax, rates) = plt.subplots(1, 2, figsize=(13, 4))
steps = range(1, 17)
charts.loss_curve(ax, steps, undisturbed.loss, "undisturbed")
charts.loss_curve(ax, steps, resumed.loss, "lost, then resumed")
ax.lines[-1].set(linestyle="--", linewidth=3)
ax.plot(steps[:8], seen, "x", color="k", label="before the session was lost")
ax.axvline(5, color="gray", linestyle=":", label="checkpoint")
ax.set(title="One continuous curve")
ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
rates.plot(steps, resumed.learning_rate, "o-")
rates.set(title="Warm-up, then a cosine", xlabel="iteration", ylabel="learning rate", ylim=(0, None))
plt.show()

# %% [markdown]
# **What to see.** The dashed curve lies on the other one, and the crosses lie on both. Iterations 6 to 8 were computed
# twice, with the same result, because patch *k* is a function of the seed and *k*. On a CPU the curves are equal to
# the last digit. A GPU may add numbers in another order, so a tiny difference can appear there.
#
# A call with *another* configuration is refused, because half of the run would follow other rules:

# %%
from dataclasses import replace

try:
    train(fresh_model(), [volume], replace(config, learning_rate=0.1), folder / "lost")
except ValueError as error:
    print(str(error).replace(str(folder), "…"))

# %% [markdown]
# **Exercise 4.3: a run that can be resumed.** Here is the smallest possible loop. Complete it, so that the same call
# goes on after a kill as if nothing had happened. What does the next iteration depend on?
# `patch(k)` gives the data of iteration k. `torch.save(dictionary, path)` writes a checkpoint: do so after each
# iteration. `torch.load(path)` reads it; `path` is a `pathlib.Path`, so `path.exists()` tells you whether there is one.
# Return the number of the first iteration that this call computed.


# %% tags=["task"]
def my_train(model, optimizer, patch, iterations, path):
    first = 0
    # if there is a checkpoint: go on from it
    for k in range(first, iterations):
        loss = model(patch(k)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        # write a checkpoint
    return ...  # first


# %% tags=["solution"]
def my_train(model, optimizer, patch, iterations, path):
    first = 0
    if path.exists():
        saved = torch.load(path)
        first = saved["next"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    for k in range(first, iterations):
        loss = model(patch(k)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.save({"next": k + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return first


# %%
checks.resume(my_train)

# %% [markdown]
# ## 7 · Training
#
# Now the real run, within the budget of your profile. It starts from these weights:
#
# - `fast` and `cpu` train the mini FGNet. Its guide, the stand-in, starts as it came from photographs (ImageNet): it
#   has never seen electron microscopy. **Everything else starts at random**: the Fine-Grained Encoder, the attention
#   and both decoders.
# - `gpu` and `full` use SAM2's own pretrained weights, tiny and large, which are downloaded once.
#
# | profile | budget | patch | batch |
# | --- | --- | --- | --- |
# | `fast` | a few iterations: enough to show that everything runs, not to train a model | 8 x 64 x 64 | 1 |
# | `cpu` | about ten minutes | 8 x 96 x 96 | 1 |
# | `gpu` | 24 minutes; by the sums of part 4 it fits into the 15 GB of a T4, even in fp32 | 16 x 160 x 160 | 4 |
# | `full` | a day | 18 x 160 x 160 | 4, accumulated twice |
#
# Three fifths of the budget go to the frozen stage, two fifths to fine-tuning.

# %%
from fgnet_lib.datasets import fetch

if session.profile.encoder == SHIPPED.encoder:
    model = FGNet(SHIPPED, PRETRAINED / "encoder_natural.safetensors")
else:
    checkpoint = fetch(f"sam2.1_hiera_{session.profile.encoder}.pt")
    model = FGNet(FGNetConfig(encoder=session.profile.encoder), checkpoint)
model.to(session.device)
for name, part in model.named_children():
    print(f"{name:16} {sum(p.numel() for p in part.parameters()) / 1e6:6.2f} M weights")

# %%
recipes = {  # ema: the model gets a moving average of its weights over time, which is steadier than the last ones
    "fast": TrainConfig(patch=(8, 64, 64), learning_rate=2e-3, warmup=2),
    "cpu": TrainConfig(patch=(8, 96, 96), learning_rate=2e-3, warmup=50, ema=0.99),
    "gpu": TrainConfig(patch=(16, 160, 160), batch=4, learning_rate=1e-3, warmup=200, ema=0.999),
    "full": TrainConfig(patch=(18, 160, 160), batch=4, accumulate=2, learning_rate=1e-3, warmup=1000, ema=0.999),
}
stages = {}
for stage, part in {"frozen": 0.6, "fine-tuned": 0.4}.items():
    iterations, minutes = int(part * session.profile.iterations), part * session.profile.minutes
    stages[stage] = replace(
        recipes[PROFILE], iterations=iterations, minutes=minutes, freeze_encoder=stage == "frozen", seed=SEED,
        try_bfloat16=True,
    )  # fmt: skip
    print(f"{stage}: until {iterations} iterations or {minutes:g} minutes are over")

# %% [markdown]
# To see what training does, we look at a part of the data that the model never sees in training: at its affinities,
# and at the segmentation that they give. The threshold of the segmentation is chosen on the training part (lesson 05
# explains both).

# %%
from fgnet_lib.inference import predict
from fgnet_lib.metrics import evaluate, voi
from fgnet_lib.segmentation import segment, sweep

familiar, unseen, results = session.volume("train"), session.volume("val"), {}


def look(moment: str) -> None:
    tried = sweep(predict(model, familiar.raw, progress=False).refined, familiar.voxel_size, np.arange(0.1, 0.9, 0.1))
    threshold = min(tried, key=lambda t: sum(voi(tried[t], familiar.labels)))
    affinities = predict(model, unseen.raw, progress=False).refined
    neurons = segment(affinities, unseen.voxel_size, threshold)
    results[moment] = affinities, neurons, evaluate(neurons, unseen.labels)


look("before training")

# %% [markdown]
# The next cell draws the loss while it runs, and the bar below the curve shows the time left. If the session is lost, run
# all cells again: training goes on from its last checkpoint. With a budget in *minutes* the learning rate follows the
# clock, so two such runs are never equal; with a budget in iterations they are, if both have the same arithmetic.

# %% alt="The loss while training, over the minutes of each stage: noisy curves that fall."
from IPython.display import display

figure, ax = plt.subplots(figsize=(9, 4))
plt.close(figure)  # drawn by hand below, whenever there is something new
live, histories = display(figure, display_id=True), {}


def redraw() -> None:
    ax.clear()
    for name, history in histories.items():
        charts.loss_curve(ax, np.array(history.seconds) / 60, history.loss, f"guide {name}")
    ax.set(title="Loss while training", xlabel="minutes in this stage")
    live.update(figure)


def draw(history) -> None:
    histories[stage] = history
    if len(history.loss) % max(1, recipe.iterations // 100) == 0:
        redraw()


for stage, recipe in stages.items():
    histories[stage] = train(model, [volume], recipe, session.out_dir / f"04_{DATASET}_{PROFILE}_{SEED}" / stage, draw)
    redraw()  # a stage that was finished before is only read from disk
    look(stage)

# %% alt="The loss of both stages, smoothed: the longer the training, the lower it falls; the second stage begins a new mean."
smooth = max(3, sum(len(history.loss) for history in histories.values()) // 40)
figure, ax = plt.subplots(figsize=(9, 4))
first = 0
for stage, history in histories.items():
    means = [np.mean(history.loss[max(0, k + 1 - smooth) : k + 1]) for k in range(len(history.loss))]
    charts.loss_curve(ax, first + 1 + np.arange(len(means)), means, f"guide {stage}")
    assert np.isclose(means[-1], np.mean(history.loss[-smooth:]))  # as the title says
    first += len(means)
    minutes = history.seconds[-1] / 60
    print(f"{stage}: {len(means)} iterations in {minutes:.2f} minutes, loss {means[0]:.2f} -> {means[-1]:.2f}")
ax.set(title=f"Loss, mean over the last {smooth} iterations", ylim=(0, None))
ax.legend(loc="lower left")
plt.show()
if session.device.type == "cuda":
    print(f"most GPU memory in use: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")

# %% [markdown]
# The loss is the sum over two outputs, and some augmented patches are much harder than others: judge the smoothed
# curve, not single values. The second stage begins a new mean, so a jump between the curves means nothing.
#
# ## 8 · Before and after

# %% alt="EM and ground truth of a section, and beside them affinities and neurons before training and after each stage. The longer the training, the more the neurons resemble the ground truth."
z = unseen.shape[0] // 2
figure, axes = plt.subplots(2, 1 + len(results), figsize=(min(4 * (1 + len(results)), 15), 8.6))
plots.show_section(axes[0, 0], unseen.raw, voxel_size=unseen.voxel_size, z=z, title="EM")
truth = {"title": "ground truth", "fill": 0.6, "colors": plots.neighbour_colors(unseen.labels)}
plots.show_section(axes[1, 0], unseen.raw, unseen.labels, unseen.voxel_size, z, **truth)
for (above, below), (moment, (affinities, neurons, scores)) in zip(axes.T[1:], results.items(), strict=True):
    plots.show_affinities(above, affinities, unseen.voxel_size, z, title=f"{moment}: affinities")
    matched = {"fill": 0.6, "colors": plots.matched_colors(neurons, unseen.labels, truth["colors"])}
    plots.show_section(below, unseen.raw, neurons, unseen.voxel_size, z, f"{moment}: neurons", **matched)
    print(f"{moment:16} VOI split {scores.voi_split:.2f} + merge {scores.voi_merge:.2f} bits, ARAND {scores.arand:.2f}")
plt.show()

# %% [markdown]
# Colours are matched: of all segments, the one that covers most of a neuron has that neuron's colour.
#
# **What to see.** Before training, the raw image shines faintly through foggy affinities, and the segmentation is
# worthless: one object, or a few blobs. Seconds of training (`fast`) begin to darken borders, and dark mitochondria or
# their rims with them. Minutes (`cpu`) teach the model to tell membranes from mitochondria, and outlines close; look
# for the remaining errors at thin neurites. Compare the scores with those of the shipped model (its card is
# `data/pretrained/README.md`), which was trained for hours. **Do not take a small difference between two stages for a
# result**: it is one run with one seed, and the second stage simply trained for longer. Lesson 07 answers such
# questions with several seeds.
#
# We save the model with the configuration that is needed to build it again. Lesson 08 takes such a file as
# `CHECKPOINT`:

# %%
from fgnet_lib.weights import save_model

notes = {"dataset": DATASET, "profile": PROFILE, "seed": SEED}
path = save_model(model, session.out_dir / "04_model.safetensors", notes)
print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# ### Further: what a far corner changes
#
# A norm keeps the features of a network at one scale. **GroupNorm** takes mean and spread over the *whole window*, so
# what stands in one corner moves the features everywhere. **ChannelNorm**, the norm of the shipped model, looks at one
# voxel alone: the voxel's channels are divided by their root mean square (RMSNorm). We turn a corner of a window grey
# and measure how much affinities change at every distance from it: in two U-Nets with the same random weights, which
# differ in their norm only, and in the shipped model.
#
# All voxels that an affinity depends on are its **receptive field**.

# %%
from dataclasses import replace

wider = [(0, 0), *((0, max(0, 256 - n)) for n in volume.shape[1:])]  # a small volume is mirrored, to see far enough
window = torch.from_numpy(np.pad(volume.raw[:4], wider, "symmetric")[None, None] / np.float32(255))
height, width = (n // 8 for n in window.shape[3:])
y, x = np.indices(window.shape[3:])
distance = np.maximum(y - height + 1, x - width + 1).clip(0).ravel()  # along y or x, whichever is larger


def predict_with_corner(network, value: float) -> torch.Tensor:
    """A_r of the window if all voxels in its corner have one grey value."""
    changed = window.clone()
    changed[..., :height, :width] = value
    with torch.no_grad():
        return network.eval()(changed).refined.sigmoid()


# %% [markdown]
# To find where the receptive field ends, we set the corner to "not a number": what depends on it is no number either.


# %%
def change_by_distance(network) -> np.ndarray:
    """How much A_r changes on average, by the distance in voxels from the grey corner."""
    with torch.no_grad():
        before = network.eval()(window).refined.sigmoid()
    change = (predict_with_corner(network, 0.5) - before).abs().mean(dim=(0, 1, 2)).numpy().ravel()
    return np.bincount(distance, change) / np.bincount(distance)


def reach_of_corner(network) -> int:
    """The largest distance at which A_r depends on the corner."""
    depends = predict_with_corner(network, float("nan")).isnan().amax(dim=(0, 1, 2)).numpy().ravel()
    return distance[depends].max()


# %% [markdown]
# Here are the three networks, with both measurements:


# %%
def unet(norm: str) -> FGNet:
    torch.manual_seed(SEED)
    return FGNet(replace(SHIPPED, encoder=None, norm=norm))


networks = {"U-Net, GroupNorm": unet("group"), "U-Net, ChannelNorm": unet("channel"), "shipped": load_pretrained()}
changes = {name: change_by_distance(network) for name, network in networks.items()}
reaches = {name: reach_of_corner(network) for name, network in networks.items()}

# %% alt="Mean change of the affinities against the distance from the corner, on a logarithmic axis. The curve of the U-Net with ChannelNorm falls and ends at a dotted line; the shipped model's falls and ends at a dotted line further out; the curve of GroupNorm levels out and goes on to the far side."
figure, ax = plt.subplots(figsize=(9, 4.5))
for name, change in changes.items():
    (line,) = ax.semilogy(np.where(change > 0, change, np.nan), label=name)
    if reaches[name] < distance.max():
        ax.axvline(reaches[name], color=line.get_color(), linestyle=":")
        print(f"{name}: beyond {reaches[name]} voxels nothing changes at all")
        assert not changes[name][reaches[name] + 1 :].any()
    else:
        print(f"{name}: {change[-1]:.1e} on average at the far side, {distance.max()} voxels away")
ax.set(xlabel="distance from the grey corner (voxels)", ylabel="mean change of an affinity", ylim=1e-9)
ax.legend(title="dotted: where the receptive field ends")
near, far = changes["shipped"][[16, 128]]
print(f"shipped: {near:.1e} on average at 16 voxels, {far:.1e} at 128")
assert changes["U-Net, GroupNorm"].min() > 0 and reaches["U-Net, GroupNorm"] == distance.max()
assert 3 * reaches["U-Net, ChannelNorm"] < reaches["shipped"] < distance.max() and far < near / 100  # as the text says

# %% [markdown]
# **What to see.** Near the corner both U-Nets change alike. With ChannelNorm the curve then ends: beyond the dotted line
# the change is exactly 0, because the corner lies outside the receptive field. The shipped model's curve ends, too, but
# more than three times as far away, because its guide looks around at stride 16. With GroupNorm the curve levels out
# instead: no place is far enough away. So the same neuron gets slightly other affinities in another window. That is one
# reason why in lesson 09 the volume decides where windows lie, and not the block.
#
# With ChannelNorm, windows of any size agree wherever they see the whole receptive field, if they begin a multiple of
# 16 voxels apart in y and x (the coarsest stride). Few voxels of the shipped model's windows see it whole. But its far
# part hardly counts: at 128 voxels the change is less than a hundredth of the change at 16. Is ChannelNorm as accurate?
# On FIB-25 no loss is seen; on other tissue small U-Nets with it are mostly worse (lesson 07, part 8).

# %% [markdown]
# ## 9 · Further: the same on a GPU
#
# On Colab, choose a T4, set `PROFILE = "gpu"` at the top, and run all cells. If the session is lost, run all cells
# again. Keep `OUT_DIR` on a mounted drive; otherwise you lose the checkpoints with the session. On a machine of your
# own, papermill runs the notebook as a program:
#
# ```
# papermill notebooks/04_training.ipynb out/04.ipynb -p PROFILE gpu -p DATASET cremi_a
# papermill notebooks/04_training.ipynb out/04.ipynb -p PROFILE full -p DATASET cremi_a
# ```
#
# We have not measured the `gpu` and `full` profiles on a T4. The memory is computed as in part 4, and the budgets are
# limits in minutes. So we cannot tell you which scores to expect.

# %% [markdown]
# ## 10 · Further: the same on several GPUs
#
# `train` works with any number of GPUs. Start it once for each GPU, and the processes find each other. Of *n*
# processes, process *r* takes batches *r*, *r + n*, *r + 2n*, … of the same run, and their gradients are averaged
# before the weights change. So *n* GPUs with batch *B* do what one GPU with batch *nB* does. (A test of this repository
# compares the gradients of two processes with those of one.) Keep three things in mind:
#
# - The **effective batch** is processes x batch x accumulated batches. `train` takes your **learning rate** as it is.
#   For an effective batch *n* times as large, √n times the rate is a usual start with Adam, with a longer warm-up.
# - Patch *k* is a function of the **seed** and *k*, so no two processes see the same patch. Random numbers inside the
#   model start from the seed plus the number of the process.
# - The first process writes the **checkpoints**; every process adds the state of its random generators. So a run goes on
#   with as many processes as it began with. Another number is refused, like any other change.
#
# From a notebook, `notebook_launcher` starts the processes. They are copies of this process, which must not have
# touched a GPU. The checkpoints of part 6 do so wherever there is one, even with `DEVICE = "cpu"`: then the next cell
# trains in one process, and several need the shell (below). Without a GPU, outside Colab, `processes = 2` trains in two
# processes, which exchange gradients through the library gloo, as GPUs do through NCCL.

# %%
from accelerate import notebook_launcher

from fgnet_lib.machine import choose_device

shared = TrainConfig(patch=(8, 64, 64), iterations=4, warmup=1, seed=SEED)


def on_every_gpu() -> None:
    torch.manual_seed(SEED)  # all begin with the same weights
    train(FGNet(SHIPPED).to(choose_device()), [volume], shared, folder / f"shared_{processes}")


processes = 1 if torch.cuda.is_initialized() else max(1, torch.cuda.device_count())
notebook_launcher(on_every_gpu, num_processes=processes)

# %% [markdown]
# For hours of training, the shell is better; `accelerate launch` does the same on one machine or several:
#
# ```
# accelerate launch --multi_gpu --num_processes 4 tools/results/train.py --dataset cremi_a --encoder tiny --batch 4 --out out/cremi_a
# ```
#
# On a CPU, `--multi_gpu` starts several processes as well, and `train` joins them. (`--cpu` starts only one, whatever
# number you ask for: accelerate 1.15.) Our tests run two processes on a CPU, started by `accelerate launch`, by
# `notebook_launcher` and by `torchrun`. Together they compute the gradients of one process with twice the batch. If
# they are killed, even while they write a checkpoint, they go on to the same weights, bit for bit. We have not measured
# speed on GPUs, but you can: run the command with `--num_processes 1`, then with more, each into a new folder, and
# compare the last entry of `seconds` in `history.json` of the last checkpoint.

# %% [markdown]
# ## Your exercises

# %%
checks.report("04")

# %% [markdown]
# ## What you learned
#
# - Targets are recomputed after augmentation, and unknown voxels are masked.
# - Most affinities are 1, so each class gets half of the loss.
# - fp16 needs loss scaling, bf16 needs a recent GPU or CPU, and every other CPU stays with fp32.
# - A frozen SAM2 costs only its weights; fine-tuning also costs gradients, averages and activations.
# - A run can be continued exactly if its data are a function of seed and iteration, and if its checkpoints appear all
#   at once.
#
# ## Try it
#
# 1. **Leave out the balance.** Copy the loop of part 5, replace the loss with
#    `F.binary_cross_entropy_with_logits(model(raw).refined[mask], target[mask])`, and train both for 50 iterations. Which
#    one finds membranes first?
# 2. **Find the largest patch** that an 8 GB GPU can take with SAM2 tiny fine-tuned, with `activation_bytes`. How much
#    larger may it be in 16 bits?
# 3. **Kill it for real.** Interrupt the kernel while part 7 trains, restart it, and run all cells. Where does the
#    curve go on?
# 4. Set `accumulate=4` in the configuration of part 6. What changes in the curve, and what in the time?
#
# ## References
#
# - Li, Chen, Sun, Li, Hu. *Leveraging Feature-Guided Attention to Refine SAM2 for 3D EM Neuron Segmentation.* AAAI
#   2026, [doi:10.1609/aaai.v40i8.37606](https://doi.org/10.1609/aaai.v40i8.37606).
# - K. Lee et al. *Superhuman Accuracy on the SNEMI3D Connectomics Challenge.* 2017,
#   [arXiv:1706.00120](https://arxiv.org/abs/1706.00120) (affinities, augmentation).
# - P. Micikevicius et al. *Mixed Precision Training.* ICLR 2018, [arXiv:1710.03740](https://arxiv.org/abs/1710.03740).
# - B. Zhang, R. Sennrich. *Root Mean Square Layer Normalization.* NeurIPS 2019,
#   [arXiv:1910.07467](https://arxiv.org/abs/1910.07467) (RMSNorm).
# - I. Loshchilov, F. Hutter. *Decoupled Weight Decay Regularization.* ICLR 2019,
#   [arXiv:1711.05101](https://arxiv.org/abs/1711.05101) (AdamW).
# - I. Loshchilov, F. Hutter. *SGDR: Stochastic Gradient Descent with Warm Restarts.* ICLR 2017,
#   [arXiv:1608.03983](https://arxiv.org/abs/1608.03983) (the cosine).
# - F. Milletari, N. Navab, S.-A. Ahmadi. *V-Net.* 3DV 2016, [arXiv:1606.04797](https://arxiv.org/abs/1606.04797) (the
#   Dice loss).
# - [accelerate](https://huggingface.co/docs/accelerate) and [MONAI](https://monai.io), which do the work here.
