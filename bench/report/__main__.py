"""All figures of this machine on one page: `python -m bench.report [--quick]`.

Writes `report.html`, `report.md` and `report.json` (the results as they were measured) beside the
sources of the bench, or elsewhere; all three after each part, so that a run that is cut short has
told what it had. `--resume` goes on with such a run: it measures the parts that are missing or have
failed. With `--results` it only draws the page of earlier results.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.report.page import render
from bench.report.runs import FULL, QUICK, Profile, everything, profiled


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
    parser.add_argument("--resume", action="store_true", help="measure what is still missing")
    given = parser.parse_args(arguments)
    if given.results:
        results = json.loads(given.results.read_text(encoding="utf-8"))
        _draw(results, given.output)
    else:
        profile = QUICK if given.quick else FULL
        results = everything(
            profile, given.directory, lambda text: print(text, file=sys.stderr, flush=True),
            frozenset(filter(None, given.only.split(","))),
            earlier=_earlier(given.output, profile) if given.resume else None,
            keep=lambda results: _keep(results, given.output),
        )  # fmt: skip
    print(f"{given.output / 'report.html'} in {results['took_s']} s")
    for name, reason in results["failed"].items():
        print(f"{name} could not be measured: {reason}")
    return 1 if results["failed"] else 0


def _earlier(output: Path, profile: Profile) -> dict[str, Any] | None:
    """Results of an earlier run of the same profile; None: there are none."""
    path = output / "report.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found["profile"] == profiled(profile) else None


def _keep(results: dict[str, Any], output: Path) -> None:
    results = json.loads(json.dumps(results))
    partial = output / "report.json.part"
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    partial.replace(output / "report.json")
    _draw(results, output)


def _draw(results: dict[str, Any], output: Path) -> None:
    page, markdown = render(results)
    (output / "report.html").write_text(page, encoding="utf-8")
    (output / "report.md").write_text(markdown, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
