"""What is looked at: figures, panels, explorers, surfaces, neuroglancer, exports."""
