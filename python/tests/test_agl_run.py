"""`agl run` and `agl serve`: programs in any language, captured by their environment alone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_vllm import FakeVLLM, ids_of

import agentlightning as agl
from agentlightning import _core
from agentlightning.store.native import encode_spans

CHAT = '{"model": "m", "messages": [{"role": "user", "content": "a b c"}]}'

SHELL = f"""
curl -sf "$OPENAI_BASE_URL/chat/completions" -H "Authorization: Bearer $OPENAI_API_KEY" \\
    -H 'Content-Type: application/json' -d '{CHAT}' | sed 's/.*"content": "\\([^"]*\\)".*/\\1/'
"""

NODE = """
const task = JSON.parse(process.env.AGL_TASK);
const body = {model: 'm', stream: true, messages: [{role: 'user', content: task.text}]};
const response = await fetch(process.env.OPENAI_BASE_URL + '/chat/completions', {
  method: 'POST', headers: {authorization: 'Bearer ' + process.env.OPENAI_API_KEY},
  body: JSON.stringify(body)});
const text = await response.text();
const lines = text.split('\\n\\n').filter(line => line.startsWith('data: {'));
const chunks = lines.map(line => JSON.parse(line.slice(6)));
console.log(chunks.map(chunk => chunk.choices[0]?.delta.content ?? '').join(''));
"""

PYTHON = """
import json, sys, openai
task = json.load(sys.stdin)
client = openai.OpenAI()
answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": task["text"]}])
print(answer.choices[0].message.content)
"""


@pytest.fixture
def engine() -> Iterator[FakeVLLM]:
    with FakeVLLM() as engine:
        yield engine


class Runs:
    """`agl run` in a folder of its own."""

    def __init__(self, folder: Path, engine: FakeVLLM) -> None:
        self.folder = folder
        self.engine = engine

    def tasks(self, *tasks: dict[str, Any]) -> str:
        path = self.folder / "tasks.jsonl"
        path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
        return str(path)

    def run(self, tasks: str, options: list[str], command: list[str], **more: str) -> list[dict[str, Any]]:
        arguments = ["run", "--tasks", tasks, "--path", str(self.folder / "agl.db"), "--json"]
        line = agl_command([*arguments, "--upstream", self.engine.base_url, *options, "--", *command])
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment(**more))
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def store(self) -> agl.SqliteLightningStore:
        return agl.SqliteLightningStore(self.folder / "agl.db")


def agl_command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "agentlightning.cli", *arguments]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "AGL_KEY"}
    return {**kept, **more}


@pytest.fixture
def runs(tmp_path: Path, engine: FakeVLLM) -> Runs:
    return Runs(tmp_path, engine)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not there")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["sh", "-c", SHELL], id="shell", marks=needs("curl")),
        pytest.param(["node", "--input-type=module", "-e", NODE], id="node", marks=needs("node")),
        pytest.param([sys.executable, "-c", PYTHON], id="python"),
    ],
)
async def test_a_program_in_any_language_is_captured_and_judged(runs: Runs, command: list[str]) -> None:
    tasks = runs.tasks(
        {"id": "one", "text": "a b c", "expected": "c b a"}, {"id": 2, "text": "a b c", "expected": "x"}
    )
    first, second = runs.run(tasks, ["--reward", "exact"], command)
    assert (first["id"], first["reward"], first["succeeded"], first["ended"]) == (
        "one",
        1.0,
        True,
        "exited with code 0",
    )
    assert (second["id"], second["reward"]) == ("2", 0.0)
    with runs.store() as store:
        rollout = await store.get_rollout_by_id(first["rollout_id"])
        assert rollout is not None
        assert rollout.status == "succeeded"
        assert rollout.input == {"id": "one", "text": "a b c", "expected": "c b a"}
        call, reward = await store.query_spans(first["rollout_id"])
        assert call.attributes["prompt_token_ids"] == ids_of("a b c")
        assert call.attributes["response_token_ids"] == ids_of("c b a")
        assert agl.get_reward_value(reward) == 1.0
        attempt = await store.get_latest_attempt(first["rollout_id"])
        assert attempt is not None
        assert attempt.metadata is not None
        assert attempt.metadata["stdout_tail"].strip() == "c b a"


@pytest.mark.asyncio
async def test_a_run_that_ends_badly_is_tried_again_and_has_no_reward(runs: Runs) -> None:
    script = "echo out; echo err >&2; exit 3"
    (report,) = runs.run(
        runs.tasks({"id": 1}), ["--max-attempts", "2", "--reward", "regex:."], ["sh", "-c", script]
    )
    assert (report["attempts"], report["succeeded"], report["reward"]) == (2, False, None)
    assert report["ended"] == "exited with code 3"
    with runs.store() as store:
        rollout = await store.get_rollout_by_id(report["rollout_id"])
        assert rollout is not None
        assert rollout.status == "failed"
        attempts = await store.query_attempts(report["rollout_id"])
        assert [attempt.status for attempt in attempts] == ["failed", "failed"]
        assert attempts[0].metadata is not None
        assert (attempts[0].metadata["exit_code"], attempts[0].metadata["stderr_tail"]) == (3, "err\n")
        assert list(await store.query_spans(report["rollout_id"])) == []


@pytest.mark.asyncio
async def test_what_takes_too_long_is_killed_with_its_children(runs: Runs, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid_file}; wait"
    (report,) = runs.run(runs.tasks({"id": 1}), ["--timeout", "1.5"], ["sh", "-c", script])
    assert report["ended"] == "took too long"
    child = int(pid_file.read_text())
    deadline = time.monotonic() + 30
    while _is_alive(child):
        assert time.monotonic() < deadline, "the child is still there"
        await asyncio.sleep(0.02)
    with runs.store() as store:
        attempt = await store.get_latest_attempt(report["rollout_id"])
        assert attempt is not None
        assert attempt.status == "timeout"


@pytest.mark.asyncio
async def test_a_program_that_ends_leaves_nothing_behind(runs: Runs, tmp_path: Path) -> None:
    """Also of what has left its group, and keeps what it writes to open, nothing is waited for."""
    child, keeper = tmp_path / "child", tmp_path / "keeper"
    keep_open = f"""
