"""Masks chosen before the first step: criteria, allocations and structures of real runs."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY, random_variables

from giung2_ext.core import allocate, criteria, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import choosing, settling, setup, start
from giung2_ext.storage.tickets import read_ticket
from giung2_ext.training import state as states
from giung2_ext.training import step as steps

CHOSEN = choosing.CRITERIA[1:]
DIGITS = f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke"
SHORT = (DIGITS, "--seed=3", "--config.evaluation.every=1", "--config.model.hidden=100,")
AUGMENTED = ("--config.feed.augment=crop", "--config.feed.mixup=0.3", "--optim_label_smoothing=0.1")
NORMALISED = ("--data_name=arrays", "--config.data.num_classes=3", "--config.data.holdout=20",
              "--config.model.name=convnet", "--config.model.widths=16,", "--batch_size=20",
              "--config.model.group_size=5", "--config.masks.prunable=kernels")  # fmt: skip


def settled(config):
    return settling.settled(epath.Path("nowhere"), config)


class Beginning:
    """A setup, with weights to choose among that are drawn without compiling anything."""

    def __init__(self, config):
        self.config = settled(config)
        self.setup = setup.Setups().get(self.config, 1)
        source = self.setup.source
        self.statistics = random_variables(self.setup.model, source.image_shape, self.config.seed)
        self.params = self.statistics.pop("params")
        mean, std = (np.asarray(v, np.float32) for v in (source.mean, source.std))
        self.statistics["image_stats"] = {"m": mean, "s": std}
        self.dense = masking.dense(self.params, config.masks.prunable)

    def choose(self, criterion, among=None, **rule):
        config = self.config.copy_and_resolve_references()
        config.masks.update(criterion=criterion, **rule)
        choosing.check_choice(config)
        among = self.dense if among is None else among
        return jax.device_get(choosing.choose(config, self.setup, self.params, self.statistics, among))

    def batch(self, step):
        """As the run's program makes it, but for mixup."""
        key = jax.random.fold_in(states.seed_key(self.config.seed), states.DATA)
        feed = self.setup.data.feed
        with self.setup.data.open(self.config.seed) as data:
            return feed.batch(data, feed.order(key, step // feed.steps_per_epoch), key, step)


@pytest.fixture(scope="module")
def begin(config_of):
    return lambda *flags: Beginning(config_of(*SHORT, "--mesh=data:1", *flags))


@pytest.fixture(scope="module")
def one_of_digits(begin):
    return begin()


@pytest.fixture
def digits(one_of_digits):
    """LeNet of one hidden layer; what a test changes of it is gone after it."""
    return copy.copy(one_of_digits)


def shares(masks):
    return np.array([np.mean(mask) for mask in trees.present(masks)])


def in_groups_of_four(mask):
    return mask.reshape(mask.shape[0] // 4, 4, mask.shape[1]).sum(1)


def highest(scores, density):
    """The highest of all scores together, by a sort on the host."""
    flat = np.concatenate([np.ravel(s) for s in trees.present(scores)])
    cut = np.sort(flat)[-int(density * flat.size)]
    return trees.map_present(lambda s: np.asarray(s) >= cut, scores)


@pytest.mark.parametrize("criterion", CHOSEN)
def test_every_criterion_keeps_the_exact_count_of_every_allocation_and_the_same_of_the_same_seed(
    digits, criterion
):
    size = masking.size(digits.dense)
    for density in (0.1, 0.013):
        found = {
            how: digits.choose(criterion, density=density, allocation=how) for how in choosing.ALLOCATIONS
        }
        for how, masks in found.items():
            assert sum(int(m.sum()) for m in trees.present(masks)) == allocate.keep_count(density, size)
            if how != "global":
                counts = allocate.layer_counts(digits.dense, density, how)
                assert jax.tree.map(np.count_nonzero, masks) == counts
        again = digits.choose(criterion, density=density, allocation="erk")
        assert masking.digest(again) == masking.digest(found["erk"])
        assert masking.digest(found["global"]) != masking.digest(found["uniform"])


def test_criteria_choose_different_weights(digits):
    found = [digits.choose(criterion, density=0.1) for criterion in CHOSEN]
    overlaps = [masking.overlap(a, b) for i, a in enumerate(found) for b in found[:i]]
    assert max(overlaps) < 0.5


def test_snip_sees_the_pixels_that_the_first_step_sees_mixed_and_augmented_as_there(
    digits, begin, train, tmp_path
):
    moving = ("--config.optim.name=sgd", "--optim_momentum=0", "--optim_lr=1000", "--optim_ni=1")
    train(tmp_path / "run", *SHORT, *AUGMENTED, *moving, "--periodic_ckpt=true")
    before, after = (read_ticket(tmp_path / f"run/iter_00000{n}.ckpt").params for n in (0, 1))
    grads = jax.tree.map(lambda b, a: (b - a) / 1000, before, after)
    expected = highest(criteria.snip(before, digits.dense, grads), 0.1)
    ours = begin(*AUGMENTED)
    ours.params = digits.params = before
    assert masking.overlap(ours.choose("snip", density=0.1), expected) > 0.999
    assert masking.overlap(digits.choose("snip", density=0.1), expected) < 0.9  # of other pixels


def test_grasp_ranks_by_the_hessian_of_the_first_batch_at_a_temperature_of_200(digits):
    batch, model = digits.batch(0), digits.setup.model
    kernels = trees.map_present(lambda m, w: w, digits.dense, digits.params)

    def loss(kernels):
        whole = jax.tree.map(
            lambda k, w: w if k is None else k, kernels, digits.params, is_leaf=trees.is_none
        )
        logits = steps.network(model, whole, digits.statistics, batch["images"], train=False) / 200
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["labels"][:, None], axis=1).mean()

    @jax.jit
    def forward_over_reverse(kernels):
        gradient = jax.grad(loss)
        product = jax.jvp(gradient, (kernels,), (gradient(kernels),))[1]
        return jax.tree.map(jnp.multiply, kernels, product)

    expected = forward_over_reverse(kernels)
    assert masking.overlap(digits.choose("grasp", density=0.1), highest(expected, 0.1)) > 0.999
    hot = jax.tree.map(lambda k: k * 0, kernels)  # what is dead stays so: its scores are 0
    assert masking.overlap(highest(expected, 0.1), highest(jax.tree.map(jnp.abs, expected), 0.1)) < 0.9
    assert jax.tree.all(jax.tree.map(lambda s: (np.asarray(s) == 0).all(), forward_over_reverse(hot)))


@pytest.mark.parametrize("criterion", ["snip", "grasp"])
def test_the_batches_of_an_epoch_say_what_all_examples_at_once_do(digits, begin, criterion):
    whole = begin("--batch_size=1200")
    one = digits.choose(criterion, density=0.1)
    all_of_them = whole.choose(criterion, density=0.1)
    assert masking.overlap(digits.choose(criterion, density=0.1, batches=20), all_of_them) > 0.999
    assert masking.overlap(one, all_of_them) < 0.95


def test_devices_leave_the_mask_what_it_is(digits, begin):
    found = [ours.choose("grasp", density=0.1) for ours in (begin("--mesh=data:2,fsdp:2"), digits)]
    assert masking.overlap(*found) > 0.99


def test_micro_batches_leave_the_mask_what_it_is(config_of, image_arrays):
    flags = (DIGITS, "--seed=3", "--mesh=data:1", *NORMALISED, f"--data_root={image_arrays}")
    whole, cut = (Beginning(config_of(*flags, f"--grad_accum={parts}")) for parts in (1, 2))
    assert (whole.setup.micro_batches, cut.setup.micro_batches) == (1, 2)
    assert masking.overlap(*(ours.choose("grasp", density=0.3) for ours in (whole, cut))) > 0.97


def test_members_of_a_population_choose_what_they_choose_alone_and_compile_nothing_anew(
    config_of, monkeypatch
):
    rule = ("--config.masks.criterion=grasp", "--config.masks.density=0.1", "--mesh=data:1")
    configs = [settled(config_of(*SHORT, *rule, f"--seed={seed}")) for seed in (3, 4)]
    traced, whole = [], steps.network
    monkeypatch.setattr(steps, "network", lambda *a, **b: traced.append(1) or whole(*a, **b))

    def masks_of(where):
        found = []
        for config in configs:
            traced.clear()
            state, _ = start.start_state(config, where)
            found.append(jax.device_get(where.method.masks(state.trainable, state.method)))
        assert not traced  # the second one compiles nothing
        return found

    together = masks_of(setup.Setups(together=True).get(configs[0], 2))
    alone = masks_of(setup.Setups().get(configs[0], 1))
    assert min(map(masking.overlap, together, alone)) > 0.999
    assert masking.overlap(*together) < 0.5


def test_synflow_empties_no_layer_where_snip_does(digits):
    assert shares(digits.choose("snip", density=0.0003)).min() == 0
    assert shares(digits.choose("synflow", density=0.0003)).min() > 0


def test_synflow_asks_no_data_and_its_weights_alone(begin, digits):
    assert masking.digest(begin(*AUGMENTED).choose("synflow", density=0.1)) == masking.digest(
        digits.choose("synflow", density=0.1)
    )
    assert masking.overlap(
        begin("--seed=4").choose("synflow", density=0.1), digits.choose("synflow", density=0.1)
    ) < 0.5  # fmt: skip


@pytest.mark.parametrize("criterion", CHOSEN)
def test_two_of_four_goes_with_every_criterion_from_the_command_line_to_the_ticket(
    train, tmp_path, criterion
):
    flags = (f"--config.masks.criterion={criterion}", "--config.masks.structure=2:4", "--optim_ni=2")
    result = train(tmp_path / "run", *SHORT, *flags)
    ticket = read_ticket(tmp_path / "run/last.ckpt")
    assert result["kept"] * 2 == result["prunable"] == 7400
    assert all((in_groups_of_four(mask) == 2).all() for mask in trees.present(ticket.masks))
    assert ticket.meta["masks"]["structure"] == "2:4"
    assert ticket.meta["masks"]["criterion"] == criterion


def test_a_pattern_keeps_the_best_of_the_criterions_scores(digits):
    mask = digits.choose("magnitude", structure="1:4")
    for kernel, kept in zip(
        jax.tree.leaves(trees.map_present(lambda m, w: w, digits.dense, digits.params)),
        trees.present(mask),
        strict=True,
    ):
        sizes = np.abs(kernel).reshape(kernel.shape[0] // 4, 4, -1)
        assert np.array_equal(kept.reshape(sizes.shape), sizes == sizes.max(1, keepdims=True))


def test_a_pattern_is_chosen_among_what_a_checkpoint_has_left_and_refused_where_that_is_too_little(digits):
    draw = np.random.default_rng(0)
    left = jax.tree.map(lambda m: m & ((np.arange(len(m)) % 4 < 3)[:, None]), digits.dense)
    for criterion in CHOSEN:
        found = digits.choose(criterion, among=left, structure="2:4")
        assert bool(masking.nested(found, left))
        assert all((in_groups_of_four(mask) == 2).all() for mask in trees.present(found))
    holes = jax.tree.map(lambda m: m & (draw.random(m.shape) < 0.6), digits.dense)
    with pytest.raises(
        Refusal, match=r"2 of every 4 weights where the checkpoint's mask has 0 left, in Dense_0"
    ):
        digits.choose("magnitude", among=holes, structure="2:4")


def test_gradient_criteria_rank_the_survivors_of_a_sparse_network_whatever_was_pruned(digits):
    left = digits.choose("random", density=0.3)
    other = copy.copy(digits)
    other.params = jax.tree.map(
        lambda m, w: w if m is None else np.where(m, w, 9 * w), left, digits.params, is_leaf=trees.is_none
    )
    for criterion in ("snip", "grasp", "synflow"):
        found = digits.choose(criterion, among=left, density=0.1)
        assert bool(masking.nested(found, left))
        assert sum(int(m.sum()) for m in trees.present(found)) == 740
        assert masking.digest(other.choose(criterion, among=left, density=0.1)) == masking.digest(found)
        assert masking.overlap(found, digits.choose(criterion, density=0.1)) < 0.5


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow"])
def test_a_network_that_lets_no_gradient_through_is_refused_with_the_remedy(digits, config_of, criterion):
    digits.params = digits.params | {"cls": jax.tree.map(np.zeros_like, digits.params["cls"])}
    resnet = (DIGITS, "--config.model.name=resnet", "--config.model.depth=18")
    for options, remedy in (
        ((), "--config.model.head=biased --config.model.zero_init=false"),
        (("--config.model.head=biased",), "--config.model.zero_init=false"),
        (("--config.model.head=biased", "--config.model.zero_init=false"), "start from other weights"),
    ):
        digits.config = digits.config.copy_and_resolve_references()
        digits.config.model = config_of(*resnet, *options).model  # what is said goes by the config
        with pytest.raises(Refusal, match=rf"the {criterion} scores of [\w/]+ are all 0.*: {remedy}$"):
            digits.choose(criterion, density=0.1)


def test_scores_that_overflow_are_refused(digits):
    digits.params = jax.tree.map(lambda w: w * 1e30, digits.params)
    with pytest.raises(Refusal, match=r"the snip scores of Dense_0/kernel are not finite"):
        digits.choose("snip", density=0.1)
    assert masking.kept(digits.choose("synflow", density=0.1)) == 740  # in float64
