"""Wrong answers to the exercises of lesson 06: (in the solution's text, instead of it, a part of the hint)."""

MUTANTS = {
    "neuron_volume": [
        (" * np.prod(voxel_size) / 1e9", "", "a number of voxels"),
        (" / 1e9", "", "is in nm³"),
        ("1e9", "1e3", "is not 1000 nm³"),
        ("1e9", "1e12", "another volume"),
        ("np.prod(voxel_size)", "voxel_size[2] ** 3", "as cubes"),
        ("labels == label", "labels > 0", "All neurons"),
    ],
    "match": [
        ("np.where(ids > 0, voxels, 0)", "voxels", "is no match"),
        ("truth[segmentation == segment]", "truth", "is the largest"),
        ("/ voxels.sum()", "/ np.sum(truth == ids[best])", "turn it around"),
        ("/ voxels.sum()", "/ neurons.sum()", "a part of the segment, too"),
        ("/ voxels.sum()", "", "lies between 0 and 1"),
    ],
    "viewer_position": [
        ("[::-1]", "", "still z, y, x"),
        (" + 0.5", "", "the corner of the voxel"),
        ("np.divide(offset, voxel_size)", "np.zeros(3)", "begin at the origin"),
        ("np.divide(offset, voxel_size)", "np.array(offset)", "Voxels and nm"),
        ("corner + voxel", "voxel - corner", "behind the origin"),
        ("return ", "return np.array(voxel_size)[::-1] * ", "counts in voxels"),
    ],
}
