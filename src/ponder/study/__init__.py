"""Strategies x verifiers x budgets x tasks from stored samples: the grid, its figures, its page and its pictures."""
