"""Arguments to verbs, results to terminal. The only room that prints."""
