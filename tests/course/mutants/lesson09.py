"""Answers of lesson 09: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "halo": [
        ("np.maximum(np.subtract(start, halo), 0)", "np.subtract(start, halo)", "before the volume begins"),
        ("np.minimum(np.add(stop, halo), shape)", "np.add(stop, halo)", "past the volume's end"),
        ("np.minimum(np.add(stop, halo), shape)", "stop", "before it and behind it"),
        ("subtract(start", "add(start", "Wrong voxel"),
        (
            "np.subtract(start, halo), 0), np.minimum(np.add(stop",
            "np.add(start, halo), 0), np.minimum(np.subtract(stop",
            "yours shrinks it",
        ),
        ("np.maximum(np.subtract(start, halo), 0)", "start", "begins earlier, too"),
        ("stop, halo), shape)", "stop, halo), np.subtract(shape, 1))", "may be as large as the shape"),
        (
            "np.minimum(np.add(stop, halo), shape)",
            "np.minimum(np.add(stop, halo), shape) - np.maximum(np.subtract(start, halo), 0)",
            "not how many voxels",
        ),
        ("np.add(stop, halo)", "np.add(stop, np.multiply(2, halo))", "added twice"),
        (
            "return np.maximum(np.subtract(start, halo), 0), np.minimum(np.add(stop, halo), shape)",
            "return np.minimum(np.add(stop, halo), shape), np.maximum(np.subtract(start, halo), 0)",
            "exchange them",
        ),
    ],
    "block_ids": [
        (
            "np.where(local > 0, local + np.uint64(number * voxels), 0)",
            "local + np.uint64(number * voxels)",
            "has to stay 0",
        ),
        ("number * voxels", "number * 6", "use the `voxels`"),
        ("number * voxels", "number", "Two blocks give the id"),
        ("number * voxels", "0", "the same ids"),
        ("number * voxels", "number * 1000", "need not be larger than 18"),
        ("number * voxels", "number * int(local.max())", "cannot know how many fragments"),
    ],
    "worker_hours": [
        (" / workers", "", "a single worker"),
        (" / 3600", "", "in seconds"),
        ("rate * 1e6", "rate", "million voxels"),
        (" / workers", " * workers", "should take less"),
        (" / 3600", " / 60", "in minutes"),
        ("(rate * 1e6)", "1e6 * rate", "halve the time"),
    ],
}

RIGHT = {
    "halo": [
        """\
def my_read(start, stop, halo, shape):
    first = [max(0, at - width) for at, width in zip(start, halo)]
    return first, [min(size, at + width) for at, width, size in zip(stop, halo, shape)]
""",
    ],
    "block_ids": [
        """\
def my_ids(local, number, voxels):
    ids = local.astype(int)
    ids[ids > 0] += number * voxels
    return ids
""",
    ],
    "worker_hours": [
        """\
def my_hours(voxels, rate, workers):
    seconds = voxels / 1e6 / rate
    return seconds / 60 / 60 / workers
""",
    ],
}
