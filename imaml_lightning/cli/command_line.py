"""``python -m imaml_lightning fit|validate|test|predict``: its options, and what each of the four does."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from torch import Tensor

from imaml_lightning.cli.class_names import find_our_classes
from imaml_lightning.cli.complaint import one_line, refusal
from imaml_lightning.cli.config import check_restored, peek_options, refuse_lost_options
from imaml_lightning.cli.defaults import DEFAULT_NAME, DEFAULT_OUTPUT, FIRST_LOOK, TRAINER_DEFAULTS
from imaml_lightning.cli.report import figures_lines, print_summary, write_predictions
from imaml_lightning.data import EpisodeDataModule
from imaml_lightning.errors import DataError, UsageError
from imaml_lightning.learner.checkpoint import CONFIG_KEY, TRUSTED, WholeCheckpoints, find_checkpoint
from imaml_lightning.learner.meta_learner import MetaLearner, validation_figures
from imaml_lightning.run.callbacks import PlainProgress, ProgressBar
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
            parser_kwargs={"prog": "python -m imaml_lightning"},
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
        parser.add_argument("--best.monitor", default="val/accuracy", help="Figure by which best.ckpt is chosen.")
        parser.add_argument("--best.mode", default="max", type=Literal["min", "max"], help="Whether less is better.")
        parser.add_argument(
            "--last.every_n_train_steps", default=100, type=int, help="Meta-steps from one last.ckpt to the next."
        )
        parser.set_defaults(FIRST_LOOK)
        parser.link_arguments("data.way", "model.network.init_args.way")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; where a checkpoint is named, on top of the configuration that it holds."""
        given = list(sys.argv[1:] if args is None else args)
        peeked = peek_options(given)
        refuse_lost_options(given)
        trusted = [*TRUSTED, *filter(None, peeked.pop("trust", "").split(","))]
        set_parsing_settings(
            import_path_denylist=["*"],
            import_path_allowlist=trusted,
            config_read_mode_urls_enabled=False,
            config_read_mode_fsspec_enabled=False,  # Lightning's choice would let --config fetch an address
        )
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

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's options overrule those on the command line."""

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UsageError(f"--seed_everything cannot be used ({one_line(error)})") from error

    def before_instantiate_classes(self) -> None:
        options = self.config[self.subcommand]
        for section, name in (("last", "every_n_train_steps"), ("trainer", "log_every_n_steps")):
            steps = options[section][name]
            if steps is not None and steps < 1:
                raise UsageError(f"--{section}.{name} is {steps}: give at least 1")
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
            yield ProgressBar(leave=False) if sys.stdout.isatty() else PlainProgress()

    def after_instantiate_classes(self) -> None:
        """See that the checkpoint fits and the data are there; only then make the run's folder."""
        self._check_checkpoint()
        self._prepare_data()
        self.trainer.strategy.checkpoint_io = WholeCheckpoints()
        if self.subcommand != "fit":
            return
        options = self.config_init.fit
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
        self.datamodule.check_network(self.model, training=self.subcommand == "fit")

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
        if self.run and self.trainer.is_global_zero:
            parameters = sum(p.numel() for p in model.network.parameters())
            print(f"{type(model.network).__name__}, {parameters:,} parameters; writing to {self.run.path}", flush=True)
        self.trainer.fit(model, **kwargs)
        if self.run is None:
            return
        best = self.trainer.strategy.broadcast(self.run.best())
        missing = (
            "" if best.stem == "best" else f" (there was no {self.config_init.fit.best.monitor} to choose a best by)"
        )
        metrics = self.trainer.test(model, kwargs["datamodule"], ckpt_path=best, weights_only=True, verbose=False)[0]
        if self.trainer.is_global_zero:
            print_summary(
                self._figures("test", metrics)
                | {
                    "checkpoint": f"{best}{missing}",
                    "logs, pictures": str(self.run.path),
                    "evaluate again": f"python -m imaml_lightning test --ckpt_path {best}",
                }
            )

    def validate(self, model: MetaLearner, **kwargs: Any) -> None:
        """Figures on the fixed validation episodes."""
        self._evaluate("val", self.trainer.validate(model, **kwargs))

    def test(self, model: MetaLearner, **kwargs: Any) -> None:
        """Figures on the fixed test episodes."""
        self._evaluate("test", self.trainer.test(model, **kwargs))

    def predict(self, model: MetaLearner, **kwargs: Any) -> None:
        """Outputs for the query sets of the test episodes, to predictions.csv."""
        if self.trainer.world_size > 1:
            raise UsageError("predict writes one file from one process: use --trainer.devices 1")
        path = Path("predictions.csv")
        write_predictions(path, cast(list[Tensor], self.trainer.predict(model, **kwargs)))
        print_summary({"predictions": str(path)})

    def _evaluate(self, stage: str, metrics: Sequence[Mapping[str, float]]) -> None:
        if self.trainer.is_global_zero:
            weights = str(self.checkpoint or "random, as asked by --untrained")
            print_summary(self._figures(stage, metrics[0]) | {"weights": weights})

    def _figures(self, stage: str, metrics: Mapping[str, Tensor | float]) -> dict[str, str]:
        """What was reached, a line for each setting of the test."""
        episodes = getattr(self.datamodule, f"{stage}_episodes")
        lines = figures_lines(metrics, stage, list(self.datamodule.settings) if stage == "test" else [])
        return {name: f"{line}, {episodes} episodes" for name, line in lines.items()}


class _Parser(LightningArgumentParser):
    """A parser whose complaint is one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageError(" ".join(message.split()))
