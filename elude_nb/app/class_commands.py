"""The commands for a course: `elude-nb class` before it, `elude-nb answers` after it."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from elude_nb.app.options import JsonOption, check_paths, seed_option, whole_option


def hand_out(
    out: Annotated[Path, typer.Argument(help="Folder for everything.", metavar="OUT")],
    report: Annotated[
        bool, typer.Option(help="Make the report page, too: the model runs on 100 photographs, for minutes.")
    ] = True,
    seed: Annotated[Any, seed_option("Of the split in the report.")] = 0,
    json: JsonOption = False,
) -> None:
    """Write what a lecturer hands out: exercises, solutions, slides, a sheet, a report page, an environment."""
    start = perf_counter()
    check_paths(folder=out)
    from elude_nb.app.class_files import write_class

    page = write_class(out, report=report, seed=seed)
    found = {"path": str(page.resolve()), "seconds": round(perf_counter() - start, 1)}
    typer.echo(dumps(found, indent=1) if json else f"Done. Open {page.resolve()}")


def put_together(
    folder: Annotated[Path, typer.Argument(help="Folder with the students' CSV files.", metavar="FOLDER")],
    out: Annotated[Path | None, typer.Option(help="Where to draw the result: a .png, .pdf or .svg.")] = None,
    table: Annotated[Path | None, typer.Option(help="Where to write all answers as one CSV file.")] = None,
    size: Annotated[Any, whole_option("Images of a question, which say how often guesses are right.", 3)] = 5,
    json: JsonOption = False,
) -> None:
    """Put the quiz answers of a class together: each player, both kinds of unit with intervals, a figure."""
    for path in (out, table):
        check_paths(out=path)
    from elude_nb.course.results import by_player, class_answers
    from elude_nb.interpret.quiz import class_result, save_answers

    answers = class_answers(folder)
    players, found = by_player(answers), class_result(answers)
    if out is not None:
        from elude_nb.figures import quiz_result

        quiz_result(answers, chance=1 / size).save(out)
    if table is not None:
        save_answers(answers, table)
    written = [str(path) for path in (out, table) if path is not None]
    if json:
        ends = {"right": "mean", "low": "low", "high": "high"}
        shares = {  # JSON has no NaN
            kind: {name: getattr(each, of) if each.count else None for name, of in ends.items()}
            for kind, each in found.shares.items()
        }
        rows = players.to_dict("records")
        typer.echo(dumps({"players": rows, "shares": shares, "verdict": str(found), "files": written}, indent=1))
        return
    typer.echo(players.round(2).to_string(index=False))
    for kind, share in found.shares.items():
        typer.echo(f"{kind}: {share} over {share.count} questions; guessing: {1 / size:.2f}")
    typer.echo(str(found))
    if written:
        typer.echo(f"Written: {', '.join(written)}")
