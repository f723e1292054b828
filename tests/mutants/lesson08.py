"""Wrong answers to the exercises of lesson 08: (in the solution's text, instead of it, a part of the hint)."""

MUTANTS = {
    "cut_geometry": [
        ("np.multiply(voxel_size, step)", "np.array(voxel_size)", "should not be what it was"),
        ("np.multiply(voxel_size, step)", "np.divide(voxel_size, step)", "stand for more"),
        ("np.multiply(first, voxel_size)", "np.array(first)", "`first` counts voxels"),
        ("offset + np", "np", "does not begin at the origin"),
        ("np.multiply(first, voxel_size)", "np.multiply(first, size)", "before any were left out"),
        ("return size, start", "return start, size", "exchanged"),
        ("offset + np.multiply(first, voxel_size)", "np.array(offset)", "begins later"),
    ],
    "flat_sections": [
        ("raw.std(axis=(1, 2))", "raw.mean(axis=(1, 2))", "evenly grey"),
        ("np.median(spread) / 10", "np.median(spread) / 2", "holds a picture"),
        ("spread < ", "spread > ", "without any fault"),
        ("axis=(1, 2)", "axis=(0, 2)", "Section 2 is black"),
        (
            "np.flatnonzero(spread < np.median(spread) / 10)",
            "[z for z in range(len(raw)) if not raw[z].any()]",
            "evenly grey",
        ),
    ],
    "sections_in_memory": [
        ("2 * 12", "12", "one decoder are missing"),
        ("1 + 8 + ", "", "Raw and labels"),
        ("1 + 8 + ", "1 + ", "8 bytes a voxel"),
        ("1 + 8 + ", "8 + ", "1 byte a voxel"),
        ("return int(", "return 1 + int(", "One section too many"),
        (
            "int(gigabytes * 1e9 // (bytes_per_voxel * height * width))",
            "gigabytes * 1e9 / (bytes_per_voxel * height * width)",
            "Whole sections",
        ),
        ("1e9", "2**30", "another number of sections"),
    ],
}
