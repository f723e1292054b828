"""Answers of lesson 03: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "dw_weights": [
        ("27 * channels +", "27 * channels**2 +", "what depthwise means"),
        ("2 * expand", "expand", "one widens, one narrows"),
        ("27 * channels + ", "", "depthwise convolution is missing"),
        ("2 * expand * ", "2 * ", "as without widening"),
        ("27 *", "9 *", "27 places to look at"),
        ("channels**2", "channels", "is not the number of weights"),
    ],
    "attention": [
        (
            "F.relu(self.from_guide(guide) + self.from_fine(fine))",
            "self.from_guide(guide) + self.from_fine(fine)",
            "ReLU",
        ),
        ("torch.sigmoid(self.to_map(mixed))", "self.to_map(mixed)", "is not squashed"),
        ("(guide) + self", "(guide) * self", "are multiplied"),
        ("fine + fine * a, a", "fine * a, a", "F itself is lost"),
        ("fine + fine * a, a", "fine + a, a", "should weigh it"),
        ("fine + fine * a, a", "fine, a", "without its guidance"),
        ("fine + fine * a, a", "a, fine + fine * a", "are exchanged"),
        ("fine + fine * a, a", "fine + fine * a", "Two things should come back"),
        ("(guide) + self", "(fine) + self", "stopped with RuntimeError"),
        (
            "self.to_map = nn.Conv3d(channels, 1, 1)",
            "self.to_a = self.to_map = nn.Conv3d(channels, 1, 1)",
            "other names",
        ),
        ("torch.sigmoid", "torch.tanh", "not those of the equation"),
    ],
    "auc": [
        (" + 0.5 * (p[:, None] == q)", "", "do not count, and should"),
        (" + 0.5 * (", " + 1.0 * (", "count in full"),
        (
            "weights[borders], weights[~borders]",
            "weights[~borders], weights[borders]",
            "Inside and borders are exchanged",
        ),
        ("np.mean(", "np.sum(", "which share of them"),
        ("[:, None]", "", "Not every pair is counted"),
        ("np.mean((p[:, None] > q) + 0.5 * (p[:, None] == q))", "p.mean() / q.mean()", "a ratio of means"),
        ("np.mean((p[:, None] > q) + 0.5 * (p[:, None] == q))", "np.mean(p > 0.5)", "is not how often"),
    ],
}

RIGHT = {
    "dw_weights": [
        """\
def my_weights(channels, expand):
    wide = expand * channels
    return 3**3 * channels + channels * wide + wide * channels
""",
    ],
    "attention": [
        """\
class MyAttention(nn.Module):
    def __init__(self, guide_channels, channels):
        super().__init__()
        self.from_guide = nn.Conv3d(guide_channels, channels, 1)
        self.from_fine = nn.Conv3d(channels, channels, 1)
        self.to_map = nn.Conv3d(channels, 1, 1)

    def forward(self, fine, guide):
        a = self.to_map(nn.ReLU()(self.from_guide(guide) + self.from_fine(fine))).sigmoid()
        return fine * (1 + a), a
""",
    ],
    "auc": [
        """\
def my_auc(weights, borders):
    wins, pairs = 0, 0
    for p in weights[borders]:
        for q in weights[~borders]:
            wins, pairs = wins + (1 if p > q else 0.5 if p == q else 0), pairs + 1
    return wins / pairs
""",
    ],
}
