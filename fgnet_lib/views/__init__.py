"""Figures, panels, explorers, surfaces, the viewer and exports: all that shows a volume and what became of it."""
