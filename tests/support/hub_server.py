"""A hub on 127.0.0.1: as much of the Hugging Face hub's API as downloads and uploads of small files need."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """`models`: name -> revision -> file -> content; `asked`: the requests, "METHOD /path"."""

    models: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""

    def at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit (a hash of the content) and the files of a revision, which may be a commit."""
        for branch, files in self.models[name].items():
            commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
            if revision in (branch, commit):
                return commit, files
        return None


class _Handler(BaseHTTPRequestHandler):
    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *_):
        pass

    def reply(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def tell(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        asked = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", path)
        name, kind, revision = (asked or file).groups()[:3] if asked or file else (None,) * 3
        if name not in self.hub.models:
            return self.reply(404, X_Error_Code="RepoNotFound")
        if not (found := self.hub.at(name, revision)):
            return self.reply(404, X_Error_Code="RevisionNotFound")
        commit, files = found
        if kind == "revision":
            return self.tell({"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]})
        oids = {file: hashlib.sha1(data).hexdigest() for file, data in files.items()}
        if kind == "tree":
            rows = [{"type": "file", "path": p, "size": len(data), "oid": oids[p]} for p, data in files.items()]
            return self.tell(rows)
        data = files[file[4]]
        return self.reply(200, data, ETag=f'"{oids[file[4]]}"', X_Repo_Commit=commit)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer secret":
            return self.reply(401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.hub.models.setdefault(name, {"main": {}})
            return self.tell({"url": f"{self.hub.endpoint}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            return self.tell({"errors": [], "warnings": []})
        name, kind = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path).groups()
        if kind == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self.tell({"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.hub.models[name]["main"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit, _ = self.hub.at(name, "main")
        return self.tell({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}", "commitOid": commit})


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answer at `hub.endpoint`, a free port of this machine, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = hub
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
