"""Adds up pytest's JUnit files and prints the plain closing line of `.ci/run`."""

import argparse
import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def count(path: pathlib.Path) -> tuple[int, int, int]:
    """Passed, failed and skipped tests of one JUnit file; a missing file failed."""
    if not path.is_file():
        return 0, 1, 0
    totals = [0, 0, 0]
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        ran, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        broken = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        totals[0] += ran - broken - skipped
        totals[1] += broken
        totals[2] += skipped
    return totals[0], totals[1], totals[2]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--failed-stages", type=int, default=0)
    options = parser.parse_args()
    passed, failed, skipped = map(sum, zip(*map(count, options.files), strict=True))
    # A stage can fail with no failing test: the linter, the demo, a golden unread.
    failed = max(failed, options.failed_stages)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    sys.exit(main())
