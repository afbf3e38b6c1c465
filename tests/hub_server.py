"""A Hugging Face Hub on this machine, as far as a repository is made and filled, that records all that it is sent."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# A visitor's token, the machine's own, and that of a visitor who has signed in.
TOKEN, HOSTS, SIGNED_IN = "hf_" + "v" * 30, "hf_" + "h" * 30, "hf_oauth_" + "s" * 30


class Hub(ThreadingHTTPServer):
    """Repositories of the user "ada": what is in them, by name; `answers`: what a path is answered in place of that."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str, str, bytes]] = []
        self.repos: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.hangs = threading.Event()
        self.hangs.set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        hub, path = self.server, self.path
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        hub.requests.append((self.command, path, str(self.headers), body))
        hub.hangs.wait()
        for part, answer in hub.answers.items():
            if part in path:
                return self.answer(*answer)
        if path == "/oauth/token":
            user = {"preferred_username": "ada", "name": "Ada", "profile": "", "picture": ""}
            token = {"access_token": SIGNED_IN, "token_type": "bearer", "expires_in": 3600, "scope": "contribute-repos"}
            return self.answer(
                200, {"Content-Type": "application/json"}, json.dumps(token | {"userinfo": user}).encode()
            )
        read = body if self.command == "PUT" or path.startswith("/api/models/") else json.loads(body or "{}")
        if path == "/api/repos/create":
            owner = read["organization"] or "ada"
            name, status = f"{owner}/{read['name']}", 200
            if name in hub.repos:
                status = 409
            else:
                hub.repos[name] = {"private": read.get("visibility") == "private", "files": {".gitattributes": b""}}
            self.answer(status, {}, json.dumps({"url": f"{hub.url}/{name}"}).encode())
        elif path == "/api/validate-yaml":
            self.answer(200, {}, b'{"warnings": [], "errors": []}')
        elif found := re.fullmatch("/api/models/(.*)/preupload/main", path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {}, json.dumps({"files": files}).encode())
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                each
                | {
                    "actions": {
                        "upload": {"href": f"{hub.url}/store/{each['oid']}"},
                        "verify": {"href": f"{hub.url}/verify"},
                    }
                }
                for each in read["objects"]
            ]
            self.answer(200, {}, json.dumps({"objects": objects}).encode())
        elif path.startswith("/store/"):
            hub.objects[path.removeprefix("/store/")] = body
            self.answer(200, {}, b"")
        elif path == "/verify":
            self.answer(200, {}, b"{}")
        elif found := re.fullmatch("/api/models/(.*)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.repos[found[1]]["files"][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.repos[found[1]]["files"][value["path"]] = hub.objects[value["oid"]]
            self.answer(200, {}, json.dumps({"commitUrl": f"{hub.url}/{found[1]}/commit/a", "commitOid": "a"}).encode())
        else:
            self.answer(404, {}, b"{}")

    do_PUT = do_POST

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path, str(self.headers), b""))
        if self.path == "/.well-known/openid-configuration":
            ends = {
                name: f"{self.server.url}/oauth/{name.split('_')[0]}"
                for name in ("authorization_endpoint", "token_endpoint")
            }
            return self.answer(200, {}, json.dumps(ends).encode())
        repo = self.server.repos.get(self.path.removeprefix("/api/models/"))
        if repo is None:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"}, b"{}")
        siblings = [{"rfilename": name} for name in repo["files"]]
        found = {"id": "ada/x", "private": repo["private"], "siblings": siblings}
        self.answer(200, {}, json.dumps(found).encode())

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...
