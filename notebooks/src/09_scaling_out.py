# %% [markdown]
# # 09 · Scaling out: larger than memory, on many machines, and safe to interrupt
#
# <!-- badges -->
#
# **What you will learn**
#
# - how a volume too large for memory goes through the network in blocks, with values that no block border can change;
# - how to hand out blocks to many processes or machines, and watch them work;
# - why a killed run continues where it was: a journal, checksums, and blocks that do not depend on each other;
# - how neurons that block borders cut are put together again, with ids that are unique in the whole volume;
# - what a cubic millimetre would cost, from what you measure here.
#
# **Before you start.** Lesson 05 explains fragments and agglomeration; you need no other lesson.
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
# ## 1 · How much memory will you allow?
#
# In one piece, everything grows with the *volume*. Even the simple stand-in for a network that we use in part 4 needs
# the raw data (1 byte a voxel), a smoothed copy (4), affinities as float32 (3 x 4), and affinities as float16 to be
# written (3 x 2). In blocks, you need all this only for the voxels of a *block*. A worker holds two blocks at a time,
# because it reads or writes one while it computes the other. So choose how much memory a worker may use beyond what
# Python and PyTorch need anyway; the size of a block follows from it.

# %%
import numpy as np

from fgnet_lib.course import checks, quiz
from fgnet_lib.scale.grid import Grid

ALLOWED = 96_000_000  # bytes
BYTES = 1 + 4 + 3 * 4 + 3 * 2
large = Grid((48, 768, 1152), block=(16, 128, 128))
whole = np.prod(large.shape) * BYTES
print(f"{len(large)} blocks; two need {2 * np.prod(large.block) * BYTES / 1e6:.0f} MB, all need {whole / 1e6:.0f} MB")
print(f"the whole volume needs {whole / ALLOWED:.0f} times what we allow")

# %% [markdown]
# Now we make a volume of that shape on disk, and never hold it in memory: we mirror a crop of the data set again and
# again, and write it block by block. In your own work, `Source` opens any HDF5, Zarr or TIFF instead.

# %%
import shutil

import zarr

from fgnet_lib.files.locks import clear
from fgnet_lib.scale.prediction import Source

folder = session.out_dir.resolve() / "scaling_out"
clear(folder)  # refused while another run of this lesson writes there
crop = session.volume("val")
attributes = {"resolution": list(crop.voxel_size), "offset": [0.0, 0.0, 0.0]}


# %%
def mirrored(part: slice, size: int) -> np.ndarray:
    there_and_back = np.arange(part.start, part.stop) % (2 * size)
    return np.minimum(there_and_back, 2 * size - 1 - there_and_back)


def write_mirrored(name: str, grid: Grid) -> Source:
    if (folder / name).exists():  # a cell that you run again keeps its volume
        return Source(folder / name)
    unfinished = folder / "unfinished.zarr"  # the volume gets its name when it is complete
    shutil.rmtree(unfinished, ignore_errors=True)
    array = zarr.create_array(unfinished, shape=grid.shape, chunks=grid.block, dtype="uint8", attributes=attributes)
    for index in range(len(grid)):
        places = [mirrored(part, size) for part, size in zip(grid.region(index), crop.shape, strict=True)]
        array[grid.region(index)] = crop.raw[np.ix_(*places)]
    return Source(unfinished.rename(folder / name))


large_source = write_mirrored("large.zarr", large)

# %% [markdown]
# ## 2 · What a block has to know about its surroundings
#
# The network sees windows, and blends them where they overlap. A window cuts off what surrounds it, and a voxel near its
# border misses that. So if each block chose its own windows, values would change with the block. (A norm like
# GroupNorm, which takes its statistics from the whole window, would make it worse. The shipped model's `ChannelNorm`
# looks at one voxel at a time: lesson 04.) That is why **the whole volume decides where windows lie**. Each window is
# computed once, by the block in which it begins. What it contributes to other blocks goes through the disk (the folder
# `windows`, until the run is complete). The features of the guide go the same way, because several windows need those
# of one section. Then each block blends all windows that touch it.
#
# How many windows touch a block, and how many of them lie wholly inside, so that no other block needs them? We count in
# a plane, for windows that are 160 voxels wide, as `Network` has them, and overlap by at least a quarter. They begin at
# multiples of 32 voxels, so they share 64.

