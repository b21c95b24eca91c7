"""Pictures and their cache: sealed, bounded, removable at any time, never a way round the scope or the audit."""

from __future__ import annotations

import base64
import gc
import io
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from archive.access.grants import Target
from archive.access.subject import Subject
from archive.dicom import render
from archive.dicom.recipe import Recipe, Viewport, Window, thumbnail
from archive.errors import InvalidRequest, NotAcceptable, NotFound
from archive.node import Node
from archive.services import pictures
from archive.services.clock import utc_now
from archive.services.pictures import Picture
from archive.services.preparing import SETTLED_AFTER
from archive.services.upkeep import Upkeep
from tests.services import archives

STUDY, SERIES = "1.2.3", "1.2.3.1"
PICTURE = Recipe("png")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path)) as node:
        for number in range(1, 6):
            archives.store(node, archives.instance(number))
        yield node


@pytest.fixture
def admin(node: Node) -> Subject:
    return archives.user(node)


def kept(node: Node) -> list[Path]:
    folder = node.config.cache_dir / "pictures"
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def of(node: Node, subject: Subject, number: int = 1, frame: int = 1, recipe: Recipe = PICTURE) -> Picture:
    return node.pictures.of_instance(subject, "clinical", STUDY, SERIES, f"{SERIES}.{number}", [frame], recipe)[0]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a picture is really drawn."""
    drawn: list[int] = []
    really = render.encode

    def encode(image: Image.Image, recipe: Recipe, high: float) -> bytes:
        drawn.append(1)
        return really(image, recipe, high)

    monkeypatch.setattr(render, "encode", encode)
    return drawn


def test_a_picture_is_drawn_once(node: Node, admin: Subject, draws: list[int]) -> None:
    first = of(node, admin).data()
    assert Image.open(io.BytesIO(first)).size == (16, 16)
    assert [of(node, admin).data() for _ in range(3)] == [first] * 3
    assert len(draws) == 1
    others = [Recipe("jpeg"), Recipe("jpeg", quality=10), Recipe("png", Window(1, 2)), Recipe("png", Window(1, 2, "SIGMOID")),
              Recipe("png", viewport=Viewport(5, 5)), Recipe("png", viewport=Viewport(5, 5, mirrored=True)), thumbnail("png")]
    tags = {of(node, admin, recipe=recipe).etag for recipe in others} | {of(node, admin, frame=0).etag, of(node, admin, 2).etag}
    assert len(tags) == len(others) + 2
    for recipe in others:
        of(node, admin, recipe=recipe).data()
    assert len(draws) == 1 + len(others) == len(kept(node))
    assert of(node, admin, recipe=Recipe("png", quality=10)).etag == of(node, admin).etag  # PNG has no quality


def test_nothing_lies_there_in_clear(node: Node, admin: Subject, draws: list[int]) -> None:
    for form in ("png", "jpeg"):
        for recipe in (Recipe(form), thumbnail(form)):
            data = of(node, admin, recipe=recipe).data()
            pieces = {data[at : at + 24] for at in range(0, len(data) - 24, 8)} | {b"\x89PNG", b"JFIF", b"IHDR"}
            for path in (path for path in node.config.storage_dir.rglob("*") if path.is_file()):
                stored = path.read_bytes()
                assert not [piece for piece in pieces if piece in stored or base64.b64encode(piece[:21]) in stored], path
    assert len(kept(node)) == 4
    for path in kept(node):
        assert not any(uid in str(path) for uid in (STUDY, SERIES))
        assert path.stat().st_mode & 0o077 == 0


def test_a_damaged_or_removed_picture_is_drawn_again(node: Node, admin: Subject, draws: list[int]) -> None:
    whole = of(node, admin).data()
    [path] = kept(node)
    sealed = path.read_bytes()
    for at in (0, 9, 20, 40, 90, 96, 119, 130, 170, len(sealed) - 1):
        path.write_bytes(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
        assert of(node, admin).data() == whole
    for short in (0, 100, 160, len(sealed) - 1):
        path.write_bytes(sealed[:short])
        assert of(node, admin).data() == whole
    assert len(draws) == 15
    shutil.rmtree(node.config.cache_dir)
    assert of(node, admin).data() == whole
    assert len(draws) == 16
    assert of(node, admin).data() == whole
    assert len(draws) == 16


def test_one_picture_never_passes_for_another(node: Node, admin: Subject, draws: list[int]) -> None:
    first, second = of(node, admin, 1), of(node, admin, 2)
    one = first.data()
    [path] = kept(node)
    other = second.data()
    [place] = [found for found in kept(node) if found != path]
    shutil.copy(path, place)  # same study, same key
    assert of(node, admin, 2).data() == other != one
    assert len(draws) == 3
    # A pack of the same study's key put in a picture's place.
    list(node.retrieve.metadata(admin, "clinical", STUDY, SERIES).gzip())
    [pack] = [found for found in node.config.cache_dir.rglob("*") if found.is_file() and "pictures" not in found.parts]
    shutil.copy(pack, place)
    assert of(node, admin, 2).data() == other


def test_another_renderer_draws_anew(node: Node, admin: Subject, draws: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(node, admin)
    before.data()
    monkeypatch.setattr("archive.services.picture_cache.RENDERER_VERSION", render.RENDERER_VERSION + 1)
    after = of(node, admin)
    after.data()
    assert len(draws) == 2
    assert before.etag != after.etag


def test_the_cache_stays_within_its_bound(tmp_path: Path, draws: list[int]) -> None:
    limit = 32 * 4096
    with archives.opened(archives.made(tmp_path, storage={"picture_cache_bytes": limit})) as node:
        archives.store(node, archives.instance(1))
        admin = archives.user(node)
        first = of(node, admin)
        first.data()
        for center in range(100):
            [oldest] = [path for path in kept(node) if path.name == kept_name(node, first)] or [None]
            if oldest is not None:
                os.utime(oldest)  # read again and again
            os_back(node, seconds=5)
            of(node, admin, recipe=Recipe("png", Window(center, 50))).data()
            assert sum(path.stat().st_blocks * 512 for path in kept(node)) <= limit + limit // 16 + 4096
        assert len(kept(node)) > 20
        assert kept_name(node, first) in {path.name for path in kept(node)}, "what is read stays"
        huge = archives.instance(2, rows=512, PixelData=os.urandom(512 * 512 * 2))
        archives.store(node, huge)
        before = len(kept(node))
        assert len(of(node, admin, 2).data()) > limit
        assert len(kept(node)) == before


def kept_name(node: Node, picture: Picture) -> str:
    return node.pictures._cache.name(picture.row, picture.frame, PICTURE).object_id.hex()


def os_back(node: Node, *, seconds: int) -> None:
    """Make every kept picture older, but for the one just read."""
    paths = sorted(kept(node), key=lambda path: path.stat().st_mtime)
    for path in paths[:-1]:
        at = path.stat().st_mtime - seconds
        os.utime(path, (at, at))


def test_a_cache_of_nothing_keeps_nothing(tmp_path: Path, draws: list[int]) -> None:
    with archives.opened(archives.made(tmp_path, storage={"picture_cache_bytes": 0})) as node:
        archives.store(node, archives.instance(1))
        assert of(node, archives.user(node)).data() == of(node, archives.user(node)).data()
        assert len(draws) == 2
        assert not kept(node)


def test_a_full_disk_costs_the_cache_and_not_the_answer(node: Node, admin: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(type(node.core.vault._cache()._disk), "create", full)
    assert of(node, admin).data() == of(node, admin).data()
    assert not kept(node)


def test_upkeep_makes_thumbnails_before_anyone_asks(node: Node, admin: Subject, draws: list[int]) -> None:
    later = archives_clock(node, SETTLED_AFTER * 2)
    later.tick()
    assert len(draws) == 1
    assert len(kept(node)) == 1
    shown = node.pictures.standing_for(admin, "clinical", STUDY, SERIES, pictures.PREPARED, what=pictures.THUMBNAIL)
    assert Image.open(io.BytesIO(shown.data())).format == "JPEG"
    assert len(draws) == 1, "it was there"
    assert shown.row.sop_instance_uid == f"{SERIES}.3"
    for number in range(6, 10):
        archives.store(node, archives.instance(number))
    assert node.pictures.standing_for(admin, "clinical", STUDY, SERIES, pictures.PREPARED, what=pictures.THUMBNAIL).etag != shown.etag
    archives_clock(node, SETTLED_AFTER * 2).tick()
    again = node.pictures.standing_for(admin, "clinical", STUDY, SERIES, pictures.PREPARED, what=pictures.THUMBNAIL)
    assert again.row.sop_instance_uid == f"{SERIES}.5"
    assert again.data()
    assert len(draws) == 2


def archives_clock(node: Node, ahead: timedelta) -> Upkeep:
    """An upkeep that lives a little later."""
    from dataclasses import replace

    return Upkeep(replace(node.core, clock=lambda: utc_now() + ahead))


def test_upkeep_goes_on_past_what_cannot_be_drawn(node: Node, draws: list[int]) -> None:
    archives.store(node, archives.instance(1, series="1.2.3.9", SamplesPerPixel=4, PixelData=bytes(2048)))
    archives.store(node, archives.instance(1, series="1.2.3.10", Rows=None, Columns=None, PixelData=None))
    archives_clock(node, SETTLED_AFTER * 2).tick()
    assert len(draws) == 1


# --- who sees what


def events(node: Node) -> list[tuple[Any, ...]]:
    """What mia did, newest first."""
    found = node.oversight.search(archives.the_console(node), user="mia", kinds=["read", "denied"])
    return [(event["kind"], event["instances"], event["body"]["detail"]) for event in found]


def mia(node: Node, *targets: Target) -> Subject:
    console = archives.the_console(node)
    node.accounts.add_user(console, "mia", roles=["radiologist"], password=archives.PASSWORD)
    for target in targets:
        node.accounts.add_grant(console, to="mia", role="radiologist", target=target)
    return archives.user(node, "mia")


def test_what_stands_for_a_study_is_chosen_among_what_may_be_seen(node: Node, admin: Subject) -> None:
    for number in (1, 2, 3):
        archives.store(node, archives.instance(number, series="1.2.3.2", SeriesNumber=2))
    mine = mia(node, Target("series", "1.2.3.2"))
    chosen = node.pictures.standing_for(mine, "clinical", STUDY, None, PICTURE)
    assert chosen.row.sop_instance_uid == "1.2.3.2.2"
    assert node.pictures.standing_for(admin, "clinical", STUDY, None, PICTURE).row.series_instance_uid == SERIES
    assert {one.row.series_instance_uid for one in node.pictures.of_each(mine, "clinical", STUDY, None, PICTURE)} == {"1.2.3.2"}
    for ask in (lambda: node.pictures.standing_for(mine, "clinical", STUDY, SERIES, PICTURE),
                lambda: node.pictures.of_each(mine, "clinical", STUDY, SERIES, PICTURE), lambda: of(node, mine)):
        with pytest.raises(NotFound):
            ask()


def test_the_choice_is_the_same_on_each_engine(tmp_path: Path, engine: dict[str, Any]) -> None:
    with archives.opened(archives.made(tmp_path, **engine)) as node:
        for number in (4, 2, 3, 1):
            archives.store(node, archives.instance(number))
        for number in range(10, 20):
            archives.store(node, archives.instance(number, series="1.2.3.2", Rows=None, Columns=None, PixelData=None))
        admin = archives.user(node)
        mine = mia(node, Target("series", "1.2.3.2"))
        assert node.pictures.standing_for(admin, "clinical", STUDY, None, PICTURE).row.sop_instance_uid == f"{SERIES}.2"
        assert node.pictures.standing_for(admin, "clinical", STUDY, SERIES, PICTURE).row.sop_instance_uid == f"{SERIES}.2"
        assert [one.row.sop_instance_uid for one in node.pictures.of_each(admin, "clinical", STUDY, None, PICTURE)] == [
            f"{SERIES}.{n}" for n in range(1, 5)
        ]
        with pytest.raises(NotFound):
            node.pictures.standing_for(mine, "clinical", STUDY, None, PICTURE)
        assert [event[:2] for event in events(node)] == [("read", 0)]
        archives_clock(node, SETTLED_AFTER * 2).tick()
        assert len(kept(node)) == 1


def test_segmentations_and_what_cannot_be_decoded_stand_behind(node: Node, admin: Subject) -> None:
    for number in range(1, 8):
        archives.store(node, archives.instance(number, series="1.2.3.2", Modality="SEG"))
        archives.store(node, archives.instance(number, series="1.2.3.3", Rows=None, Columns=None, PixelData=None))
    assert node.pictures.standing_for(admin, "clinical", STUDY, None, PICTURE).row.sop_instance_uid == f"{SERIES}.3"
    with pytest.raises(NotFound):
        node.pictures.standing_for(admin, "clinical", STUDY, "1.2.3.3", PICTURE)


def test_pictures_of_many_instances_keep_no_header(node: Node, admin: Subject, draws: list[int]) -> None:
    """The answer holds all of them until it ends; of a deflated instance the header is the whole data set."""
    answer = node.pictures.of_each(admin, "clinical", STUDY, None, PICTURE)
    for one in answer:
        one.data()
        held = [found for found in gc.get_objects() if isinstance(found, pictures._Opened) and found._read is not None]
        assert held == []
    assert len(answer) == len(draws) == 5
    several = node.pictures.of_instance(admin, "clinical", STUDY, SERIES, f"{SERIES}.1", [1, 1], PICTURE)
    assert [one.data() for one in several] == [answer[0].data()] * 2


def test_a_kept_picture_opens_for_nobody_else_and_not_after_a_revocation(node: Node, admin: Subject) -> None:
    of(node, admin).data()
    mine = mia(node)
    with pytest.raises(NotFound):
        of(node, mine)
    console = archives.the_console(node)
    grant = node.accounts.add_grant(console, to="mia", role="radiologist", target=Target("study", STUDY))
    assert of(node, mine).data()
    each = node.pictures.of_each(mine, "clinical", STUDY, None, PICTURE)
    assert each[1].data()
    node.accounts.revoke_grant(console, grant["id"], reason="test")
    with pytest.raises(NotFound):
        of(node, mine)
    with pytest.raises(NotFound):
        each[2].data()


def test_a_rejected_instance_shows_no_picture_any_more(node: Node, admin: Subject) -> None:
    of(node, admin).data()
    node.remove.reject(archives.the_console(node), "clinical", "instance", f"{SERIES}.1", reason="test")
    with pytest.raises(NotFound):
        of(node, admin)
    assert of(node, admin, 2).data()


def test_every_look_is_recorded_kept_or_not(node: Node) -> None:
    mine = mia(node, Target("study", STUDY))
    for _ in range(2):
        of(node, mine)
    node.pictures.standing_for(mine, "clinical", STUDY, None, PICTURE, what=pictures.THUMBNAIL)
    node.pictures.of_each(mine, "clinical", STUDY, SERIES, PICTURE)
    with pytest.raises(NotFound):
        node.pictures.standing_for(mine, "clinical", "1.2.4", None, PICTURE)
    told = {"datastore": "clinical"}
    once = ("read", 1, {**told, "what": "rendered", "frames": 1, "sop": f"{SERIES}.1"})
    assert events(node) == [
        ("denied", 0, {**told, "what": "rendered"}), ("read", 5, {**told, "what": "rendered"}), ("read", 1, {**told, "what": "thumbnail"}),
        once, once,
    ]


def test_bad_wishes(node: Node, admin: Subject) -> None:
    for frame in (2, 1 << 31, 1 << 40):
        with pytest.raises(NotFound):
            of(node, admin, frame=frame).data()
    with pytest.raises(NotFound):
        node.pictures.of_instance(admin, "clinical", STUDY, SERIES, f"{SERIES}.1", [1, 2], PICTURE)
    with pytest.raises(InvalidRequest):
        of(node, admin, recipe=Recipe(viewport=Viewport(5, 5, left=99))).data()
    archives.store(node, archives.instance(1, series="1.2.3.9", SamplesPerPixel=4, PixelData=bytes(2048)))
    with pytest.raises(NotAcceptable):
        node.pictures.standing_for(admin, "clinical", STUDY, "1.2.3.9", PICTURE).data()
    assert not [path for path in kept(node) if not path.stat().st_size]
