"""Find the token reduction that is worth it for your video transformer.

    paretoken run demo            python -m orchestrator run demo

The command line selects a study and says where things are; it never sets a number of a study.
Exit codes: 0 done; 1 no front, a limit passed, or a failure; 2 the user's mistake; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator import failures, interrupts
from orchestrator.arguments import add_advise, add_ingest
from orchestrator.arguments import count as _count
from orchestrator.arguments import path as _path
from orchestrator.arguments import place as _place
from orchestrator.arguments import size as _size
from orchestrator.environment import prepare
from workloads.mistakes import Mistake

Answer = tuple[int, dict[str, Any]]
"""Exit code and the JSON object of `--json`."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are mistakes like any other."""

    def error(self, message: str) -> Any:  # Any: it never returns
        raise Mistake(message, f"{self.prog} --help shows what there is")


def parser() -> Parser:
    """Return the parser of all commands."""
    top = Parser(prog="paretoken", description=(__doc__ or "").split("\n")[0])
    verbs = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = verbs.add_parser("run", help="run or resume a study")
    _add_study(run)
    _add_selection(run)
    _add_store(run)
    verbs.add_parser("studies", help="list the studies with their question")
    front = verbs.add_parser("front", help="print the front of a study and write its report")
    _add_study(front)
    _add_store(front)
    front.add_argument("--at", help='one point: knee, or a bound such as "gmacs<=20"')
    confirm = verbs.add_parser("confirm", help="the front on further seeds and test clips, timed")
    _add_study(confirm)
    _add_store(confirm)
    _add_selection(confirm, trials=False)
    export = verbs.add_parser("export", help="write one point of a study as a model folder")
    _add_study(export)
    _add_store(export)
    export.add_argument("--at", required=True, help='knee, a bound such as "gmacs<=20", a trial')
    export.add_argument("--out", required=True, type=_path, metavar="DIR", help="a new folder")
    predict = verbs.add_parser("predict", help="label videos with an exported model")
    predict.add_argument("folder", type=_path, metavar="DIR", help="a model folder")
    videos = "files, folders of them, or lists (.txt, .csv)"
    predict.add_argument("videos", type=_path, nargs="+", metavar="VIDEO", help=videos)
    predict.add_argument("--batch", type=_count, default=8, metavar="N", help="videos at once")
    add_ingest(verbs.add_parser("ingest", help="check, normalise and count videos"))
    add_advise(verbs.add_parser("advise", help="what each reduction can save on videos, no model"))
    submit = verbs.add_parser("submit", help="run a study on a Ray cluster, as a job")
    submit.add_argument("study", nargs="?", metavar="STUDY")
    _add_selection(submit)
    _add_store(submit, "on the cluster: ~/paretoken-store, or an absolute path")
    submit.add_argument("--follow", action="store_true", help="show the job's log until it ends")
    for word in ("status", "logs", "stop"):
        submit.add_argument(f"--{word}", metavar="ID", help=f"{word} of a job that was submitted")
    verbs.add_parser("doctor", help="check the installation, a line a thing")
    for verb in verbs.choices.values():
        verb.add_argument("--json", action="store_true", help="one JSON object, last on stdout")
    return top


