"""Resamplers, role Resampler (core.roles): (log_w, num, rng) -> ancestors. Laws: testing.laws_resampler."""
