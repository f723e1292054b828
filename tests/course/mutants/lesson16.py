"""Answers of lesson 16: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "rounded_values": [
        ("low + np.round((x - low) / step) * step", "np.round((x - low) / step)", "turn them back"),
        ("return low + ", "return ", "least value, not 0"),
        ("np.round", "np.floor", "next lower"),
        ("np.round", "np.ceil", "next higher"),
        ("(2**bits - 1)", "2**bits", "fewer steps than levels"),
        ("(2**bits - 1)", "(bits - 1)", "levels, not b"),
        ("low + np.round((x - low) / step) * step", "np.round(x / step) * step", "need not begin"),
    ],
    "integer_product": [
        (" - zero", "", "counted from the zero"),
        ("* step * weight_steps", "* weight_steps", "step of the activations"),
        ("* step * weight_steps", "* step", "steps of the weights"),
        ("total * step * weight_steps", "total * 1.0", "still in codes"),
        ("codes.astype(np.int32) - zero", "codes - np.uint8(zero)", "no negative number"),
        (
            "(codes.astype(np.int32) - zero) @ weight_codes.astype(np.int32).T",
            "(codes.astype(np.int32) - zero).astype(np.int8) @ weight_codes.T",
            "in the product",
        ),
    ],
    "folded_layer": [
        ("weight * s", "weight / s", "divided where"),
        ("weight * s", "weight", "scale is missing"),
        ("bias + weight @ z", "bias", "does not know"),
        ("bias + weight @ z", "bias - weight @ z", "put back"),
        ("bias + weight @ z", "bias + (weight * s) @ z", "without the scale"),
        ("bias + weight @ z", "bias + z.sum()", "for each output"),
        ("weight * s, bias + weight @ z", "weight * s", "Give two arrays"),
    ],
}

RIGHT = {
    "rounded_values": [
        """\
def my_round(x, bits):
    levels = np.linspace(x.min(), x.max(), 2**bits)
    nearest = np.abs(x[:, None] - levels).argmin(axis=1)
    return levels[nearest]
""",
    ],
    "integer_product": [
        """\
def my_product(codes, zero, step, weight_codes, weight_steps):
    x = step * (codes.astype(float) - zero)
    weight = weight_codes * weight_steps[:, None]
    return np.einsum("nc,kc->nk", x, weight)
""",
    ],
    "folded_layer": [
        """\
def my_fold(weight, bias, z, s):
    return weight @ np.diag(s), bias + (weight * z).sum(axis=1)
""",
    ],
}
