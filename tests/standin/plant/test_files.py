"""The files of a chat: uploads with their limits, downloads, deletions, and what an agent sends."""

from __future__ import annotations

import json

import pytest

from asyncchatd.standin.files import Generated, PlantFile
from asyncchatd.standin.messages import write_event
from asyncchatd.standin.plant.parts import NodeAnswer
from asyncchatd.wire.chat_api.calls import Operation, call

from ..plant_rig import Customer, Rig, make_rig


def upload(customer: Customer, name: str = "note.txt", content: bytes = b"\x00\r\nbytes") -> NodeAnswer:
    session = customer.session
    fields = [("userData[file-description]", "a note")]
    made = call(Operation.FILE_UPLOAD, session.service, customer.tokens, fields, file=(name, content))
    answer = customer.rig.ask(made)
    assert answer is not None
    return answer


def fetched(customer: Customer, file_id: str) -> NodeAnswer:
    made = call(Operation.FILE_DOWNLOAD, customer.session.service, customer.tokens, file_id=file_id)
    answer = customer.rig.ask(made)
    assert answer is not None
    return answer


def test_an_uploaded_file_can_be_fetched_and_deleted(rig: Rig) -> None:
    customer = rig.chat()
    file_id = json.loads(upload(customer).body)["userData"]["file-id"]
    uploaded = write_event(customer.session.events[-1])
    assert (uploaded["type"], uploaded["text"]) == ("FileUploaded", file_id)
    assert uploaded["userData"] == {
        "file-id": file_id,
        "file-name": "note.txt",
        "file-size": "8",
        "file-source": "ucs",
        "file-upload-type": "file-system",
        "file-description": "a note",
    }
    file = fetched(customer, file_id).file
    assert file is not None
    assert (file.name, b"".join(file.chunks())) == ("note.txt", b"\x00\r\nbytes")
    assert customer.do(Operation.FILE_DELETE, file_id=file_id).status_code == 0
    deleted = write_event(customer.session.events[-1])
    assert (deleted["type"], deleted["text"]) == ("FileDeleted", file_id)
    assert customer.do(Operation.FILE_DELETE, file_id=file_id).status_code == 2
    assert fetched(customer, file_id).file is None


def test_limits_come_as_a_notice_without_an_index(rig: Rig) -> None:
    customer = rig.chat()
    upload(customer)
    answer = rig.ask(call(Operation.FILE_LIMITS, customer.session.service, customer.tokens))
    assert answer is not None
    reply = json.loads(answer.body)
    [notice] = reply["messages"]
    assert (notice["type"], notice["text"], "index" in notice) == ("Notice", "file-client-cfg-get", False)
    limits = notice["userData"]
    assert all(isinstance(value, str) for value in limits.values())
    assert (limits["upload-max-file-size"], limits["upload-need-agent"]) == ("10485760", "false")
    assert "txt" in limits["upload-file-types"].split(":")
    assert (limits["used-upload-max-files"], limits["used-upload-max-total-size"]) == ("1", "8")
    assert reply["nextPosition"] == customer.session.next_index
    assert len(customer.session.events) == 2


@pytest.mark.parametrize(
    ("settings", "name", "size", "why"),
    [
        ({"upload_max_file_size": 9}, "a.txt", 10, "the file is too large"),
        ({"upload_max_total_size": 9}, "a.txt", 10, "too large together"),
        ({"upload_max_files": 0}, "a.txt", 10, "too many files"),
        ({"upload_file_types": "pdf:png"}, "a.txt", 10, "files of this type"),
        ({}, "a.exe", 10, "files of this type"),
        ({"upload_need_agent": True}, "a.txt", 10, "no agent"),
    ],
)
def test_an_upload_that_is_not_allowed_is_http_400_with_errors(
    settings: dict[str, object], name: str, size: int, why: str
) -> None:
    rig = make_rig(**settings)
    customer = rig.chat()
    answer = upload(customer, name, b"x" * size)
    reply = json.loads(answer.body)
    assert (answer.status, reply["statusCode"]) == (400, 2)
    assert why in reply["errors"][0]["advice"]
    assert customer.session.files is None
    assert [event.type for event in customer.session.events] == ["ParticipantJoined"]


@pytest.mark.parametrize("name", ["A.TXT", "a.b.txt"])
def test_what_is_allowed_is_taken(name: str) -> None:
    rig = make_rig(
        upload_max_file_size=10, upload_max_total_size=10, upload_max_files=1, upload_need_agent=True
    )
    customer = rig.chat()
    rig.plant.agents.join(customer.session)
    assert upload(customer, name, b"x" * 10).status == 200


def test_any_file_is_taken_where_no_types_are_named() -> None:
    rig = make_rig(upload_file_types="")
    assert upload(rig.chat(), "README").status == 200


def test_a_refused_upload_changes_no_tokens(rig: Rig) -> None:
    customer = rig.chat()
    rig.plant.rotate([customer.session])
    assert upload(customer, "a.exe").status == 400
    assert fetched(customer, "none").status == 200
    assert customer.refresh().status_code == 0
    assert rig.plant.report().wrong_key_requests == 0


def test_a_file_is_fetched_so_often_as_is_allowed() -> None:
    rig = make_rig(download_attempts=2)
    customer = rig.chat()
    file_id = json.loads(upload(customer).body)["userData"]["file-id"]
    assert [fetched(customer, file_id).status for _ in range(3)] == [200, 200, 400]


def test_an_agents_file_is_pushed_and_can_be_fetched(rig: Rig) -> None:
    customer = rig.chat()
    rig.plant.agents.upload(customer.session, PlantFile("terms.pdf", 100_000, Generated(7)))
    assert len(rig.pushes) == 1
    [uploaded] = customer.refresh().events
    assert uploaded.participant_type == "Agent"
    file = fetched(customer, uploaded.text or "").file
    assert file is not None
    assert (file.name, file.size, len(b"".join(file.chunks()))) == ("terms.pdf", 100_000, 100_000)
    rig.plant.end_chats([customer.session])
    assert not rig.plant.agents.upload(customer.session, file)
