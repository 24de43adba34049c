"""The command line: ``python -m imaml_lightning fit|validate|test|predict``."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import wandb
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from imaml_lightning.callbacks import Pictures, PlainProgress, ProgressBar, RecordConfig
from imaml_lightning.data import EpisodeDataModule
from imaml_lightning.errors import UsageError
from imaml_lightning.meta_learner import MetaLearner
from imaml_lightning.report import figures_line, print_summary, write_predictions
from imaml_lightning.run import CONFIG_KEY, RunFolder, find_checkpoint, peek_options, read_checkpoint

DEFAULT_NAME, DEFAULT_OUTPUT = "glyphs_5w1s", "runs"
#: What ``fit`` trains without further options: a small network on Glyphs, for a first look in under three minutes.
_FIRST_LOOK = {
    "model.network": {"class_path": "imaml_lightning.models.Conv4", "init_args": {"filters": 32}},
    "model.adaptation": {
        "class_path": "imaml_lightning.adaptation.Implicit",
        "init_args": {
            "inner_solver": {
                "class_path": "imaml_lightning.inner.GradientDescent",
                "init_args": {"lr": 0.2, "max_steps": 8},
            },
            "linear_solver": {
                "class_path": "imaml_lightning.linear.ConjugateGradient",
                "init_args": {"rtol": 0.01},
            },
            "proximal": {"class_path": "imaml_lightning.proximal.ProximalTerm"},
        },
    },
    "model.criterion": {"class_path": "torch.nn.CrossEntropyLoss"},
    "model.optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.003}},
    "data.source": {"class_path": "imaml_lightning.data.Glyphs"},
    "data.query": 5,
    "data.train_batches": 20,
    "data.val_episodes": 96,
}
_TRAINER_DEFAULTS = {
    "inference_mode": False,  # adaptation differentiates, also in validation
    "use_distributed_sampler": False,  # episodes know their rank themselves
    "log_every_n_steps": 5,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "max_steps": 60,
}


class CommandLine(LightningCLI):
    """LightningCLI with a folder for each run, checkpoints that carry their configuration, and a test after ``fit``."""

    checkpoint: Path | None = None  # what --ckpt_path was resolved to
    saved: dict[str, Any] | None = None  # its content, read once
    folder: RunFolder | None = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", default=DEFAULT_NAME, help="Of the experiment; see --output.")
        parser.add_argument("--output", default=DEFAULT_OUTPUT, help="Runs go to <output>/<name>/<number>/.")
        parser.add_argument(
            "--untrained", default=False, type=bool, help="Evaluate random weights, without --ckpt_path."
        )
        parser.add_lightning_class_args(ModelCheckpoint, "best")
        parser.add_lightning_class_args(ModelCheckpoint, "last")
        parser.set_defaults(
            {
                "best": {"filename": "best", "monitor": "val/accuracy", "mode": "max", "enable_version_counter": False},
                "last": {"filename": "last", "every_n_train_steps": 100, "enable_version_counter": False},
                **_FIRST_LOOK,
            }
        )
        parser.link_arguments("data.way", "model.network.init_args.way")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; where a checkpoint is named, on top of the configuration that it holds."""
        given = list(sys.argv[1:] if args is None else args)
        peeked = peek_options(given)
        if "ckpt_path" in peeked and given[0] in self.subcommands():
            defaults = {"name": DEFAULT_NAME, "output": DEFAULT_OUTPUT}
            self.checkpoint = find_checkpoint(**defaults | peeked)
            self.saved = read_checkpoint(self.checkpoint)
            config = self.saved[CONFIG_KEY]
            if given[0] != "fit":
                config = {key: config[key] for key in ("seed_everything", "name", "output", "model", "data")}
            given = [given[0], f"--config={yaml.safe_dump(config)}", *given[1:], f"--ckpt_path={self.checkpoint}"]
        self.config = parser.parse_args(given)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's options overrule those on the command line."""

    def before_instantiate_classes(self) -> None:
        options = self.config[self.subcommand]
        if self.subcommand != "fit" and self.checkpoint is None and not options.untrained:
            raise UsageError(
                f"{self.subcommand} has no trained weights: give --ckpt_path (a path, best or last), "
                "or --untrained true to evaluate random ones"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.config_init[self.subcommand]
        self._check_checkpoint()
        if self.subcommand == "fit" and not options.trainer.fast_dev_run:
            resumed = self.checkpoint.parent if self.checkpoint else None
            self.folder = RunFolder(resumed) if resumed else RunFolder.new(options.output, options.name)
        for keeper in (options.best, options.last):
            # Also where nothing is kept: the folder of the checkpoint, or Lightning warns that it has changed.
            home = self.folder.path if self.folder else self.checkpoint.parent if self.checkpoint else None
            keeper.dirpath = str(home) if home else None
        if options.trainer.logger in (None, True):
            step = self.saved["global_step"] if self.saved else 0
            kwargs["logger"] = self.folder.loggers(step, self.config_dump) if self.folder else False
        if not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False
        options.trainer.callbacks = [*(options.trainer.callbacks or []), *self._callbacks(options)]
        return super().instantiate_trainer(**kwargs)

    def _callbacks(self, options: Any) -> Iterator[Callback]:
        if options.trainer.enable_progress_bar in (None, True):
            yield ProgressBar(leave=False) if sys.stdout.isatty() else PlainProgress()
        if self.folder:
            (self.folder.path / "config.yaml").write_text(yaml.safe_dump(self.config_dump, sort_keys=False))
            yield RecordConfig(self.config_dump)
            yield Pictures(self.folder.path)

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
        if self.folder and self.trainer.is_global_zero:
            parameters = sum(p.numel() for p in model.network.parameters())
            print(
                f"{type(model.network).__name__}, {parameters:,} parameters; writing to {self.folder.path}", flush=True
            )
        self.trainer.fit(model, **kwargs)
        if self.folder is None or self.trainer.interrupted:
            return
        last = self.folder.path / "last.ckpt"
        self.trainer.save_checkpoint(last)
        best = Path(self._get(self.config_init, "best").best_model_path or last)
        metrics = self.trainer.test(model, kwargs["datamodule"], ckpt_path=best, weights_only=True, verbose=False)[0]
        if self.trainer.is_global_zero:
            print_summary(
                {
                    "test": f"{figures_line(metrics, 'test')}, {self.datamodule.test_episodes} episodes",
                    "checkpoint": str(best),
                    "logs, pictures": str(self.folder.path),
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
        write_predictions(path, self.trainer.predict(model, **kwargs))
        print_summary({"predictions": str(path)})

    def _evaluate(self, stage: str, metrics: list[dict[str, float]]) -> None:
        if self.trainer.is_global_zero:
            episodes = getattr(self.datamodule, f"{stage}_episodes")
            weights = str(self.checkpoint or "random, as asked by --untrained")
            print_summary({stage: f"{figures_line(metrics[0], stage)}, {episodes} episodes", "weights": weights})


class _Parser(LightningArgumentParser):
    """A parser whose complaint is one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageError(" ".join(message.split()))


def main(args: ArgsType = None) -> None:
    """Run the command line; what the user can mend ends in one sentence on standard error and exit status 2."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec")  # Lightning's own call of torch's pytree
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # ours: a run's folder
    # Ours is meant to hold the state after the step.
    warnings.filterwarnings("ignore", message="(?s)Using ModelCheckpoint with manual optimization")
    # jsonargparse writes the comments only if asked to.
    sys.argv[1:] = ["--print_config=comments" if arg == "--print_config" else arg for arg in sys.argv[1:]]
    try:
        CommandLine(
            MetaLearner,
            EpisodeDataModule,
            args=args,
            parser_class=_Parser,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults=_TRAINER_DEFAULTS,
        )
    except (UsageError, MisconfigurationException, ValueError) as error:
        cause: BaseException | None = error
        while cause and not isinstance(cause, (UsageError, MisconfigurationException)):
            cause = cause.__cause__ or cause.__context__  # jsonargparse wraps what a constructor raises
        if cause is None:
            raise
        if wandb.run is not None:
            wandb.finish(exit_code=2)
        wandb.teardown()  # its service would be found by processes that this one starts
        print(f"error: {cause}", file=sys.stderr)
        sys.exit(2)
