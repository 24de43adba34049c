"""A local stand-in for the W&B server: it answers what a client needs to run, and keeps what it is sent."""

from __future__ import annotations

import gzip
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "somebody"
KEY = "0" * 40
_PERSON = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": {"edges": []}}


class Server(ThreadingHTTPServer):
    """What was sent: the runs' ids, rows of the history, summary and configuration, names of files, and views."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.runs: set[str] = set()
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.views: list[dict[str, Any]] = []
        self.finished = False
        self.operations: dict[str, int] = defaultdict(int)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error of the server's."""

    def graphql(self, operation: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.operations[operation] += 1
        if operation == "UpsertBucket":
            self.runs.add(variables["name"])
            self.config |= json.loads(variables.get("config") or "{}")
            project = {"id": "2", "name": variables["project"], "entity": {"id": "1", "name": ENTITY}}
            bucket = {"id": "3", "name": variables["name"], "displayName": variables["displayName"], "config": "{}"}
            bucket |= {"description": "", "sweepName": None, "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "3", "uploadHeaders": [], "files": files}}
        if "upsertView" in query:
            self.views.append(variables)
            project = {"id": "2", "name": variables["projectName"], "entityName": variables["entityName"]}
            view = {"id": "4", "name": variables["name"], "displayName": variables["displayName"], "project": project}
            view |= {"description": "", "spec": variables["spec"]}
            return {"upsertView": {"view": view, "inserted": True}}
        if "models(entityName" in query:
            return {"models": {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}}
        return {"viewer": _PERSON} if "viewer" in query else {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        self.server.files[self.path.removeprefix("/upload/")] = self._body()
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/graphql"):
            request = json.loads(body)
            name = request.get("operationName") or ""
            self._reply({"data": self.server.graphql(name, request["query"], request.get("variables") or {})})
            return
        if self.path.endswith("/file_stream"):
            stream = json.loads(body)
            files = stream.get("files") or {}
            self.server.history += map(json.loads, files.get("wandb-history.jsonl", {}).get("content", []))
            for line in files.get("wandb-summary.json", {}).get("content", []):
                self.server.summary |= json.loads(line)
            self.server.finished |= bool(stream.get("complete"))
        self._reply({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of this machine."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
