"""What a share link opens over HTTP: its own pages and reads of DICOMweb, nothing else; and that looking at its address does nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from werkzeug.test import TestResponse

from archive.db.tables import share_code, share_link, share_session
from archive.ledger.log import AuditFilter
from archive.services.shares import Wanted
from archive.web import permissions
from archive.web import share_session as cookies
from tests.services import archives
from tests.web import real
from tests.web.real import ABSENT, HIDDEN, ORIGIN, SEEN, Place

JSON = {"Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}


@dataclass(frozen=True)
class Visitor:
    """Somebody with a link."""

    place: Place
    session: str

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None, **more: Any) -> TestResponse:
        client = self.place.app.test_client(use_cookies=False)
        own = {"Cookie": f"__Host-share={self.session}", "Sec-Fetch-Site": "same-origin"}
        return client.open(path, method=method, headers={**own, **(headers or {})}, base_url=ORIGIN, **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path_factory.mktemp("shared"))) as node:
        made = real.place(node)
        archives.store(node, archives.instance(1, study=SEEN, series=f"{SEEN}.2", PatientID=f"P{SEEN}", PatientName="Canary^Hidden"))
        yield made


def create(place: Place, **wanted: Any) -> dict[str, Any]:
    return place.node.shares.create(archives.user(place.node, "mia"), Wanted(**{"studies": [SEEN], "recipient": "Dr Ott", **wanted}))


def word(made: dict[str, Any]) -> str:
    return str(made["url"]).partition("#")[2]


def post(place: Place, path: str, **body: str) -> TestResponse:
    client = place.app.test_client(use_cookies=False)
    return client.post(path, data=msgspec.json.encode(body), headers=JSON, base_url=ORIGIN)


def visitor(place: Place, made: dict[str, Any]) -> Visitor:
    answer = post(place, "/s/code", link=word(made), code=made["code"])
    assert answer.status_code == 200, answer.text
    cookie = answer.headers["Set-Cookie"]
    assert re.search("; Secure; HttpOnly; Path=/; SameSite=Strict$", cookie)
    return Visitor(place, cookie.partition("=")[2].partition(";")[0])


@pytest.fixture(scope="module")
def guest(place: Place) -> Visitor:
    """A visitor who may look, and may not take files."""
    return visitor(place, create(place))


def rows(place: Place) -> list[Any]:
    """Everything there is of links, and the last event."""
    with place.node.core.database.read() as tx:
        last = place.node.core.ledger.search(tx, AuditFilter(limit=1))[0].n
        return [last, *(tuple(row) for table in (share_link, share_code, share_session) for row in tx.execute(sa.select(table)))]


def test_looking_at_the_address_shows_the_same_and_does_nothing(place: Place) -> None:
    made = create(place)
    before = rows(place)
    client = place.app.test_client(use_cookies=False)
    agents = ["WhatsApp/2.23", "Slackbot-LinkExpanding 1.0", "facebookexternalhit/1.1", "Mozilla/5.0 Chrome/126"]
    told = [
        client.open("/s", method=method, headers={"User-Agent": agent}, base_url=ORIGIN) for agent in agents for method in ("GET", "HEAD")
    ]
    assert {answer.status_code for answer in told} == {200}
    assert len({answer.data for answer in told}) == 2  # with a body and without
    assert all("Set-Cookie" not in answer.headers for answer in told)
    assert "noindex" in told[0].headers["X-Robots-Tag"]
    page = told[0].text
    assert page.count("<script") == 1
    assert re.search(r"<script[^>]*>[^<]", page) is None
    assert " style=" not in page
    assert "onclick" not in page
    assert rows(place) == before
    assert word(made) not in page


def test_a_link_that_opens_nothing_answers_the_same_whatever_it_was(place: Place) -> None:
    revoked, used = create(place), create(place, max_views=1)
    place.node.shares.revoke(archives.user(place.node, "mia"), revoked["id"])
    visitor(place, used)
    told = set()
    for one in (word(revoked), word(used), "A" * 43, "", "x", "\u20ac" * 43, "A" * 5000):
        for path, more in (("/s/open", {}), ("/s/code", {"code": "123456"})):
            answer = post(place, path, link=one, **more)
            told.add((answer.status_code, answer.data, tuple(sorted((k, v) for k, v in answer.headers.items() if k != "Date"))))
    assert len(told) == 1
    assert next(iter(told))[0] == 404
    live = create(place)
    wrong = {post(place, "/s/code", link=word(live), code=one).data for one in ("", "x", "1" * 400, "12345")}
    assert len(wrong) == 1
    assert post(place, "/s/open", link=word(live)).json == {"code_by": "apart", "sent": False, "hint": ""}


@pytest.mark.parametrize("path", ["/s/open", "/s/code"])
def test_what_is_no_request_is_refused(place: Place, path: str) -> None:
    client = place.app.test_client(use_cookies=False)
    for data, headers in ((b"{", JSON), (b"[]", JSON), (b'{"link":1,"code":"1"}', JSON), (b'{"link":"a","code":"1","x":1}', JSON),
                          (b"link=a", {"Content-Type": "application/x-www-form-urlencoded"}), (b"\xff", JSON)):
        assert client.post(path, data=data, headers=headers, base_url=ORIGIN).status_code == 400
    crossed = client.post(path, data=b"{}", headers={**JSON, "Sec-Fetch-Site": "cross-site"}, base_url=ORIGIN)
    assert crossed.status_code == 403
    assert client.get(path, base_url=ORIGIN).status_code == 405


def test_a_visitor_sees_the_pages_pictures_and_dicomweb_of_what_was_shared(guest: Visitor) -> None:
    base = f"/shared/studies/{SEEN}"
    assert "Canary" in guest.ask("GET", "/shared").text
    assert "Dr Ott" in guest.ask("GET", "/shared").text
    for path in (base, f"{base}/series/{SEEN}.1", f"{base}/series/{SEEN}.1/thumbnail",
                 f"{base}/series/{SEEN}.1/instances/{SEEN}.1.1/frames/1/picture"):
        assert guest.ask("GET", path).status_code == 200, path
    assert f"{base}/series/{SEEN}.1/instances/" in guest.ask("GET", f"{base}/series/{SEEN}.1").text
    studies = guest.ask("GET", "/dicomweb/studies").json
    assert [row["0020000D"]["Value"] for row in studies] == [[SEEN]]
    for path in (f"studies/{SEEN}/metadata", f"studies/{SEEN}/series", f"studies/{SEEN}/series/{SEEN}.1/instances/{SEEN}.1.1/frames/1",
                 f"studies/{SEEN}/rendered", "instances"):
        assert guest.ask("GET", f"/dicomweb/{path}").status_code == 200, path
    for path in (f"studies/{SEEN}", f"studies/{SEEN}/zip", f"studies/{SEEN}/series/{SEEN}.1/instances/{SEEN}.1.1"):
        assert guest.ask("GET", f"/dicomweb/{path}").status_code == 404, path


def test_files_are_for_whom_they_were_meant(place: Place) -> None:
    taker = visitor(place, create(place, download=True, studies=(), series=[f"{SEEN}.2"]))
    assert taker.ask("GET", f"/dicomweb/studies/{SEEN}/zip").data[:2] == b"PK"
    assert taker.ask("GET", f"/shared/studies/{SEEN}/zip").data[:2] == b"PK"
    assert f"/shared/studies/{SEEN}/zip" in taker.ask("GET", f"/shared/studies/{SEEN}").text
    assert taker.ask("GET", f"/shared/studies/{HIDDEN}/zip").status_code == 404
    assert taker.ask("GET", f"/dicomweb/studies/{SEEN}/series/{SEEN}.2").status_code == 200
    assert taker.ask("GET", f"/dicomweb/studies/{SEEN}/series/{SEEN}.1").status_code == 404
    assert taker.ask("GET", f"/shared/studies/{SEEN}/series/{SEEN}.1").status_code == 404
    assert f"{SEEN}.1" not in taker.ask("GET", f"/shared/studies/{SEEN}").text.replace(f"{SEEN}.2", "")


def test_every_other_endpoint_answers_as_to_nobody(place: Place, guest: Visitor) -> None:
    nobody = place.app.test_client(use_cookies=False)
    values = {"study": SEEN, "series": f"{SEEN}.1", "sop": f"{SEEN}.1.1", "instance": f"{SEEN}.1.1", "listed": "1", "path": "7FE00010",
              "frame": 1, "datastore": "clinical", "number": 1}
    walked = 0
    for rule in place.app.url_map.iter_rules():
        blueprint, _, name = rule.endpoint.rpartition(".")
        found = permissions.rule_of(rule.endpoint)
        assert found is not None
        if found.public or found.share or (blueprint in ("dicomweb", "datastores") and name in cookies.READS):
            continue
        parts = {one: values.get(one, "1") for one in rule.arguments}
        path = place.app.url_map.bind("127.0.0.1").build(rule.endpoint, parts)
        for method in sorted((rule.methods or set()) - {"OPTIONS", "HEAD"}):
            mine = guest.ask(method, path)
            theirs = nobody.open(path, method=method, headers={"Sec-Fetch-Site": "same-origin"}, base_url=ORIGIN)
            said = [(answer.status_code, answer.data, answer.headers.get("Location")) for answer in (mine, theirs)]
            assert said[0] == said[1], (method, path)
            assert mine.status_code in (401, 302), (method, path)
            walked += 1
    assert walked > 80


def test_nobody_else_comes_in_by_the_pages_of_links(place: Place) -> None:
    for path in ("/shared", f"/shared/studies/{SEEN}"):
        assert place.ask("GET", path, browser=True).status_code == 401
        assert place.ask("GET", path).status_code == 401
        assert Visitor(place, "x" * 43).ask("GET", path).status_code == 401
        assert Visitor(place, "x" * 5000).ask("GET", path).status_code == 401
    assert place.ask("POST", "/shared/leave", browser=True).status_code == 401


def test_a_link_beside_another_credential_opens_nothing_of_dicomweb(place: Place, guest: Visitor) -> None:
    path = f"/dicomweb/studies/{SEEN}/metadata"
    assert guest.ask("GET", path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    both = guest.ask("GET", path, headers={"Cookie": f"__Host-share={guest.session}; __Host-session=wrong"})
    assert both.status_code == 401
    assert guest.ask("GET", path, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert guest.ask("POST", "/shared/leave", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_t15_what_was_not_shared_is_not_there(guest: Visitor) -> None:
    def told(path: str, uid: str) -> tuple[object, ...]:
        answer = guest.ask("GET", path.replace("{}", uid))
        headers = sorted((name, value.replace(uid, "?")) for name, value in answer.headers.items() if name not in {"Date", "X-Request-Id"})
        return answer.status_code, headers, answer.data.replace(uid.encode(), b"?")

    for path in ("/shared/studies/{}", "/shared/studies/{}/series/{}.1", "/shared/studies/{}/series/{}.1/thumbnail",
                 "/shared/studies/{}/series/{}.1/instances/{}.1.1/frames/1/picture", "/dicomweb/studies/{}/metadata",
                 "/dicomweb/studies?StudyInstanceUID={}", "/dicomweb/studies/{}/rendered", "/dicomweb/studies/{}/zip"):
        assert told(path, HIDDEN) == told(path, ABSENT), path
    for name in ("elsewhere", "clinica"):
        assert guest.ask("GET", f"/datastores/{name}/dicomweb/studies").status_code == 404
    assert guest.ask("GET", "/datastores/clinical/dicomweb/studies").status_code == 200


def test_it_ends_for_a_viewer_that_is_open(place: Place) -> None:
    made = create(place)
    open_ = visitor(place, made)
    picture = f"/shared/studies/{SEEN}/series/{SEEN}.1/instances/{SEEN}.1.1/frames/1/picture"
    assert open_.ask("GET", picture).status_code == 200
    place.node.shares.revoke(archives.user(place.node, "mia"), made["id"])
    assert open_.ask("GET", picture).status_code == 401
    assert open_.ask("GET", "/shared").status_code == 401
    assert "Open it again" in open_.ask("GET", "/shared").text
    assert open_.ask("GET", "/dicomweb/studies").status_code == 401
    other = visitor(place, create(place))
    left = other.ask("POST", "/shared/leave")
    assert (left.status_code, left.headers["Location"]) == (303, "/s")
    assert other.ask("GET", "/shared").status_code == 401


def test_every_read_says_by_which_link_and_on_whose_behalf(place: Place) -> None:
    made = create(place)
    open_ = visitor(place, made)
    open_.ask("GET", f"/dicomweb/studies/{SEEN}/metadata")
    with place.node.core.database.read() as tx:
        body = place.node.core.ledger.search(tx, AuditFilter(limit=1))[0].body
    assert body is not None
    who = body["subject"]
    assert (body["kind"], who["name"], who["via"], who["share"]) == ("read", "mia", "share", made["id"])
    assert re.fullmatch("[0-9a-f]{32}", who["recipient"])


# --- the pages of whoever shares ----------------------------------------------------------------------------------------------------


def test_a_page_shows_what_they_will_see_and_makes_the_link_when_it_is_confirmed(place: Place) -> None:
    path, form = f"/studies/{SEEN}/share", {"recipient": "Dr <b>Ott</b>", "until": "7d", "series": f"{SEEN}.2"}
    with place.node.core.database.read() as tx:
        before = tx.execute(sa.select(sa.func.count()).select_from(share_link)).scalar_one()
    asked = place.ask("GET", path, browser=True)
    assert asked.status_code == 200
    assert f'value="{SEEN}.2"' in asked.text
    shown = place.ask("POST", path, browser=True, data=form).text
    assert "Share this?" in shown
    assert "Dr &lt;b&gt;Ott" in shown
    with place.node.core.database.read() as tx:
        assert tx.execute(sa.select(sa.func.count()).select_from(share_link)).scalar_one() == before
    made = place.ask("POST", path, browser=True, data={**form, "step": "make"})
    link = re.search(r'id="link">([^<]+)<', made.text)
    code = re.search(r'id="share-code">([0-9]{6})<', made.text)
    assert link is not None
    assert code is not None
    assert link[1].startswith(f"{ORIGIN}/s#")
    assert post(place, "/s/code", link=link[1].partition("#")[2], code=code[1]).status_code == 200
    listed = place.ask("GET", "/shares", browser=True).text
    number = max(int(one) for one in re.findall(r"/shares/([0-9]+)/revoke", listed))
    assert re.search(r'id="share-code">[0-9]{6}<', place.ask("POST", f"/shares/{number}/code", browser=True).text)
    assert place.ask("POST", f"/shares/{number}/revoke", browser=True).status_code == 303
    assert f"/shares/{number}/revoke" not in place.ask("GET", "/shares", browser=True).text
    for wrong in ({"until": "1000d"}, {"email": "x"}, {"views": "many"}, {"views": "0"}):
        assert place.ask("POST", path, browser=True, data={**form, **wrong}).status_code == 400
    assert place.ask("POST", f"/studies/{HIDDEN}/share", browser=True, data=form).status_code == 404
    assert place.ask("POST", path, browser=True, data={**form, "series": f"{HIDDEN}.1"}).status_code == 404


def test_albums_on_pages_and_in_the_api(place: Place) -> None:
    made = place.ask("POST", "/albums", browser=True, data={"name": "Board <i>"})
    where = made.headers["Location"]
    assert place.ask("POST", where, browser=True, data={"what": "add", "studies": SEEN}).status_code == 303
    assert place.ask("POST", where, browser=True, data={"what": "share", "to": "admin"}).status_code == 303
    shown = place.ask("GET", where, browser=True).text
    assert "Board &lt;i&gt;" in shown
    assert "admin" in shown
    assert place.ask("POST", where, browser=True, data={"what": "add", "studies": HIDDEN}).status_code == 404
    number = int(where.rpartition("/")[2])
    told = place.ask("GET", f"/api/albums/{number}").json
    assert [one["uid"] for one in told["items"]] == [SEEN]
    assert place.ask("DELETE", f"/api/albums/{number}/studies/{SEEN}").json["uid"] == SEEN
    assert place.ask("DELETE", f"/api/albums/{number}/shares/admin").status_code == 200
    assert place.ask("POST", where, browser=True, data={"what": "end"}).headers["Location"] == "/albums"
    assert place.ask("GET", f"/api/albums/{number}").status_code == 404
    assert place.ask("GET", "/albums", browser=True).status_code == 200


def test_albums_in_the_api(place: Place) -> None:
    def done(method: str, path: str, status: int = 200, **more: Any) -> Any:
        answer = place.ask(method, f"/api/albums{path}", **more)
        assert answer.status_code == status, answer.text
        return answer.json

    number = done("POST", "", 201, json={"name": "by a program", "until": "30d"})["id"]
    assert done("GET", "")[0]["id"] == number
    put = done("POST", f"/{number}/items", json={"studies": [SEEN], "series": [f"{SEEN}.2"]})
    assert [one["level"] for one in put["items"]] == ["study", "series"]
    shared = done("POST", f"/{number}/shares", json={"to": "admin", "rights": "add", "download": True, "until": "1d"})
    assert (shared["principal"], "original" in shared["permissions"]) == ("admin", True)
    assert done("GET", f"/{number}")["shared_with"][0]["principal"] == "admin"
    done("DELETE", f"/{number}/series/{SEEN}.2")
    done("DELETE", f"/{number}/studies/{SEEN}")
    assert done("DELETE", f"/{number}/studies/{SEEN}", 404) == done("DELETE", f"/{number}/studies/{ABSENT}", 404)
    assert done("POST", f"/{number}/items", 404, json={"studies": [HIDDEN]}) == done(
        "POST", f"/{number}/items", 404, json={"studies": [ABSENT]})
    done("DELETE", f"/{number}/shares/admin")
    assert done("DELETE", f"/{number}")["name"] == "by a program"
    assert done("GET", f"/{number}", 404) == done("GET", "/999", 404)


def test_shares_in_the_api(place: Place) -> None:
    wanted = {"studies": [SEEN], "until": "1d"}
    preview = place.ask("POST", "/api/shares/preview", json=wanted).json
    assert preview["items"][0]["series"] == 2
    made = place.ask("POST", "/api/shares", json=wanted)
    assert made.status_code == 201
    assert made.json["url"].startswith(f"{ORIGIN}/s#")
    assert made.json["code"]
    listed = place.ask("GET", "/api/shares").json
    assert listed[0]["id"] == made.json["id"]
    assert "url" not in listed[0]
    assert place.ask("POST", f"/api/shares/{made.json['id']}/code").json["code"]
    assert place.ask("DELETE", f"/api/shares/{made.json['id']}").json["state"] == "revoked"
    hidden, absent = (place.ask("POST", "/api/shares", json={"studies": [uid]}) for uid in (HIDDEN, ABSENT))
    assert (hidden.status_code, hidden.data) == (404, absent.data)
