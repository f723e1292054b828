"""Wrong answers to the exercises of lesson 09: (in the solution's text, instead of it, a part of the hint)."""

MUTANTS = {
    "halo": [
        ("np.maximum(np.subtract(start, halo), 0)", "np.subtract(start, halo)", "before the volume begins"),
        ("np.minimum(np.add(stop, halo), shape)", "np.add(stop, halo)", "past the volume's end"),
        ("np.minimum(np.add(stop, halo), shape)", "stop", "before it and behind it"),
        ("subtract(start", "add(start", "another voxel"),
    ],
    "block_ids": [
        (
            "np.where(local > 0, local + np.uint64(number * voxels), 0)",
            "local + np.uint64(number * voxels)",
            "has to stay 0",
        ),
        ("number * voxels", "number", "given by two blocks"),
        ("number * voxels", "0", "the same ids"),
        ("number * voxels", "number * 1000", "leave no gaps"),
    ],
    "worker_hours": [
        (" / workers", "", "a single worker"),
        (" / 3600", "", "in seconds"),
        ("rate * 1e6", "rate", "million voxels"),
        (" / workers", " * workers", "should take less"),
    ],
}
