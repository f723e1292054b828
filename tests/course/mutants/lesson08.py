"""Answers of lesson 08: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "cut_geometry": [
        ("np.multiply(voxel_size, step)", "np.array(voxel_size)", "cannot stay the same"),
        ("np.multiply(voxel_size, step)", "np.divide(voxel_size, step)", "cover more tissue"),
        ("np.multiply(first, voxel_size)", "np.array(first)", "`first` counts voxels"),
        ("offset + np", "np", "does not begin at the origin"),
        ("np.multiply(first, voxel_size)", "np.multiply(first, size)", "before any were left out"),
        ("return size, start", "return start, size", "exchange them"),
        ("offset + np.multiply(first, voxel_size)", "np.array(offset)", "begins later"),
    ],
    "flat_sections": [
        ("raw.std(axis=(1, 2))", "raw.mean(axis=(1, 2))", "evenly grey"),
        ("np.median(spread) / 10", "np.median(spread) / 2", "holds a picture"),
        ("np.median(spread) / 10", "np.median(spread) / 5", "is faint"),
        ("np.median(spread) / 10", "np.max(spread) / 10", "is faint"),
        ("spread < ", "spread > ", "without any lost section"),
        ("axis=(1, 2)", "axis=(0, 2)", "Section 2 is black"),
        (
            "np.flatnonzero(spread < np.median(spread) / 10)",
            "[z for z in range(len(raw)) if not raw[z].any()]",
            "evenly grey",
        ),
        ("spread < np.median(spread) / 10", "spread == 0", "a little noise"),
        ("np.median(", "np.mean(", "Lost sections lower your limit"),
        ("np.flatnonzero(spread < np.median(spread) / 10)", "spread < np.median(spread) / 10", "not a yes or no"),
        (
            "    spread =",
            "    return [z for z, section in enumerate(raw) if section.min() == section.max()]\n    spread =",
            "a little noise",
        ),
    ],
    "sections_in_memory": [
        ("2 * 12", "12", "one decoder are missing"),
        ("1 + 8 + ", "", "Raw data and labels"),
        ("1 + 8 + ", "1 + ", "8 bytes a voxel"),
        ("1 + 8 + ", "8 + ", "1 byte a voxel"),
        ("return int(", "return 1 + int(", "One section too many"),
        (
            "int(gigabytes * 1e9 // (bytes_per_voxel * height * width))",
            "gigabytes * 1e9 / (bytes_per_voxel * height * width)",
            "whole sections",
        ),
        ("1 + 8 + 2 * 12", "1", "only the raw data"),
        ("return ", "return 80 or ", "for sections of 1024 x 900 voxels"),
        ("1e9", "2**30", "not 2**30"),
    ],
}

RIGHT = {
    "cut_geometry": [
        """\
def my_geometry(voxel_size, offset, first, step):
    starts = [nm + voxels * size for nm, voxels, size in zip(offset, first, voxel_size)]
    return [size * every for size, every in zip(voxel_size, step)], starts
""",
    ],
    "flat_sections": [
        """\
def my_flat_sections(raw):
    spread = [section.astype(float).std() for section in raw]
    return {z for z, one in enumerate(spread) if one < np.median(spread) / 10}
""",
        """\
def my_flat_sections(raw):
    spread = raw.std(axis=(1, 2))
    return np.where(spread < np.median(spread) / 10)
""",
    ],
    "sections_in_memory": [
        """\
def my_sections(height, width, gigabytes):
    sections = 0
    while (sections + 1) * height * width * 33 <= gigabytes * 1e9:
        sections += 1
    return sections
""",
    ],
}
