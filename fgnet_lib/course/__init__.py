"""What makes a lesson a lesson: its session, its quizzes and its exercises."""
