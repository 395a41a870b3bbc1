"""How many prefixes become tokens at once: the step loop, the forkable store of keys and values, attention, sampling."""
