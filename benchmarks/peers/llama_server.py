"""llama.cpp's own server on a port of this machine, from xllamacpp: `python llama_server.py MODEL.gguf [--port P --slots N --context N]`.

Prints its address as a line once it answers, and ends when standard input does. It draws by temperature alone unless a request says
otherwise, so that clients which send nothing but a temperature draw as ponder does. Needs nothing of ours.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request

import xllamacpp


def opened(path: str, *, port: int, slots: int, context: int, threads: int) -> xllamacpp.Server:
    """context: cells of all slots together."""
    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity, params.cache_ram_mib = path, 0, 0
    params.n_parallel, params.n_ctx, params.kv_unified, params.n_ubatch = slots, context, True, 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames, params.port, params.warmup, params.fit_params = ["127.0.0.1"], port, False, False
    drawn = params.sampling
    drawn.top_k, drawn.top_p, drawn.min_p, drawn.penalty_repeat = 0, 1.0, 0.0, 1.0
    return xllamacpp.Server(params)


def wait(address: str) -> None:
    """Until the server answers that it is well."""
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as reply:
                if json.load(reply).get("status") == "ok":
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            pass
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--context", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    server = opened(args.model, port=args.port, slots=args.slots, context=args.context, threads=args.threads)
    address = server.listening_address
    wait(address)
    print(address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
