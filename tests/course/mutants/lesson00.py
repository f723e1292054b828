"""Answers of lesson 00: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "volume_size": [
        (" / 1000", "", "This is in nm"),
        (" / 1000", " / 1e6", "not a million nm"),
        ("in zip(shape, voxel_size, strict=True)]", "in zip(shape[::-1], voxel_size[::-1])]", "The order is x, y, z"),
        ("voxels * nm / 1000", "voxels", "These are numbers of voxels"),
        ("voxels * nm / 1000", "voxels / nm", "You divide where you should multiply"),
        ("nm / 1000", "nm / 100", "Not all three sizes"),
        ("nm / 1000", "nm // 1000", "You round down"),
        ("voxels * nm / 1000", "round(voxels * nm / 1000)", "You round, but"),
        ("zip(shape, voxel_size", "zip(shape, voxel_size[::-1]", "the voxels along z by the voxel size along x"),
        ("shape, voxel_size, strict=True", "shape[1:], voxel_size[1:]", "has the shape (2,)"),
    ],
    "error_kind": [
        ("truth_1 != truth_2 and segment_1 == segment_2", "False", "you missed it"),
        ('return "split"', 'return "merge"', "swapped merge and split"),
        ("truth_1 == truth_2 and segment_1", "truth_1 != segment_1 and segment_1", "There is no error"),
        ('"none"', '"nothing"', "not one of the three words"),
        ("truth_1 == truth_2 and segment_1", "truth_1 == segment_1 and segment_1", "There is an error"),
    ],
}

RIGHT = {
    "volume_size": [
        """\
def my_size(shape, voxel_size):
    return np.array(shape) * np.array(voxel_size) / 1000
""",
    ],
    "error_kind": [
        """\
def my_error(truth_1, truth_2, segment_1, segment_2):
    if (truth_1 == truth_2) == (segment_1 == segment_2):
        return "none"
    return "split" if truth_1 == truth_2 else "merge"
""",
    ],
}
