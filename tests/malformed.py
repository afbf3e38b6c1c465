"""Thousands of malformed calls of the server, drawn from its own schema: `make malformed`, or -m tests.malformed 100.

schemathesis makes the calls, each answer of which must be no 5xx; and the server's log must hold no traceback. This
file is also what schemathesis reads hooks from: three of four calls get a model that is there, so that what is behind
it is reached.
"""

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

EACH = 2_500  # calls of each operation that takes a body
MODEL = "hyperlora:Put each word in square brackets."


def hooks() -> None:
    import schemathesis

    @schemathesis.hook
    def map_body(context: object, body: object) -> object:
        if isinstance(body, dict) and "model" in body:
            kind = zlib.crc32(repr(sorted(body, key=repr)).encode() + repr(body).encode()) % 4
            if kind:
                body = body | {"model": MODEL, "max_tokens": 4}
            if kind == 1 and "messages" in body:
                body = body | {"messages": [{"role": "user", "content": "one two"}]}
        return body


def main() -> int:
    each = int(sys.argv[1]) if len(sys.argv) > 1 else EACH
    serve = [sys.executable, "-m", "hyperlora", "serve", "--preset", "mini", "--port", "0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = re.search(r"http://\S+", server.stdout.readline())[0]
            command = [Path(sys.executable).with_name("st"), "run", f"{url}/openapi.json", "--max-examples", str(each)]
            command += ["--checks", "not_a_server_error", "--phases", "fuzzing", "--continue-on-failure", "--no-shrink"]
            command += ["--generation-database", "none", "--warnings", "off", "--suppress-health-check", "all"]
            done = subprocess.run(command, env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.malformed"})
        finally:
            server.terminate()
            log = server.stderr.read()
    if "Traceback" in log:
        print(log)
    return done.returncode or int("Traceback" in log)


if __name__ == "__main__":
    sys.exit(main())
elif "SCHEMATHESIS_HOOKS" in os.environ:
    hooks()
