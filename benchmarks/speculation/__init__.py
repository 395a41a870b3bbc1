"""Speculation measured: questions by category, settings beside plain decoding and beside peers, the page that shows them."""
