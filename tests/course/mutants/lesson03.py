"""Answers of lesson 03: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "dw_weights": [
        ("27 * channels +", "27 * channels**2 +", "only at its own neighbours"),
        ("2 * expand", "expand", "one widens, one narrows"),
        ("2 * expand", "(expand + 1)", "reads e C channels"),
        (" + 2 * expand * channels**2", "", "pointwise layers are missing"),
        ("27 * channels + ", "", "depthwise convolution is missing"),
        ("2 * expand * ", "2 * ", "as without widening"),
        ("27 *", "9 *", "more than 9 voxels"),
        (
            "27 * channels + 2 * expand * channels**2",
            "27 * channels + expand * channels**2 + (expand * channels) ** 2",
            "No layer goes from e C",
        ),
        ("return ", "return channels * (2 + expand) + ", "You count biases"),
        ("channels**2", "channels", "is not the number of weights"),
    ],
    "attention": [
        (
            "F.relu(self.from_guide(guide) + self.from_fine(fine))",
            "self.from_guide(guide) + self.from_fine(fine)",
            "ReLU after the sum is missing",
        ),
        ("torch.sigmoid(self.to_map(mixed))", "self.to_map(mixed)", "is not squashed"),
        ("(guide) + self", "(guide) * self", "You multiply the two projections"),
        ("fine * a, a", "fine + fine * a, a", "This is the residual form"),
        ("fine * a, a", "fine * (1 - a), a", "not by 1 - a"),
        ("fine * a, a", "fine + a, a", "it should multiply F"),
        ("fine * a, a", "fine, a", "without its guidance"),
        ("fine * a, a", "a, fine * a", "swapped the two results"),
        ("fine * a, a", "fine * a", "should return two things"),
        ("(guide) + self", "(fine) + self", "(line 9 of your cell)"),
        ("self.to_map(mixed)", "self.to_map(guide)", "(line 10 of your cell)"),
        (
            "F.relu(self.from_guide(guide) + self.from_fine(fine))\n        a = torch.sigmoid(self.to_map(mixed))",
            "self.from_guide(guide) + self.from_fine(fine)\n        a = torch.sigmoid(F.relu(self.to_map(mixed)))",
            "not behind W_a",
        ),
        (
            "F.relu(self.from_guide(guide) + self.from_fine(fine))",
            "F.relu(self.from_guide(guide)) + F.relu(self.from_fine(fine))",
            "not to each projection",
        ),
        ("fine * a, a", "fine.mul_(a), a", "changes the tensor"),
        ("nn.Conv3d(channels, 1, 1)", "nn.Conv3d(channels, channels, 1)", "the shape of to_map.weight, to_map.bias"),
        ("nn.Module", "object", "should remain an nn.Module"),
        (
            "self.to_map = nn.Conv3d(channels, 1, 1)",
            "self.to_a = self.to_map = nn.Conv3d(channels, 1, 1)",
            "Keep the layers of the stub",
        ),
        ("torch.sigmoid", "torch.tanh", "differ from the equation"),
    ],
    "auc": [
        (" + 0.5 * (p[:, None] == q)", "", "do not count; they should"),
        (" + 0.5 * (", " + 1.0 * (", "count in full"),
        (
            "weights[borders], weights[~borders]",
            "weights[~borders], weights[borders]",
            "swapped borders and interior",
        ),
        ("np.mean(", "np.sum(", "what share of all pairs"),
        ("[:, None]", "", "You do not count every pair"),
        ("np.mean((p[:, None] > q) + 0.5 * (p[:, None] == q))", "p.mean() - q.mean()", "a difference of means"),
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
        return a * fine, a
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