# %%
from fgnet_lib.inference import window_starts

low, window, shares = 512, 160, []  # a block's first voxel along y and x, and the width of a window
for high in (1024, 768):
    starts = [a for a in window_starts(4096, window, 0.25, 32) if a < high and a + window > low]
    inside = sum(low <= a <= high - window for a in starts)
    shares.append(inside**2 / len(starts) ** 2)
    print(f"block of {high - low} x {high - low}: {len(starts) ** 2} windows touch it, {inside**2} of them inside")
assert shares[0] > 3 * shares[1]  # as the text says

# %% [markdown]
# Here are the windows of the smaller block. Some frames are drawn a few voxels smaller, so that you can tell them
# apart.

# %% alt="A plan of a volume from above, cut into blocks by grey lines. One block is filled. Windows that touch it reach beyond it on all sides: those that begin in it are drawn as orange frames, those that begin in a neighbour as grey ones."
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

figure, ax = plt.subplots(figsize=(10, 6))
ax.add_patch(Rectangle((low, low), high - low, high - low, color="tab:blue", alpha=0.3, label="block"))
kinds = {"windows that begin elsewhere": "tab:gray", "windows that begin in it": "tab:orange"}
for row, y in enumerate(starts):
    for column, x in enumerate(starts):
        apart, color = 4 * (row % 2 + 2 * (column % 2)), [*kinds.values()][min(y, x) >= low]
        frame = (x + apart, y + apart), window - 2 * apart, window - 2 * apart
        ax.add_patch(Rectangle(*frame, fill=False, lw=1.5, color=color))
for kind, color in kinds.items():
    ax.plot([], color=color, label=kind)
ax.set(xlim=(256, 1024), ylim=(1024, 256), xlabel="x (voxels)", ylabel="y (voxels)", aspect="equal")
ax.set(xticks=range(256, 1025, 256), yticks=range(256, 1025, 256))
ax.grid(True)
ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
plt.show()

# %% [markdown]
# **What to see.** Only a window that lies inside the block is the block's own business. All others cross its border, so
# a part of them goes through the disk. Their share is smaller for the larger block: its border is longer, but its area
# has grown even more. What a step reads around its block, like the windows here or the fragments of part 6, is called
# a *halo*.
#
# **Exercise 9.1: what a block reads.** A block reaches from `start` to `stop` (`stop` is the last voxel + 1). It reads a
# halo of `halo` voxels around itself, as far as the volume of the given `shape` goes. All four are triples in the order
# z, y, x. Return where the block starts and stops reading, as two such triples.


# %% tags=["task"]
def my_read(start, stop, halo, shape):
    return ...


# %% tags=["solution"]
def my_read(start, stop, halo, shape):
    return np.maximum(np.subtract(start, halo), 0), np.minimum(np.add(stop, halo), shape)


# %% alt="What two blocks of a volume read, yours on the left and the expected on the right: each block grows by a halo, cut off at the rim."
checks.halo(my_read)

# %% [markdown]
# ## 3 · Workers, and a page to watch them
#
# [Dask](https://distributed.dask.org) hands out the numbers of the blocks and nothing else; each worker reads and
# writes its own blocks. A worker loads the model once. If there are several GPUs, each worker uses the GPU with its own
# number. `cluster` starts workers that listen only to this computer, because *anyone who can reach a Dask scheduler can
# run code with its rights*.

# %%
import os
from contextlib import ExitStack

from fgnet_lib.machine import platform
from fgnet_lib.scale.cluster import cluster

running = ExitStack()
client = running.enter_context(cluster(workers=2, memory="4GiB"))
print(f"workers (process ids): {sorted(client.run(os.getpid).values())}")
if platform() in ("local", "ssh", "cluster"):
    print(f"dashboard: {client.dashboard_link}")
