"""The same answer for less. One folder per role."""
