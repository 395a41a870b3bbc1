"""ponder gets the best answer that a given amount of compute can buy."""

__version__ = "0.1.0"
