"""Models with other layers than they came with."""
