"""Answers of lesson 11: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "low_rank_update": [
        ("gate[:, None, None] * update", "update", "The gate is missing"),
        (" + gate[:, None, None] * update", "", "the frozen layer alone"),
        ("x @ weight.T + ", "", "the update alone"),
        (
            "x @ weight.T + gate[:, None, None] * update",
            "gate[:, None, None] * (x @ weight.T + update)",
            "also scales W x",
        ),
        (
            "x @ weight.T + gate[:, None, None] * update",
            "gate[:, None, None] * (x @ weight.T) + update",
            "it should scale the update",
        ),
        ("gate[:, None, None] * update", "gate[:, None, None] + update", "The gate is added"),
        ("+ gate", "- gate", "You take the update away"),
        ("gate[:, None, None] *", "gate.mean() *", "the same gate"),
        ("gate[:, None, None]", "gate[:, None, None] ** 2", "is squared"),
        ("weight.T +", "weight.T * 2 +", "values differ from W x"),
    ],
    "adapter_size": [
        ("rank * (inputs + outputs)", "inputs * outputs", "You count W, which stays"),
        ("rank * (inputs + outputs)", "(rank * (inputs + outputs) + inputs * outputs)", "You count W beside"),
        ("(inputs + outputs)", "inputs", "You count only A"),
        ("(inputs + outputs)", "outputs", "You count only B"),
        ("(inputs + outputs)", "2 * inputs", "2 r d holds"),
        ("rank * ", "", "The rank is missing"),
        ("in layers", "in layers[:1]", "the first layer alone"),
        ("(inputs + outputs)", "inputs * outputs", "B A has as many numbers"),
        ("rank * (inputs + outputs)", "rank * (inputs + outputs) + 1", "is not the size"),
        ("in layers", "in set(layers)", "is not the size"),
    ],
    "log_spectrum": [
        ("np.log1p(amplitude)", "amplitude", "nearly all values are close to 0"),
        ("np.fft.fftshift(np.fft.fft2(section))", "np.fft.fft2(section)", "yours lies in a corner"),
        ("(logarithm - logarithm.min()) / (logarithm.max() - logarithm.min())", "logarithm", "not scaled to 0 to 1"),
        (
            "(logarithm - logarithm.min()) / (logarithm.max() - logarithm.min())",
            "logarithm / logarithm.max()",
            "The least value should become 0",
        ),
        (" / (logarithm.max() - logarithm.min())", "", "the largest should become 1"),
        ("log1p(amplitude)", "log(amplitude)", "add 1 first"),
        ("log1p(amplitude)", "log1p(amplitude**2)", "That is the power"),
        ("np.fft.fft2(section)", "np.fft.fft2(section).real", "is not its real part"),
        ("np.log1p(amplitude)", "np.angle(np.fft.fftshift(np.fft.fft2(section)))", "That is the phase"),
        ("np.log1p(amplitude)", "np.sqrt(amplitude)", "values of the spectrum are wrong"),
    ],
}

RIGHT = {
    "low_rank_update": [
        """\
def my_adapted(x, weight, a, b, gate):
    images = []
    for tokens, g in zip(x, gate):
        images.append(tokens @ (weight + g * (b @ a)).T)
    return np.stack(images)
""",
    ],
    "adapter_size": [
        """\
def my_size(layers, rank):
    return sum(np.zeros((rank, i)).size + np.zeros((o, rank)).size for i, o in layers)
""",
    ],
    "log_spectrum": [
        """\
def my_spectrum(section):
    amplitude = torch.fft.fftshift(torch.fft.fft2(torch.tensor(section).float())).abs().log1p()
    return (amplitude - amplitude.min()) / (amplitude.max() - amplitude.min())
""",
        """\
def my_spectrum(section):
    values = np.log(1 + np.abs(np.fft.fft2(section)))
    rows, columns = section.shape
    values = np.roll(values, (rows // 2, columns // 2), axis=(0, 1)) - values.min()
    return values / values.max()
""",
    ],
}
