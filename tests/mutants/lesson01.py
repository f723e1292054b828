"""Wrong answers to the exercises of lesson 01: (in the solution's text, instead of it, a part of the hint)."""

MUTANTS = {
    "affinities": [
        (" & (ids[1:] > 0)", "", "label 0 are joined"),
        ("ids[1:] == ids[:-1]", "ids[1:] != ids[:-1]", "affinities are wrong"),
        ("enumerate(affinities)", "enumerate(affinities[::-1])", "another order"),
        ("[1:] = (ids", "[:-1] = (ids", "the one after it"),
        ("return affinities", "return affinities[0]", "shape"),
        ("return affinities", "return 1 - affinities", "exchanged"),
        ("    return affinities", "", "gives nothing back"),
        ("ids[1:] > 0", "id[1:] > 0", "stopped with TypeError"),
    ],
}
