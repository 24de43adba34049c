"""``python -m imaml_lightning fit|validate|test|predict``: its options, and what each of the four does."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from torch import Tensor

from imaml_lightning.cli.arguments import class_first, import_only
from imaml_lightning.cli.class_names import find_our_classes
from imaml_lightning.cli.complaint import OneSentence, one_line, refusal
from imaml_lightning.cli.config import check_restored, given_options, peek_options, refuse_lost_options
from imaml_lightning.cli.configs import with_first_look, with_paths
from imaml_lightning.cli.defaults import DEFAULT_NAME, DEFAULT_OUTPUT, DEFAULTS, TRAINER_DEFAULTS
from imaml_lightning.cli.from_data import fill_in
from imaml_lightning.cli.help import topic
from imaml_lightning.cli.long_help import print_options
from imaml_lightning.cli.own_size import read_in_own_size
from imaml_lightning.cli.report import adaptation_lines, described, figures_lines, print_summary, write_predictions
from imaml_lightning.data import EpisodeDataModule, Split
from imaml_lightning.errors import DataError, UsageError
from imaml_lightning.evaluation.protocols import evaluate, one_at_a_time
from imaml_lightning.learner.checkpoint import CONFIG_KEY, WholeCheckpoints, find_checkpoint
from imaml_lightning.learner.criterion import check_criterion
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.learner.scoreboard import validation_figures
from imaml_lightning.models import weights_follow
from imaml_lightning.run.callbacks import FeatureBank, PlainProgress, ProgressBar
from imaml_lightning.run.callbacks.feature_bank import can_keep
from imaml_lightning.run.folder import RunFolder
from imaml_lightning.run.signals import Signals


class CommandLine(LightningCLI):
    """LightningCLI with a folder for each run, checkpoints that carry their configuration, and a test after ``fit``."""

    checkpoint: Path | None = None  # what --ckpt_path was resolved to
    saved: dict[str, Any] | None = None  # its content, read once
    run: RunFolder | None = None

    def __init__(self, signals: Signals, args: ArgsType) -> None:
        self.signals = signals
        find_our_classes()
        super().__init__(
            MetaLearner,
            EpisodeDataModule,
            args=args,
            parser_class=_Parser,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_kwargs={"prog": "imaml-lightning"},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", default=DEFAULT_NAME, help="Of the experiment; see --output.")
        parser.add_argument("--output", default=DEFAULT_OUTPUT, help="Runs go to <output>/<name>/<number>/.")
        parser.add_argument(
            "--untrained", default=False, type=bool, help="Evaluate random weights, without --ckpt_path."
        )
        parser.add_argument(
            "--trust",
            help="Packages, joined by commas, whose classes may be named by class_path; on the command line only.",
        )
        parser.add_argument("--traceback", action="store_true", help="Show where an error comes from.")
        parser.add_argument(
            "--best.monitor",
            type=str | None,
            help="Figure by which best.ckpt is chosen; null is val/accuracy, in regression val/loss.",
        )
        parser.add_argument(
            "--best.mode",
            type=Literal["min", "max"] | None,
            help="Whether less is better; null is as the figure has it.",
        )
        parser.add_argument(
            "--last.every_n_train_steps", default=100, type=int, help="Meta-steps from one last.ckpt to the next."
        )
        parser.set_defaults(DEFAULTS)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; where a checkpoint is named, on top of the configuration that it holds."""
        given = with_paths(with_first_look(class_first(sys.argv[1:] if args is None else cast(list[str], args))))
        if (about := topic(given)) is not None:
            print_options(parser, given[0], about)
            sys.exit(0)
        peeked = peek_options(given)
        refuse_lost_options(given)
        import_only(peeked.pop("trust", ""))
        if "ckpt_path" in peeked and given[0] in self.subcommands():
            defaults = {"name": DEFAULT_NAME, "output": DEFAULT_OUTPUT}
            self.checkpoint, self.saved = find_checkpoint(**defaults | peeked)
            if CONFIG_KEY not in self.saved:
                raise UsageError(f"checkpoint {self.checkpoint} holds no configuration: use one that fit has written")
            config = self.saved[CONFIG_KEY]
            if given[0] != "fit":
                config = {key: config[key] for key in ("seed_everything", "name", "output", "model", "data")}
            given = [given[0], f"--config={yaml.safe_dump(config)}", *given[1:], f"--ckpt_path={self.checkpoint}"]
        self.config = parser.parse_args(given)
        self.given = given_options(given)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's options overrule those on the command line."""

    def _set_seed(self) -> None:
        seed = self.config[self.subcommand].seed_everything
        try:
            if seed is not False:
                seed = seed_everything(None if seed is True else seed, workers=True, verbose=False)
                self.config[self.subcommand].seed_everything = seed
        except ValueError as error:
            raise UsageError(f"--seed_everything cannot be used ({one_line(error)})") from error

    def before_instantiate_classes(self) -> None:
        options = self.config[self.subcommand]
        for section in ("data", "model"):
            if isinstance(options[section], (int, float, str, list)):
                raise UsageError(f"{section} is {options[section]!r}, which is no section: give its options below it")
        for section, name in (("last", "every_n_train_steps"), ("trainer", "log_every_n_steps")):
            steps = options[section][name]
            if steps is not None and steps < 1:
                raise UsageError(f"--{section}.{name} is {steps}: give at least 1")
        read_in_own_size(options, self.given)
        if self.saved:
            self._dump_config()
            check_restored(self.saved[CONFIG_KEY], self.config_dump, resumes=self.subcommand == "fit")
        elif self.subcommand != "fit" and not options.untrained:
            raise UsageError(
                f"{self.subcommand} has no trained weights: give --ckpt_path (a path, best or last), "
                "or --untrained true to evaluate random ones"
            )

    def instantiate_classes(self) -> None:
        """Build the data module, the learner and the trainer; nothing is read or written yet.

        Raises:
            UsageError: for whatever one of their constructors refuses.
        """
        try:
            with weights_follow(self.saved is not None):
                super().instantiate_classes()
            self.model.configure_optimizers()  # Lightning asks for it after the data, and a bad rate is refused there
        except Exception as error:
            raise refusal(error) or UsageError(
                f"the configuration cannot be built ({one_line(error)}): correct the option that it speaks of"
            ) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.config_init[self.subcommand].trainer
        self.own_loggers = options.logger in (None, True)
        if self.own_loggers:
            kwargs["logger"] = False  # they need the run's folder, which is made when all else is in order
        given = options.callbacks or []
        options.callbacks = [*given, *self._progress(options)]
        if options.enable_checkpointing is None:
            kwargs["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in given)
        if not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False
        return super().instantiate_trainer(**kwargs)

    @staticmethod
    def _progress(options: Any) -> Iterator[Callback]:
        if options.enable_progress_bar in (None, True):
            yield ProgressBar() if sys.stdout.isatty() else PlainProgress()

    def after_instantiate_classes(self) -> None:
        """See that the checkpoint fits and the data are there; only then make the run's folder."""
        self._prepare_data()
        self._follow_data()
        self._check_checkpoint()
        self.datamodule.check_network(self.model, training=self.subcommand == "fit")
        self._check_criterion()
        self.trainer.strategy.checkpoint_io = WholeCheckpoints(callbacks=self.subcommand == "fit")
        if can_keep(self.model, self.datamodule) and not any(isinstance(c, FeatureBank) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            self.trainer.callbacks.append(FeatureBank())  # type: ignore[attr-defined]
        if self.subcommand != "fit":
            return
        options = self.config.fit
        self._check_monitor(options.best.monitor, options.best.mode)
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._dump_config()
            self.run = (
                RunFolder(self.checkpoint.parent, self.config_dump)
                if self.checkpoint
                else RunFolder.new(options.output, options.name, self.config_dump)
            )
            if self.own_loggers:
                self.trainer.loggers = self.run.loggers(self.saved)
            every = options.last.every_n_train_steps
            callbacks = self.run.callbacks(options.best.monitor, options.best.mode, every, self.signals)
            self.trainer.callbacks += callbacks  # type: ignore[attr-defined]

    def _prepare_data(self) -> None:
        """Put the data in place, and see that the episodes asked for can be had.

        Raises:
            DataError: they cannot be put in place.
            UsageError: there are not as many classes or images as asked for.
        """
        self.datamodule.trainer = self.trainer
        try:
            self.datamodule.prepare_data()  # every rank: a launcher may start them all at once
        except (UsageError, OSError) as error:
            raise DataError(one_line(error)) from error
        self.datamodule.setup(self.subcommand)

    def _follow_data(self) -> None:
        """What the configuration leaves open follows from the data; then the learner is built anew, of the same seed."""
        options = self.config[self.subcommand]
        changed = fill_in(options, self.given, self.datamodule)
        del self.config_dump  # of before
        self._dump_config()
        if changed:
            self._set_seed()
            part = Namespace({self.subcommand: Namespace(model=options.model), "subcommand": self.subcommand})
            with weights_follow(self.saved is not None):
                self.model = self.parser.instantiate(part)[self.subcommand].model

    def _check_criterion(self) -> None:
        query = self.datamodule.episode("train", 0).query
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = self.model.network(query.x[0])
        for criterion in filter(None, (self.model.criterion, self.model.support_criterion)):
            check_criterion(criterion, outputs, query.y[0])

    def _check_monitor(self, monitor: str, mode: str) -> None:
        """Refuse a figure that validation does not log, or of which the worst would be kept.

        Raises:
            UsageError: naming one that can be used.
        """
        classes = self.datamodule.source.task == "classification"
        use = "--best.monitor val/accuracy or val/loss" if classes else "--best.monitor val/loss --best.mode min"
        if monitor not in validation_figures(classes):
            raise UsageError(f"--best.monitor {monitor} is not a figure of this validation: use {use}")
        right = {"accuracy": "max", "loss": "min"}.get(monitor.partition("/")[2], mode)
        if mode != right:
            raise UsageError(f"--best.mode {mode} would keep the worst {monitor}: use --best.mode {right}")

    def _check_checkpoint(self) -> None:
        """Refuse a checkpoint of another architecture before anything is run or written.

        Raises:
            UsageError: naming the first tensor that differs.
        """
        if self.saved is None:
            return
        theirs = {name: tuple(t.shape) for name, t in self.saved["state_dict"].items()}
        ours = {name: tuple(t.shape) for name, t in self.model.state_dict().items()}
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise UsageError(
                    f"checkpoint {self.checkpoint} is of another architecture ({name} is {theirs.get(name)} there and "
                    f"{ours.get(name)} here): leave out the options that change the network"
                )

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        quiet = {"verbose": False} if subcommand in ("validate", "test") else {}
        return super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True} | quiet

    def fit(self, model: MetaLearner, **kwargs: Any) -> None:
        """Train, then test the best checkpoint and say where everything lies."""
        self._say(f"; writing to {self.run.path}" if self.run else "")
        self.trainer.fit(model, **kwargs)
        if self.run is None:
            return
        best = self.trainer.strategy.broadcast(self.run.best())
        missing = "" if best.stem == "best" else f" (there was no {self.config.fit.best.monitor} to choose a best by)"
        metrics = self.trainer.test(model, kwargs["datamodule"], ckpt_path=best, weights_only=True, verbose=False)[0]
        if self.trainer.is_global_zero:
            print_summary(
                self._figures("test", metrics)
                | self._other_protocol("test")
                | {
                    "checkpoint": f"{best}{missing}",
                    "logs, pictures": str(self.run.path),
                    "evaluate again": f"python -m imaml_lightning test --ckpt_path {best}",
                }
            )

    def validate(self, model: MetaLearner, **kwargs: Any) -> None:
        """Figures on the fixed validation episodes."""
        self._say()
        self._evaluate("val", self.trainer.validate(model, **kwargs))

    def test(self, model: MetaLearner, **kwargs: Any) -> None:
        """Figures on the fixed test episodes."""
        self._say()
        self._evaluate("test", self.trainer.test(model, **kwargs))

    def predict(self, model: MetaLearner, **kwargs: Any) -> None:
        """Outputs for the query sets of the test episodes, to predictions.csv."""
        if self.trainer.world_size > 1:
            raise UsageError("predict writes one file from one process: use --trainer.devices 1")
        self._say()
        path = Path("predictions.csv")
        write_predictions(path, cast(list[Tensor], self.trainer.predict(model, **kwargs)))
        print_summary({"predictions": f"{path} ({model.protocol})"})

    def _evaluate(self, stage: str, metrics: Sequence[Mapping[str, float]]) -> None:
        if self.trainer.is_global_zero:
            weights = str(self.checkpoint or "random, as asked by --untrained")
            print_summary(self._figures(stage, metrics[0]) | self._other_protocol(stage) | {"weights": weights})

    def _figures(self, stage: str, metrics: Mapping[str, Tensor | float]) -> dict[str, str]:
        """What was reached, a line for each setting of the test, and what adaptation did."""
        episodes = getattr(self.datamodule, f"{stage}_episodes")
        settings = list(self.datamodule.settings) if stage == "test" else []
        solves = hasattr(self.model.adaptation, "inner_solver")
        said = {name: f"{line}, {episodes} episodes" for name, line in figures_lines(metrics, stage, settings).items()}
        for each in [f"{stage}/{setting}" for setting in settings] or [stage]:
            said |= adaptation_lines(metrics, each, episodes, solves)
        return said

    def _say(self, more: str = "") -> None:
        """In one line, what is trained or evaluated, and where."""
        if self.trainer.is_global_zero:
            what = described(self.model, self.datamodule, self.trainer, trains=self.subcommand == "fit")
            print(f"{self.subcommand}: {what}{more}", flush=True)

    def _other_protocol(self, stage: str) -> dict[str, str]:
        """The figure of ``predict``, where every query example is normalised beside the support set alone, if it is another
        than that of the whole query set; on fewer episodes, since it costs (support + 1) passes for each example."""
        if self.model.protocol != "transductive" or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return {}
        split: Split = "val" if stage == "val" else "test"
        available: int = getattr(self.datamodule, f"{stage}_episodes")
        way, shot, query = self.datamodule.evaluation.most
        episodes = min(available, max(20, min(100, 200_000 // (way * query * (way * shot + 1)))))
        device, move = self.trainer.strategy.root_device, self.trainer.strategy.batch_to_device
        learner = self.model.to(device).eval()
        evaluation = evaluate(learner, self.datamodule, split, episodes, lambda of, e: one_at_a_time(of, move(e)).cpu())
        score, half = evaluation.mean()
        if self.datamodule.source.task == "classification":
            words = f"accuracy {100 * score:.2f} ± {100 * half:.2f} %"
        else:
            words = f"mean squared error {score:.4f} ± {half:.4f}"
        return {"one at a time": f"{words} (95% confidence, inductive), the first {episodes} episodes"}


class _Parser(OneSentence, LightningArgumentParser):
    """Lightning's parser with our complaint."""
