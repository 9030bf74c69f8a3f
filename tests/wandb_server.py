"""A small server on this machine that answers W&B's client as theirs does, and keeps what it would have uploaded."""

import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0123456789" * 4
PROJECT = {"id": "project", "name": "test", "entity": {"id": "entity", "name": "me"}}
VIEWER = {"id": "user", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}


class WandbServer(ThreadingHTTPServer):
    """What was uploaded: history by step, files and artifacts.

    Attributes:
        history: Points in the order in which they came.
        files: Uploaded content by path.
        artifacts: The inputs with which artifacts were made.
        committed: How many artifacts were completed.
        asked: Names of the requests.

    """

    daemon_threads = True

    def __init__(self):
        self.history, self.artifacts, self.asked = [], [], []
        self.files, self.lines, self.configs, self.committed = {}, {}, [], 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Say nothing when the client hangs up at its end."""

    def stream(self, body):
        for name, part in (body.get("files") or {}).items():
            for offset, line in enumerate(part["content"], start=part["offset"]):
                if (name, offset) not in self.lines:
                    self.lines[name, offset] = line
                    if name == "wandb-history.jsonl":
                        self.history.append(json.loads(line))
        return {}

    def answer(self, name, variables):
        answers = {
            "Viewer": lambda: {"viewer": VIEWER},
            "ServerFeaturesQuery": lambda: {"serverInfo": {"features": []}},
            "RunResumeStatus": lambda: {"model": {**PROJECT, "bucket": self.known()}},
            "UpsertBucket": lambda: self.update_run(variables),
            "CreateRunFiles": lambda: self.take_run_files(variables["files"]),
            "ArtifactType": lambda: {"project": None},
            "CreateArtifact": lambda: self.make_artifact(variables["input"]),
            "CreateArtifactManifest": lambda: {"createArtifactManifest": {"artifactManifest": self.upload("manifest")}},
            "CreateArtifactFiles": lambda: self.take_artifact_files(variables["input"]["artifactFiles"]),
            "CommitArtifact": lambda: self.commit(variables["artifactID"]),
        }
        return answers[name]() if name in answers else {}

    def upload(self, path):
        file = {"id": path, "uploadHeaders": [], "uploadUrl": f"{self.address}/storage/{path}"}
        return {**file, "file": file}

    def update_run(self, variables):
        if variables.get("config"):
            self.configs.append(json.loads(variables["config"]))
        bucket = {"id": "run", "name": variables.get("name"), "displayName": "run", "project": PROJECT}
        bucket |= {"sweepName": None, "historyLineCount": len(self.history)}
        return {"upsertBucket": {"bucket": bucket, "inserted": not self.history}}

    def take_run_files(self, names):
        files = [{"name": name, "uploadUrl": f"{self.address}/storage/{name}"} for name in names]
        return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}

    def make_artifact(self, about):
        self.artifacts.append(about)
        sequence = {"id": "sequence", "latestArtifact": None}
        made = {"id": f"artifact-{len(self.artifacts)}", "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": made}}

    def take_artifact_files(self, files):
        edges = []
        for file in files:
            place = self.upload(f"{file['artifactID']}/{file['name']}")
            about = {"uploadMultipartUrls": None, "storagePath": file["name"], "artifact": {"id": file["artifactID"]}}
            edges.append({"node": {**place, **about}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def commit(self, artifact):
        self.committed += 1
        return {"commitArtifact": {"artifact": {"id": artifact, "digest": ""}}}

    def known(self):
        """Return what the client needs to go on with a run; None before it is there."""
        if not self.history:
            return None
        tails = {"historyTail": json.dumps([json.dumps(self.history[-1])]), "eventsTail": "[]"}
        counts = {"historyLineCount": len(self.history), "logLineCount": 0, "eventsLineCount": 0}
        about = {"name": "run", "displayName": "run", "notes": "", "tags": [], "config": "{}", "summaryMetrics": "{}"}
        about["wandbConfig"] = json.dumps({"t": {}})  # by which the client knows that a process has begun with it
        return {"id": "run", **about, **counts, **tails}


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Print nothing."""

    def body(self):
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(content) if self.headers.get("content-encoding") == "gzip" else content

    def reply(self):
        body, found = self.body(), {}
        with self.server.lock:
            if self.path == "/graphql":
                asked = json.loads(body)
                name = asked.get("operationName") or asked["query"].split("(")[0].split("{")[0].split()[-1]
                self.server.asked.append(name)
                found = {"data": self.server.answer(name, asked.get("variables") or {})}
            elif self.path.endswith("/file_stream"):
                found = self.server.stream(json.loads(body))
            elif self.path.startswith("/storage/"):
                self.server.files[self.path.removeprefix("/storage/")] = body
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = reply  # noqa: N815  # names of the standard library


@contextmanager
def wandb_server():
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
