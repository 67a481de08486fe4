"""Keys of model servers are the gateway's alone. They are planted here, a model server does its worst to
spread them, and everything that comes out anywhere is searched."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_agl_run import agl_command, environment

import agentlightning as agl
from agentlightning.llm_proxy import LLMProxy

OF_ENVIRONMENT = "sk-planted-in-the-environment-0123456789"
OF_FILE = "sk-planted-in-a-file-0123456789"
INLINE = "sk-planted-in-the-configuration-0123456789"
OF_STORE = "planted-key-of-the-store-0123456789"
PLANTED = (OF_ENVIRONMENT, OF_FILE, INLINE, OF_STORE)
DIALECTS = ("chat/completions", "completions", "embeddings", "responses", "messages", "messages/count_tokens")


class Teller(BaseHTTPRequestHandler):
    """A model server that tells the key it was sent wherever it can, in as many ways as there are models."""

    protocol_version = "HTTP/1.1"
    seen: set[str]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._tell(200, {"object": "list", "data": [{"id": "m", "owned_by": "vllm"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self._key()
        complaint = {
            "error": {"message": f"Incorrect API key provided: {key}", "type": "invalid_request_error"}
        }
        match body.get("model", "").partition("-")[0]:
            case "refuses":
                self._tell(401, complaint)
            case "breaks":
                self._tell(500, complaint)
            case "redirects":
                self._tell(302, {}, Location=f"http://127.0.0.1:9/?key={key}")
            case "garbles":
                self._tell(200, f"not JSON: {key}")
            case "hangs":
                # Half an answer, and then nothing.
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(json.dumps(complaint).encode())
                self.close_connection = True
            case "streams":
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(f"data: {json.dumps(complaint)}\n\n".encode())
                self.close_connection = True
            case _:
                self._tell(404, complaint)

    def _key(self) -> str:
        key = self.headers.get("x-api-key") or self.headers.get("Authorization") or ""
        key = key.removeprefix("Bearer ")
        self.seen.add(key)
        return key

    def _tell(self, status: int, body: Any, **headers: str) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        key = self._key()
        self.send_response(status, f"Status {key}" if status >= 400 else None)
        for name, value in {"X-Your-Key": key, "Set-Cookie": f"key={key}", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


WAYS = ("refuses", "breaks", "redirects", "garbles", "hangs", "streams")


@pytest.fixture
def teller() -> Iterator[ThreadingHTTPServer]:
    handler = type("Telling", (Teller,), {"seen": set()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/v1"


def told(server: ThreadingHTTPServer) -> set[str]:
    """The keys that the server was sent."""
    seen: set[str] = server.RequestHandlerClass.seen  # type: ignore[attr-defined]
    return seen


def configured(folder: Path, url: str) -> Path:
    """A model list with a key from everywhere, and a model for each way of telling it."""
    (folder / "secrets").mkdir()
    (folder / "secrets" / "key").write_text(OF_FILE + "\n")
    keys = {
        "env": 'api_key_env = "PLANTED"',
        "file": f'api_key_file = "{folder}/secrets/key"',
        "inline": f'api_key = "{INLINE}"',
    }
    entries = [
        f'[[models]]\nname = "{way}-{place}{suffix}"\nurl = "{url}"\n{key}\nretries = 0\n{more}'
        for place, key in keys.items()
        for suffix, more in (
            ("", ""),
            # Spoken to in its own words rather than in those of chat completions.
            ("-native", "messages = true\nresponses = true\n"),
            ("-anthropic", 'api = "anthropic"\n'),
        )
        for way in WAYS
    ]
    path = folder / "secrets" / "gateway.toml"
    path.write_text("\n".join(entries))
    return path


def ask(url: str, body: Any = None, method: str | None = None, **headers: str) -> str:
    """Everything that is answered."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {OF_STORE}", "Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, data, headers, method=method)
    opener = urllib.request.build_opener(_StandStill)
    try:
        with opener.open(request, timeout=60) as answer:
            return f"{answer.status} {answer.reason} {answer.headers} {answer.read()!r}"
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.reason} {error.headers} {error.read()!r}"
    except IncompleteRead as error:
        return repr(error.partial)
    except OSError as error:
        return repr(error)


