"""Help that fits on a screen or two, told without importing what it does not need. ``tests/test_help.py`` keeps it true."""

from __future__ import annotations

from collections.abc import Sequence

COMMANDS = ("fit", "validate", "test", "predict")
TOPICS = ("all", "model", "data", "trainer")
HELP_OPTIONS = ("--help", "-h")

OVERVIEW = """Meta-learning by implicit MAML and its family.

    imaml-lightning COMMAND [options]        or: python -m imaml_lightning COMMAND [options]

  fit          meta-train, then test the best checkpoint; without options a first look at letters
  validate     figures of a checkpoint on the validation episodes
  test         the same on the test episodes
  predict      adapt a checkpoint to examples of your own
  export       the same as a file, .onnx or .pt2, that runs without this package
  data check   look at data before training on them: counts, duplicates, leaks between splits

    fit --config omniglot_5w1s               an experiment that comes along, or a file of yours
    test --ckpt_path best --name NAME        the best checkpoint of the newest run of this name
    predict --ckpt_path best --name NAME --support FOLDER --query FOLDER
    fit --print_config                       every option with its value and what it means
    fit --model.adaptation.help Implicit     the options of one class

Each command tells its options by --help; --version the version. A run writes runs/NAME/NUMBER/.
"""

FIT = """Meta-train, then test the best checkpoint.

  imaml-lightning fit                                    letters from fonts: --config letters
  imaml-lightning fit --config omniglot_5w1s --config algorithms/maml
                                                          an experiment, with another algorithm
  imaml-lightning fit --name birds --data.source ImageFolder --data.source.root birds

The options people turn, with their defaults in brackets. A class is named by its name, and its own
options follow.

data
  --data.source CLASS        Omniglot, ImageFolder, ClassTable, TaskTable, Sinusoid, ... [Glyphs]
  --data.way N               classes of a task [5, or what the data have]
  --data.shot N              support examples of a class, or a range such as 1..9 [1]
  --data.query N             query examples of a class [5]
  --data.tasks N             tasks of a meta-step, over all ranks [16]

network (sizes and outputs follow from the data)
  --model.network CLASS      ResNet, MLP, or a class or function of yours, with --trust [Conv4]
  --model.network.filters N  of Conv4 [32]
  --model.adapt PATTERNS     parameters that are adapted to a task, such as '["head.*"]' [all]

algorithm
  --model.adaptation CLASS   Unrolled (MAML), FirstOrder, Reptile, MAMLPlusPlus, ... [Implicit]
  --model.adaptation.inner_solver CLASS           Newton, Nesterov, LBFGS, ... [GradientDescent]
  --model.adaptation.inner_solver.lr RATE         of inner steps [0.2]
  --model.adaptation.inner_solver.max_steps N     inner steps [8]
  --model.adaptation.linear_solver.max_steps N    of conjugate gradients, for the meta-gradient [5]
  --model.adaptation.proximal.strength NUMBER     λ, which holds a task to the meta-parameters [2.0]

training
  --trainer.max_steps N      meta-steps [60]
  --model.optimizer.lr RATE  of meta-steps [0.003]
  --trainer.accelerator KIND cpu, gpu or auto [auto]
  --trainer.devices N        GPUs, or processes on a CPU [auto]
  --seed_everything N        of weights and everything drawn in training [0]

run
  --name NAME, --output FOLDER    the run goes to FOLDER/NAME/NUMBER/ [letters, runs]
  --config NAME|FILE         a configuration that comes along, or a file of yours; several add up
  --ckpt_path last --name NAME    goes on with a run, bit for bit

All options: fit --help all, or of one part, fit --help data, model or trainer. With values and
comments: fit --print_config. Options of a class: fit --model.network.help ResNet.
"""

