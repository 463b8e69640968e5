"""Where results come from."""

import json
import re

from cartridges.provenance import package_version, provenance


def test_a_record_says_all_that_is_needed_and_is_json():
    record = json.loads(json.dumps(provenance()))
    assert set(record) == {"command", "commit", "date", "python", "versions", "hardware"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert re.search(r"\d+ cores", record["hardware"])
    assert record["versions"]["cartridges"]


def test_a_package_that_is_not_installed_has_no_version():
    assert package_version("no-such-package") is None
