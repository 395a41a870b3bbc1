"""How good an answer is: verifiers, one file each; `answers` reads and compares, `measure` and `coverage` measure."""
