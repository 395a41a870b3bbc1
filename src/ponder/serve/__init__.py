"""One server, every strategy: OpenAI-compatible HTTP over one engine. The only room with async code."""
