"""Write docs/understand/which_first.md from the rows of lessons 12 and 13: what to try first on a volume of your own.

`adapt_targets.py` and `few_sections.py` call this after they have measured.
"""

from __future__ import annotations

import numpy as np

from fgnet_lib import REPOSITORY
from fgnet_lib.files.atomic import write_atomically
from fgnet_lib.study.few_sections import LABELLED_SECTIONS, SCRATCH, few_scores, judge_free_lunch, read_few_rows
from fgnet_lib.study.statistics import summary
from fgnet_lib.study.targets import (
    BASELINE,
    NEW_TISSUES,
    NOISE,
    TARGET_METHODS,
    Cell,
    advise,
    describe_changes,
    read_targets,
    target_changes,
)

WHICH_FIRST = REPOSITORY / "docs" / "understand" / "which_first.md"
SETTINGS = {  # of lesson 08 for a method; the others are lesson 12's alone
    "histogram": '`ADAPT = "voxel_size histogram"`',
    "clahe": '`ADAPT = "voxel_size clahe"`',
}
INTRODUCTION = f"""\
# Which of these should I try first on my volume?

<!-- written by tools/results/which_first.py from docs/measured/targets and few_sections; edit that tool instead -->

The shipped model was trained on FIB-25 and on another part of gala. AC4 (30 x 6 x 6 nm, mouse) and CREMI B
(40 x 4 x 4 nm, fly) are new to it. Every line below is computed from rows that we measured
([lesson 12](../measured/targets.md), [lesson 13](../measured/few_sections.md)), and says so where rows are missing.
Numbers are changes of VOI in bits; below 0 is better, and up to {NOISE} counts as the same. On CREMI B bfloat16 alone
moves VOI by up to 0.03 ([engines](../measured/engines.md#how-far-bfloat16-moves-voi)). **Four volumes are
few: take the order from here, and the decision from a labelled block of yours**, however small.
"""
VOXELS = """\
## 1. Voxels first

Are your voxels in y and x much smaller or larger than 10 nm? Set `ADAPT = "voxel_size"` in
[lesson 08](../../notebooks/08_your_own_volume.ipynb). It shows a preview, and `ADAPT = "none"` takes you back.
"""
UNLABELLED = """\
## 2. Without a label

Each method against the voxel size of training alone. AC4 and CREMI B decide; FIB-25 and gala show what a method costs
where nothing was wrong. The best mean over AC4 and CREMI B comes first. {short}

| try | verdict | what it did | how |
| --- | --- | --- | --- |
"""
LABELLED = """\
## 3. With a few labelled sections

Label the sections that you can, train on them (lesson 04), and keep some to judge. Does anything help more than
training a 3D U-Net on these labels for about the same time ([seconds](../measured/few_sections.md#voi))? Measured on
FIB-25, whose unlabelled sections were free to use; "better" and "worse" mean *p* < 0.05. The network of photographs is
another network, and good from scratch, too: only what it gains on that is due to photographs.

| labelled sections | U-Net from scratch, VOI | network of photographs from scratch | pretraining or weights from 2D |
| ---: | ---: | ---: | --- |
"""


def page() -> str:
    """The page, from the rows that are in the tables now."""
    cells, rows = read_targets(), read_few_rows()
    verdict = f"{advise(cells, BASELINE, 'as_is')}: {describe_changes(cells, BASELINE, 'as_is')}."
    methods = [name for name in TARGET_METHODS if name not in (BASELINE, "as_is")]
    table = "".join(_row(cells, name) for name in sorted(methods, key=lambda name: _mean_change(cells, name)))
    lunch = ""
    for n in LABELLED_SECTIONS:
        scratch = (few_scores(rows, name, n) for name in (SCRATCH, "photographs_random"))
        begins = " | ".join(summary(vois) if vois else "" for vois in scratch)
        lunch += f"| {n} | {begins} | {judge_free_lunch(rows, n)} |\n"
    first = verdict[0].upper() + verdict[1:]
    unlabelled = UNLABELLED.format(short=_short_answer(cells, methods))
    return "\n".join([INTRODUCTION, VOXELS, f"{first}\n", unlabelled + table, LABELLED + lunch])


def _short_answer(cells: dict[Cell, dict], methods: list[str]) -> str:
    helping = [TARGET_METHODS[name].title for name in methods if advise(cells, name).startswith("try it")]
    return f"**Helped on one new tissue at least, and hurt on none: {'; '.join(helping) or 'no method'}.**"


def _row(cells: dict[Cell, dict], name: str) -> str:
    return (
        f"| {TARGET_METHODS[name].title} | {advise(cells, name)} | {describe_changes(cells, name)} | "
        f"{SETTINGS.get(name, 'lesson 12')} |\n"
    )


def _mean_change(cells: dict[Cell, dict], name: str) -> float:
    """The mean over new tissue; what was not measured comes last."""
    changes = [change for volume, change in target_changes(cells, name).items() if volume in NEW_TISSUES]
    return float(np.mean(changes)) if changes else np.inf


def write_which_first() -> None:
    """Write the page."""
    write_atomically(WHICH_FIRST, page())


if __name__ == "__main__":
    write_which_first()
