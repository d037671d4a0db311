"""`python -m switch`, and the entry point of the `troncal` command."""

from switch.cli import root
from switch.ops.hardening import harden


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    harden()
    root.main(prog_name="troncal")


if __name__ == "__main__":
    main()
