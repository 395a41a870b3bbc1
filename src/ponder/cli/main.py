"""The command line: arguments to verbs. Imports nothing heavy, so that --help is instant; `verbs` does the work."""

import importlib
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

import ponder
from ponder.core.accelerations import Accelerations, partner_of
from ponder.core.errors import PonderError

app = typer.Typer(
    help="Get the best answer that a given amount of compute can buy.", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)  # fmt: skip

DEFAULT_MODEL = "smollm2-135m"
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Catalogue name (see `ponder models`), GGUF file, safetensors folder, transformers:FOLDER, or an endpoint: URL#MODEL or a .toml file.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Weight format: native (default; as the file stores it, compiled kernels), native4, native8, mixed, int4, int8, int8-dynamic, bf16 or "
        "fp32; with --device cuda: dense (default; bfloat16), fp16 or fp32."
    ),
]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda or cuda:N.")]
BudgetText = Annotated[str, typer.Option("--budget", "-b", help="What one question may spend, as '2000 tokens, 20 s'; also flops, usd, calls.")]
Strict = Annotated[bool, typer.Option("--strict", help="Never overshoot the budget, not even by one step.")]
Seed = Annotated[int, typer.Option(help="Decides every random number.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: torch's own choice.")]
Context = Annotated[
    int | None,
    typer.Option("--context", help="Most tokens of prompt and answer; default: what the model usually has. Some models allow more than that."),
]
Draft = Annotated[
    str | None,
    typer.Option("--draft", help="Guess ahead: DRAFTER[/ACCEPTOR[/LENGTH]], as ngram or ngram/coupled/fixed:num=4; by default coupled and expected."),
]

Cache = Annotated[
    str | None, typer.Option(help="Which keys long prompts go on with: NAME:SHARE, as in snapkv:0.25, or NAME:field=value,...; default: all.")
]
Attend = Annotated[str | None, typer.Option(help="Which keys each token meets: NAME or NAME:field=value,... of an attention plan; default: all.")]
Layers = Annotated[
    str | None,
    typer.Option("--layers", help="Behind which layers tokens of a prompt leave: NAME:SHARE, as in lazyllm:0.1; default: none."),
]
PromptFilter = Annotated[
    str | None,
    typer.Option("--prompt", help="Which tokens of a prompt are read: NAME:SHARE, as in gemfilter:0.1, or NAME:field=value,...; default: all."),
]
TailFile = Annotated[str | None, typer.Option(help="File of what the last layers were trained to do instead, so that prompts need not pass them.")]
PredictorFile = Annotated[
    str | None, typer.Option(help="File of a small reader that supplies keys of prompts in the model's place (`ponder train-keys`).")
]
With = Annotated[str | None, typer.Option("--with", help="Another model that writes the answer with this one; with --way.")]
Way = Annotated[
    str | None,
    typer.Option(help="How both write, NAME or NAME:field=value,...: nudging (texts), contrastive or product (both draw each token; same tokens)."),
]
Answered = Annotated[str, typer.Option("--task", "-t", help="Tasks whose dev questions the model answers, comma-separated.")]
MorePrompts = Annotated[Path | None, typer.Option(help="More prompts: a text file with one on each line, or a .jsonl file of JSON texts.")]
AnswerTokens = Annotated[int, typer.Option(help="Most tokens of one answer.")]
Ray = Annotated[str | None, typer.Option("--ray", help="Spread the questions over a Ray cluster: 'auto', 'local' or HOST:PORT of its head.")]
Replicas = Annotated[int | None, typer.Option(help="With --ray: models at once, each with --threads CPUs; default: as many as the cluster holds.")]


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask; '-' reads standard input.")],
    model: Model = DEFAULT_MODEL,
    strategy: Annotated[str, typer.Option("--strategy", "-s", help="NAME or NAME:field=value,... (see `ponder strategies`).")] = "greedy",
    budget: BudgetText = "2000 tokens, 60 s",
    answer: Annotated[str, typer.Option(help="How to read the answer: text, number, math, choice, short or code.")] = "text",
    form: Annotated[
        str | None, typer.Option(help="What the answer must look like: json, choice:A,B, regex:PATTERN, schema:FILE (JSON schema) or lark:FILE.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of one answer.")] = 256,
    weights: Weights = None,
    device: Device = "cpu",
    seed: Seed = 0,
    strict: Strict = False,
    threads: Threads = None,
    context: Context = None,
    draft: Draft = None,
    cache: Cache = None,
    attend: Attend = None,
    prompt: PromptFilter = None,
    tail: TailFile = None,
    predictor: PredictorFile = None,
    layers: Layers = None,
    other: With = None,
    way: Way = None,
    trace: Annotated[Path | None, typer.Option(help="Write every ask, answer and cost to this file, a JSON line each.")] = None,
) -> None:
    """Answer one question: the answer, how sure it is, what it cost and why it stopped."""
    _verb("ask", question=question, model=model, strategy=strategy, budget=budget, answer=answer, form=form, max_tokens=max_tokens,
          weights=weights, device=device, seed=seed, strict=strict, threads=threads, context=context, trace=trace,
          accelerations=Accelerations(draft=draft, cache=cache, attend=attend, prompt=prompt, layers=layers, tail=tail, predictor=predictor,
                                       partner=partner_of(other, way)))  # fmt: skip


