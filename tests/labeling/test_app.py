"""The real server on a real socket, asked by what is no browser."""

import http.client
import json
from urllib.parse import urlsplit

import pytest

from tests.labeling.queues import TOKEN, running, session_of

WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}
ANSWER = {"window": "a", "index": 10, "label": "cat", "by": "Ada", "seconds": 1.5}


@pytest.fixture
def session(tmp_path):
    return session_of(tmp_path)


@pytest.fixture
def ask(session):
    """Send one request, and return status, headers and content."""
    with running(session) as address:

        def ask(path, body=None, headers=WITH_TOKEN, method=None):
            connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
            content = body if isinstance(body, (str, type(None))) else json.dumps(body)
            connection.request(method or ("GET" if body is None else "POST"), path, content, headers)
            response = connection.getresponse()
            answer = (response.status, dict(response.headers), response.read())
            connection.close()
            return answer

        yield ask


def state_of(answer):
    status, _, content = answer
    assert status == 200, content
    return json.loads(content)


def test_an_answer_is_on_disk_when_the_next_sample_comes(ask, tmp_path):
    task = state_of(ask("/api/task"))
    assert (task["kind"], task["keys"], task["by"]) == ("class", {"1": "cat", "2": "dog", "3": "cow"}, "Ada")
    assert state_of(ask("/api/state?window=a"))["sample"]["index"] == 10
    state = state_of(ask("/api/answer", ANSWER))
    assert (state["accepted"], state["sample"]["index"], state["progress"]["left"]) == (True, 11, 3)
    stored = json.loads((tmp_path / "labels.jsonl").read_text().splitlines()[-1])
    assert stored | {"at": ""} == {"index": 10, "label": "cat", "by": "Ada", "at": "", "seconds": 1.5}
    assert not state_of(ask("/api/answer", ANSWER | {"label": "dog"}))["accepted"]
    assert state_of(ask("/api/undo", {"window": "a", "index": 10}))["sample"]["index"] == 10
    assert state_of(ask("/api/summary"))["progress"]["left"] == 4


def test_the_content_of_a_sample_is_its_file_with_the_type_of_its_name(ask, tmp_path):
    status, headers, content = ask("/api/content/10")
    assert (status, headers["content-type"]) == (200, "image/png")
    assert content == (tmp_path / "photos" / "0-cat.png").read_bytes()
    (tmp_path / "photos" / "1-dog.png").unlink()
    assert ask("/api/content/11")[2].startswith(b"Sample 11 cannot be read: [Errno 2]")


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/api/state", "/api/content/10", "/none"])
def test_every_response_forbids_scripts_from_elsewhere_frames_and_storing(ask, path):
    for headers in (WITH_TOKEN, {}):
        given = ask(path, headers=headers)[1]
        policy = given["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert (given["x-content-type-options"], given["cache-control"]) == ("nosniff", "no-store")
        assert "access-control-allow-origin" not in given


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/task", None),
        ("/api/state?window=a", None),
        ("/api/summary", None),
        ("/api/content/10", None),
        ("/api/answer", ANSWER),
        ("/api/undo", {"window": "a", "index": 10}),
    ],
)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer secreT"}, {"Cookie": f"token={TOKEN}"}])
def test_nothing_is_given_or_written_without_the_token(ask, tmp_path, path, body, headers):
    assert ask(f"{path}{'&' if '?' in path else '?'}token={TOKEN}", body, headers)[0] == 401
    assert not (tmp_path / "labels.jsonl").exists()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8765", "evil.example:80@127.0.0.1"])
def test_a_name_of_another_host_is_refused_even_with_the_token(ask, tmp_path, host):
    assert ask("/", headers={"Host": host})[0] == 400
    assert ask("/api/answer", ANSWER, {**WITH_TOKEN, "Host": host})[0] == 400
    assert not (tmp_path / "labels.jsonl").exists()
    assert ask("/", headers={"Host": "localhost:9000"})[0] == 200  # a tunnel to this machine


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/answer", ANSWER | {"label": "cwo"}, 400, "'cwo' is none of the 3 classes"),
        ("/api/answer", ANSWER | {"index": 7}, 400, "Sample 7 is not in the queue"),
        ("/api/answer", ANSWER | {"index": "10"}, 400, "Expected the fields `index` and `window`"),
        ("/api/answer", ANSWER | {"by": None}, 400, "`by` is None, expected a name"),
        ("/api/answer", ANSWER | {"seconds": "1"}, 400, "`seconds` is '1', expected a time"),
        ("/api/answer", "{", 400, "Expecting property name"),
        ("/api/content/7", None, 400, "Sample 7 is not in the queue"),
        ("/api/content/../../etc/passwd", None, 404, "Not Found"),
        ("/page.html", None, 404, "Not Found"),
    ],
)
def test_a_wrong_request_is_explained_and_nothing_is_written(ask, tmp_path, path, body, status, message):
    answer = ask(path, body)
    assert (answer[0], message in answer[2].decode()) == (status, True), answer
    assert not (tmp_path / "labels.jsonl").exists()


def test_a_file_of_answers_that_cannot_be_written_is_said_so(ask, session, tmp_path):
    (tmp_path / "labels.jsonl").mkdir()
    status, _, content = ask("/api/answer", ANSWER)
    assert status == 500
    assert b"Is a directory" in content
    (tmp_path / "labels.jsonl").rmdir()
    assert state_of(ask("/api/answer", ANSWER))["accepted"]