def _add_study(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("study", metavar="STUDY", help="a name, or a file with `def study()`")


def _add_selection(verb: argparse.ArgumentParser, trials: bool = True) -> None:
    verb.add_argument("--data", type=_place, metavar="PATH", help="class folders, or a CSV")
    verb.add_argument("--model", type=_place, metavar="DIR", help="a checkpoint to start from")
    if trials:
        verb.add_argument("--trials", type=_count, metavar="N", help="in all, dense included")
    verb.add_argument("--workers", type=_count, default=1, metavar="N", help="stages at once")
    verb.add_argument("--ranks", type=_count, default=1, metavar="W", help="processes of a stage")
    limit = "limit of the frame cache (default: half of the free disk); 0 = none"
    verb.add_argument("--cache", type=_size, metavar="GIB", help=limit)
    verb.add_argument("--address", metavar="ADDR", help="Ray cluster (default: start one here)")


def _add_store(verb: argparse.ArgumentParser, note: str = "default: ./paretoken-store") -> None:
    store = Path("paretoken-store")
    verb.add_argument("--store", type=_place, default=store, metavar="DIR", help=note)
    verb.add_argument("--tracking-uri", metavar="URI", help="MLflow (default: in the store)")


def run(args: argparse.Namespace) -> Answer:
    """Run or resume a study and print its front."""
    from orchestrator import report
    from orchestrator.display import Display
    from orchestrator.run import run as run_study

    with Display() as display:
        summary = run_study(_options(args), display)
    if not summary["front"]:
        return _no_front(summary)
    _print(args, report.table(summary), report.footer(summary))
    return 0, summary


def front(args: argparse.Namespace) -> Answer:
    """Print the front of a study, or one point of it."""
    from orchestrator import report, summary
    from orchestrator.display import Display
    from orchestrator.publish import front as front_of

    with Display() as display:
        made = front_of(args.store, args.study, args.tracking_uri, display)
    if not made["front"]:
        return _no_front(made)
    if args.at is None:
        _print(args, report.table(made), report.footer(made))
        return 0, made
    point = summary.choose(made, args.at)
    if point is None:
        print(f'no point of the front has "{args.at}"', file=sys.stderr)
        return 1, {**made, "point": None}
    _print(args, report.line(made, point))
    return 0, {**made, "point": point}


def confirm(args: argparse.Namespace) -> Answer:
    """Confirm the front of a study and print what is left of it."""
    from orchestrator import verdict
    from orchestrator.confirm import confirm as confirm_study
    from orchestrator.display import Display

    with Display() as display:
        made, found = confirm_study(_options(args), display)
    if found is None:
        return _no_front(made)
    _print(args, verdict.table(found, made), verdict.footer(found, made))
    return 0, found


def export(args: argparse.Namespace) -> Answer:
    """Write one point of a study as a folder."""
    from orchestrator import report
    from orchestrator.display import Display
    from orchestrator.export import Options
    from orchestrator.export import export as export_point

    wanted = {name: getattr(args, name) for name in Options.__dataclass_fields__}
    with Display() as display:
        made, written = export_point(Options(**wanted), display)
    if not written:
        return _no_front(made)
    check, logged = written["check"], written["mlflow"]
    _print(
        args,
        report.line(made, written["point"]),
        f"wrote    {args.out}   {', '.join(written['files'])}",
        f"checked  {check['clips']} {check['split']} clips: largest difference of a logit from "
        f"the study's {check['difference']:.1e}",
        *([f"mlflow   {logged['model_uri']}   {logged['uri']}"] if logged else []),
        f"next     paretoken predict {shlex.quote(str(args.out))} VIDEO...",
    )
    return 0, {"study": made["study"], "study_key": made["study_key"], **written}


def predict(args: argparse.Namespace) -> Answer:
    """Label videos, a line each; a bad one is reported and the others go on."""
    from orchestrator import predict as labeller

    def tell(text: str) -> None:
        print(text, flush=True)

    return labeller.predict(args.folder, args.videos, args.batch, args.json, tell)


def ingest(args: argparse.Namespace) -> Answer:
    """Check, normalise and count videos, and write their manifest."""
    from orchestrator import ingest as intake
    from orchestrator.display import Display

    begun = time.monotonic()
    options = intake.of(args)
    with Display() as display:
        made, found = intake.ingest(options, display)
    seconds = time.monotonic() - begun
    _print(args, *intake.told(options, made, found, seconds))
    if made.rows and args.advice_seconds:
        _print(args, "")
        advise(
            argparse.Namespace(**{**vars(args), "src": made.csv, "seconds": args.advice_seconds})
        )
    return intake.answer(options, made, seconds)


def advise(args: argparse.Namespace) -> Answer:
    """Say what each reduction can save on videos."""
    from orchestrator import advise as adviser
    from orchestrator.display import Display

    with Display() as display:
        advice = adviser.advise(args.src, args.seconds, display)
    made = adviser.answer(advice)
    files = adviser.write(made, args.out)
    _print(args, *adviser.told(made), f"figure  {files[1]}")
    return 0, made


def studies(args: argparse.Namespace) -> Answer:
    """List the studies with their question."""
    import search_spaces

    questions = search_spaces.questions()
    width = max(map(len, questions))
    _print(args, *(f"{name:<{width}} {question}" for name, question in questions.items()))
    return 0, {"studies": [{"name": n, "question": q} for n, q in questions.items()]}


def submit(args: argparse.Namespace) -> Answer:
    """Send a study to a cluster, or ask after one that was sent."""
    from orchestrator import submit as sender

    return sender.submit(args)


def doctor(args: argparse.Namespace) -> Answer:
    """Check the installation."""
    from orchestrator import doctor as examiner

    return examiner.doctor(lambda line: _print(args, line))


COMMANDS: dict[str, Callable[[argparse.Namespace], Answer]] = {
    "run": run,
    "front": front,
    "confirm": confirm,
    "export": export,
    "predict": predict,
    "ingest": ingest,
    "advise": advise,
    "studies": studies,
    "submit": submit,
    "doctor": doctor,
}


def _options(args: argparse.Namespace) -> Any:  # Any: Options, whose module is slow to import
    from orchestrator.run import Options

    wanted = Options.__dataclass_fields__
    return Options(**{name: value for name, value in vars(args).items() if name in wanted})


def _print(args: argparse.Namespace, *lines: str) -> None:
    """Print for people; with --json they get it on stderr."""
    for line in lines:
        print(line, file=sys.stderr if args.json else sys.stdout)


def _no_front(summary: dict[str, Any]) -> Answer:
    reasons = [p for p in summary["points"] if p["state"] == "failed"]
    first = f"\n  trial {reasons[0]['trial']}: {reasons[0]['reason']}" if reasons else ""
    failed = f"{summary['trials']['failed']} trials failed"
    print(f"no front: no trial is complete, {failed}{first}", file=sys.stderr)
    return 1, summary


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    prepare()
    argv = sys.argv[1:] if argv is None else argv
    wants_json = "--json" in argv
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    interrupts.arm()
    try:
        args, rest = parser().parse_known_args(argv)
        if rest:
            raise Mistake(f"{args.command}: unknown {' '.join(rest)}", "see --help")
        code, answer = COMMANDS[args.command](args)
    except Mistake as mistake:
        code, answer = 2, _say(f"error: {mistake}")
    except KeyboardInterrupt:
        code, answer = failures.INTERRUPTED, _say(failures.stopped(argv))
    except Exception as error:
        code, why = failures.explain(error, argv)
        answer = _say(why)
    if wants_json:
        print(json.dumps(answer, allow_nan=False))
    return code


def _say(text: str) -> dict[str, Any]:
    print(text, file=sys.stderr)
    return {"error": text}


def entry() -> None:
    """Run one command and end the process, whatever still waits in it.

    A group that is only starting cannot be called back; Ray ends it with this process.
    """
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