else:
    print("This platform hides the dashboard from your browser. The progress bars below show how far the workers are.")

# %% [markdown]
# If you see a link, open the dashboard beside this page and look at *Task Stream* and *Workers*. A row is a thread, and
# a bar is a block. (If this notebook runs on a remote machine of yours, forward the port of the dashboard by ssh.)
#
# ## 4 · Ten times what you allow
#
# Dask watches `memory="4GiB"` and replaces a worker that goes beyond it. We want a hard wall, and Linux can build it:
# from now on, a worker that asks for more than `ALLOWED` bytes on top of what it has gets an error. (Other systems have
# no such wall.)
#
# A *plugin* is code that each Dask worker runs when it starts. Ours builds the wall, so a worker that replaces a dead
# one has the wall too. Imported code takes memory as well: `scipy.ndimage` alone takes more than half of what we allow.
# So each worker first imports what it will need.

# %%
from fgnet_lib.memory import peak_bytes
from fgnet_lib.scale.cluster import MemoryLimit

wall = MemoryLimit(ALLOWED, imports=("fgnet_lib.scale.prediction", "scipy.ndimage"))
client.register_plugin(wall)
walled = client.run(os.getpid)
before = max(client.run(peak_bytes).values())
print(f"with Python and PyTorch, a worker uses {before / 1e6:.0f} MB; it may use {ALLOWED / 1e6:.0f} MB more")

# %% [markdown]
# The network would take minutes for such a volume, so we use a cheaper *predictor*. Any object will do if it says what
# its values depend on (`settings`) and which part of the volume it has to see (`input_region`: a halo), and gives the
# affinities of a region. For this predictor, dark means membrane.

# %%
from dataclasses import asdict, dataclass

from scipy import ndimage


@dataclass(frozen=True)
class DarkIsMembrane:
    dark: float
    bright: float

    def settings(self):
        return asdict(self)

    def input_region(self, shape, region):
        return region.grow((1, 1, 1), shape)

    def affinities(self, raw, region):
        seen = self.input_region(raw.shape, region)
        smooth = ndimage.uniform_filter(np.asarray(raw[seen]), 3, output=np.float32)
        smooth = smooth[region.within(seen)]
        return np.stack([np.clip((smooth - self.dark) / (self.bright - self.dark), 0, 1)] * 3)


# %% [markdown]
# First in one piece: the same call, with one block that is the whole volume.

# %%
import logging
import sys

from fgnet_lib.scale.cluster import BlocksFailed
from fgnet_lib.scale.prediction import predict_blocks

set_level = logging.getLogger("distributed.worker").setLevel
client.run(set_level, logging.CRITICAL)  # the error reaches us anyway
refused = ""
stand_in = DarkIsMembrane(*np.percentile(crop.raw, (5, 50)).tolist())
try:
    predict_blocks(client, large_source, folder / "in_one_piece", stand_in, large.shape, progress=False)
except BlocksFailed as error:
    refused = str(error).splitlines()[1]
    print(refused)
client.run(set_level, logging.NOTSET)
assert "MemoryError" in refused or sys.platform != "linux"

# %% [markdown]
# The worker tried three times, and the wall held. Now in blocks:

# %%
report = predict_blocks(client, large_source, folder / "in_blocks", stand_in, large.block)
taken = report.peak_bytes - before
print(f"{report.done} of {len(large)} blocks done; a worker used at most {taken / 1e6:.0f} MB more")
assert client.run(os.getpid) == walled  # no worker died, so all blocks were computed behind the wall
if report.done:  # if you run this cell again, every block is done, and the wall is gone
    client.unregister_worker_plugin(wall.name)

