"""The image of `deploy/Dockerfile` without Docker: its steps in a clean Debian, then its page as its user.

`python -m tests.image`, as root, with debootstrap: it takes minutes and some gigabytes, and reaches package registries.
Folders that pip's settings here name are given behind it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.test_deploy import ROOT, steps
from tests.ui.over_http import Caller
from tests.ui.visitor import wait_until

RELEASE = "bookworm"  # whose Python is the image's, 3.11
SHARED = ("/etc/resolv.conf", "/etc/ssl/certs", "/etc/xdg/pip", "/etc/pip.conf")  # by which they are reached


def main(*shared: str) -> None:
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="image-")))
        root.chmod(0o755)
        packages = "--include=python3-venv,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", packages, RELEASE, root], check=True, stdout=sys.stderr)
        for path in filter(os.path.exists, ("/proc", "/dev", *SHARED, *shared)):
            place = Path(f"{root}{path}")
            if os.path.isfile(path):
                shutil.copy2(path, place)
                continue
            place.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-o", "bind,ro", path, place], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", place], check=True)  # at once, before the folder goes
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root"}
        environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}

        def run(*command: str, user: str = "root", folder: str = "/", **options: object) -> subprocess.Popen:
            inside = ["chroot", f"--userspec={user}", str(root), "env", "-C", folder, *command]
            return subprocess.Popen(inside, env=environment, **options)

        def done(*command: str, **options: object) -> None:
            assert run(*command, **options).wait() == 0, command

        done("python3", "-m", "venv", "/usr/local")  # as the image has python and pip
        folder, user, values = "/", "root", []
        for name, given in steps():
            print(f"{name} {given[:100]}", flush=True)
            if name == "ARG":
                environment |= [given.split("=", 1)]
            elif name == "ENV":
                environment |= [value.split("=", 1) for value in given.split()]
            elif name == "RUN":
                done("/bin/sh", "-c", given)
            elif name == "WORKDIR":
                (root / (folder := given).lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif name == "USER":
                user = given
            elif name == "COPY":
                *sources, target = given.split()
                into = root / (target if target.startswith("/") else f"{folder}/{target}").lstrip("/")
                for source in sources:
                    if (ROOT / source).is_dir():
                        shutil.copytree(ROOT / source, into, ignore=shutil.ignore_patterns("__pycache__"))
                    else:
                        shutil.copy2(ROOT / source, into)
            elif name in ("HEALTHCHECK", "ENTRYPOINT"):
                values.append(json.loads(re.search(r"\[.*", given)[0]))
        check, entry = values
        environment |= {"HOME": "/home/hyperlora", "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": "7895"}
        page = run(*entry, user=user, folder=folder)
        stack.callback(page.wait)
        stack.callback(page.terminate)
        health = [part.replace("7860", "7895") for part in check]
        wait_until(lambda: page.poll() is not None or run(*health, user=user, stderr=subprocess.DEVNULL).wait() == 0)
        assert page.poll() is None, "the page has ended"
        visitor, description = Caller("http://127.0.0.1:7895/", "one"), "Put each word in square brackets."
        wait_until(lambda: "still loading" not in (made := visitor.ask("generate", f"1 {description}")[0][0]) and made)
        turn, _ = visitor.send("one two three", description)
        print(f"{turn.by!r} answers {turn.answer!r}")
        found = subprocess.run(["find", root, "-xdev", "-uid", "1000", "-type", "f"], capture_output=True, text=True)
        folders = {"/".join(line.removeprefix(str(root)).split("/")[:3]) for line in found.stdout.splitlines()}
        print("Its user has written into:", *sorted(folders))


if __name__ == "__main__":
    main(*sys.argv[1:])
