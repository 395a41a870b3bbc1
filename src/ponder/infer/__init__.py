"""A better answer for more: strategies, one file each, on the shared `ops` and `compose`."""