# %% alt="Three horizontal bars of memory in MB. The bar of the volume in one piece is ten times as long as the bar of the allowed memory; the memory that a worker used in blocks is the shortest bar."
figure, ax = plt.subplots(figsize=(9, 2.2))
assert whole > 10 * ALLOWED and (taken < ALLOWED or sys.platform != "linux")
bars = {"in one piece": whole, "allowed": ALLOWED, "used, in blocks": taken}
drawn = ax.barh([*bars], [size / 1e6 for size in bars.values()], color=["tab:red", "tab:gray", "tab:blue"])
ax.bar_label(drawn, fmt="%.0f", padding=3)
ax.set(xlabel="memory of a worker, beyond Python and PyTorch (MB)", xlim=(0, 1.1 * whole / 1e6))
ax.invert_yaxis()
plt.show()

# %% [markdown]
# **What to see.** The blue bar stays below what you allow, and the whole volume would need ten times as much. (The blue
# bar is longer than the two blocks of part 1, because temporary copies, reading and compressing take memory, too.) It
# does not grow with the volume: make the volume a thousand times larger, and only the disk and your patience notice. We
# measured all steps up to the neurons, without network and watershed, in volumes of up to 2 GVox (2000 million voxels):
# [blocks, measured](../docs/measured/bench_blocks.md).
#
# ## 5 · The network, and a worker that is killed
#
# Now we run FGNet, on a volume that it finishes in less than a minute. (In the profile `fast`, its windows are only a
# toy.) In the middle of a block, we send a worker the signal that no program survives. First your prediction:

# %%
block, tile, overlap = (16, 64, 64), (16, 64, 64), 0.0
if session.profile.name != "fast":
    block, tile, overlap = (32, 128, 128), (16, 128, 128), 0.25
shape = tuple(n * b for n, b in zip((1, 4, 6), block, strict=True))
grid = Grid(shape, block)
source = write_mirrored("raw.zarr", grid)
raw = zarr.open_array(folder / "raw.zarr", mode="r")
quiz.ask("09", "kill")

# %% [markdown]
# The killer waits until six blocks are through the network, and kills the worker that has most left to do. Afterwards,
# the stream of tasks tells us who finished what.

# %%
import signal
import threading

from distributed import get_task_stream

from fgnet_lib.scale.journal import Journal
from fgnet_lib.scale.prediction import Network

killed, done = {}, threading.Event()
begun = (folder / "journal").exists()  # part of a run has no rate


def kill_a_worker(after: int, workers: dict[str, int]) -> None:
    journal, held = Journal(folder, "decode"), {}
    while not killed and not done.wait(0.05):
        if len(grid) - len(journal.missing(grid)) >= after:
            held = client.processing()
        if any(held.values()):
            victim = max(held, key=lambda worker: len(held[worker]))
            os.kill(workers[victim], signal.SIGKILL)
            killed[victim] = held[victim]


# %%
network = Network(tile=tile, overlap=overlap, device=session.device.type)
workers = client.run(os.getpid)  # asked anew: a worker may have been replaced since part 3
threading.Thread(target=kill_a_worker, args=(6, workers), daemon=True).start()
with get_task_stream(client) as stream:
    report = predict_blocks(client, source, folder, network, block)
done.set()
print(f"{report.done + report.kept} of {len(grid)} blocks; a worker used at most {report.peak_bytes / 1e6:.0f} MB")
assert killed or not report.done, "the run was over before a worker was killed"

# %% [markdown]
# Dask noticed the death (it may have said so in a warning above) and gave the unfinished blocks to other workers. It
# also started a new worker.

# %%
client.wait_for_workers(2, timeout=120)
alive = client.run(os.getpid)
for victim, keys in killed.items():
    print(f"process {workers[victim]} was killed; these processes finished the blocks that it held:")
    for key in keys:
        finished = {alive.get(task["worker"], workers[victim]) for task in stream.data if task["key"] == key}
        print(f"  block {key.rsplit('-', 1)[1]} by process {sorted(finished)}")
    assert workers[victim] not in alive.values()
print(f"workers before {sorted(workers.values())}, now {sorted(alive.values())}")

# %% [markdown]
# A process may die, but what about a file? Suppose that one of the results is cut in half:

# %%
quiz.ask("09", "half-a-file")

