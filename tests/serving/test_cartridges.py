"""Cartridges that come and go while the server runs: only with an admin key, only from allowed folders."""

import json
import shutil
import threading

import pytest

from cartridges.cartridge import MANIFEST, TENSORS, Cartridge
from cartridges.serving.settings import Keys
from tests.architectures import tiny
from tests.engine.judges import make_cartridge
from tests.serving.place import ADMIN_KEY, error_of, running


@pytest.fixture(scope="module")
def shelves(tmp_path_factory, served_model, tiny_tokenizer):
    """Folders: of good cartridges, of damaged ones, of one of another model; and one that is not allowed."""
    folder = tmp_path_factory.mktemp("shelves")
    allowed, secret = folder / "allowed", folder / "secret"
    good = make_cartridge(served_model, 12, seed=5)
    for path in (allowed / "good", allowed / "build" / "slots-12" / "cartridge", secret / "good", allowed / "cut"):
        good.save(path)
    for name in ("other-bytes", "no-tensors", "no-json", "huge-header", "huge-claim", "newer"):
        shutil.copytree(allowed / "good", allowed / name)
    raw = bytearray((allowed / "good" / TENSORS).read_bytes())
    (allowed / "cut" / TENSORS).write_bytes(raw[:-9])
    raw[-1] ^= 1
    (allowed / "other-bytes" / TENSORS).write_bytes(raw)
    (allowed / "no-tensors" / TENSORS).unlink()
    (allowed / "no-json" / MANIFEST).write_bytes(b"\xff\x00{")
    (allowed / "huge-header" / TENSORS).write_bytes(b"\xff" * 8 + bytes(100))
    manifest = json.loads((allowed / "good" / MANIFEST).read_text())
    (allowed / "huge-claim" / MANIFEST).write_text(json.dumps({**manifest, "num_slots": 10**15}))
    (allowed / "newer" / MANIFEST).write_text(json.dumps({**manifest, "format_version": 99}))
    (allowed / "deep").mkdir()
    (allowed / "deep" / MANIFEST).write_text("[" * 200_000)
    make_cartridge(tiny("llama", tiny_tokenizer), 12).save(allowed / "llama")
    make_cartridge(tiny("qwen3", tiny_tokenizer, seed=1), 12).save(allowed / "weights")
    (allowed / "link").symlink_to(secret / "good")
    (allowed / "inner-link").mkdir()
    for name in (MANIFEST, TENSORS):
        (allowed / "inner-link" / name).symlink_to(secret / "good" / name)
    return folder


@pytest.fixture(scope="module")
def admin(shelves, served_model, cartridges):
    with running(served_model, cartridges, Keys((), (ADMIN_KEY,)), [shelves / "allowed"], max_cartridges=4) as server:
        server.client.headers["Authorization"] = f"Bearer {ADMIN_KEY}"
        yield server
        server.settle()


def add(server, name, path):
    return server.post("/v1/cartridges", {"name": name, "path": str(path)})


@pytest.mark.parametrize("where", ["good", "build"])
def test_one_that_is_added_answers_until_it_is_removed(admin, shelves, where):
    error_of(admin.chat(model="late"), 404)
    added = add(admin, "late", shelves / "allowed" / where)
    assert (added.status_code, added.json()["num_slots"]) == (201, 12)
    assert added.json()["digest"] == admin.client.get("/v1/models/late").json()["digest"]
    assert admin.chat(model="late").status_code == 200
    assert admin.chat(model="ward+late").status_code == 200
    assert error_of(add(admin, "late", shelves / "allowed" / "good"), 409)["code"] == "name_taken"
    assert admin.client.delete("/v1/cartridges/late").json() == {"id": "late", "object": "cartridge", "deleted": True}
    error_of(admin.chat(model="late"), 404)
    error_of(admin.chat(model="ward+late"), 404)
    error_of(admin.client.delete("/v1/cartridges/late"), 404)


