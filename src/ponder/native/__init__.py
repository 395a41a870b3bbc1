"""Kernels in C++, compiled on the user's machine when first used. Each has a slow path in PyTorch that goes on without it."""
