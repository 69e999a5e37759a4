"""The calls of the API as schemathesis reads them from its document, and what each answer must be.

Reading that library takes half a second: only the tests that ask import this.
"""

from __future__ import annotations

import json
from typing import Any, cast

import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import CHECKS

from asyncchatd.control.described import openapi


def _line(registration: object) -> bytes:
    return json.dumps(registration).encode()


# Lines of all kinds, so that many are taken and each error comes.
_LINES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.dictionaries(
            st.sampled_from(["chat_id", "user_id", "secure_key", "alias", "next_position", "service"]),
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=12)),
        ).map(_line),
        st.text(min_size=1, max_size=12).map(
            lambda chat_id: _line({"chat_id": chat_id, "user_id": "u", "secure_key": "k", "alias": 117})
        ),
    ),
    max_size=8,
).map(b"\n".join)
schemathesis.openapi.media_type("application/x-ndjson", _LINES)

OPERATIONS = {
    operation.label: operation
    for operation in (
        cast(Any, found).ok()  # one that cannot be read is an error, and has none
        for found in schemathesis.openapi.from_dict(openapi.document()).get_all_operations()
    )
    if operation.path != "/v1/live"
}
WRONG = [label for label, each in OPERATIONS.items() if each.query or each.method == "put"]
"""Those in which something can be wrong; of others there are right requests only."""

CONFORMANCE = cast(
    Any,  # the library's own registry does not fit its own call
    CHECKS.get_by_names(
        [
            "not_a_server_error",
            "status_code_conformance",
            "content_type_conformance",
            "response_headers_conformance",
            "response_schema_conformance",
        ]
    ),
)
