"""The config: every field, its default and its type; a file in `configs/` changes what it needs.

`chain` says how cycles follow each other and is read by `imp.py` alone; `placement` is where and how
fast; everything else is the recipe of one run. `model`, `data` and `method` are choices: a name, and
the options of that name's `build`, filled in with their defaults.
"""

import inspect
import json
from typing import Any

import ml_collections
from ml_collections import config_dict

import giung2_ext.data.sources
import giung2_ext.methods
import giung2_ext.models
from giung2_ext.core import discovery
from giung2_ext.experiments import arguments
from giung2_ext.storage import tickets

Config = ml_collections.ConfigDict

CHOICES = {
    "model": giung2_ext.models,
    "data": giung2_ext.data.sources,
    "method": giung2_ext.methods,
}
KINDS = {"model": "model", "data": "data source", "method": "method"}  # in messages
SUPPLIED = {
    "model": ("num_classes", "dtype"),
    "data": ("root", "splits"),
    "method": ("ni",),
}  # by the suite, to a build


def default_config() -> Config:
    """The recipe of the original ImageNet suite; `None` fields have a type and no value yet."""
    c = Config()
    c.seed = config_dict.placeholder(int)  # drawn once and recorded where not given
    c.mixed_precision = False  # true: bfloat16, float16 on older GPUs, float32 on a CPU
    c.precision = config_dict.placeholder(str)  # float32 | bfloat16 | float16, whatever the device
    c.model = Config(dict(name="resnet", depth=50, width=1, group_size=256))
    c.data = Config(dict(name="imagenet2012"))
    c.method = Config(dict(name="ticket"))

    c.feed = Config()
    c.feed.batch_size = 2048
    c.feed.augment = config_dict.placeholder(str)  # none | crop | crop_flip; streamed: none | resized_crop
    c.feed.randaugment = 0  # its layers; of streamed data
    c.feed.magnitude = 9.0  # of randaugment, 0 to 10
    c.feed.mixup = 0.0  # alpha

    c.optim = Config()
    c.optim.name = "sgd"  # or adam, adamw, lion, … (training/optimizers.py)
    c.optim.ni = 64000  # steps of the run
    c.optim.lr = 0.8
    c.optim.momentum = 0.9  # beta 1 of adam and the like
    c.optim.nesterov = False  # of sgd
    c.optim.weight_decay = 1e-4  # coupled, but of adamw and the like
    c.optim.decay_on = "all"  # all | kernels: never biases or normalisation
    c.optim.label_smoothing = 0.0
    c.optim.global_clipping = config_dict.placeholder(float)
    c.optim.ema = config_dict.placeholder(float)  # decay of averaged weights, which all tickets then hold
    c.optim.warmup = 0.1  # fraction of ni over which the rate rises, to fall to 0 as a cosine
    c.optim.constant_lr = False  # instead
    c.optim.milestones = ()  # instead of the cosine: steps at which the rate is multiplied by decay_factor
    c.optim.decay_factor = 0.1

    c.start = Config()
    c.start.matching_ckpt = config_dict.placeholder(str)  # the weights to start from
    c.start.previous_ckpt = config_dict.placeholder(str)  # the weights to rank, the mask to shrink
    c.start.weights = "model"  # model | kaiming_normal | signed_constant: how prunable kernels are drawn
    c.start.scale_fan = "none"  # none | kept | removed: then scaled by 1/sqrt of that fraction of a layer
    c.start.pruning_ratio = 1.0  # fraction of the survivors kept; 1 selects nothing
    c.start.layer_ratios = ""  # kept fractions of each layer by itself: "conv:0.9,dense:0.8,cls:0.9"
    c.start.rounding = "floor"  # floor | nearest | cutoff: how a count of survivors is rounded
    c.start.rounds = 1  # how often the ratio is applied before the weights are ranked, once
    c.start.ablation = "none"  # none | signs | shuffle: weights' signs alone, or shuffled masks
    c.start.legacy_scores = False  # rank as the original suite did: quantised, ties kept
    c.start.batch_stats = "reset"  # reset | rewind (take those of matching_ckpt)

    c.masks = Config()
    c.masks.prunable = "conv"  # conv | kernels | body (all but the classifier) | inner (all but the first
    # layer) | blocks (of a transformer)
    c.masks.criterion = "none"  # none | random | magnitude | snip | grasp | synflow: the mask to start from
    c.masks.allocation = "global"  # global | uniform | erk
    c.masks.density = 1.0  # kept fraction of the prunable weights, for that criterion
    c.masks.structure = "none"  # none | n:m, such as 2:4, of the inputs of every layer: density n/m then
    c.masks.batches = 1  # the run's first training batches that snip and grasp take gradients of

    c.evaluation = Config()
    c.evaluation.every = 1000  # steps; the last step is evaluated too
    c.evaluation.batch_size = 512
    c.evaluation.select_on = "holdout"  # the split that the best ticket is chosen on; test: as published
    c.evaluation.select_by = "accuracy"  # accuracy: best_acc.ckpt | loss: best_loss.ckpt, early stopping
    c.evaluation.test_every = 0  # steps between measurements on test; 0: only at the start and at the end

    c.tickets = Config()
    c.tickets.periodic = False  # iter_NNNNNN.ckpt at step 0, every `every` steps and the last
    c.tickets.every = 1000

    c.chain = Config()
    c.chain.rewind_ni = 16000  # steps at a constant rate to the rewind point
    c.chain.cycles = 18  # pruned cycles after the dense one
    c.chain.pruning_ratio = 0.8
    c.chain.layer_ratios = ""  # instead: see start.layer_ratios; pruning_ratio is 1 then
    c.chain.prune_from = "best"  # best | last: the ticket of a cycle whose weights are ranked (2019: last)
    c.chain.trials = 1
    c.chain.arms = ()  # controls: reinit random shuffle signs one_shot no_rewind finetune late sibling
    c.chain.late_ni = 0  # the step of the dense cycle that `late` rewinds to
    c.chain.finetune_lr = config_dict.placeholder(float)  # the constant rate of `finetune`

    c.judge = Config()  # how finished tickets are judged: part of no recipe
    c.judge.datasets = "auto"  # comma-separated, or none; auto: of a network for ImageNet, what is there of
    # imagenet2012,imagenet_v2,imagenet_r,imagenet_a,imagenet_sketch
    c.judge.pipeline = "timm"  # timm | tf: how images are brought to the network's size
    c.judge.batch_size = 512

    c.placement = Config()
    c.placement.data_root = config_dict.placeholder(str)
    c.placement.num_workers = 32  # threads that decode streamed images
    c.placement.worker_processes = 0  # that share this work, where one process has too few threads running
    c.placement.prefetch_factor = 2  # batches that wait on the devices
    c.placement.log_every = 100  # steps between progress updates, and the longest chunk
    c.placement.save_every = "300s"  # resumable states: 1000 (steps), 300s, 1000,300s or never
    c.placement.keep_states = 2
    c.placement.mesh = config_dict.placeholder(str)  # data:8 or data:4,fsdp:2; all devices on data
    c.placement.grad_accum = "1"  # micro-batches of a batch; auto: as few as fit in memory
    c.placement.compilation_cache = "auto"  # a folder or bucket of compiled programs; auto: the user's; off
    c.placement.profile = 0  # steps that are traced, once the first chunk is done: DIR/profile
    c.placement.remat = False  # keep less for the way back, and compute what is cheap again
    c.placement.distributed = "auto"  # auto | on | off: be one of several processes
    c.placement.joined_within = 300  # seconds that its processes wait for each other at the start
    c.placement.lost_after = 30  # seconds without a heartbeat until a process is given up, and the job
    c.placement.stalled_after = 1800.0  # seconds without progress of such a job; 0: wait for ever
    c.placement.lease = 120.0  # seconds that a lock on an object store outlives a process that was killed
    c.placement.population = "auto"  # auto | map | vmap
    c.placement.members = "auto"  # most trials and arms that train side by side; auto: as many as fit
    c.placement.tensorboard = False  # event files too; needs the extra of that name
    c.placement.wandb = ""  # a project of Weights & Biases that is told too; needs the extra of that name
    return c.lock()