@pytest.mark.parametrize(
    ("folder", "part"),
    [
        ("cut", "is damaged"),
        ("other-bytes", "do not belong together (another digest)"),
        ("no-tensors", "is missing"),
        ("no-json", "cannot be read"),
        ("huge-header", "is damaged"),
        ("huge-claim", "1000000000000000 slots, expected fewer than the window"),
        ("newer", "format version 99"),
        ("deep", "cannot be read"),
        ("llama", "was made for tiny-llama, given tiny-qwen3"),
        ("weights", "other weights of the same shape"),
        ("nowhere", "is not there"),
        ("", "holds no cartridge"),
    ],
)
def test_one_that_cannot_be_used_is_refused(admin, shelves, folder, part):
    assert part in error_of(add(admin, "bad", shelves / "allowed" / folder))["message"]
    assert "bad" not in admin.engine.shelf.names()
    assert admin.chat(model="ward").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["secret/good", "allowed/../secret/good", "allowed/link", "allowed/inner-link", "allowed-not", "nowhere", ""],
)
def test_nothing_is_read_from_elsewhere(admin, shelves, path):
    error = error_of(add(admin, "spy", f"{shelves}/{path}"), 403)
    assert (error["param"], error["code"]) == ("path", "path_not_allowed")


def test_paths_and_names_are_what_they_are(admin, shelves):
    assert error_of(add(admin, "x", "allowed/good"), 403)["code"] == "path_not_allowed"
    assert error_of(add(admin, "x", f"{shelves}/allowed/a\0b"))["message"]
    assert error_of(add(admin, "x", f"{shelves}/allowed/{'n' * 300}"))["message"]
    for name in ("../secret/good", "a/b", ".hidden", "a+b", "a b", "é", "x" * 129, "a\n"):
        assert error_of(add(admin, name, shelves / "allowed" / "good"))["param"] == "name"
    assert error_of(admin.client.delete("/v1/cartridges/..%2fgood"), 404)
    assert error_of(add(admin, "tiny-qwen3", shelves / "allowed" / "good"), 409)


def test_no_more_than_the_most_are_taken(admin, shelves):
    good = shelves / "allowed" / "good"
    assert [add(admin, name, good).status_code for name in ("one", "two")] == [201, 201]
    assert "4 cartridges are served, which is the most" in error_of(add(admin, "three", good))["message"]
    for name in ("one", "two"):
        admin.client.delete(f"/v1/cartridges/{name}")


def test_it_is_checked_in_a_thread_that_ends(admin, shelves, monkeypatch):
    """One that lives on would keep a pool of OpenMP threads, which slows the engine's."""
    check, threads = Cartridge.check_finite, []

    def noted(cartridge):
        threads.append(threading.current_thread())
        check(cartridge)

    monkeypatch.setattr(Cartridge, "check_finite", noted)
    assert add(admin, "passing", shelves / "allowed" / "good").status_code == 201
    assert admin.client.delete("/v1/cartridges/passing").status_code == 200
    (thread,) = set(threads)
    thread.join(10)
    assert not thread.is_alive()


def test_a_reply_ends_with_the_cartridge_that_it_began_with(admin, shelves):
    add(admin, "late", shelves / "allowed" / "good")
    expected = admin.chat(model="late", temperature=0, max_tokens=120, ignore_eos=True).json()["choices"]
    found = []
    fields = {"model": "late", "temperature": 0, "max_tokens": 120, "ignore_eos": True}
    thread = threading.Thread(target=lambda: found.append(admin.chat(**fields).json()["choices"]))
    thread.start()
    while not admin.num_taken and not found:
        pass
    assert admin.client.delete("/v1/cartridges/late").status_code == 200
    thread.join(60)
    assert found == [expected]


def test_without_an_admin_key_nobody_changes_anything(server, shelves):
    for response in (
        add(server, "late", shelves / "allowed" / "good"),
        server.client.delete("/v1/cartridges/ward"),
        server.client.delete("/v1/cartridges/ward", headers={"Authorization": "Bearer"}),
        server.client.get("/v1/cartridges"),
    ):
        assert error_of(response, 403)["code"] == "admin_key_needed"
    assert server.engine.shelf.names() == ["firm", "ward"]
