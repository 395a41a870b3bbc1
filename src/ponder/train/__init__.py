"""Verifiers that learn: a model's own rollouts, and heads fitted to their hidden states."""