@app.command()
def compare(
    task: Annotated[str, typer.Option("--task", "-t", help="Task (see `ponder tasks`).")],
    strategies: Annotated[str, typer.Option(help="Comma-separated NAMEs, or NAME:field=value specs separated by ';'.")] = (
        "greedy,best_of_n,self_consistency,particle_filter,beam"
    ),
    n: Annotated[int, typer.Option("--n", "-n", help="Number of questions.")] = 50,
    budget: BudgetText = "2000 tokens",
    model: Model = DEFAULT_MODEL,
    split: Annotated[str, typer.Option(help="dev (to choose) or test (to report).")] = "test",
    out: Annotated[Path, typer.Option(help="Folder for rows, trace, samples and plot.")] = Path("out/compare"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; nothing finished is computed again.")] = False,
    weights: Weights = None,
    device: Device = "cpu",
    seed: Seed = 0,
    strict: Strict = False,
    threads: Threads = None,
    context: Context = None,
    draft: Draft = None,
    cache: Cache = None,
    attend: Attend = None,
    prompt: PromptFilter = None,
    tail: TailFile = None,
    predictor: PredictorFile = None,
    layers: Layers = None,
    other: With = None,
    way: Way = None,
    ray: Ray = None,
    replicas: Replicas = None,
) -> None:
    """Run several strategies on the same questions under the same budget: table, rows, plot."""
    _verb("compare", task=task, strategies=strategies, n=n, budget=budget, model=model, split=split, out=out, resume=resume,
          weights=weights, device=device, seed=seed, strict=strict, threads=threads, context=context,
          ray=ray, replicas=replicas,
          accelerations=Accelerations(draft=draft, cache=cache, attend=attend, prompt=prompt, layers=layers, tail=tail, predictor=predictor,
                                       partner=partner_of(other, way)))  # fmt: skip


@app.command()
def study(
    tasks: Annotated[str, typer.Option("--tasks", "-t", help="Comma-separated tasks, or NAME:field=value specs separated by ';'.")],
    strategies: Annotated[str, typer.Option(help="Specs separated by ';'. An open num gets every budget, an open verifier every verifier.")] = (
        "self_consistency;self_consistency:weigh=path_probability;particle_filter:num=8"
    ),
    verifiers: Annotated[str, typer.Option(help="Comma-separated; best-of-N, the yardstick, judges by the first.")] = "mean_probability,mean_log_p",
    budgets: Annotated[str, typer.Option(help="Comma-separated numbers of samples.")] = "1,2,4,8,16",
    draw: Annotated[
        str, typer.Option(help="How samples are drawn where a spec leaves it open, as in temperature=0.5,top_p=0.95.")
    ] = "temperature=0.8",
    n: Annotated[int, typer.Option("--n", "-n", help="Number of questions of each task.")] = 50,
    model: Model = DEFAULT_MODEL,
    split: Annotated[str, typer.Option(help="dev (to choose) or test (to report).")] = "test",
    out: Annotated[Path, typer.Option(help="Folder for samples, rows, page and pictures.")] = Path("out/study"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in --out; nothing finished is computed again.")] = False,
    weights: Weights = None,
    device: Device = "cpu",
    seed: Seed = 0,
    threads: Threads = None,
    budget: BudgetText = "20000 tokens",
    ray: Ray = None,
    replicas: Replicas = None,
) -> None:
    """Strategies x verifiers x budgets x tasks from stored samples: what beats greedy, what beats best-of-N at equal cost."""
    verb = importlib.import_module("ponder.cli.studies").study
    raise typer.Exit(
        verb(tasks=tasks, strategies=strategies, verifiers=verifiers, budgets=budgets, n=n, model=model, split=split, out=out, resume=resume,
             weights=weights, device=device, seed=seed, threads=threads, budget=budget, draw=draw, ray=ray, replicas=replicas)
    )  # fmt: skip


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Catalogue name, GGUF file or safetensors folder.")] = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all, then with --api-key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="What clients call the model; default: the last part of MODEL.")] = None,
    strategy: Annotated[str, typer.Option("--strategy", "-s", help="For requests that name none.")] = "sample",
    budget: Annotated[str, typer.Option("--budget", "-b", help="The most that one request may spend.")] = "100000 tokens, 600 s",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer where a request does not say.")] = 1024,
    store: Annotated[Path | None, typer.Option(help="Keep every finished sample in this file; what is in it is not computed again.")] = None,
    api_key: Annotated[list[str] | None, typer.Option(help="A key that clients must send; again for more.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="Keys, one a line.")] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(help="A site whose pages may call this server; none by default.")] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Let requests use verifiers that run what the model wrote.")] = False,
    max_jobs: Annotated[int, typer.Option(help="Choices that run at once.")] = 32,
    max_queue: Annotated[int, typer.Option(help="Choices that wait; beyond: 429.")] = 256,
    max_per_key: Annotated[int | None, typer.Option(help="Requests of one key at a time.")] = None,
    max_body: Annotated[int, typer.Option(help="Most bytes of a request.")] = 1 << 20,
    drain: Annotated[float, typer.Option(help="Seconds that requests under way have after SIGTERM.")] = 30.0,
    weights: Weights = None,
    device: Device = "cpu",
    threads: Threads = None,
    context: Context = None,
    draft: Draft = None,
    cache: Cache = None,
    attend: Attend = None,
    prompt: PromptFilter = None,
    tail: TailFile = None,
    predictor: PredictorFile = None,
    layers: Layers = None,
    other: With = None,
    way: Way = None,
    ray: Annotated[str | None, typer.Option("--ray", help="Behind Ray Serve on a cluster: 'auto', 'local' or HOST:PORT of its head.")] = None,
    replicas: Annotated[int | None, typer.Option(help="With --ray: servers at once, each with --threads CPUs; default: 1.")] = None,
) -> None:
    """Serve a model over HTTP as OpenAI's API does, with a strategy and a budget in every request."""
    verb = importlib.import_module("ponder.cli.serve")
    opening = verb.Opening(model=model, weights=weights, device=device, threads=threads, context=context, store=store,
                           accelerations=Accelerations(draft=draft, cache=cache, attend=attend, prompt=prompt, layers=layers, tail=tail,
                                                       predictor=predictor, partner=partner_of(other, way)))  # fmt: skip
    menu = verb.menu_of(model=model, name=name, strategy=strategy, budget=budget, allow_code=allow_code, max_tokens=max_tokens)
    limits = verb.Limits(max_jobs=max_jobs, max_queue=max_queue, max_per_client=max_per_key, max_body=max_body, drain=drain)
    site = verb.Site(keys=verb.read_keys(api_key or (), api_key_file), origins=tuple(cors_origin or ()))
    if ray is None and replicas is None:
        raise typer.Exit(verb.run(opening, host=host, port=port, menu=menu, limits=limits, site=site))
    many = importlib.import_module("ponder.cli.serve_ray")
    build = many.Build(opening=opening, menu=menu, limits=limits, site=site)
    raise typer.Exit(many.run(build, address=ray, replicas=replicas, host=host, port=port))


@app.command()
def search(
    task: Annotated[str, typer.Option("--task", "-t", help="Task (see `ponder tasks`); its dev split is asked.")],
    strategies: Annotated[str, typer.Option(help="Specs separated by ';'.")],
    n: Annotated[int, typer.Option("--n", "-n", help="Most questions.")] = 128,
    first: Annotated[int, typer.Option(help="Questions of the first round, which all strategies answer.")] = 16,
    most: Annotated[str | None, typer.Option(help="Most tokens per question that a strategy may take in the mean, as '800 tokens'.")] = None,
    budget: BudgetText = "2000 tokens",
    model: Model = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="Folder for samples; the same search again computes nothing.")] = Path("out/search"),
    weights: Weights = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Find the best of many strategies on a task: the better part goes on to twice as many questions, until one is left."""
    verb = importlib.import_module("ponder.cli.search").search
    raise typer.Exit(
        verb(task=task, strategies=strategies, n=n, first=first, most=most, budget=budget, model=model, out=out, weights=weights, seed=seed,
             threads=threads)
    )  # fmt: skip


@app.command()
def demo() -> None:
    """Fetch the default model, compare strategies on real questions (about 5 minutes on 2 cores), answer one."""
    _verb("demo")


@app.command()
def pull(name: Annotated[str, typer.Argument(help="Catalogue name (see `ponder models`).")]) -> None:
    """Fetch a model into the cache folder (PONDER_CACHE, else ~/.cache/ponder) and check its sha256."""
    _verb("pull", name=name)


@app.command()
def models() -> None:
    """List the models of the catalogue and which of them are in the cache."""
    _verb("models")


@app.command()
def tasks() -> None:
    """List the tasks."""
    _verb("tasks")


@app.command()
def strategies() -> None:
    """List the strategies with their fields, defaults and guarantees, and the names that fields take."""
    _verb("strategies")


@app.command()
def train_verifier(
    task: Annotated[str, typer.Option("--task", "-t", help="Task whose scorer labels the rollouts (see `ponder tasks`).")],
    out: Annotated[Path, typer.Option(help="Where the head goes (.safetensors); its samples are kept beside it.")] = Path("out/head.safetensors"),
    kind: Annotated[
        str, typer.Option(help="What it learns: steps, answers (of finished ones alone) or prompts (whether the model knows).")
    ] = "steps",
    n: Annotated[int, typer.Option("--n", "-n", help="Number of questions of the dev split; a fifth of them measures only.")] = 200,
    samples: Annotated[int, typer.Option(help="Answers drawn for each question.")] = 8,
    hidden: Annotated[int, typer.Option(help="Inner units of the head; 0: linear.")] = 0,
    model: Model = DEFAULT_MODEL,
    weights: Weights = "native",
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train a small head on the model's own hidden states to judge its steps; use it as verifier=FILE in a strategy."""
    train = importlib.import_module("ponder.cli.train")
    raise typer.Exit(train.train_verifier(task=task, out=out, kind=kind, n=n, samples=samples, model=train.Opened(model, weights, threads),
                                          fit=train.Recipe(hidden=hidden, seed=seed)))  # fmt: skip


