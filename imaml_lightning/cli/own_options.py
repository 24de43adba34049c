"""The options that a command has besides Lightning's, and what all are unless they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # --help need not wait for torch
    from lightning.pytorch.cli import LightningArgumentParser

DEFAULT_NAME, DEFAULT_OUTPUT = "letters", "runs"
#: The configuration of a ``fit`` that names no other, nor data, nor anything of the model.
FIRST_LOOK = "letters"
#: Of every other run, where neither it nor its data say more: implicit MAML of all parameters, the most general case.
DEFAULTS = {
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
            "proximal": {"class_path": "imaml_lightning.problem.ProximalTerm"},
        },
    },
    "model.optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.003}},
    "data.source": {"class_path": "imaml_lightning.data.Glyphs"},
    "data.query": 5,
    "data.train_batches": 20,
    "data.val_episodes": 96,
}
TRAINER_DEFAULTS = {
    "inference_mode": False,  # adaptation differentiates, also in validation
    "use_distributed_sampler": False,  # episodes know their rank themselves
    "log_every_n_steps": 5,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "max_steps": 60,
}


def add_own_options(parser: LightningArgumentParser) -> None:
    """To the parser of a subcommand."""
    parser.add_argument("--name", default=DEFAULT_NAME, help="Of the experiment; see --output.")
    parser.add_argument("--output", default=DEFAULT_OUTPUT, help="Runs go to <output>/<name>/<number>/.")
    parser.add_argument("--untrained", default=False, type=bool, help="Evaluate random weights, without --ckpt_path.")
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
    parser.add_argument("--licence", type=str | None, help="Of the checkpoint, for card.md beside it.")
    parser.add_argument(
        "--log_model", default=False, type=bool, help="Give W&B best.ckpt and its card, as an artifact."
    )
    parser.set_defaults(DEFAULTS)
