"""Where a result comes from: command, commit, versions and hardware, for every result file."""

import datetime
import hashlib
import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("cartridges", "torch", "transformers", "tokenizers", "numpy")
_DIFF = ("--no-ext-diff", "--no-textconv", "--full-index")  # whole digests, as of weights nothing else is in it


def provenance() -> dict[str, object]:
    """A record to put into a result file. Needs no torch; the commit is None outside of a git checkout."""
    return {
        "command": command(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {name: installed for name in PACKAGES if (installed := package_version(name))},
        "hardware": hardware(),
    }


def command() -> str:
    """What was typed, with `cartridges` for its module run by Python."""
    program = Path(sys.argv[0]).name
    return shlex.join(["cartridges" if program == "__main__.py" else program, *sys.argv[1:]])


def package_version(name: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def commit() -> str | None:
    """The commit of this package's own checkout, such as "074a7b0aa866+changes.1a2b3c4d" where code differs from it.

    The last part tells one state of changed code from another. Tests, result files and pages do not count: a long
    measurement writes them as it goes. Asked once a process, as what is changed later does not run in it.
    """
    return commit_of(Path(__file__).parent)


def commit_of(package: Path) -> str | None:
    """The commit of the checkout that has the folder `package` at its top, None where there is none."""
    root = package.parent
    if not (root / ".git").exists():  # installed, perhaps into an environment inside of another checkout
        return None
    try:
        found = _git(root, "describe", "--always", "--abbrev=12", "--exclude=*")
        counted = [f"{top}/*.{kind}" for top in (package.name, "benchmarks") for kind in ("py", "yaml", "safetensors")]
        changes = _git(root, "diff", "HEAD", *_DIFF, "--", *counted)
        new = [pattern for pattern in counted if pattern.endswith(".py")]  # not what a measurement leaves there
        names = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *new)
        for name in filter(None, names.split(b"\0")):
            changes += b"\0" + name + b"\0" + (root / os.fsdecode(name)).read_bytes()
        return found.decode() + (f"+changes.{hashlib.sha256(changes).hexdigest()[:8]}" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True, timeout=10)
    return done.stdout.strip()


def hardware() -> str:
    """Processor, number of cores in use, and the CUDA device where torch is loaded and sees one."""
    parts = [processor(), f"{cores()} cores"]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(0))
    return ", ".join(parts)


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
