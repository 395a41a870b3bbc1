"""Our engine beside others on the same files, prompts and cores, in one run: `python -m peers` from benchmarks/, or `make bench`."""
