"""Where strategies, verifiers and a process meet: driver, account, trace, sample store, comparison, report."""
