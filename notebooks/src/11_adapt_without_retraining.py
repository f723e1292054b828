# %% [markdown]
# # 11 · Adapt without retraining: how few parameters an encoder needs to learn a new tissue
#
# <!-- badges -->
#
# **What you will learn**
#
# - what lies between a frozen and a fine-tuned encoder: almost three orders of magnitude of parameters;
# - **LoRA**: a low-rank update of a frozen layer, why it changes nothing at first, and how it disappears by merging;
# - a gate for each image, and a **frequency adapter**, which sees the texture of a section but not its place;
# - how to keep what was learned in a file of less than 100 kB, so that one base model serves several tissues;
# - what our measurements say about the knee: how many parameters suffice, with 5, 20 and 120 labelled sections.
#
# **Before you start.** Lesson 02 shows what an encoder's features are, and lesson 07 what seeds and *p* are.
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
# ## 1 · Between frozen and fine-tuned
#
# SAM2's encoder is large, and your labelled sections are few. You can **freeze** it and train only the decoder behind
# it, or **fine-tune** it and change every weight. Frozen, it cannot learn what your tissue looks like. Fine-tuned, it
# may forget what it knew, and you must store a whole encoder for each tissue. I-MedSAM (references below) takes the
# middle way: the encoder stays frozen, and small **adapters** beside its layers learn. You will also meet the **knee** of
# a curve: the number of parameters beyond which more of them hardly help.
#
# **What is the paper's and what is ours.** The paper gives low-rank updates of SAM's attention, one gate for each image,
# and the frequency adapter. It segments organs in 2D medical images. Here, the encoder is SAM2's Hiera, the task is our
# affinities, and the code is written from the equations.

# %%
from copy import deepcopy
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

from fgnet_lib.augment import Augment
from fgnet_lib.course import checks, quiz
from fgnet_lib.datasets import fetch
from fgnet_lib.fgnet import FGNet
from fgnet_lib.natural_encoder import build_natural_encoder
from fgnet_lib.neighbours import adapters
from fgnet_lib.neighbours.adapters import AdapterConfig
from fgnet_lib.patches import PatchDataset
from fgnet_lib.sam2_encoder import build_encoder
from fgnet_lib.study import adaptation
from fgnet_lib.training import TrainConfig, fit, patch_loss
from fgnet_lib.views import charts, plots
from fgnet_lib.views.tables import fold_table
from fgnet_lib.weights import PRETRAINED, fingerprint_weights

# %% [markdown]
# The model is SAM2's encoder and the coarse decoder behind it, without lesson 03's Fine-Grained Encoder. So the affinities
# depend on the encoder alone, and you see what adapting it changes. The encoder is a small one, built as SAM2's is, that
# comes with this repository. **Another encoder needs one change.** With `ENCODER = "tiny"` everything below runs with
# SAM2.1's official checkpoint, if you have it or can download it. With `ENCODER = "natural"` it runs with the encoder
# that learned from photographs, the guide of the model that ships. That network has no attention, so its updates go
# beside its 1 × 1 convolutions, and part 4 goes back to the small encoder.

