"""Runs the quiz agent through its tasks, and keeps everything that happens in agl.db.

    make demo

or, with the package, openai and rich installed,

    python examples/quickstart/main.py [--db FILE] [--model NAME] [--runners N] [--tasks N]

The agent (agent.py) is left as it is. Here a model is served, the agent is wrapped into a `LitAgent` that
grades its answers, and a `Trainer` runs it: several runners side by side, each call of the model recorded
with its token ids.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Until there is something to end in good order, Ctrl+C simply ends it.
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from agent import ask  # noqa: E402
from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.table import Table  # noqa: E402

import agentlightning as agl  # noqa: E402

console = Console()


def grade(reply: str, accepted: str | list[str]) -> float:
    """1.0 if the reply has an accepted answer in it as a whole word, else 0.0."""
    answers = [accepted] if isinstance(accepted, str) else accepted
    return float(
        any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", reply, re.IGNORECASE) for answer in answers)
    )


class QuizAgent(agl.LitAgent[dict[str, Any]]):
    """The agent, with a teacher behind it."""

    def rollout(self, task: dict[str, Any], resources: agl.NamedResources, rollout: agl.Rollout) -> float:
        """Has the agent answer one question, and returns its reward."""
        llm = resources["llm"]
        assert isinstance(llm, agl.LLM)
        reply = ask(task["question"], base_url=llm.endpoint, model=llm.model)
        return grade(reply, task["answer"])


@contextmanager
def served_model(model: str) -> Iterator[str]:
    """Serves a model for as long as the block lasts, and yields its base URL."""
    command = [sys.executable, "-m", "agentlightning.cli", "model", "serve", "--model", model, "--port", "0"]
    # In a session of its own, so that Ctrl+C reaches it only through us, when nobody needs it any more.
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if match := re.search(r"http://\S+", line):
                yield match.group().rstrip("/").removesuffix("/v1") + "/v1"
                return
        sys.exit(f"the model server did not start (exit code {server.wait()})")
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()


def load_tasks(limit: int | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The tasks to train and to validate on."""
    tasks = [json.loads(line) for line in (HERE / "tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [task for task in tasks if task["split"] == "train"]
    val = [task for task in tasks if task["split"] == "val"]
    return (train, val) if limit is None else (train[:limit], val[:limit])


def run(db: Path, model: str, n_runners: int, limit: int | None) -> int:
    """Runs the tasks and shows how it went."""
    train, val = load_tasks(limit)
    with agl.SqliteLightningStore(db) as store, served_model(model) as base_url:
        console.print(
            f"[bold]{len(train) + len(val)} tasks[/], {n_runners} runners, model [bold]{model}[/]"
            f" at {base_url}, store [bold]{db}[/]"
        )
        progress = Progress(
            TextColumn("[bold]rollouts"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
        )
        with progress:
            bar = progress.add_task("", total=len(train) + len(val), detail="")

            def show(now: agl.RunProgress) -> None:
                reward = "" if now.mean_reward is None else f" · mean reward {now.mean_reward:.2f}"
                detail = f"{now.spans} spans · {now.tokens} tokens{reward}"
                progress.update(bar, completed=now.finished, detail=detail)

            trainer = agl.Trainer(
                algorithm=agl.Baseline(on_progress=show, span_verbosity="none"),
                n_runners=n_runners,
                store=store,
                initial_resources={"llm": agl.LLM(endpoint=base_url, model=model)},
            )
            started = time.monotonic()
            summary = trainer.fit(QuizAgent(), train_dataset=train, val_dataset=val)
            seconds = time.monotonic() - started
    if summary is None:
        console.print(
            f"\nInterrupted. What had happened is kept in [bold]{db}[/]; `make demo` starts a new run."
        )
        return 130
    report(summary, seconds, db)
    return 0 if summary.failed == 0 else 1


def report(summary: agl.RunSummary, seconds: float, db: Path) -> None:
    """Prints the table, a few triplets, and what to do next."""
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{summary.rollouts} rollouts in {seconds:.0f} s", title_justify="left"
    )
    for column in ("dataset", "rollouts", "succeeded", "failed", "mean reward"):
        table.add_column(column, justify="left" if column == "dataset" else "right")
    for name, mode in (("train", summary.train), ("validation", summary.val)):
        reward = "none" if mode.mean_reward is None else f"{mode.mean_reward:.3f}"
        table.add_row(name, str(mode.rollouts), str(mode.succeeded), str(mode.failed), reward)
    console.print(table)
    console.print(
        f"{summary.spans} spans, {summary.triplets} triplets, "
        f"{summary.prompt_tokens} prompt tokens, {summary.response_tokens} response tokens\n"
    )

    console.print("A few triplets")
    for triplet in summary.sample:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", min_width=10, justify="right")
        grid.add_column(ratio=1)
        grid.add_row("prompt", triplet.prompt["raw_content"][-1]["content"])
        grid.add_row("", f"[dim]{abridged(triplet.prompt['token_ids'])}[/]")
        grid.add_row("response", triplet.response["raw_content"][0]["content"])
        grid.add_row("", f"[dim]{abridged(triplet.response['token_ids'])}[/]")
        grid.add_row("reward", "none" if triplet.reward is None else f"{triplet.reward:.1f}")
        console.print(grid, highlight=False)
        console.print()
    console.print(
        f"Everything is in [bold]{db}[/] (SQLite). To look at it, serve it and ask, in two terminals:"
    )
    for line in (
        f"  {shlex.quote(str(Path(sys.executable).parent / 'agl'))} store --path {shlex.quote(str(db))}",
        "  curl 'http://127.0.0.1:4747/v1/agl/rollouts?limit=1&sort_by=start_time&sort_order=desc'",
    ):
        console.print(line, soft_wrap=True, highlight=False)
    console.print("Your own agent goes where examples/quickstart/agent.py is, and its grading into main.py.")


def abridged(ids: list[int], keep: int = 8) -> str:
    """How many token ids there are, and the first few."""
    shown = " ".join(str(item) for item in ids[:keep])
    return f"{len(ids)} token ids: {shown}{' …' if len(ids) > keep else ''}"


def main() -> int:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--db", type=Path, default=Path("agl.db"), help="where everything is kept (default: agl.db)"
    )
    parser.add_argument("--model", default="smollm2", help="a model file, folder or name (default: smollm2)")
    parser.add_argument(
        "--runners", type=int, default=4, help="how many runners work side by side (default: 4)"
    )
    parser.add_argument("--tasks", type=int, help="at most so many tasks of each dataset")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Also when the terminal is closed, the model's server must not stay behind.
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        return run(arguments.db, arguments.model, arguments.runners, arguments.tasks)
    except KeyboardInterrupt:
        console.print("\nInterrupted before the run had begun.")
        return 130
    except (agl.StoreError, OSError, ValueError) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