def _options(section: str, name: str) -> dict[str, inspect.Parameter]:
    """What a config can say of a choice: the options of its `build` that the suite does not supply."""
    parameters = discovery.options(CHOICES[section], KINDS[section], name)
    return {k: p for k, p in parameters.items() if k not in SUPPLIED.get(section, ())}


def complete(config: Config) -> Config:
    """Fills every choice with the defaults of its options and refuses options it does not take."""
    for section in CHOICES:
        name = config[section].name
        options = _options(section, name)
        given = (key for key in config[section] if key != "name")
        discovery.check_options(KINDS[section], name, given, options)
        with config.unlocked():
            for key, parameter in options.items():
                if key not in config[section]:
                    config[section][key] = parameter.default
    return config.lock()


def options_of(config: Config, section: str) -> dict[str, Any]:
    """The keyword options of a choice."""
    return {k: v for k, v in config[section].items() if k != "name"}


def group_of(config: Config) -> int | None:
    """How many examples BatchNorm averages over, 0 for the whole batch; `None` of a network without it."""
    options = options_of(config, "model")
    return options.get("group_size") if options.get("norm", True) else None


def load_config(text: str) -> Config:
    """`FILE[:ARG,…]`: runs `get_config(ARG=VALUE,…)` of the file."""
    name, _, given = text.partition(":")
    file = arguments.open_file(name)
    return file.make(file.read(given))


def recipe(config: Config) -> dict[str, Any]:
    """What is computed: no placement, chain or judge, checkpoint paths replaced by what they hold."""
    plain = config.to_dict()
    del plain["placement"], plain["chain"], plain["judge"]
    del plain["evaluation"]["test_every"]  # changes no ticket
    if not plain["tickets"]["periodic"]:
        del plain["tickets"]["every"]  # says nothing then
    for key in ("matching_ckpt", "previous_ckpt"):
        if plain["start"][key] is not None:
            plain["start"][key] = tickets.read_meta(plain["start"][key])["digest"]
    return json.loads(json.dumps(plain))  # as it will be read back: tuples are lists


def with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
    """A recorded recipe with the defaults of fields that were not there when it was recorded."""
    config = default_config().unlock()
    for section in CHOICES:
        config[section] = Config({"name": recorded[section]["name"]})
    config.precision = "float32"  # the only one, before there was a choice
    return _merge(recipe(complete(config)), recorded)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged
