"""A folder to push as a Hugging Face Space: `python -m deploy.space DIR`, or with `--zero_gpu` for a GPU by the answer.

The repository itself is a Space on a CPU too. Its requirements.txt brings PyPI's torch there, with gigabytes of CUDA
that nothing uses; this folder's brings PyTorch's own build for CPUs.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("app.py", "hyperlora", "assets", "README.md", "LICENSE", "requirements.txt")
TORCH_CPU = "https://download.pytorch.org/whl/cpu"
# ZeroGPU has Python 3.10.13 and 3.12.12 alone, and of PyTorch from 2.8 the last versions of each, 2.13.0 among them.
ZERO_GPU = {"python_version": '"3.12.12"', "suggested_hardware": "zero-a10g", "startup_duration_timeout": "1h"}
SPACES = "spaces==0.51.3"


def write_space(folder: Path, zero_gpu: bool = False) -> None:
    """Copies what a Space needs into an empty `folder`, with the header and the requirements that its kind needs."""
    folder.mkdir(parents=True, exist_ok=True)
    if left := sorted(path.name for path in folder.iterdir() if path.name != ".git"):
        raise SystemExit(f"{folder} is not empty ({left[0]}): give another folder, or a clone of a new Space.")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / part, folder / part)
    readme, requirements = folder / "README.md", folder / "requirements.txt"
    (torch,) = re.findall(r"^torch==.*$", pins := requirements.read_text(), re.MULTILINE)
    if zero_gpu:
        _, header, text = readme.read_text(encoding="utf-8").split("---\n", 2)
        lines = [line for line in header.splitlines() if line.partition(":")[0] not in ZERO_GPU]
        lines += [f"{name}: {value}" for name, value in ZERO_GPU.items()]
        readme.write_text("---\n" + "\n".join(lines) + "\n---\n" + text, encoding="utf-8")
        requirements.write_text(f"{pins.rstrip()}\n{SPACES}\n")
    else:
        requirements.write_text(f"--extra-index-url {TORCH_CPU}\n{pins.replace(torch, f'{torch}+cpu')}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="which is empty, or is not there yet")
    parser.add_argument("--zero_gpu", action="store_true", help="for ZeroGPU, where each answer is lent a GPU")
    args = parser.parse_args(arguments)
    write_space(args.folder, args.zero_gpu)
    print(f"{args.folder} can be pushed to a Space now.")


if __name__ == "__main__":
    sys.exit(main())