# %% [markdown]
# A second run looks at each block and computes what is missing. It does not trust a file just because it exists: the
# journal in the folder has a checksum of every block, and a block counts as done only if the data *on disk* still have
# that checksum. To see this, we cut a file in half.

# %%
again = predict_blocks(client, source, folder, network, block, progress=False)
print(f"second run: {again.done} done, {again.kept} kept")
shard = folder / "affinities.zarr" / "c" / "0" / "0" / "2" / "3"
os.truncate(shard, shard.stat().st_size // 2)
third = predict_blocks(client, source, folder, network, block, progress=False)
print(f"after a file was cut in half: {third.done} done, {third.kept} kept")
assert (again.done, third.done) == (0, 1)

# %% [markdown]
# And what if someone continues with other settings? Then half of the volume would be of one kind and half of another.
# So the run is refused.

# %%
try:
    predict_blocks(client, source, folder, Network(tile=tile, overlap=0.5), block, progress=False)
except ValueError as error:
    print(str(error).split("began ")[1])

# %% [markdown]
# Are these the values of the whole volume? We ask `predict` for the region of one block, in this process. Blocks are
# stored as float16, so a difference of 0.0005 is rounding.

# %%
import time

from fgnet_lib.inference import predict
from fgnet_lib.weights import load_pretrained

region, model = grid.region(9), load_pretrained()
start = time.perf_counter()
here = predict(model, raw, tile, overlap, session.device, progress=False, region=region).refined
alone = np.prod(block) / (time.perf_counter() - start) / 1e6
stored = zarr.open_array(folder / "affinities.zarr")[:, *region]
difference = abs(here - stored).max()
assert difference < 0.01  # rounding on a CPU; a GPU may sum in another order
print(f"largest difference: {difference:.5f}")

# %% [markdown]
# ## 6 · From blocks to neurons
#
# A block cannot know the neurons of the volume, but it can know its **fragments**. The rest takes four steps, and only
# the third sees the whole volume:
#
# 1. Each block makes its fragments, with a halo around it, and gives them ids that no other block uses.
# 2. Each block finds its **faces**: for each pair of touching fragments, the sum and the number of the affinities
#    between them. Each block also reads the layer of voxels just before it, so faces on a border are found too.
# 3. **One graph** of all faces is agglomerated as in lesson 05. It contains no voxels any more.
# 4. Each block relabels its fragments, by a table.

# %%
from fgnet_lib.scale.segmentation import segment_blocks
from fgnet_lib.weights import pretrained_threshold

threshold = pretrained_threshold()
start = time.perf_counter()
steps = segment_blocks(client, folder / "affinities.zarr", folder, threshold=threshold, block=block, progress=False)
segmented = time.perf_counter() - start
for step in steps:
    print(f"{step.step:10} {step.done:3} blocks, {step.seconds.total():6.2f} s, {step.peak_bytes / 1e6:5.0f} MB")
table = np.load(folder / "table" / "neurons.npy", mmap_mode="r")
print(f"{len(table)} fragments became {table.max()} neurons")

# %% alt="One section of the volume: EM on the left, predicted affinities in the middle, and on the right the neurons in colours. Thin lines show the borders of blocks; colours go on across them."
from fgnet_lib.views import plots

middle, size = shape[0] // 2, crop.voxel_size
arrays = {
    name: zarr.open_array(folder / f"{name}.zarr")[..., middle : middle + 1, :, :] for name in ("affinities", "neurons")
}
section = np.asarray(raw[middle : middle + 1])
figure, axes = plt.subplots(1, 3, figsize=(15, 4.4))
plots.show_section(axes[0], section, None, size, 0, f"EM, section {middle}")
plots.show_affinities(axes[1], arrays["affinities"].astype(np.float32), size, 0, "affinities")
colors = plots.neighbour_colors(arrays["neurons"])
plots.show_section(axes[2], section, arrays["neurons"], size, 0, "neurons and block borders", colors=colors)
for y in range(block[1], shape[1], block[1]):
    axes[2].axhline(y - 0.5, color="white", lw=0.6)
for x in range(block[2], shape[2], block[2]):
    axes[2].axvline(x - 0.5, color="white", lw=0.6)
plt.show()
rows = np.arange(block[1], shape[1], block[1])  # behind each line along x
same = arrays["neurons"][0, rows] == arrays["neurons"][0, rows - 1]
assert same[arrays["affinities"][1, 0, rows] > 0.9].mean() > 0.9  # as the text says

# %% [markdown]
# **What to see.** Neurons keep their colour across the lines. (The data repeat because we mirrored them; the network
# has nothing to do with that.) Working block by block does no harm as long as the parts at the borders find each other:
# that is what the halo of step 1 and the extra layer of step 2 are for.
#
# **Exercise 9.2: ids that no other block has.** Each block numbers its fragments from 1; 0 means no fragment, and stays
# 0. Turn these numbers, an array `local`, into ids that are unique in the whole volume. You know the `number` of the
# block, counted from 0, and how many `voxels` a full block has. No block may have to ask another, and with $n$ blocks
# no id may be larger than $n$ · `voxels`.


# %% tags=["task"]
def my_ids(local, number, voxels):
    return ...


# %% tags=["solution"]
def my_ids(local, number, voxels):
    return np.where(local > 0, local + np.uint64(number * voxels), 0)


# %%
checks.block_ids(my_ids)

# %% [markdown]
# ## 7 · What would a cubic millimetre cost?
#
# At 10 nm a cubic millimetre has $10^{15}$ voxels. The rate that counts is how many million voxels a second (MVox/s) one
# worker *computes*, because reading and writing happen meanwhile. Storage is what lies on disk here, divided by the
# voxels. The lesson remembers the rate of each device that you run it on. We had no GPU when we wrote it; if you have
# one,
#
# ```
# papermill notebooks/09_scaling_out.ipynb out/09.ipynb -p PROFILE gpu -p DEVICE cuda
# ```
#
# measures its rate and adds it to the table.

# %%
import json

import torch

device = f"a CPU core, {session.profile.name}"
if session.device.type == "cuda":
    device = torch.cuda.get_device_name()
kept = session.out_dir / "prediction_rates.json"
rates = json.loads(kept.read_text()) if kept.exists() else {}
if not begun:  # if you run part 5 again, some blocks or all were done already, and the earlier rate stays
    rates[device] = np.prod(shape) / report.seconds.compute / 1e6
kept.write_text(json.dumps(rates))
rates["this process, by `predict`"] = alone
rates |= {gpu: None for gpu in ("T4", "A100", "H100") if not any(gpu in name for name in rates)}
rates["segmentation, a core"] = np.prod(shape) / sum(step.seconds.total() for step in steps) / 1e6

# %%
VOXELS = 1e15
print(f"{'':33} {'MVox/s':>8} {'worker-hours':>14} {'days with 1000':>16}")
for name, value in rates.items():
    if value is None:
        print(f"{name:33} not measured here")
        continue
    hours = VOXELS / (value * 1e6) / 3600
    print(f"{name:33} {value:8.3f} {hours:14.2e} {hours / 1000 / 24:16.1f}")
for name in ("raw.zarr", "affinities.zarr", "fragments.zarr", "neurons.zarr"):
    stored = sum(file.stat().st_size for file in (folder / name).rglob("*") if file.is_file()) / np.prod(shape)
    print(f"{name:18} {stored:5.2f} bytes a voxel, {stored * VOXELS / 1e15:5.2f} PB")
days = VOXELS / (rates.get(device, alone) * 1e6) / 1000 / 86400
assert days < 3650  # with 1000 workers not decades, even with toy windows

# %% [markdown]
# **What to see.** The hours look hopeless, but a thousand workers share them. With larger windows (every profile but
# `fast`), a thousand CPU cores need weeks or months, not decades: an expensive plan, but a plan. (The windows of `fast`
# are a toy, so do not plan with their rate.) To save time, first give each worker a GPU, then use larger
# blocks, then predict only where there is tissue. Two limits remain: storage is counted in petabytes, and the graph of
# step 3 must fit into the memory of one machine and grows with the number of fragments.

# %% [markdown]
# ### Further: hours by hand
#
# **Exercise 9.3: worker-hours.** How many hours do `workers` workers need for `voxels` voxels, if each computes `rate`
# million voxels a second?


# %% tags=["task"]
def my_hours(voxels, rate, workers):
    return ...


# %% tags=["solution"]
def my_hours(voxels, rate, workers):
    return voxels / (rate * 1e6) / workers / 3600


# %%
checks.worker_hours(my_hours)

# %% [markdown]
# ## 8 · On a cluster
#
# Only the start of the workers changes, here through SLURM, the job queue of many clusters. Everything else is the same
# call, and all workers need the same folder under the same path:
#
# ```python
# from dask_jobqueue import SLURMCluster  # pip install dask-jobqueue
#
# jobs = SLURMCluster(queue="gpu", cores=2, processes=1, memory="32GB", walltime="08:00:00", job_extra_directives=["--gres=gpu:1"],
#                     worker_extra_args=["--lifetime", "450m", "--lifetime-stagger", "20m"])
# jobs.adapt(maximum_jobs=64)
# with cluster(address=jobs.scheduler_address) as client:
#     predict_blocks(client, Source("/scratch/volume.zarr"), "/scratch/run", Network("/scratch/weights.safetensors"), (128, 512, 512))
# ```
#
# A job that ends at its walltime, the time that the queue grants it, is a worker that dies, and you have seen what
# happens then. With a lifetime, the worker leaves in good order before that, and `adapt` asks for another job;
# `scale(64)` would not. [Scaling out](../docs/understand/scaling.md) shows the same for Kubernetes, and tells you who
# may reach a scheduler and how to choose the size of blocks.
#
# Stop the workers, and look at your exercises:

# %%
if client.status == "running":  # not if you run this cell again
    client.run(set_level, logging.CRITICAL)  # a worker that outlives its scheduler for a moment would report an error
running.close()

# %%
checks.report("09")

# %% [markdown]
# ## What you learned
#
# - Memory follows the block, not the volume. The volume decides where windows lie, so values do not depend on the
#   block.
# - What a block computes depends only on the volume and the number of the block. So you can compute it anywhere, twice,
#   or again after a kill.
# - A block is done if the data on disk still have its checksum. Other settings in the same folder are refused, and so
#   is a second run at the same time.
# - Fragments are local, neurons are global. A graph without voxels connects the two.
# - The cost of a cubic millimetre is a question of rates and petabytes, and you can measure both on a crop.
#
# ## Try it
#
# - Kill *both* workers. Then press *interrupt* during part 5 and run the cell again: which blocks are kept?
# - Make `folder` read-only for a while (`chmod a-w`), or fill the disk: which blocks are reported, and what does a
#   rerun do?
# - Double the size of the blocks in part 1: when does the wall stop them too? Halve it in part 5: how does the rate
#   change? Run the lesson from the top each time.
# - While part 5 computes, let a second notebook work in the same folder. Set only `folder` and `source` as in parts 1
#   and 5, do not delete or write anything, start workers and predict. Which of the two may continue?
#
# ## References
#
# - Rocklin: *Dask: parallel computation with blocked algorithms and task scheduling.* SciPy 2015,
#   [doi:10.25080/Majora-7b98e3ed-013](https://doi.org/10.25080/Majora-7b98e3ed-013)
# - Funke et al.: *Large scale image segmentation with structured loss based deep learning for connectome
#   reconstruction.* IEEE TPAMI 41, 2019, [doi:10.1109/TPAMI.2018.2835450](https://doi.org/10.1109/TPAMI.2018.2835450):
#   fragments and faces by blocks
# - Zarr, [specification version 3](https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html): chunks and shards
# - dask-jobqueue, [SLURM and others](https://jobqueue.dask.org)