import os, pathlib, time
os.setsid()
print("kept open", flush=True)
pathlib.Path("{keeper}.new").write_text(str(os.getpid()))
os.rename("{keeper}.new", "{keeper}")
time.sleep(600)
"""
    script = f"""
    sleep 600 & echo $! > {child}
    {sys.executable} -c '{keep_open}' &
    until test -e {keeper}; do sleep 0.02; done
    echo done; exit 7
    """
    (report,) = runs.run(runs.tasks({"id": 1}), [], ["sh", "-c", script])
    os.kill(int(keeper.read_text()), signal.SIGKILL)
    assert report["ended"] == "exited with code 7"
    with runs.store() as store:
        attempt = await store.get_latest_attempt(report["rollout_id"])
    assert attempt is not None
    assert attempt.metadata is not None
    assert attempt.metadata["stdout_tail"] == "kept open\ndone\n"
    await asyncio.to_thread(_until_gone, int(child.read_text()))


@pytest.mark.asyncio
async def test_what_is_called_off_is_killed_and_recorded_as_that(runs: Runs, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}; wait"
    options = ["--tasks", runs.tasks({"id": 1}, {"id": 2}), "--path", str(tmp_path / "agl.db")]
    options += ["--upstream", runs.engine.base_url, "--workers", "1", "--max-attempts", "3"]
    line = agl_command(["run", *options, "--", "sh", "-c", script])
    _call_off(line, pid_file)
    with runs.store() as store:
        (rollout,) = await store.query_rollouts()
        assert rollout.status == "failed"
        (attempt,) = await store.query_attempts(rollout.rollout_id)
        assert (attempt.status, attempt.metadata) == ("failed", {"reason": "cancelled"})


def _call_off(line: list[str], pid_file: Path) -> None:
    """Starts a run, sends it Ctrl+C once its program runs, and waits for that to be gone."""
    with subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, text=True) as run:
        while not pid_file.exists():
            assert run.poll() is None, "it ended before it began"
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=60) != 0
    _until_gone(int(pid_file.read_text()))


def _until_gone(pid: int) -> None:
    while _is_alive(pid):
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


ADDRESSES = """
import json, os, sys, anthropic, openai
text = json.load(open(os.environ["AGL_TASK_FILE"]))["text"]
assert json.load(sys.stdin)["text"] == text
assert ("AGL_TASK" in os.environ) == (len(text) < 1000), "too large for an environment"
asked = text[:5]
claude = anthropic.Anthropic().messages.create(
    model="m", max_tokens=9, messages=[{"role": "user", "content": asked}])
