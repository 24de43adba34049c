"""What a command does unless it is told otherwise."""

from __future__ import annotations

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
