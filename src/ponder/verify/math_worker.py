"""The process behind math_process: reads one JSON pair of LaTeX strings a line, writes 1 or 0 a line. Run as a script."""

import contextlib
import json
import logging
import resource
import sys

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

MEMORY = 4 << 30  # bytes of address space; sympy alone maps about 1 GB


def equal(left: str, right: str) -> bool:
    """Equality in either direction; any failure of the parser or of sympy counts as different."""
    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    try:
        a, b = (parse(f"${x}$", extraction_config=configs, parsing_timeout=None) for x in (left, right))
        return bool(a and b) and (verify(a, b, timeout_seconds=None) or verify(b, a, timeout_seconds=None))
    except Exception:
        return False


def main() -> None:
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(f"{int(equal(*json.loads(line)))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
