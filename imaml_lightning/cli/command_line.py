"""``python -m imaml_lightning fit|validate|test|predict``: its options, and what each of the four does."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from torch import Tensor

from imaml_lightning.cli.arguments import class_first, import_only
from imaml_lightning.cli.checks import check_losses, check_monitor, check_options, check_weights, put_in_place
from imaml_lightning.cli.class_names import find_our_classes
from imaml_lightning.cli.complaint import OneSentence, one_line, refusal
from imaml_lightning.cli.config import check_restored, given_options, peek_options, refuse_lost_options
from imaml_lightning.cli.configs import with_first_look, with_paths
from imaml_lightning.cli.from_data import fill_in
from imaml_lightning.cli.help import topic
from imaml_lightning.cli.long_help import print_options
from imaml_lightning.cli.own_options import DEFAULT_NAME, DEFAULT_OUTPUT, TRAINER_DEFAULTS, add_own_options
from imaml_lightning.cli.own_size import read_in_own_size
from imaml_lightning.cli.report import alone, described, print_summary, reached, write_predictions
from imaml_lightning.data import EpisodeDataModule
from imaml_lightning.errors import UsageError
from imaml_lightning.learner.checkpoint import CONFIG_KEY, WholeCheckpoints, find_checkpoint
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.models import weights_follow
from imaml_lightning.run.callbacks import PlainProgress, ProgressBar
from imaml_lightning.run.callbacks.feature_bank import feature_bank
from imaml_lightning.run.card import share, write_card
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
        add_own_options(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; where a checkpoint is named, on top of the configuration that it holds."""
        self.words: list[str] = sys.argv[1:] if args is None else cast(list[str], args)
        given = with_paths(with_first_look(class_first(self.words)))
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
        check_options(options)
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
        terminal = sys.stdout.isatty()
        progress = (
            [ProgressBar() if terminal else PlainProgress()] if options.enable_progress_bar in (None, True) else []
        )
        options.callbacks = [*given, *progress]
        if options.enable_checkpointing is None:
            kwargs["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in given)
        if not terminal:
            kwargs["enable_progress_bar"] = False
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """See that the checkpoint fits and the data are there; only then make the run's folder."""
        self.datamodule.trainer = self.trainer
        put_in_place(self.datamodule, str(self.subcommand))
        self._follow_data()
        if self.saved is not None:
            check_weights(self.checkpoint, self.saved, self.model)
        self.datamodule.check_network(self.model, training=self.subcommand == "fit")
        check_losses(self.model, self.datamodule)
        self.trainer.strategy.checkpoint_io = WholeCheckpoints(callbacks=self.subcommand == "fit")
        self.trainer.callbacks += feature_bank(self.model, self.datamodule, self.trainer.callbacks)  # type: ignore[attr-defined]
        if self.subcommand != "fit":
            return
        options = self.config.fit
        classes = self.datamodule.source.task == "classification"
        check_monitor(options.best.monitor, options.best.mode, classes)
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
            figures, data = self._reached("test", metrics), kwargs["datamodule"]
            card = write_card(best, model, data, figures, self.words, self.config.fit.licence, self.config_dump)
            if self.config.fit.log_model:
                share(self.trainer.loggers, best, card)
            print_summary(
                figures
                | {
                    "checkpoint": f"{best}{missing}, with its {card.name}",
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
            print_summary(self._reached(stage, metrics[0]) | {"weights": weights})

    def _reached(self, stage: str, metrics: Mapping[str, Tensor | float]) -> dict[str, str]:
        figures = reached(self.model, self.datamodule, stage, metrics)
        quick: bool = self.trainer.fast_dev_run  # type: ignore[attr-defined]
        return figures if quick else figures | alone(self.model, self.datamodule, self.trainer, stage)

    def _say(self, more: str = "") -> None:
        """In one line, what is trained or evaluated, and where."""
        if self.trainer.is_global_zero:
            what = described(self.model, self.datamodule, self.trainer, trains=self.subcommand == "fit")
            print(f"{self.subcommand}: {what}{more}", flush=True)


class _Parser(OneSentence, LightningArgumentParser):
    """Lightning's parser with our complaint."""
