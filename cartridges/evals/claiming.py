"""The verb `claims`: measure claims with a lab, write each as JSON as soon as it is done, and the page of all."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cartridges.errors import FormatError, InputError, unknown_name
from cartridges.evals.claims_page import write_page
from cartridges.evals.finding import Finding
from cartridges.evals.lab import Lab
from cartridges.evals.task import loaded
from cartridges.provenance import provenance

CLAIMS: dict[str, str] = {
    "capacity": "cartridges.evals.claims.capacity:capacity",
    "objectives": "cartridges.evals.claims.objectives:objectives",
    "recipe": "cartridges.evals.claims.recipe:recipe",
    "initializers": "cartridges.evals.claims.initializers:initializers",
    "long_corpus": "cartridges.evals.claims.long_corpus:long_corpus",
    "composition": "cartridges.evals.claims.composition:composition",
    "off_corpus": "cartridges.evals.claims.off_corpus:off_corpus",
    "scaling": "cartridges.evals.claims.scaling:scaling",
    "cost": "cartridges.evals.claims.cost:cost",
    "data": "cartridges.evals.claims.data:data",
}
RESULTS = Path("results") / "claims"


def check_names(names: Sequence[str]) -> list[str]:
    """The claims of these names, all without one, each once. Raises InputError for an unknown one."""
    for name in names:
        if name not in CLAIMS:
            raise InputError(unknown_name("claim", name, CLAIMS))
    return [name for name in CLAIMS if not names or name in names]


def measure_claims(
    lab: Lab,
    out: Path,
    names: Sequence[str] = (),
    preset: str = "quick",
    say: Callable[[str], None] = lambda text: None,
) -> list[Finding]:
    """Measure, or take what `out` holds of this very lab; the page `out/claims.md` is written anew after each.

    Raises InputError for unknown names and for a lab of another commit, InterruptedRun when stopped: the same call then
    goes on.
    """
    wanted = check_names(names)
    folder = out / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, name in enumerate(wanted, start=1):
        path = folder / f"{name}.json"
        finding = known(path, lab, preset)
        if finding is None:
            say(f"{number}/{len(wanted)} {name}")
            started = time.monotonic()
            claim: Callable[[Lab], Finding] = loaded(CLAIMS[name])
            finding = claim(lab)
            finding.preset, finding.provenance = preset, provenance()
            finding.about["config"] = lab.config.model_dump(mode="json")
            finding.seconds = round(time.monotonic() - started, 1)
            finding.save(path)
            write_page(out / "claims.md", folder)
        else:
            say(f"{number}/{len(wanted)} {name}: measured before, in {path}")
        found.append(finding)
    write_page(out / "claims.md", folder)
    return found


def known(path: Path, lab: Lab, preset: str) -> Finding | None:
    """The finding in `path` if it is of this commit, preset and configuration."""
    if not path.exists():
        return None
    try:
        finding = Finding.load(path)
    except FormatError:
        return None
    same = (
        finding.provenance.get("commit") == provenance()["commit"]
        and finding.preset == preset
        and finding.about.get("config") == lab.config.model_dump(mode="json")
    )
    return finding if same else None
