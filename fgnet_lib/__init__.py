"""The thin library behind the FGNet tutorials.

Data flows in one direction through its modules, and none imports a later one:
volumes -> datasets, phantom -> affinities, augment -> sam2_encoder -> fgnet -> losses -> training -> inference ->
segmentation -> metrics -> plots, explorers, viewer; `runtime` ties a lesson's parameters to them.
"""
