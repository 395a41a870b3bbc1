"""Two models at one answer. What comes out is neither model's own, and says so."""