class _StandStill(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


def request_of(dialect: str, model: str) -> dict[str, Any]:
    message = [{"role": "user", "content": "a b"}]
    said: dict[str, Any] = {"completions": {"prompt": "a b"}, "embeddings": {"input": "a b"}}.get(dialect, {})
    if dialect == "responses":
        said = {"input": "a b"}
    stream = {"stream": True} if model.startswith("streams") else {}
    return {"model": model, "max_tokens": 5, **(said or {"messages": message}), **stream}


def search(place: str, text: str | bytes) -> None:
    text = text.encode() if isinstance(text, str) else text
    for key in PLANTED:
        assert key.encode() not in text, f"{key} is in {place}"
        # Nor without its ends, nor shortened by a log.
        assert key[5:25].encode() not in text, f"a part of {key} is in {place}"


@pytest.mark.parametrize("command", ["serve", "gateway"])
def test_a_planted_key_comes_out_nowhere(teller: ThreadingHTTPServer, tmp_path: Path, command: str) -> None:
    config = configured(tmp_path, url_of(teller))
    kept = tmp_path / "kept"
    kept.mkdir()
    env = environment(PLANTED=OF_ENVIRONMENT, AGL_KEY=OF_STORE)
    store_line = ["store", "--port", "0", "--path", str(kept / "agl.db"), "--log-level", "debug"]
    with _Started(store_line, env, kept / "store.log") as store:
        line = [command, "--port", "0", "--config", str(config), "--log-level", "debug"]
        line += ["--path", str(kept / "own.db")] if command == "serve" else ["--store", store.url]
        with _Started(line, env, kept / "gateway.log") as gateway:
            answers = []
            for place in ("env", "file", "inline"):
                for suffix in ("", "-native", "-anthropic"):
                    for number, way in enumerate(WAYS):
                        # Each model in some of the dialects, all of them together in all.
                        for dialect in DIALECTS[number % 2 :: 2]:
                            body = request_of(dialect, f"{way}-{place}{suffix}")
                            answers.append(ask(f"{gateway.url}/v1/{dialect}", body))
            looked_at = ("proxy/state", "v1/models", "v1/models/m", "openapi.json", "metrics", "api/models")
            answers.extend(ask(f"{gateway.url}/{path}") for path in looked_at)
            answers.extend(ask(f"{store.url}/v1/agl/{path}") for path in ("rollouts", "statistics"))
            # What cannot be read again is said, and not repeated.
            config.write_text(config.read_text() + f'\napi_key = "{INLINE} twice"\n')
            gateway.process.send_signal(signal.SIGHUP)
            until_said(kept / "gateway.log", "the model list stays as it was")
    for answer in answers:
        search("an answer", answer)
    assert any("***" in answer for answer in answers), "a key was told, and blotted out"
    assert {OF_ENVIRONMENT, OF_FILE, INLINE} <= told(teller), "the model server got them all"
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert {"agl.db", "store.log", "gateway.log"} <= {path.name for path in files}
    database = kept / ("own.db" if command == "serve" else "agl.db")
    assert b"litellm_request" in database.read_bytes(), "the calls were recorded"
    _search_folder(kept)


def _search_folder(folder: Path) -> None:
    for path in folder.iterdir():
        search(str(path), path.read_bytes())


class _Started:
    """A server of ours, with its log in a file, until the end of the block."""

    def __init__(self, arguments: list[str], env: dict[str, str], log: Path) -> None:
        self._log = log.open("wb")
        self.process = subprocess.Popen(
            agl_command(arguments), env=env, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        self._log.write(ready.encode())
        self.url = next(word for word in ready.split() if word.startswith("http"))

    def __enter__(self) -> _Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0
        assert self.process.stdout is not None
        self._log.write(self.process.stdout.read().encode())
        self.process.stdout.close()
        self._log.close()


def until_said(log: Path, words: str) -> None:
    deadline = time.monotonic() + 60
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def test_help_and_the_doctor_tell_no_key(teller: ThreadingHTTPServer) -> None:
    env = environment(
        PLANTED=OF_ENVIRONMENT, AGL_KEY=OF_STORE, OPENAI_API_KEY=OF_ENVIRONMENT, ANTHROPIC_API_KEY=OF_FILE
    )
    commands = [
        [],
        ["store"],
        ["serve"],
        ["gateway"],
        ["run"],
        ["doctor"],
        ["pause"],
        ["export"],
        ["model", "serve"],
    ]
    lines = [[*command, "--help"] for command in commands]
    lines += [
        ["doctor"],
        ["doctor", url_of(teller)],
        ["doctor", url_of(teller), "--json", "--key-env", "PLANTED"],
    ]
    lines += [
        ["doctor", url_of(teller), "--model", way] for way in ("refuses", "breaks", "redirects", "garbles")
    ]
    for line in lines:
        done = subprocess.run(agl_command(line), capture_output=True, timeout=120, env=env)
        assert done.stdout, line
        search(f"what agl {' '.join(line)} prints", done.stdout + done.stderr)
    assert OF_ENVIRONMENT in told(teller), "the model server was sent it"


def test_programs_and_scorers_inherit_no_key(teller: ThreadingHTTPServer, tmp_path: Path) -> None:
    """Not the gateway's, and not the store's."""
    config = configured(tmp_path, url_of(teller))
    kept = tmp_path / "kept"
    kept.mkdir()
    tasks = kept / "tasks.jsonl"
    tasks.write_text('{"id": 1}\n')
    env = environment(PLANTED=OF_ENVIRONMENT, AGL_KEY=OF_STORE)
    show = 'env; echo "$@"'
    scorer = f"env > {kept}/scorer; cat >> {kept}/scorer; echo 1"
    program = ["sh", "-c", f"({show}) > {kept}/program-$$; cat >> {kept}/program-$$"]
    options = ["--tasks", str(tasks), "--reward", scorer, "--log-level", "debug"]

    line = ["run", *options, "--path", str(kept / "run.db"), "--config", str(config), "--", *program]
    done = subprocess.run(agl_command(line), capture_output=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    search("what agl run prints", done.stdout + done.stderr)

    serve = ["serve", "--port", "0", "--path", str(kept / "own.db"), "--config", str(config)]
    with _Started(serve, env, kept / "serve.log") as served:
        line = ["run", *options, "--server", served.url, "--", *program]
        # The servers' keys are none of this side's business.
        env = environment(AGL_KEY=OF_STORE)
        done = subprocess.run(agl_command(line), capture_output=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    search("what agl run --server prints", done.stdout + done.stderr)
    written = list(kept.iterdir())
    assert sum(path.name.startswith("program-") for path in written) == 2
    _search_folder(kept)
    assert b"AGL_KEY=agl-at." in b"".join(path.read_bytes() for path in written if "program" in path.name)


@pytest.mark.asyncio
async def test_llm_proxy_tells_no_key(
    teller: ThreadingHTTPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PLANTED", OF_ENVIRONMENT)
    caplog.set_level(logging.DEBUG)

    def entry(name: str, key: str) -> Any:
        return {
            "model_name": name,
            "litellm_params": {"model": f"openai/{name}", "api_base": url_of(teller), "api_key": key},
        }

    models = [entry(f"{way}-env", "os.environ/PLANTED") for way in WAYS]
    models += [entry(f"{way}-inline", INLINE) for way in WAYS]
    with agl.SqliteLightningStore(tmp_path / "store.db") as store:
        proxy = LLMProxy(model_list=models, store=store)
        await proxy.start()
        rollout = await store.start_rollout(input="task")
        llm = proxy.as_resource(rollout.rollout_id, rollout.attempt.attempt_id, model="m")
        answers = [
            ask(f"{llm.endpoint}/v1/chat/completions", request_of("chat/completions", model["model_name"]))
            for model in models
        ]
        for wrong in (
            entry("x", f"{INLINE} twice"),
            {**entry("x", INLINE), "litellm_params": {"model": "y/x", "api_key": INLINE}},
        ):
            with pytest.raises(agl.InvalidArgumentError) as refused:
                proxy.update_model_list([wrong])
            search("an error", str(refused.value))
        search("its name", repr(proxy))
        search("resources", proxy.as_resource(model="m").model_dump_json())
        await proxy.stop()
        assert len(await store.query_spans(rollout.rollout_id)) == len(models)
    for answer in answers:
        search("an answer", answer)
    search("the log", caplog.text)
    _search_folder(tmp_path)
    assert {OF_ENVIRONMENT, INLINE} <= told(teller)
