"""Adding and removing cartridges while the server runs, for those with an admin key.

A path counts only below one of the roots that were given at the start; a name is looked up on the shelf, and never
becomes a path.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from cartridges.cartridge import MANIFEST, MAX_HEADER_BYTES, TENSORS, Manifest, check_fits
from cartridges.engine.shelf import check_name
from cartridges.errors import InputError
from cartridges.find import find_cartridge
from cartridges.model import Model
from cartridges.serving.desk import Desk
from cartridges.serving.errors import ApiError, Json
from cartridges.serving.openai_routes import ERRORS
from cartridges.serving.schema import CartridgeToAdd

MAX_NUMBER_BYTES = 8  # of one number in a file, whatever its dtype


def cartridge_routes(desk: Desk, roots: Sequence[Path]) -> APIRouter:
    """The routes; `roots` are the folders below which cartridges may be taken from."""
    router = APIRouter(responses=ERRORS)
    taking_turns = asyncio.Lock()
    allowed = [Path(root).resolve() for root in roots]
    shelf = desk.engine.shelf

    @router.get("/v1/cartridges")
    async def listed() -> Json:
        """What is served."""
        return Json({"object": "list", "data": [_told(name, shelf.manifest(name)) for name in shelf.names()]})

    @router.post("/v1/cartridges", status_code=201, response_model=None)
    async def add(asked: CartridgeToAdd) -> Response:
        """Load a cartridge from a folder, under a name that is not taken."""
        try:
            check_name(asked.name)
        except InputError as error:
            raise ApiError(str(error), "name") from error
        async with taking_turns:
            if asked.name in shelf.names() or asked.name == desk.base:
                raise ApiError(f"{asked.name} is served already; remove it first", "name", "name_taken", 409)
            if len(shelf.names()) >= desk.config.max_cartridges:
                raise ApiError(
                    f"{len(shelf.names())} cartridges are served, which is the most; remove one first", "name"
                )
            await desk.apart(lambda: _load(asked, allowed, desk))
        return Json(_told(asked.name, shelf.manifest(asked.name)), 201)

    @router.delete("/v1/cartridges/{name}", response_model=None)
    async def remove(name: str) -> Response:
        """Take a cartridge off the shelf; requests that run with it end with it."""
        async with taking_turns:
            if name not in shelf.names():
                raise ApiError(f"there is no cartridge {name[:80]!r}", "name", "cartridge_not_found", 404)
            shelf.remove(name)
        return Json({"id": name, "object": "cartridge", "deleted": True})

    return router


def _told(name: str, manifest: Manifest) -> dict[str, Any]:
    told = {"id": name, "object": "cartridge", "num_slots": manifest.num_slots, "digest": manifest.digest}
    return {**told, "corpus_digest": manifest.corpus_digest, "created": manifest.created}


def _load(asked: CartridgeToAdd, roots: Sequence[Path], desk: Desk) -> None:
    try:
        folder = below(Path(asked.path), roots)
        folder = below(find_cartridge(folder), roots)
        for file in (MANIFEST, TENSORS):
            below(folder / file, roots)
        manifest = Manifest.read(folder)
        check_size(folder, manifest, desk.engine.model)
        desk.engine.shelf.add(asked.name, folder)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{asked.path[:200]!r} cannot be read ({type(error).__name__})") from error


def below(path: Path, roots: Sequence[Path]) -> Path:
    """The path without links. Raises ApiError where it is not below one of `roots`, whether it exists or not."""
    found = path.resolve()
    if not path.is_absolute() or not any(found.is_relative_to(root) for root in roots):
        allowed = ", ".join(map(str, roots)) or "none; start the server with --allow FOLDER"
        raise ApiError(
            f"given the path {str(path)[:200]!r}, expected an absolute one below an allowed folder ({allowed})",
            "path",
            "path_not_allowed",
            403,
        )
    return found


def check_size(folder: Path, manifest: Manifest, model: Model) -> None:
    """Raises before anything large is read: FormatError for another model, InputError for what cannot be used."""
    check_fits(manifest, model.identity)
    if manifest.num_slots >= model.window:
        raise InputError(
            f"the cartridge in {folder} has {manifest.num_slots} slots, expected fewer than the window of "
            f"{model.identity.model_id}, {model.window}"
        )
    numbers = sum(2 * layer.num_kv_heads * layer.head_size for layer in manifest.model.layers) * manifest.num_slots
    size = (folder / TENSORS).stat().st_size if (folder / TENSORS).is_file() else 0
    if size > numbers * MAX_NUMBER_BYTES + MAX_HEADER_BYTES:
        raise InputError(f"{folder / TENSORS} has {size} bytes, more than {manifest.num_slots} slots can have")
