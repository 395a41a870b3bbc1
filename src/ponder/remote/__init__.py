"""Engines behind HTTP: an endpoint as a process, with its faults, limits, prices and abilities."""
