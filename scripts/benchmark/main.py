"""Runs the suites and writes what they measured. Started by scripts/bench, which says how."""
import argparse
import os
import sys

import images
import report
from suites import Suite


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--scratch", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", default="docs")
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args()
    rounds = 1 if words.quick else words.rounds

    # Where the ordinary user gets at them as well.
    default = "/var/tmp/imgfs-bench"
    cache = os.environ.get("IMGFS_BENCH_CACHE", default)
    if words.quick:
        cache = words.scratch
    size = images.Size(words.quick)
    made = images.make_all(cache, size)

    out = words.scratch if words.quick else words.out
    os.makedirs(out, exist_ok=True)
    table = report.Table()
    if words.only:
        table.keep(os.path.join(out, "bench.json"))
    suite = Suite(table, made, size, words.scratch, lambda: report.write(table, out, size, rounds))
    for part in (suite.ready, suite.trees, suite.flat, suite.writes, suite.commands, suite.growth, suite.directory, suite.more_trees):
        part(rounds, words.only)
    if not any(key not in table.earlier for key in table.values):
        sys.exit(f"bench: nothing is called {words.only}")
    for name in report.write(table, out, size, rounds):
        print(f"bench: {os.path.join(out, name)}")
    if words.quick:
        print("bench: the script works; these figures mean nothing")


main()