print(claude.content[0].text)
for base in (os.environ["OPENAI_BASE_URL"], os.environ["AGL_OPENAI_BASE_URL"]):
    client = openai.OpenAI(base_url=base, api_key=os.environ["AGL_KEY"])
    print(client.responses.create(model="m", input=asked).output_text)
print(os.environ["AGL_OPENAI_BASE_URL"].partition("/mode/")[2])
"""


@pytest.mark.asyncio
async def test_a_program_finds_its_task_and_its_addresses_in_its_environment(runs: Runs) -> None:
    tasks = runs.tasks(
        {"text": "a b c", "mode": "val", "right": "val/openai/v1"},
        {"text": "a b c" + " d" * 100_000, "mode": "train", "right": "train/openai/v1"},
    )
    reports = runs.run(
        tasks, ["--reward", "contains", "--expected-key", "right"], [sys.executable, "-c", ADDRESSES]
    )
    with runs.store() as store:
        for report, mode in zip(reports, ("val", "train"), strict=True):
            assert (report["succeeded"], report["reward"]) == (True, 1.0), report
            rollout = await store.get_rollout_by_id(report["rollout_id"])
            assert rollout is not None
            assert rollout.mode == mode
            spans = await store.query_spans(report["rollout_id"])
            calls = [span for span in spans if span.name == "litellm_request"]
            assert [span.attributes["response_token_ids"] for span in calls] == [ids_of("c b a")] * 3


def test_a_table_and_a_bar_show_how_it_goes(runs: Runs) -> None:
    script = 'case "$AGL_TASK" in *bad*) exit 1;; esac'
    tasks = runs.tasks({"id": "good"}, {"id": "bad"}, {})
    arguments = ["run", "--tasks", tasks, "--path", str(runs.folder / "agl.db"), "--reward", "regex:^$"]
    terminal, stderr = os.openpty()
    line = agl_command([*arguments, "--upstream", runs.engine.base_url, "--", "sh", "-c", script])
    done = subprocess.run(
        line, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=120, env=environment(TERM="xterm")
    )
    os.close(stderr)
    seen = b""
    try:
        while piece := os.read(terminal, 4096):
            seen += piece
    except OSError:
        pass  # the other end is closed
    os.close(terminal)
    assert "3 rollouts" in seen.decode() or "/3 rollouts" in seen.decode(), seen
    head, *rows, total = done.stdout.splitlines()
    assert head.split() == ["task", "rollout", "attempts", "reward", "seconds", "ended"]
    told = [(row.split()[0], row.split()[2], row.split()[3], row.split("  ")[-1]) for row in rows]
    assert told == [
        ("good", "1", "1.000", "exited with code 0"),
        ("bad", "1", "-", "exited with code 1"),
        ("-", "1", "1.000", "exited with code 0"),
    ]
    assert total == "2 of 3 ended well; mean reward of 2: 1.000"


def test_the_doctor_prints_what_to_do_about_gaps(engine: FakeVLLM) -> None:
    line = agl_command(["doctor", engine.base_url, "--model", "no-extras"])
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    found = {row[:16].strip(): row[18:21].strip() for row in rows if row[:16].strip()}
    assert (found["models"], found["chat completions"], found["token ids"]) == ("yes", "yes", "no")
    fix = rows[[row[:9] for row in rows].index("token ids") + 1]
    assert "vLLM" in fix
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, timeout=60, env=environment())
    findings = {finding["what"]: finding for finding in map(json.loads, done.stdout.splitlines())}
    assert {what: finding["is_there"] for what, finding in findings.items()} == {
        what: mark == "yes" for what, mark in found.items()
    }
    done = subprocess.run(
        agl_command(["doctor", "http://127.0.0.1:9/v1"]), capture_output=True, text=True, timeout=60
    )
    assert "refused" in done.stdout
    assert "start the server" in done.stdout


def test_a_scorer_is_told_the_task_and_the_output(runs: Runs) -> None:
    scorer = (
        f"{sys.executable} -c 'import json,sys; said=json.load(sys.stdin); "
        'print(json.dumps({"reward": said["task"]["worth"], "feedback": said["stdout"].strip()}))\''
    )
    tasks = runs.tasks({"worth": 0.25}, {"worth": 2})
    reports = runs.run(tasks, ["--n", "2", "--reward", scorer], ["echo", "well done"])
    assert [report["reward"] for report in reports] == [0.25, 0.25, 2.0, 2.0]
    assert reports[0]["feedback"] == "well done"


@pytest.mark.asyncio
@needs("curl")
async def test_a_program_sets_its_own_reward_only_if_it_may(runs: Runs) -> None:
    script = """
    curl -s -o /dev/null -w '%{http_code}' "$AGL_EVENT_URL" -H "Authorization: Bearer $AGL_KEY" \
        -H 'Content-Type: application/json' -d '{"event_type": "reward", "data": {"value": 0.75}}'
    curl -s -o /dev/null -w ' %{http_code}' "$AGL_EVENT_URL" -H "Authorization: Bearer $AGL_KEY" \
        -H 'Content-Type: application/json' -d '{"event_type": "note", "data": {}}'
    """
    for options, codes, reward in (([], "403 200", None), (["--agent-may-reward"], "200 200", 0.75)):
        (report,) = runs.run(runs.tasks({"id": 1}), options, ["sh", "-c", script])
        with runs.store() as store:
            attempt = await store.get_latest_attempt(report["rollout_id"])
            assert attempt is not None
            assert attempt.metadata is not None
            assert attempt.metadata["stdout_tail"] == codes
            assert agl.find_final_reward(list(await store.query_spans(report["rollout_id"]))) == reward


@needs("curl")
def test_a_programs_key_is_good_for_its_own_attempt_alone(runs: Runs) -> None:
    """What an agent might try with what it was given; every line prints the status that it got."""
    attacks = """
    root=${AGL_EVENT_URL%%/api/*}
    try() { curl -s -o /dev/null -w '%{http_code} ' -H "Authorization: Bearer $AGL_KEY" "$@"; }
    try "$root/v1/agl/rollouts"
    try "$root/v1/agl/spans?rollout_id=$AGL_ROLLOUT_ID"
    try -X DELETE "$root/v1/agl/rollouts/$AGL_ROLLOUT_ID"
    try "$root/api/models"
    try -X POST "$root/api/models" -d '[{"model": "m", "endpoint": "http://x/v1"}]'
    try -X POST "$root/api/rollouts/ro-other/attempt/at-other/events" -d '{}'
    try -X POST "$root/proxy/pause"
    try "$root/proxy/state"
    try -X PATCH "$root/api/rollouts/$AGL_ROLLOUT_ID" -d '{}'
    try "$root/v1/prometheus"
    try -X POST "$root/rollout/ro-other/attempt/at-other/v1/chat/completions" -d '{"model": "m"}'
    """
    (report,) = runs.run(runs.tasks({"id": 1}), ["--reward", "regex:^(40[34] ?){11}$"], ["sh", "-c", attacks])
    assert report["reward"] == 1.0, report


@needs("curl")
def test_the_gateways_own_key_is_not_inherited(engine: FakeVLLM, tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(f'[[models]]\nname = "m"\nurl = "{engine.base_url}"\napi_key_env = "PLANTED"\n')
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"id": 1}\n')
    options = [
        "run",
        "--tasks",
        str(tasks),
        "--path",
        str(tmp_path / "agl.db"),
        "--config",
        str(config),
        "--json",
    ]
    line = agl_command([*options, "--", "sh", "-c", f"env; {SHELL}"])
    key = "planted-key-0123456789"
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment(PLANTED=key))
    assert done.returncode == 0, done.stderr
    assert key not in done.stdout + done.stderr
    for file in tmp_path.iterdir():
        assert key.encode() not in file.read_bytes(), file


LANGCHAIN = """
import json, os, sys
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

@tool
def add(x: int) -> int:
    "Adds one."
    return x + 1

task = json.loads(os.environ["AGL_TASK"])
agent = create_agent(ChatOpenAI(model="m"), [add])
answer = agent.invoke({"messages": [{"role": "user", "content": task["text"]}]})
print(answer["messages"][-1].content)
"""

SITECUSTOMIZE = """
import sys
print("theirs ran", file=sys.stderr)
"""


def spans_inside(spans: Any) -> list[agl.Span]:
    return [span for span in spans if span.name != "litellm_request"]


def calls_of(spans: Any) -> list[dict[str, Any]]:
    """The model calls of a trace, those that two have recorded once."""
    calls: list[dict[str, Any]] = json.loads(_core.read_calls(encode_spans(spans)))
    return calls


@pytest.mark.asyncio
async def test_what_happens_inside_of_a_python_program_is_recorded_too(runs: Runs, tmp_path: Path) -> None:
    """An agent of LangChain that knows nothing of us, which a shell script starts."""
    (tmp_path / "agent.py").write_text(LANGCHAIN)
    # A folder of the user's own that Python looks into already.
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    command = ["sh", "-c", f"PYTHONDONTWRITEBYTECODE=1 {sys.executable} {tmp_path}/agent.py && true"]
    (report,) = runs.run(
        runs.tasks({"text": "a b c"}), ["--instrument"], command, PYTHONPATH=str(tmp_path / "own")
    )
    assert report["succeeded"], report
    with runs.store() as store:
        attempt = await store.get_latest_attempt(report["rollout_id"])
        assert attempt is not None
        assert attempt.metadata is not None
        assert attempt.metadata["stderr_tail"] == "theirs ran\n"
        spans = list(await store.query_spans(report["rollout_id"]))
    inside = spans_inside(spans)
    assert {span.attempt_id for span in inside} == {attempt.attempt_id}
    seen = {(span.name, span.attributes.get("gen_ai.tool.name")) for span in inside}
    assert seen >= {("chain.chain", None), ("chat_model.llm", None), ("tool.tool", "add")}
    calls = calls_of(spans)
    assert [call["response_id"] for call in calls] == [
        span.attributes["gen_ai.response.id"] for span in spans if span.name == "litellm_request"
    ]
    assert all(call["joined"] for call in calls), "the gateway's record and the program's are one call"
    assert len(runs.engine.requests) == len(calls) == 2
    # In the order in which they came about, with what the gateway has seen of the tokens.
    sequence = [span.sequence_id for span in spans]
    assert sequence == sorted(set(sequence))


@pytest.mark.asyncio
async def test_a_stream_and_a_reward_inside_of_a_program(runs: Runs) -> None:
    program = """
import agentlightning as agl, openai
with agl.operation(name="my step"):
    stream = openai.OpenAI().chat.completions.create(
        model="m", stream=True, messages=[{"role": "user", "content": "a b"}])
    print("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))
agl.emit_reward(0.5)
"""
    for options, reward in (([], None), (["--agent-may-reward"], 0.5)):
        (report,) = runs.run(
            runs.tasks({"id": 1}), ["--instrument", *options], [sys.executable, "-c", program]
        )
        assert report["succeeded"], report
        with runs.store() as store:
            spans = list(await store.query_spans(report["rollout_id"]))
            attempt = await store.get_latest_attempt(report["rollout_id"])
        assert attempt is not None
        assert attempt.metadata is not None
        assert ("may not set its own reward" in attempt.metadata["stderr_tail"]) == (reward is None)
        assert agl.find_final_reward(spans) == reward
        (step,) = (span for span in spans if span.name == "agentlightning.operation")
        (call,) = (span for span in spans if span.name == "openai.chat.completion")
        assert call.parent_id == step.span_id
        (joined,) = calls_of(spans)
        assert joined["choices"][0]["token_ids"] == ids_of("b a")
        assert len(joined["joined"]) == 1


WORKERS = """
import atexit, multiprocessing, threading
import agentlightning as agl

def step(name):
    with agl.operation(name=name):
        pass

thread = threading.Thread(target=step, args=("thread",))
thread.start()
thread.join()
worker = multiprocessing.get_context("fork").Process(target=step, args=("fork",))
worker.start()
worker.join()
atexit.register(step, "end")
"""


@pytest.mark.asyncio
async def test_threads_workers_and_the_end_of_a_program_are_recorded_too(runs: Runs) -> None:
    (report,) = runs.run(runs.tasks({"id": 1}), ["--instrument"], [sys.executable, "-c", WORKERS])
    assert report["succeeded"], report
    with runs.store() as store:
        spans = await store.query_spans(report["rollout_id"])
    names = sorted(str(span.attributes["agentlightning.operation.name"]) for span in spans)
    assert names == ["end", "fork", "thread"]


@pytest.mark.asyncio
async def test_a_python_without_the_package_runs_on_unrecorded(runs: Runs, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    command = [
        str(tmp_path / "bare" / "bin" / "python"),
        "-c",
        "import sys; print(sys.argv); print('x', file=sys.stderr)",
    ]
    (report,) = runs.run(runs.tasks({"id": 1}), ["--instrument"], command)
    assert report["succeeded"]
    with runs.store() as store:
        attempt = await store.get_latest_attempt(report["rollout_id"])
        assert attempt is not None
        assert attempt.metadata is not None
        assert attempt.metadata["stdout_tail"] == "['-c']\n"
        complaint, own = attempt.metadata["stderr_tail"].splitlines()
        assert own == "x"
        assert "is not recorded" in complaint
        assert "pip install" in complaint
        assert str(tmp_path / "bare") in complaint
        assert list(await store.query_spans(report["rollout_id"])) == []


def test_what_cannot_be_run_is_said(runs: Runs, tmp_path: Path) -> None:
    line = agl_command(
        ["run", "--tasks", str(tmp_path / "none"), "--path", str(tmp_path / "a.db"), "--", "true"]
    )
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode == 1
    assert "cannot read the tasks" in done.stderr
    tasks = runs.tasks({"mode": "x"})
    done = subprocess.run(
        [*line[:3], "run", "--tasks", tasks, "--", "true"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "line 1: mode" in done.stderr
    line = agl_command(
        ["run", "--tasks", runs.tasks({}), "--path", str(tmp_path / "b.db"), "--", "./no-such-program"]
    )
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=environment(), cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot run ./no-such-program" in done.stderr


@pytest.mark.asyncio
async def test_store_and_gateway_share_a_port(engine: FakeVLLM, tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(f'[[models]]\nname = "m"\nurl = "{engine.base_url}"\n')
    line = agl_command(["serve", "--port", "0", "--path", str(tmp_path / "agl.db"), "--config", str(config)])
    pipe, env = asyncio.subprocess.PIPE, environment(AGL_KEY="the-key")
    server = await asyncio.create_subprocess_exec(*line, stdout=pipe, env=env)
    try:
        assert server.stdout is not None
        ready = (await server.stdout.readline()).decode()
        url = next(word for word in ready.split() if word.startswith("http"))
        store = agl.LightningStoreClient(url, key="the-key")
        rollout = await store.start_rollout(input="task")
        base = f"{url}/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}/v1"
        client = openai.OpenAI(base_url=base, api_key="the-key", max_retries=0)
        answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "a b"}])
        assert answer.choices[0].message.content == "b a"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="other").models.list()
        (span,) = await store.query_spans(rollout.rollout_id)
        assert span.attributes["response_token_ids"] == ids_of("b a")
        await store.close()
    finally:
        server.terminate()
        assert await asyncio.wait_for(server.wait(), 30) == 0


def test_an_address_that_others_reach_wants_a_key() -> None:
    for command in ("serve", "gateway"):
        line = agl_command([command, "--host", "0.0.0.0", "--port", "0"])
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=environment())
        assert done.returncode == 1
        assert "have them send a key" in done.stderr
