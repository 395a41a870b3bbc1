"""What costs what, and why: rooflines, measured machine cards, predicted and measured time."""