# %%
ENCODER = "mini"  # mini | natural | tiny | small | base_plus | large
SHIPPED = {"mini": PRETRAINED / "encoder_mini.pt", "natural": PRETRAINED / "encoder_natural.safetensors"}
weights = SHIPPED[ENCODER] if ENCODER in SHIPPED else fetch(f"sam2.1_hiera_{ENCODER}.pt")
torch.manual_seed(SEED)
base = FGNet(replace(adaptation.METHODS["frozen"].config, encoder=ENCODER), weights).eval()
volume = session.volume("train")
section = torch.from_numpy(volume.raw[len(volume.raw) // 2 :][:1] / np.float32(255))[None, None]
section = section[..., : section.shape[-2] // 32 * 32, : section.shape[-1] // 32 * 32]
count = sum(parameter.numel() for parameter in base.encoder.parameters())
print(f"{volume.name}: {volume.shape} voxels; one section of it: {tuple(section.shape)}")
print(
    f"the encoder has {count:,} parameters, the rest of the model {sum(p.numel() for p in base.parameters()) - count:,}"
)

# %% [markdown]
# ## 2 · LoRA: a low-rank update
#
# A layer of the encoder computes $Wx$. Fine-tuning replaces $W$ by $W + \Delta W$, where $\Delta W$ has as many numbers
# as $W$. LoRA (Hu et al. 2022) assumes that a *low-rank* change is enough, $\Delta W = BA$:
#
# $$h = W x + g\, B (A x), \qquad A: r \times d_\mathrm{in},\quad B: d_\mathrm{out} \times r,\quad r \ll d.$$
#
# $A$ looks at the input in $r$ directions, and $B$ says what each of them adds to the output. $r$ is called the **rank** of
# the update. $W$ is frozen. **$B$ is 0 at first, so the adapted encoder begins as the frozen one**, whatever the gate $g$
# is. Leave $g = 1$ for the moment; part 4 explains it.
#
# In each block of Hiera one layer, `qkv`, computes queries, keys and values together. The library peft puts an update
# beside it, and one line says where: `LoraConfig(r=4, lora_alpha=4, target_modules=["qkv"])`. (peft multiplies the update
# by `lora_alpha / r`, which is 1 here, as in the formula. The paper changes queries and values. With the fused layer, keys
# change too.)

# %%
model = deepcopy(base)
adapters.attach_adapters(model.encoder, AdapterConfig(rank=4))
updated = [layer for layer in model.encoder.modules() if hasattr(layer, "lora_A")]
print(f"{len(updated)} layers have an update; the first:\n{updated[0]}")
with torch.no_grad():
    before, after = base.encoder(section), model.encoder(section)
assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
print("with adapters, before training: the same features, bit for bit")

# %% [markdown]
# **Exercise 11.1: a low-rank update.** All inputs are NumPy arrays. `x` holds the tokens of several images, with the
# shape (images, tokens, inputs). `weight` is $W$ (outputs, inputs), `a` is $A$ (r, inputs), `b` is $B$ (outputs, r), and
# `gate` has one number for each image. Return $W x + g\, B (A x)$ for every token, in the shape (images, tokens, outputs).


# %% tags=["task"]
def my_adapted(x, weight, a, b, gate):
    return ...


# %% tags=["solution"]
def my_adapted(x, weight, a, b, gate):
    update = x @ a.T @ b.T
    return x @ weight.T + gate[:, None, None] * update


# %%
checks.low_rank_update(my_adapted)

# %% [markdown]
# ### Merging loses nothing
#
# Because $(W + BA)x = Wx + B(Ax)$, you may add $BA$ to $W$ once, after training. The layer is then as fast as before.
# Here the adapters get random weights, as if they had been trained, and we compare both ways:

# %%
for layer in updated:
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
merged = deepcopy(model)
adapters.merge_adapters(merged.encoder)
with torch.no_grad():
    pairs = list(zip(model.encoder(section), merged.encoder(section), base.encoder(section), strict=True))
rounding = max((a - b).abs().max().item() for a, b, _ in pairs)
change = max((a - c).abs().max().item() for a, _, c in pairs)
print(f"adapted against merged: at most {rounding:.1e}; adapted against the base model: up to {change:.2f}")
print("adapters in the merged encoder:", adapters.has_adapters(merged.encoder))
assert rounding < 1e-3 * change

# %% [markdown]
# **What to see.** The first number is rounding: the two ways add the same numbers in another order. The second says
# that these adapters did change the features.
#
# ## 3 · What does it cost?

# %%
quiz.ask("11", "parameters")

# %% [markdown]
# **Exercise 11.2: the size of an adapter.** `layers` is a list of pairs, inputs and outputs of each layer that gets an
# update, and `rank` is $r$. How many parameters are trained in $A$ and $B$ of all layers together?


# %% tags=["task"]
def my_size(layers, rank):
    return ...


# %% tags=["solution"]
def my_size(layers, rank):
    return sum(rank * (inputs + outputs) for inputs, outputs in layers)


# %%
checks.adapter_size(my_size)

# %% [markdown]
# Now count for our encoder. The list has two more ways to train little: *norm layers only* trains the scale and the
# shift of each layer norm, and *with spectrum* adds the frequency adapter of part 5.

# %%
METHODS = {name: adaptation.METHODS[name] for name in adaptation.SHOWN}
if ENCODER == "natural":
    METHODS = {name: method for name, method in adaptation.METHODS.items() if method.config.encoder == "natural"}


def count_trained(method):
    model = deepcopy(base)
    if method.regime == "adapters":
        adapters.attach_adapters(model.encoder, AdapterConfig(method.rank, method.gate, method.spectrum))
    adapters.train_only(model, method.regime)
    return sum(p.numel() for p in model.encoder.parameters() if p.requires_grad)


trained = {name: count_trained(method) for name, method in METHODS.items()}
heads = ["method", "trained in the encoder", "share", "kB in a file"]
lines = [[METHODS[name].title, f"{n:,}", f"{n / count:.1%}", f"{4 * n / 1000:,.0f}"] for name, n in trained.items()]
fold_table(heads, {"": lines[:5], "more": lines[5:]})

# %% [markdown]
# ## 4 · A gate for each image
#
# Sections differ: one is dark, one is blurred. I-MedSAM multiplies the update by a gate $g = \sigma(w^\top \bar x + b)$,
# where $\bar x$ is the mean of the image's tokens. So each image gets its own share of the update. We compute one gate in
# each block. **With a gate you cannot merge**: each image would need weights of its own.

# %%
gated = deepcopy(base.encoder) if ENCODER != "natural" else build_encoder("mini", SHIPPED["mini"]).eval()
two = torch.cat([section, 0.3 * section])  # the same section, and a darker copy
with torch.no_grad():
    before = gated(two)
    adapters.attach_adapters(gated, AdapterConfig(rank=4, gate=True))
    seen = []
    for gate in gated.adapters.gates:
        gate.score.register_forward_hook(lambda layer, inputs, output: seen.append(output.sigmoid()))
    after = gated(two)
for block, values in enumerate(seen):
    print(f"block {block}: gate {values[0].item():.3f} for the section, {values[1].item():.3f} for the dark copy")
assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
print("before training: the same features, bit for bit, whatever the gates are")
try:
    adapters.merge_adapters(gated)
except ValueError as error:
    print("merging:", error)

# %% [markdown]
# **What to see.** There are two images, so every block has two gates. The gates have not been trained, so their values
# mean nothing yet. And since $B$ is still 0, they scale nothing: the features are those of the frozen encoder.
#
# ## 5 · The frequency adapter
#
# A membrane is an edge, and edges have high frequencies. I-MedSAM therefore also shows the encoder the **amplitude
# spectrum** of the image, $|\mathrm{FFT}(\text{image})|$, with frequency 0 in the middle and scaled to 0 to 1. The frozen
# patch embedding cuts it into tokens. In each block a small branch (down to a quarter of the channels, GELU, up again)
# makes $x_f$ of these tokens, and the block's output becomes $x + 0.5\, x_f$. (In Hiera, later blocks have coarser grids,
# so we average the tokens over them. That is ours.)
#
# One detail should matter, and part 8 asks whether it does. Look at the values of the spectrum, as they are and after
# $\log(1 + \cdot)$:

# %%
grey = section[0, 0, 0]
spectra = {kind: adapters.amplitude_spectrum(grey, kind).numpy() for kind in ("raw", "log1p")}
assert np.median(spectra["raw"]) < 0.02 and np.median(spectra["log1p"]) > 10 * np.median(spectra["raw"])


def draw_histograms(ax):
    for kind, spectrum in spectra.items():
        share = np.full(spectrum.size, 100 / spectrum.size)
        ax.hist(spectrum.ravel(), np.linspace(0, 1, 41), weights=share, label=kind, histtype="step", linewidth=2)
    ax.set(title="what a frequency adapter sees", xlabel="value", ylabel="frequencies (%)", yscale="log")
    ax.legend(frameon=False)


# %% alt="A section, its amplitude spectrum as it is, nearly black but for a point in the middle that an inset enlarges, its spectrum after the logarithm, where a cloud of frequencies is visible, and a histogram of both: nearly all raw values lie close to 0, those after the logarithm spread from 0 to about 0.6."
figure, axes = plt.subplots(1, 4, figsize=(15, 3.9), layout="constrained")
axes[0].imshow(grey, cmap="gray")
axes[0].set(title="section", xlabel="x (voxels)", ylabel="y (voxels)")
plots.scale_bar(axes[0], volume.voxel_size)
for ax, (kind, spectrum) in zip(axes[1:], spectra.items(), strict=False):
    image = ax.imshow(spectrum, cmap="magma", vmin=0, vmax=1, extent=(-0.5, 0.5, 0.5, -0.5))
    ax.set(title=f"amplitude, {kind}: median {np.median(spectrum):.1g}", xlabel="frequency in x (1 / voxel)")
    ax.set(ylabel="frequency in y (1 / voxel)", xticks=[-0.5, 0, 0.5], yticks=[-0.5, 0, 0.5])
inset = axes[1].inset_axes((0.56, 0.5, 0.4, 0.4))
nearest = tuple(slice(side // 2 - 4, side // 2 + 5) for side in grey.shape)
inset.imshow(spectra["raw"][nearest], cmap="magma", vmin=0, vmax=1)
inset.set(xticks=[], yticks=[])
inset.set_title("its middle", color="white", fontsize=10)
inset.spines[:].set(visible=True, color="white")
figure.colorbar(image, ax=axes[2], label="amplitude, scaled to 0 to 1")
draw_histograms(axes[3])
plt.show()

# %% [markdown]
# **What to see.** Frequency 0, in the middle, is the sum of all grey values, far larger than any other amplitude. After
# scaling, it is 1 and nearly everything else is 0: the adapter sees one bright pixel, which the inset enlarges. The
# logarithm brings the other frequencies into view. So we measure both, *raw* and *log1p*. (A frequency of 0.5 for each
# voxel is a wave of two voxels, the shortest that fits.)

# %% [markdown]
# ### Further: a spectrum by hand
#
# **Exercise 11.3: the spectrum that the adapter sees.** Take a section (y, x), and return $\log(1 + |\mathrm{FFT}|)$ with
# frequency 0 in the middle (`np.fft.fftshift`), scaled so that its least value is 0 and its largest 1.


# %% tags=["task"]
def my_spectrum(section):
    return ...


# %% tags=["solution"]
def my_spectrum(section):
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2(section)))
    logarithm = np.log1p(amplitude)
    return (logarithm - logarithm.min()) / (logarithm.max() - logarithm.min())


# %%
checks.log_spectrum(my_spectrum)

# %% [markdown]
# ### When a section moves
#
# What does the adapter *not* see? Predict first:

# %%
quiz.ask("11", "moved")

# %%
moved = torch.roll(grey, (20, -7), dims=(0, 1))
difference = (adapters.amplitude_spectrum(moved, "log1p") - adapters.amplitude_spectrum(grey, "log1p")).abs().max()
print(f"grey values change by up to {(moved - grey).abs().max():.2f}, the spectrum by {difference:.0e} (rounding)")
power = torch.fft.fft2(grey.double()).abs().square().mean()
print(f"Parseval: mean power {power:.3f}, sum of squared grey values {grey.double().square().sum():.3f}")
assert difference < 1e-4 and torch.isclose(power, grey.double().square().sum())

# %% [markdown]
# The spectrum keeps the energy of the picture (Parseval's theorem), but not where things are. It can tell the encoder
# *which* texture a section has: how blurred, how noisy, how coarse. It cannot tell the encoder where a membrane is.
#
# ## 6 · Adapt it yourself
#
# Now train: the decoder and an update of rank 4, on the training part of your data set, within the budget of your
# profile. Nothing else of the encoder changes.

# %%
CONFIG = AdapterConfig(rank=4)
minutes = {"fast": 0.1, "cpu": 1.0, "gpu": 1.0}.get(PROFILE, 10.0)
side = 64 if PROFILE == "fast" else 128
recipe = TrainConfig((8, side, side), iterations=2000, minutes=minutes, learning_rate=2e-3, warmup=10, seed=SEED)
recipe = replace(recipe, encoder_lr_factor=1.0, checkpoint_every=10_000)

model = deepcopy(base).to(session.device)
adapters.attach_adapters(model.encoder, CONFIG)
adapters.train_only(model, "adapters")
patches = PatchDataset([volume], recipe.patch, Augment(), SEED)
start = fingerprint_weights(base.state_dict())[:6]  # a training goes on only from the weights that it began with
folder = f"11_{DATASET}_{PROFILE}_{SEED}_{ENCODER}_{start}_{CONFIG.rank}_{CONFIG.gate}_{CONFIG.spectrum}"  # one per run
history = fit(model, patches, patch_loss, recipe, session.out_dir / folder)
ends = np.mean(history.loss[:5]), np.mean(history.loss[-5:])
print(f"iterations: {len(history)}; loss {ends[0]:.3f} in the first five, {ends[1]:.3f} in the last five")

# %% [markdown]
# What has it learned? The update $BA$ of a layer is a matrix as large as $W$. Its **singular values** say how many
# directions it has:

# %% alt="Singular values of the learned update of each attention layer, on a logarithmic axis: four values of ordinary size, and from the fifth on nothing but rounding."
model.cpu()
figure, ax = plt.subplots(figsize=(9, 3.8), layout="constrained")
for name, layer in model.encoder.named_modules():
    if hasattr(layer, "get_delta_weight"):
        update = layer.get_delta_weight("default").detach().double().flatten(1)
        values = torch.linalg.svdvals(update)[: CONFIG.rank + 6]
        label = name.removeprefix("image_encoder.trunk.").removesuffix(".attn.qkv")
        ax.semilogy(np.arange(1, 1 + len(values)), values.clamp(min=1e-12), "o-", ms=4, label=label)
        assert (values[CONFIG.rank :] < 1e-5 * values[0]).all()
ax.axvline(CONFIG.rank + 0.5, color="black", ls=":")
ax.set(
    xlabel="number of the singular value",
    ylabel="singular value of B A",
    title=f"from number {CONFIG.rank + 1} on: rounding",
)
ax.set_xticks(range(1, CONFIG.rank + 7))
if len(updated) <= 12:  # more would not fit beside the curves
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
plt.show()

# %% [markdown]
# **What to see.** Each line has four values of ordinary size. To the right of the dotted line everything is rounding: an
# update of rank 4 has four directions, no matter how long it is trained.
#
# ## 7 · One base, several tissues
#
# `save_adapters` writes only what was trained, and a checksum of all the rest. So a file cannot be put onto another base
# model by mistake. (The decoder was trained, too, so the file is larger than the updates alone in part 3.)

# %%
path = session.out_dir / f"11_{DATASET}.safetensors"
adapters.save_adapters(model, path, CONFIG, {"tissue": volume.name})
print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB; an encoder of its own: {4 * count / 1000:,.0f} kB")
served = deepcopy(base)
notes = adapters.load_adapters(served, path)
with torch.no_grad():
    same = torch.equal(served(section).coarse, model(section).coarse)
    adapters.detach_adapters(served.encoder)
    restored = all(torch.equal(a, b) for a, b in zip(served.encoder(section), base.encoder(section), strict=True))
print(f"loaded for {notes['tissue']}: same affinities {same}; taken off again: the base encoder {restored}")
assert same and restored and (path.stat().st_size <= 200_000 or ENCODER not in SHIPPED or CONFIG.rank > 4)
other = FGNet(base.config).eval()  # another encoder, with random weights
try:
    adapters.load_adapters(other, path)
except ValueError as error:
    print("on another base:", str(error).replace(f"{path.parent}", "").lstrip("/"))

# %% [markdown]
# A laboratory with ten tissues stores one encoder and ten such files. (With SAM2.1's `tiny` encoder, which has 109 MB,
# the file has 360 kB at rank 4, and 215 kB at rank 2: the decoder in it stays as large.)
#
# The guide that learned from photographs takes updates in the same way. Its 1 × 1 convolutions hold nearly all of its
# weights. (To train and store it as above, set `ENCODER = "natural"`.)

# %%
natural = build_natural_encoder(SHIPPED["natural"]).eval()
with torch.no_grad():
    before = natural(section)
    adapters.attach_adapters(natural, AdapterConfig(rank=4))
    after = natural(section)
assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
sizes = {True: 0, False: 0}
for name, parameter in natural.named_parameters():
    sizes["lora_" in name] += parameter.numel()
print(f"photographs: {sizes[True]:,} parameters in updates of rank 4, beside {sizes[False]:,} that are frozen")

# %% [markdown]
# ## 8 · Measured: where is the knee?
#
# The rows below were trained as this lesson trains: the same encoder, a new decoder, the first 5, 20 or 120 sections of
# FIB-25, about the same time of one core for each method, three seeds each. They are judged on FIB-25's validation part,
# and on gala and AC4, two volumes that no row was trained on. How many of the runs have been measured?

# %%
rows = adaptation.read_adaptations()
print(adaptation.describe_missing_adaptations(rows))


def parameters_and_scores(name, volume):
    vois = {n: adaptation.adaptation_scores(rows, name, n, volume) for n in adaptation.SECTIONS if (name, n) in rows}
    trained = next(runs[0]["trained"]["encoder"] for (method, _), runs in rows.items() if method == name)
    return trained, {n: values for n, values in vois.items() if values}


measured = [name for name in adaptation.SHOWN if any(method == name for method, _ in rows)]
points = {
    title: {adaptation.METHODS[name].title: parameters_and_scores(name, volume_name) for name in measured}
    for volume_name, title in adaptation.JUDGED_ON.items()
}

# %% alt="VOI on FIB-25, gala and AC4, a panel each, against the trained parameters of the encoder, from 0 for a frozen one to more than a million for a fully fine-tuned one, on a logarithmic axis: one line for each number of labelled sections, with bars for the spread over seeds and a dot for each run. An inset shows the histograms of the two spectra."
figure = charts.parameters_figure(points)
draw_histograms(figure.axes[1].inset_axes((1.1, 0.1, 0.28, 0.8)))
plt.show()

# %% [markdown]
# **How to read it.** Lower is better. A square is the mean of three seeds, its bar their standard deviation, and each dot
# one run. (The small histogram repeats part 5, since one method uses a spectrum.) Go from left to right along one
# line: where does it stop falling? That is the **knee**: the parameters to its right buy nothing that you can see. Then
# compare each step with the bars. A step that is smaller than the bars may be chance, and a line with fewer points than
# the others has rows that are not measured yet.
#
# Let the rows say it themselves. For each volume and number of sections you see the figure's method with the fewest
# trained parameters that is as good as its best. *As good* means that their means differ by no more than the spread of
# their single runs.

# %%
for volume_name, title in adaptation.JUDGED_ON.items():
    for sections in adaptation.SECTIONS:
        if knee := adaptation.describe_knee(rows, sections, volume_name):
            print(f"{title}, {sections} sections: {knee}")
            assert volume_name != "gala" or knee.startswith("norm layers only")  # as the text says
for volume_name, title in adaptation.JUDGED_ON.items():
    scores = [run["volumes"].get(volume_name) for runs in rows.values() for run in runs]
    merged_bits, split_bits = (sum(score[key] for score in scores if score) for key in ("voi_merge", "voi_split"))
    print(f"{title}: {merged_bits / (merged_bits + split_bits):.0%} of VOI comes from merges, over all runs")
assert merged_bits > 4 * split_bits  # as the text says of AC4, the last volume
averages = []
for sections in {n for _, n in rows}:
    known, new = (
        [np.mean(vois[sections]) for _, vois in points[title].values() if sections in vois]
        for title in ("FIB-25", "gala")
    )
    assert max(known) - min(known) < 0.3 and new[0] == max(new)  # the first is the frozen encoder
    guides = [
        np.mean(adaptation.adaptation_scores(rows, name, sections, "gala"))
        for name in ("natural_frozen", "natural_rank_4", "natural_full")
    ]
    assert guides[0] == min(guides)  # the guide that learned from photographs, frozen
    averages.append(np.mean(known))
assert np.ptp(averages) < 0.15  # as the text says of more sections

# %% [markdown]
# **What to see.** On FIB-25, the tissue of the training, no method is far ahead: with equally many sections all means
# lie within 0.3 bits. Nor do more sections help in so short a training: the lines lie close together. On gala the first
# step decides. **There the frozen encoder is worse than every other one in the figure, even than the one of which only the
# norm layers were trained, 2,496 of 1,400,576 parameters.** This is not a law: the guide that learned from photographs,
# which is not in the figure, is best there if it stays frozen. The norm layers are also the knee of gala: as the printed
# lines say, none in the figure is better by more than the spread. The last three lines are a warning. Where
# nearly all of VOI comes from merges, as on AC4, the segmentation has joined nearly everything, and a difference there
# says little.
#
# The same runs, as questions. A negative difference means that the first method of a question is better: "Does low-rank
# adaptation help?" compares LoRA with the frozen encoder. *p* is counted by permutation, as in lesson 07; with three runs
# of each method it cannot be less than 0.10.

# %%
groups = {}
for volume_name, title in adaptation.JUDGED_ON.items():
    for sections in adaptation.SECTIONS:
        answers = {
            question: adaptation.adaptation_answer(rows, pair, sections, volume_name)
            for question, pair in adaptation.QUESTIONS.items()
        }
        groups[f"{title}, {sections} sections"] = [[q, *answer] for q, answer in answers.items() if answer]
fold_table(["question", "VOI of the first", "of the second", "difference", "p"], groups)

# %% [markdown]
# [adaptation.md](../docs/measured/adaptation.md) has every row, with the time that each took.
#
# **What was expected, and did it come?** The rows answer again. *Came in all runs* means that every run of the first
# method is better than every run of the second. *Came in the mean* means that its mean is better, but the runs overlap, so
# that it may be chance. (In the paper, the frequency adapter brings 2.7 points of Dice.)

# %%
for line in adaptation.judge_expectations(rows):
    print(line)

# %% [markdown]
# **Limits.** The networks are small, and a run takes about one minute of a quiet core. The learning rates are one
# choice for each kind of method (adapters and norms as the decoder, full fine-tuning a tenth of it), and none was tuned.
# The encoder has seen other sections of FIB-25 without labels, so a new tissue would ask more of it. The gain of I-MedSAM
# was measured on other images, with SAM's larger encoder and long training: our rows neither repeat nor refute it.
#
# ## Your exercises

# %%
checks.report("11")

# %% [markdown]
# ## What you learned
#
# - LoRA adds $BA$ of rank $r$ beside a frozen layer: $r(d_\mathrm{in} + d_\mathrm{out})$ parameters, nothing changed at
#   first, and nothing lost by merging.
# - A gate makes the update depend on the image, and then it can no longer be merged.
# - The amplitude spectrum says which texture a section has, not where. Without a logarithm it is nearly empty.
# - Adapters are small files, here of less than 100 kB, that fit one base model and no other.
# - Where the knee lies is a question for measurements with several seeds, and for the tissue that you have.
#
# ## Try it
#
# 1. In part 6, train with `AdapterConfig(rank=1)`, and with `rank=16`. How does the loss after the same time differ?
# 2. Set `gate=True` in part 6, train, and print the gates of two data sets with the hooks of part 4. Do they differ?
# 3. Adapt to a second data set and put both files onto one base in turn. How large is the loss on a patch with the wrong
#    file, and how large with the right one?
# 4. Why is $B$ zero at first, and not $A$? What if both were? (Write down the two gradients.)
#
# ## References
#
# - X. Wei, J. Cao, Y. Jin, M. Lu, G. Wang, S. Zhang. *I-MedSAM: Implicit Medical Image Segmentation with Segment
#   Anything.* ECCV 2024, [arXiv:2311.17081](https://arxiv.org/abs/2311.17081).
# - E. J. Hu et al. *LoRA: Low-Rank Adaptation of Large Language Models.* ICLR 2022,
#   [arXiv:2106.09685](https://arxiv.org/abs/2106.09685).
# - peft, the library of Hugging Face: [github.com/huggingface/peft](https://github.com/huggingface/peft) (Apache-2.0).
