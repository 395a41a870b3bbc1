"""`python -m peers [--quick] ...` in benchmarks/: measures our engine and its peers, taking turns, and appends rows to results/peers.jsonl.

For every work, for every round, for every engine: one turn. What was measured is kept in a journal as it comes; a run that was cut
off is taken up where it ended. An engine that is missing, fails or hangs is named, and the others go on.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from lib import rows as evidence

from peers.run import Plan, Run
from peers.works import MODELS, OURS, PEERS

ROOT = Path(__file__).resolve().parents[2]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the short run: SmolLM2 only, fewer works, about 3 minutes")
    parser.add_argument("--long", action="store_true", help="full sizes, three rounds for whoever is slow, too: about an hour")
    parser.add_argument("--tiny", action="store_true", help="a few tokens of everything, to see that it runs; writes no rows")
    parser.add_argument("--models", default="", help=f"names or GGUF files, comma-separated (default: {', '.join(MODELS)})")
    parser.add_argument("--engines", default=",".join((OURS, *PEERS)))
    parser.add_argument("--works", default="", help="names of works, comma-separated (default: all)")
    parser.add_argument("--ours", default="", help="weight format of ours (default: native where there is one, else int4)")
    parser.add_argument("--minutes", type=float, help="no new turn of a model after this long (default: about 5.5; quick 2.6; long 60)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--out", type=Path, default=ROOT / "out/bench", help="journal and logs")
    parser.add_argument("--fresh", action="store_true", help="forget an unfinished run")
    parser.add_argument("--more", action="store_true", help="go on with a finished run: what was out of time or failed, or other --engines")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers are ended in order
    plan = Plan.of(args)
    run = Run(plan, args.out, fresh=args.fresh, more=args.more)
    start = time.monotonic()
    try:
        run.measure()
    finally:
        run.close()
    print(f"== bench: {len(run.turns)} turns in {(time.monotonic() - start) / 60:.1f} minutes")
    if args.tiny:
        return 1 if run.errors else 0
    words = " ".join(["make", "bench", *([f"ARGS='{' '.join(run.plan.words)}'"] if run.plan.words else [])])
    rows = run.rows({"command": words, "commit": evidence.commit(), "machine": evidence.machine()})
    run.write(rows, evidence.RESULTS / "peers.jsonl")
    return 0


if __name__ == "__main__":
    sys.exit(main())
