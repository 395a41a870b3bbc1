"""Real questions with exact scorers and fixed splits."""
