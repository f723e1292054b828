"""Answers of lesson 15: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "coordinate_waves": [
        ("range(int(opened * frequencies))", "range(frequencies)", "All frequencies are open"),
        ("int(opened * frequencies)", "int(np.ceil(opened * frequencies))", "You round up"),
        ("int(opened", "round(opened", "You round up"),
        ("2**k * np.pi", "2**k * 2 * np.pi", "twice the frequency"),
        ("2**k * np.pi", "(k + 1) * np.pi", "grow by 1 from wave to wave"),
        ("2**k * np.pi * p", "2**k * p", "A factor of pi"),
        ("np.sin(angle), np.cos(angle)", "np.cos(angle), np.sin(angle)", "Sine and cosine are exchanged"),
        ("return waves", "return np.concatenate([waves[:, ::2], waves[:, 1::2]], axis=1)", "All sines come first"),
        ("np.zeros", "np.ones", "values are wrong, the first at"),
        (
            "range(int(opened * frequencies))",
            "range(max(1, int(opened * frequencies)))",
            "You round up",
        ),
    ],
    "second_look": [
        ("np.argsort(-variance)", "np.argsort(variance)", "that change least"),
        ("passes.var(axis=0)", "passes.mean(axis=0)", "by the mean of the passes"),
        ("np.argsort(-variance)[:budget]", "np.sort(np.argsort(-variance)[:budget])", "order is that of the points"),
        ("[:budget]", "[:budget][::-1]", "your order is the opposite"),
        ("passes.var(axis=0)", "abs(passes[0] - passes[1])", "the first two passes alone"),
        ("np.argsort(-variance)[:budget]", "-np.sort(-variance)[:budget]", "These are variances"),
        ("int(share * passes.shape[1])", "int(share * passes.shape[1]) + 1", "was expected"),
        ("int(share", "round(share", "was expected"),
        ("np.argsort(-variance)[:budget]", "np.argsort(-variance)[1 : budget + 1]", "points differ"),
        ("np.argsort(-variance)[:budget]", "np.argpartition(-variance, budget)[:budget]", "points differ"),
    ],
    "inspected_errors": [
        ("/ wrong.sum()", "/ len(inspected)", "of inspected places that are wrong"),
        ("-scores", "scores", "the least doubtful places first"),
        ("/ wrong.sum()", "/ len(wrong)", "a share of all places"),
        (" / wrong.sum()", "", "a number of errors"),
        ("return wrong[inspected].sum()", "return 1 - wrong[inspected].sum()", "errors that are left"),
        ("wrong[inspected].sum() / wrong.sum()", "(~wrong)[inspected].sum() / (~wrong).sum()", "that are right"),
        ("np.argsort(-scores)[: int(share * len(scores))]", "scores > share", "no limit for the scores"),
        ("int(share", "round(share", "You round up"),
        ("int(share * len(scores))", "int(np.ceil(share * len(scores)))", "You round up"),
        ("int(share * len(scores))", "int(share * len(scores) / 2)", "is not the share of errors"),
        ("[: int(share * len(scores))]", "[1 : int(share * len(scores)) + 1]", "leave out the most doubtful"),
        ("int(share * len(scores))", "int(share * wrong.sum())", "not of the errors"),
    ],
    "expected_calibration": [
        ("inside.mean() *", "1 / bins *", "alike in your sum"),
        ("abs(announced - came)", "(announced - came)", "cancel in your sum"),
        ("abs(announced - came)", "(announced - came) ** 2", "You square the gaps"),
        ("inside.mean() *", "inside.sum() *", "by their number of samples"),
        ("probabilities[inside].mean()", "(k + 0.5) / bins", "not its middle"),
        (
            "truth[inside].mean()",
            "((probabilities[inside] >= 0.5) == truth[inside]).mean()",
            "how often a guess is right",
        ),
        ("error += inside.mean() * abs(announced - came)", "error = max(error, abs(announced - came))", "largest gap"),
        ("bins - 1)", "bins - 2)", "is not the mean gap"),
        ("(probabilities * bins).astype(int)", "np.ceil(probabilities * bins).astype(int) - 1", "is not the mean gap"),
        (
            "(probabilities * bins).astype(int)",
            "((probabilities - probabilities.min()) / np.ptp(probabilities) * bins).astype(int)",
            "should divide 0 to 1",
        ),
    ],
}

RIGHT = {
    "coordinate_waves": [
        """\
def my_waves(p, frequencies, opened):
    p, waves = p.astype(np.float32), np.zeros((len(p), 2 * frequencies), np.float32)
    for k in range(int(opened * frequencies)):
        angle = np.float32(2**k * np.pi) * p
        waves[:, 2 * k], waves[:, 2 * k + 1] = np.sin(angle), np.cos(angle)
    return waves
""",
        """\
def my_waves(p, frequencies, opened):
    angles = np.pi * p[:, None] * 2.0 ** np.arange(frequencies)
    angles = np.where(np.arange(frequencies) < np.floor(opened * frequencies), angles, np.nan)
    return np.nan_to_num(np.stack([np.sin(angles), np.cos(angles)], axis=-1)).reshape(len(p), -1)
""",
    ],
    "second_look": [
        """\
def my_chosen(passes, share):
    variance = ((passes - passes.mean(0)) ** 2).sum(0) / (len(passes) - 1)
    order = sorted(range(len(variance)), key=lambda i: -variance[i])
    return order[: int(share * len(variance))]
""",
    ],
    "inspected_errors": [
        """\
def my_inspected(scores, wrong, share):
    limit = int(share * len(scores))
    ranks = (-scores).argsort().argsort()
    return np.mean(ranks[wrong] < limit)
""",
    ],
    "expected_calibration": [
        """\
def my_calibration(probabilities, truth, bins):
    index = np.clip(np.floor(probabilities * bins), 0, bins - 1).astype(int)
    gaps = np.bincount(index, probabilities - truth, bins)
    return np.abs(gaps).sum() / len(truth)
""",
    ],
}
