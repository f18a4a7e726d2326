"""`python -m wukong`: the command line, if the `wukong` script is not on the path."""

import sys

from wukong.cli import command

if __name__ == "__main__":
    sys.exit(command())
