"""What makes a lesson a lesson: its session, its predictions, its exercises."""
