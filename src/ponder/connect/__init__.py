"""Doors into other programs: a Python door of three lines, and adapters to evaluation frameworks, one file each."""