TEST = """Figures of a checkpoint on the fixed {split} episodes.

  imaml-lightning {command} --ckpt_path best --name plants        of the newest run of this name
  imaml-lightning {command} --ckpt_path runs/plants/000/best.ckpt
  imaml-lightning {command} --ckpt_path best --name plants --{episodes} 200

  --ckpt_path FILE|best|last      what is evaluated; it knows its data, network and algorithm
  --name NAME, --output FOLDER    where best and last are looked for [letters, runs]
  --data.eval_way N, --data.eval_shot N, --data.eval_query N
                                  other episodes than it was validated on
  --model.adaptation.inner_solver.max_steps N
                                  another effort to adapt; also lr, or another solver
  --untrained true                random weights, without --ckpt_path
  --trust PACKAGES                whose classes the checkpoint may name
  --trainer.accelerator KIND      cpu, gpu or auto [auto]

All options: {command} --help all, or of one part, {command} --help data, model or trainer.
"""

PREDICT = """Predict examples of your own from a few labelled ones.

  imaml-lightning predict --ckpt_path best --name plants --support new/support --query new/query
  imaml-lightning predict --ckpt_path best --name visits --support known.csv --query asked.csv

  --ckpt_path FILE|best|last     the checkpoint, or several, [a.ckpt,b.ckpt], whose mean is taken
  --support FOLDER|TABLE         labelled: FOLDER/class/*.png, or a table as the training table
  --query FOLDER|TABLE           what is to be predicted
  --target COLUMN                of the labels in the support table [that of the training table]
  --predictions FILE             what is written [predictions.csv]
  --name NAME, --output FOLDER   where best and last are looked for [runs]
  --inner_solver CLASS           in place of the one of the training, such as LBFGS
  --report FILE                  the page of pictures, least certain first [predictions.html]
  --leave_out true               leave out pictures that cannot be read; else they are refused
  --trust PACKAGES               whose classes the checkpoint may name

Without --support and --query, predict writes the outputs for the query sets of the checkpoint's own
test episodes to predictions.csv; then its options are those of test (see test --help).
"""

EXPORT = """Adapt a checkpoint to labelled pictures, and write the classifier as a file of its own.

  imaml-lightning export --ckpt_path best --name plants --support new/support --to classifier.onnx

  --ckpt_path FILE|best|last     the checkpoint, or several, [a.ckpt,b.ckpt], whose mean is taken
  --support FOLDER               labelled: FOLDER/class/*.png
  --to FILE                      .onnx for onnxruntime, .pt2 for torch.export [classifier.onnx]
  --name NAME, --output FOLDER   where best and last are looked for [runs]
  --leave_out true               leave out pictures that cannot be read; else they are refused
  --trust PACKAGES               whose classes the checkpoint may name

The file takes pictures as bytes and gives a probability for each class. Scaling and normalisation
are inside, class names and how pictures are read in its metadata. It is written once it says what
predict says. Needs: pip install 'imaml_lightning[export]'.
"""

DATA = """Look at data before training on them: counts, duplicates, leaks between splits.

  imaml-lightning data check --data.source ImageFolder --data.source.root photos
  imaml-lightning data check --config FILE

Its options are those of fit that begin with --data; data check --help lists them.
"""


def short_help(args: Sequence[str]) -> str | None:
    """What ``--help`` says to these words; None where it takes the options themselves to tell it."""
    if args and args[0] in HELP_OPTIONS:
        return OVERVIEW
    if list(args[:1]) == ["data"]:
        return DATA if len(args) > 1 and args[1] in HELP_OPTIONS else None
    if list(args[:1]) == ["export"] and topic(args) == "":
        return EXPORT
    if not args or args[0] not in COMMANDS or topic(args) != "":
        return None
    named = {"test": ("test", "data.test_episodes"), "validate": ("validation", "data.val_episodes")}
    if args[0] in named:
        split, episodes = named[args[0]]
        return TEST.format(command=args[0], split=split, episodes=episodes)
    return FIT if args[0] == "fit" else PREDICT


def topic(args: Sequence[str]) -> str | None:
    """What help is asked for on: a word behind ``--help``, nothing for the short help; None if none is asked for."""
    place = next((i for i, arg in enumerate(args) if arg in HELP_OPTIONS), None)
    if place is None:
        return None
    return args[place + 1] if len(args) > place + 1 and not args[place + 1].startswith("-") else ""
