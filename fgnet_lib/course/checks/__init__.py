"""Exercises that check themselves: `checks.affinities(my_affinities)` judges an answer, `checks.report("01")` sums up.

**To add an exercise** to lesson NN, edit three files:

1. `notebooks/src/NN_*.py`: a markdown cell that sets it, then three cells, directly one after the other::

       # %% tags=["task"]
       def my_affinities(labels):
           return ...  # the three dots mean: open

       # %% tags=["solution"]
       def my_affinities(labels):
           ...the whole answer...

       # %%
       checks.affinities(my_affinities)

   Both define the same names, which begin with `my_` (classes with `My`). An answer uses only what the lesson *imports*
   and what its own cell defines, so that it can be graded alone, at once and under any profile; nothing else in the
   lesson uses it. Import `checks` from `fgnet_lib.course` with the lesson's other imports. A cell `checks.report("NN")`
   before "What you learned" ends the exercises. A markdown cell tagged `solution` is in the solved version only. The
   text that sets an exercise begins with `**Exercise N.1: its title.**`; the title is the check's.
2. `fgnet_lib/course/checks/lessonNN.py`: the check, a function of the answers, decorated with
   `@exercise("NN", "its title", "a first hint")`, in the order of the lesson, and its name in the imports below. It
   calls a student's function by `call` or `call_array`, which hand out copies, and says by `require`, `require_equal`
   or `raise Hint(...)` what is wrong, but not what is right. The student reads the first hint before that: it says
   where to look, or names a small case to do by hand. What concerns only the form of an answer (its type or shape) is
   said at once, by `require_form` or `raise Slip(...)`. Call the answer with at least two inputs, so that no constant
   passes. Before the check, an answer is refused if it is a function or class of the library, is bound to one or
   inherits from one. A student who calls the library inside an answer is not stopped: read the answers that you grade.
   If a right answer makes a picture, `pictures.py` draws it beside the expected one.
3. `tests/course/mutants/lessonNN.py`: at least three wrong answers, each made by a replacement in the solution's text,
   with a part of the hint that each must get; and a right answer that goes another way than the solution.
   `tests/course/test_checks.py` does the rest.
"""

from fgnet_lib.course.checks.exercise import EXERCISES, report
from fgnet_lib.course.checks.lesson00 import error_kind, volume_size
from fgnet_lib.course.checks.lesson01 import affinities, mask, widened
from fgnet_lib.course.checks.lesson02 import fine_stride, map_shape, recall, similarity
from fgnet_lib.course.checks.lesson03 import attention, auc, dw_weights
from fgnet_lib.course.checks.lesson04 import balanced_loss, learning_rate, resume
from fgnet_lib.course.checks.lesson05 import face_mean, honest_threshold, merge, whole_from
from fgnet_lib.course.checks.lesson06 import match, neuron_volume, viewer_position
from fgnet_lib.course.checks.lesson07 import chance_of, fair_pairs, seed_summary
from fgnet_lib.course.checks.lesson08 import cut_geometry, flat_sections, sections_in_memory
from fgnet_lib.course.checks.lesson09 import block_ids, halo, worker_hours
from fgnet_lib.course.checks.lesson10 import embedding_products, grafting, teacher_loss
from fgnet_lib.course.checks.lesson11 import adapter_size, log_spectrum, low_rank_update
from fgnet_lib.course.checks.lesson12 import averaged_weights, matched_values, standardised_features, synapse_partners
from fgnet_lib.course.checks.lesson13 import inflated_kernel, info_nce_loss, released_loss, snake_offsets
from fgnet_lib.course.checks.lesson14 import channel_attention, hidden_pixels, signal_to_noise, undone_coupling
from fgnet_lib.course.checks.lesson15 import coordinate_waves, expected_calibration, inspected_errors, second_look
from fgnet_lib.course.checks.lesson16 import folded_layer, integer_product, rounded_values
from fgnet_lib.course.checks.lesson17 import consistent_sections, invented_voxels, nearest_code, straight_through
from fgnet_lib.course.checks.lesson18 import best_of, holm, smallest_p

__all__ = [
    "EXERCISES",
    "adapter_size",
    "affinities",
    "attention",
    "auc",
    "averaged_weights",
    "balanced_loss",
    "best_of",
    "block_ids",
    "chance_of",
    "channel_attention",
    "consistent_sections",
    "coordinate_waves",
    "cut_geometry",
    "dw_weights",
    "embedding_products",
    "error_kind",
    "expected_calibration",
    "face_mean",
    "fair_pairs",
    "fine_stride",
    "flat_sections",
    "folded_layer",
    "grafting",
    "halo",
    "hidden_pixels",
    "holm",
    "honest_threshold",
    "inflated_kernel",
    "info_nce_loss",
    "inspected_errors",
    "integer_product",
    "invented_voxels",
    "learning_rate",
    "log_spectrum",
    "low_rank_update",
    "map_shape",
    "mask",
    "match",
    "matched_values",
    "merge",
    "nearest_code",
    "neuron_volume",
    "recall",
    "released_loss",
    "report",
    "resume",
    "rounded_values",
    "second_look",
    "sections_in_memory",
    "seed_summary",
    "signal_to_noise",
    "similarity",
    "smallest_p",
    "snake_offsets",
    "standardised_features",
    "straight_through",
    "synapse_partners",
    "teacher_loss",
    "undone_coupling",
    "viewer_position",
    "volume_size",
    "whole_from",
    "widened",
    "worker_hours",
]
