"""What somebody who wants out of the runs folder may send in the place of a run's name, as it stands in a request."""

from __future__ import annotations

import http.client
import json
from typing import Any

HEADER = {"X-Rollout-Trainer": "1"}
RUNS = "/rollout_trainer/runs"

OUTSIDE = [
    "..",
    ".",
    "%2e%2e",
    "%252e%252e",
    "../secret",
    "..%2fsecret",
    "..%2Fsecret",
    "%2e%2e%2fsecret",
    "%252e%252e%252fsecret",
    "..%5csecret",
    "..\\secret",
    "....//secret",
    "..;/secret",
    "run-0001%2f..%2f..%2fsecret",
    "run-0001%2f..",
    "run-0001/",
    "run-0001%2f",
    "run-0001%00",
    "run-0001%00.jpg",
    "%00",
    "%c0%ae%c0%ae%c0%afsecret",
    "%e2%80%a5%2fsecret",
    "%ff%fe",
    "%ed%b3%bf",
    "/etc",
    "%2fetc",
    "%2fetc%2fpasswd",
    "//etc",
    "C:secret",
    "C%3a%5csecret",
    "file:%2f%2f%2fetc",
    "~",
    "link",
    "%20",
    "x" * 3000,
    "%3Cscript%3Ealert(1)%3C%2Fscript%3E",
]


def ask(port: int, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
    """Send a request with the path just as it is; return the status, the headers and the body, JSON decoded."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, headers=headers or {})
        reply = connection.getresponse()
        body: Any = reply.read()
    finally:
        connection.close()
    is_json = reply.headers.get_content_type() == "application/json"
    return reply.status, reply.headers, json.loads(body) if is_json else body
