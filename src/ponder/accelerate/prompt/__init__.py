"""Prompt filters and layer plans: which tokens of a prompt are read, and how far (roles of core/pruning)."""
