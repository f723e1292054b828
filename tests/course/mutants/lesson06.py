"""Answers of lesson 06: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "neuron_volume": [
        (" * np.prod(voxel_size) / 1e9", "", "a number of voxels"),
        (" / 1e9", "", "is in nm³"),
        ("1e9", "1e3", "is not 1000 nm³"),
        ("1e9", "1e12", "a different volume"),
        ("np.prod(voxel_size)", "voxel_size[2] ** 3", "as cubes"),
        ("labels == label", "labels > 0", "all neurons"),
        ("labels == label", "labels != label", "outside of the neuron"),
        ("np.prod(voxel_size)", "np.sum(voxel_size)", "add the sides"),
        ("np.sum(labels == label)", "50", "48 voxels of 30 x 10 x 12 nm"),
    ],
    "match": [
        ("np.where(ids > 0, voxels, 0)", "voxels", "it is no match"),
        (
            "    neurons = np.where(ids > 0, voxels, 0)\n    best = neurons.argmax()",
            "    neurons = np.append(0, voxels[1:])\n    best = neurons.argmax()",
            "a neuron like any other",
        ),
        ("truth[segmentation == segment]", "truth", "is the largest"),
        ("/ voxels.sum()", "/ np.sum(truth == ids[best])", "turn it around"),
        ("/ voxels.sum()", "/ neurons.sum()", "belong to the segment too"),
        ("/ voxels.sum()", "", "lies between 0 and 1"),
    ],
    "viewer_position": [
        ("[::-1]", "", "still z, y, x"),
        ("[::-1]", "[::-1] + [1, 0, 0]", "wrong along axis 0 of"),
        (" + 0.5", "", "the corner of the voxel"),
        ("np.divide(offset, voxel_size)", "np.zeros(3)", "begin at the origin"),
        ("np.divide(offset, voxel_size)", "np.array(offset)", "add voxels and nm"),
        ("corner + voxel", "voxel - corner", "after the origin"),
        ("return ", "return np.array(voxel_size)[::-1] * ", "counts in voxels"),
    ],
}

RIGHT = {
    "neuron_volume": [
        """\
def my_volume(labels, label, voxel_size):
    count = 0
    for one in labels.flat:
        count += one == label
    return count * voxel_size[0] / 1000 * voxel_size[1] / 1000 * voxel_size[2] / 1000
""",
    ],
    "match": [
        """\
def my_match(segmentation, truth, segment):
    inside = truth[segmentation == segment].tolist()
    neurons = [one for one in inside if one]
    most = max(set(neurons), key=neurons.count)
    return most, neurons.count(most) / len(inside)
""",
    ],
    "viewer_position": [
        """\
def my_position(voxel, offset, voxel_size):
    return [v + 0.5 + nm / size for v, nm, size in zip(voxel, offset, voxel_size)][::-1]
""",
    ],
}
