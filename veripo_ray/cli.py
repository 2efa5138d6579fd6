"""The `veripo` command. Each verb hands over to the part that does it; this file only asks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from veripo_ray.errors import VeripoError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="VeriPO-Ray: the VerIPO loop (GRPO, verifier, DPO) for video language models, on Ray.",
)
data = typer.Typer(no_args_is_help=True, help="Make data sets.")
app.add_typer(data, name="data")

Recipe = Annotated[str, typer.Argument(help="A recipe's name or the path of a .yaml file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")
]


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    output: Annotated[
        str | None, typer.Option(help="The run's folder, or a URI (s3://, gs://, ...) for it.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    resume_if_begun: Annotated[
        bool, typer.Option("--resume-if-begun", help="--resume, or begin where nothing has begun.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what an earlier run left in the folder.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, start nothing.")
    ] = False,
) -> None:
    """Train: the phases of the recipe's schedule, one after the other."""
    from cluster import planning
    from veripo_ray import recipe as recipes

    chosen = [*(overrides or []), *([f"output={output}"] if output else [])]
    run = planning.planned(recipes.load(recipe, chosen))
    from cluster import kept, launch  # seconds of imports: not before a refusal

    resume = resume or (resume_if_begun and kept.has_begun(run))
    raise typer.Exit(launch.train(run, resume=resume, overwrite=overwrite, dry_run=dry_run))


@app.command("eval")
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Keep the report here.")] = None,
) -> None:
    """Evaluate the recipe's model on its held-out questions and print the table."""
    from cluster import planning
    from veripo_ray import recipe as recipes

    run = planning.planned(recipes.load(recipe, overrides or []))
    from cluster import launch

    raise typer.Exit(launch.evaluate(run, output))


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Of a cluster that need not exist; else the one that is there."),
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=0)] = 8,
    gpu_memory: Annotated[float | None, typer.Option(help="GB of each GPU.")] = None,
    cpus_per_node: Annotated[int | None, typer.Option(help="12 a GPU, if not given.")] = None,
    memory_per_node: Annotated[float | None, typer.Option(help="GB of each node.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Show who would run where and with how much memory, or what is short and what would fit."""
    from cluster import planning
    from veripo_ray import recipe as recipes
    from veripo_ray.placement import Cluster

    chosen = [*(overrides or [])]
    if gpu_memory is not None:
        chosen.append(f"placement.gpu_memory_gb={gpu_memory}")
    cluster = nodes and Cluster.uniform(
        nodes, gpus=gpus_per_node, cpus=cpus_per_node, memory_gb=memory_per_node
    )
    planning.show(recipes.load(recipe, chosen), cluster or None, json=json)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="JSONL of items: question, kind, gold, response.")],
    url: Annotated[str | None, typer.Option(help="A verifier's address; without it, here.")] = None,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable with that verifier's token.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON lines on a terminal, too.")] = False,
) -> None:
    """Judge responses: a table on a terminal, otherwise one verdict a line as JSON. Exits with 1
    when an item could not be judged."""
    from veripo_ray.verifier import command

    tell = command.verify_file if json or not sys.stdout.isatty() else command.show_file
    raise typer.Exit(1 if tell(file, url, token_env=token_env) else 0)


@app.command()
def pairs(
    file: Annotated[Path, typer.Argument(help="Rollouts: a question and its responses a line.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as pairs.per_question=4."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the pairs here, as JSONL.")] = None,
    judge: Annotated[str | None, typer.Option(help="rules, tinyworld, openai, committee.")] = None,
    url: Annotated[
        str | None, typer.Option(help="A verifier's address; without it the judge is here.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A checkpoint's folder; without it words are counted.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same pairs.")] = None,
) -> None:
    """Build preference pairs from any trainer's rollouts: prompt, chosen, rejected, and why."""
    from veripo_ray.offline_pairs.command import run

    options = {"judge": judge, "url": url, "tokenizer": tokenizer, "seed": seed}
    run(file, out, overrides or [], options)


@app.command("judge-calibrate")
def judge_calibrate(
    file: Annotated[
        str, typer.Argument(help="video_qa, tinyworld, or the path of a JSONL of labelled cases.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of judges, as openai.url=..."),
    ] = None,
    judge: Annotated[
        str, typer.Option(help="rules, tinyworld, vllm, openai or committee.")
    ] = "rules",
    json: Annotated[Path | None, typer.Option(help="Write the figures here, too.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write the reliability diagram here, as PNG.")
    ] = None,
) -> None:
    """Measure a judge on labelled cases: how often right, at which threshold, at what cost."""
    from veripo_ray.verifier.calibration.command import calibrate

    calibrate(file, judge, overrides or [], written=json, plot=plot)


@app.command()
def status(
    which: Annotated[
        str | None, typer.Argument(help="A run's folder, or its name in the cluster.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="The cluster's head, HOST:PORT; otherwise RAY_ADDRESS.")
    ] = None,
) -> None:
    """Show where a run stands, from another shell."""
    from cluster import status as asked

    asked.show(which, address)


@app.command()
def manifests(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Values, as job.retries=5; recipe.KEY=VALUE of the run."
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="Of the fixed nodes; 0: CPU nodes.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="Without it all, at most 8.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe's name or a .yaml file.")] = None,
    image: Annotated[str | None, typer.Option(help="Made by cluster/kuberay/Dockerfile.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="Of runs and caches: pvc:CLAIM or s3://BUCKET/FOLDER.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the run.")] = None,
    kind: Annotated[str, typer.Option(help="job, cluster, service or all.")] = "all",
    values: Annotated[Path | None, typer.Option(help="A YAML of values; the above win.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder; without it, standard output.")] = None,
) -> None:
    """Write manifests for KubeRay: a RayJob, a RayCluster and a RayService of the verifier."""
    from cluster.kuberay import command

    options = {
        "gpus": gpus,
        "gpus_per_node": gpus_per_node,
        "recipe": recipe,
        "image": image,
        "storage": storage,
        "name": name,
    }
    for path in command.write(command.read(options, overrides or [], values), kind, out):
        Console().print(f"wrote {path}", soft_wrap=True)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Write report.html anew from what the run's folder holds."""
    from veripo_ray.report import write_report

    Console().print(f"wrote {write_report(folder)}", soft_wrap=True)


@app.command()
def doctor() -> None:
    """Check versions, builds, GPU, shared memory, ports and Ray; print a fix for each finding."""
    from veripo_ray import doctor as examiner

    raise typer.Exit(examiner.main())


@data.command()
def tinyworld(
    folder: Annotated[Path, typer.Argument(help="Where clips and questions go.")],
    questions: Annotated[int, typer.Option(min=1, help="Questions to train on.")] = 512,
    heldout: Annotated[int, typer.Option(min=1, help="Questions to evaluate on.")] = 400,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Write the tiny world: mp4 clips, train.jsonl and heldout.jsonl."""
    from veripo_ray.tinyworld.world import write_world

    write_world(folder, questions=questions, heldout=heldout, seed=seed)
    Console().print(f"wrote {questions} + {heldout} questions to {folder}", soft_wrap=True)


def main() -> None:
    """Entry point: an error that is the user's to mend is printed without a traceback."""
    try:
        app()
    except VeripoError as error:
        console = Console(stderr=True, highlight=False)
        console.print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
