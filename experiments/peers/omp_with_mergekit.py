"""Solves sparse combinations with mergekit's `batch_omp`; needs torch and mergekit.

`python omp_with_mergekit.py FOLDER THREADS` reads requests from stdin: `{"k", "batch",
"rows"}`. The folder holds `targets.npy` and `atoms.npy`; the chosen atoms are written
there as `indices.npy`.
"""

import importlib.metadata
import json
import sys
import time


def main() -> None:
    """Answers requests until stdin ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print what they like
    import numpy as np
    import torch
    from mergekit.tokensurgeon import batch_omp

    folder, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    targets, atoms = (
        torch.from_numpy(np.load(f"{folder}/{name}.npy"))
        for name in ("targets", "atoms")
    )

    def say(answer: dict) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    say(
        {"torch": torch.__version__, "mergekit": importlib.metadata.version("mergekit")}
    )
    for line in sys.stdin:
        request = json.loads(line)
        try:
            began = time.perf_counter()
            found = []
            with torch.inference_mode():
                for start in range(0, request["rows"], request["batch"]):
                    stop = min(start + request["batch"], request["rows"])
                    part = targets[start:stop]
                    found.append(batch_omp(part, atoms, request["k"])[0])
            seconds = time.perf_counter() - began
            np.save(f"{folder}/indices.npy", torch.cat(found).numpy())
            say({"seconds": seconds})
        except Exception as error:  # the asking side decides what to do
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
