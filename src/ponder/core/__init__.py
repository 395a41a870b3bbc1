"""The words that all rooms share: asks, particles, weights, rng, budget and cost, guarantee, roles, formats, errors."""