@app.command()
def train_heads(
    tasks: Answered = "gsm8k,mbpp",
    prompts: MorePrompts = None,
    out: Annotated[Path, typer.Option(help="Where the heads go (.safetensors).")] = Path("out/heads.safetensors"),
    n: Annotated[int, typer.Option("--n", "-n", help="Questions of each task; a sixth of all prompts measures only.")] = 150,
    tokens: AnswerTokens = 128,
    samples: Annotated[int, typer.Option(help="Answers to each prompt, the first of them greedy.")] = 2,
    num: Annotated[int, typer.Option(help="Heads: tokens that are guessed ahead.")] = 3,
    model: Model = DEFAULT_MODEL,
    weights: Weights = "native",
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train Medusa heads on text that the model itself writes, so that it can guess several tokens ahead."""
    train = importlib.import_module("ponder.cli.train")
    raise typer.Exit(train.train_heads(tasks=tasks, file=prompts, out=out, n=n, tokens=tokens, samples=samples,
                                       model=train.Opened(model, weights, threads), fit=train.HeadsRecipe(num=num, seed=seed)))  # fmt: skip


@app.command()
def train_length(
    draft: Annotated[str, typer.Option(help="The drafter whose guesses the head is to judge (see `ponder ask --draft`).")] = "layer_skip",
    tasks: Answered = "gsm8k,mbpp",
    prompts: MorePrompts = None,
    out: Annotated[Path, typer.Option(help="Where the head goes (.safetensors).")] = Path("out/accept.safetensors"),
    n: Annotated[int, typer.Option("--n", "-n", help="Questions of each task; a sixth of all prompts measures only.")] = 40,
    tokens: AnswerTokens = 128,
    num: Annotated[int, typer.Option(help="Tokens of every recorded draft.")] = 8,
    model: Model = DEFAULT_MODEL,
    weights: Weights = "native",
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train SpecDec++'s head, which stops a draft when a guess of it will probably be refused, on rounds of the model and its drafter."""
    train = importlib.import_module("ponder.cli.train")
    raise typer.Exit(train.train_length(draft=draft, tasks=tasks, file=prompts, out=out, n=n, tokens=tokens,
                                        model=train.Opened(model, weights, threads), fit=train.AcceptRecipe(num=num, seed=seed)))  # fmt: skip


@app.command()
def train_bridge(
    layer: Annotated[int, typer.Option(help="Layers that drafts run.")] = 20,
    rank: Annotated[int, typer.Option(help="Rank of the correction.")] = 128,
    tasks: Answered = "gsm8k,mbpp",
    prompts: MorePrompts = None,
    out: Annotated[Path, typer.Option(help="Where the bridge goes (.safetensors).")] = Path("out/bridge.safetensors"),
    n: Annotated[int, typer.Option("--n", "-n", help="Questions of each task; a seventh of all prompts measures only.")] = 60,
    tokens: AnswerTokens = 128,
    model: Model = DEFAULT_MODEL,
    weights: Weights = "native",
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train a small correction that makes of a model's early hidden state its late one, for drafts by its first layers alone."""
    train = importlib.import_module("ponder.cli.train")
    raise typer.Exit(train.train_bridge(layer=layer, tasks=tasks, file=prompts, out=out, n=n, tokens=tokens,
                                        model=train.Opened(model, weights, threads), fit=train.BridgeRecipe(rank=rank, seed=seed)))  # fmt: skip


@app.command()
def train_cache(
    tasks: Answered = "gsm8k,mbpp",
    prompts: MorePrompts = None,
    out: Annotated[Path, typer.Option(help="Where the heads go (.safetensors).")] = Path("out/retain.safetensors"),
    n: Annotated[int, typer.Option("--n", "-n", help="Questions of each task; a fifth of all prompts measures only.")] = 100,
    tokens: AnswerTokens = 64,
    model: Model = DEFAULT_MODEL,
    weights: Weights = "native",
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train retaining heads on what the model's own answers attend to, so that a cache policy knows which keys of a prompt will matter."""
    train = importlib.import_module("ponder.cli.train_cache")
    raise typer.Exit(train.train_cache(tasks=tasks, file=prompts, out=out, n=n, tokens=tokens,
                                       model=train.Opened(model, weights, threads), fit=train.RetainRecipe(seed=seed)))  # fmt: skip


@app.command()
def train_keys(
    kind: Annotated[str, typer.Option(help="How it begins: NAME or NAME:field=value,... as in kv_prediction:share=0.34.")] = "kv_prediction",
    seconds: Annotated[float, typer.Option(help="Seconds of training, after the maps' closed form.")] = 120.0,
    batch: Annotated[int, typer.Option(help="Texts of 256 tokens in a step.")] = 4,
    tasks: Answered = "gsm8k,mbpp",
    prompts: MorePrompts = None,
    out: Annotated[Path, typer.Option(help="Where the predictor goes (.safetensors).")] = Path("out/keys.safetensors"),
    n: Annotated[int, typer.Option("--n", "-n", help="Questions of each task; an eighth of all text measures only.")] = 200,
    tokens: AnswerTokens = 128,
    model: Model = DEFAULT_MODEL,
    weights: Weights = "native",
    device: Annotated[str, typer.Option(help="Where it is trained: cpu, cuda or cuda:N.")] = "cpu",
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train a small reader of prompts, whose keys become the model's, so that a long prompt costs a part of what it does (KV Prediction)."""
    train = importlib.import_module("ponder.cli.train_keys")
    raise typer.Exit(train.train_keys(kind=kind, tasks=tasks, file=prompts, out=out, n=n, tokens=tokens,
                                      model=train.Opened(model, weights, threads, device),
                                      fit=train.PredictorRecipe(max_seconds=seconds, max_steps=1 << 30, batch=batch, rate=5e-4,
                                                                seed=seed)))  # fmt: skip


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="Catalogue name, GGUF file or safetensors folder; a config.json is predicted only.")] = DEFAULT_MODEL,
    weights: Annotated[str, typer.Option(help="Weight format, as of `ponder ask`; the CPU's.")] = "native",
    batch: Annotated[int, typer.Option(help="Sequences that generate at once.")] = 1,
    context: Annotated[int, typer.Option(help="Tokens of each sequence.")] = 1024,
    card: Annotated[Path | None, typer.Option(help="Machine card (JSON) of another machine: predict for it, measure nothing.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure this machine's card again.")] = False,
    out: Annotated[Path, typer.Option(help="Where the roofline picture goes.")] = Path("out/profile.png"),
    threads: Threads = None,
) -> None:
    """Show where the engine's time goes, predicted against measured: a table, and a roofline picture."""
    _verb("profile", model=model, weights=weights, batch=batch, context=context, card=card, refresh=refresh, out=out, threads=threads)


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(ponder.__version__)
        raise typer.Exit


def _verbs() -> ModuleType:
    return importlib.import_module("ponder.cli.verbs")


def _verb(name: str, /, **arguments: Any) -> None:
    """Runs a verb; its exit code becomes the command's."""
    raise typer.Exit(getattr(_verbs(), name)(**arguments) or 0)


def run() -> None:
    """Entry point. A caller's mistake is one line on stderr and exit code 2, Ctrl-C is 130."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        app()
    except PonderError as error:
        sys.stderr.write(f"ponder: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("ponder: interrupted\n")
        sys.exit(130)
