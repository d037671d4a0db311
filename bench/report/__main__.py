"""All figures of this machine on one page: `python -m bench.report [--quick]`.

Writes `report.html`, `report.md` and `report.json` (the results as they were measured) beside the
sources of the bench, or elsewhere. With `--results` it only draws the page of earlier results.
"""

import argparse
import json
import sys
from pathlib import Path

from bench.report.page import render
from bench.report.runs import FULL, QUICK, everything


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="some three minutes")
    parser.add_argument("--only", default="", help="names of parts, separated by commas")
    parser.add_argument(
        "--directory", type=Path, help="where data is written; its disk is measured"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--results", type=Path, help="draw the page of these results")
    given = parser.parse_args(arguments)
    if given.results:
        results = json.loads(given.results.read_text(encoding="utf-8"))
    else:
        only = frozenset(filter(None, given.only.split(",")))
        profile = QUICK if given.quick else FULL
        results = everything(
            profile, given.directory, lambda text: print(text, file=sys.stderr, flush=True), only
        )
        results = json.loads(json.dumps(results))
        text = json.dumps(results, indent=1) + "\n"
        (given.output / "report.json").write_text(text, encoding="utf-8")
    page, markdown = render(results)
    (given.output / "report.html").write_text(page, encoding="utf-8")
    (given.output / "report.md").write_text(markdown, encoding="utf-8")
    print(f"{given.output / 'report.html'} in {results['took_s']} s")
    for name, reason in results["failed"].items():
        print(f"{name} could not be measured: {reason}")
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
