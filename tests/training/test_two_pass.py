"""Two passes give the one-shot gradient in the memory of a chunk; a Poisson sample of names gives it on average."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from tower_reference import CONTEXT, tiny_clip, tokenizer

from teachonce.towers.slots import SlotPrompts
from teachonce.towers.text_tower import TextTower
from teachonce.towers.tokens import NameTokens
from teachonce.training.two_pass import FixedPass, PoissonSample, TextPass, inclusion, pulled_back

WIDTH, EMBEDDING, SLOTS = 6, 8, 3


def made_up_names(distinct: int, given: int) -> NameTokens:
    """Names of 2 to 5 tokens; those given beyond the distinct ones repeat earlier ones."""
    generator = torch.Generator().manual_seed(distinct)
    lengths = torch.randint(2, 6, (distinct,), generator=generator)
    inverse = torch.cat([torch.arange(distinct), torch.randint(distinct, (given - distinct,), generator=generator)])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return NameTokens(("",) * given, torch.zeros(int(offsets[-1]), dtype=torch.int64), offsets, inverse)


@dataclass
class StandIn:
    """Something differentiable with a text tower's method: a random feature of each name, moved by the prompts."""

    names: int
    dtype: torch.dtype = torch.float64
    inner: torch.dtype | None = None  # what it computes in, as a tower under autocast
    calls: list[tuple[list[int], bool]] = field(default_factory=list)
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.base = torch.randn(self.names, EMBEDDING, generator=generator, dtype=self.dtype)
        self.paths = torch.randn(self.names, EMBEDDING, SLOTS * WIDTH, generator=generator, dtype=self.dtype)

    def features(self, prompts: SlotPrompts, names: NameTokens, chunk: Tensor | None = None) -> Tensor:
        wanted = torch.arange(self.names) if chunk is None else chunk
        assert prompts.context is not None and prompts.key is not None
        moved = prompts.context * (1 + prompts.key.sum(0).tanh())
        inner = self.inner or self.dtype
        shift = (self.paths[wanted].to(inner) @ moved.flatten().to(inner)).tanh()
        result = F.normalize((self.base[wanted].to(inner) + shift).to(self.dtype), dim=-1)
        self.calls.append((wanted.tolist(), result.requires_grad))
        return result


def parameters(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = ((SLOTS, WIDTH), (2, SLOTS, WIDTH))
    return [(0.3 * torch.randn(s, generator=generator, dtype=dtype)).requires_grad_() for s in shapes]


def prompts_of(tensors: list[Tensor]) -> Callable[[], SlotPrompts]:
    return lambda: SlotPrompts(context=tensors[0], key=tensors[1])


def losses(features: Tensor, rows: int = 6) -> list[Tensor]:
    """Three losses in which every candidate matters differently."""
    generator = torch.Generator().manual_seed(3)
    images = F.normalize(torch.randn(rows, features.shape[1], generator=generator).to(features.dtype), dim=1)
    labels = torch.randint(len(features), (rows,), generator=generator)
    logits = 20 * images @ features.T
    return [F.cross_entropy(logits, labels), (logits / 2).logsumexp(1).mean(), (features[:3] @ images[0]).sum()]


def on_features(text: TextPass) -> list[Tensor]:
    """The gradient of each loss with respect to the distinct features."""
    return [
        torch.autograd.grad(loss, text.features, retain_graph=True)[0] for loss in losses(text.features[text.place])
    ]


def close(actual: list[list[Tensor]], expected: list[list[Tensor]], tolerance: float) -> None:
    for mine, reference in zip(actual, expected, strict=True):
        for a, b in zip(mine, reference, strict=True):
            assert (a - b).norm() <= tolerance * max(1e-9, float(b.norm()))


def one_shot(tower: StandIn, names: NameTokens, classes: Tensor) -> list[list[Tensor]]:
    tensors = parameters(tower.dtype)
    features = tower.features(prompts_of(tensors)(), names)[names.inverse[classes]]
    return [list(torch.autograd.grad(loss, tensors, retain_graph=True)) for loss in losses(features)]


@pytest.mark.parametrize("class_chunk", [1, 7, 39, 40, 60])
@pytest.mark.parametrize("which", ["all", "some"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_several_gradients_at_once_equal_those_of_one_shot(
    which: str, class_chunk: int, dtype: torch.dtype, tolerance: float
) -> None:
    names = made_up_names(distinct=40, given=60)
    classes = torch.arange(60) if which == "all" else torch.arange(1, 60, 3)
    tower, tensors = StandIn(40, dtype), parameters(dtype)
    text = TextPass(tower, prompts_of(tensors), names, classes, class_chunk)
    pulled = text.pull_back(tensors, on_features(text))
    assert [[x.dtype for x in one] for one in pulled] == [[dtype, dtype]] * 3
    close(pulled, one_shot(StandIn(40, dtype), names, classes), tolerance)
    close(text.pull_back(tensors, on_features(text)), pulled, tolerance)  # again


def test_features_are_those_of_the_candidates_and_a_leaf() -> None:
    names, tensors = made_up_names(40, 60), parameters()
    classes = torch.arange(1, 60, 3)
    plain = StandIn(40).features(prompts_of(tensors)(), names)[names.inverse[classes]]
    for class_chunk in (5, 100):
        text = TextPass(StandIn(40), prompts_of(tensors), names, classes, class_chunk)
        assert text.features.is_leaf and text.features.requires_grad
        assert len(text.features) == len(names.inverse[classes].unique()) and len(text.place) == len(classes)
        assert torch.allclose(text.features[text.place], plain)


def test_gradients_add_up_over_micro_batches() -> None:
    names, tensors = made_up_names(40, 60), parameters()
    text = TextPass(StandIn(40), prompts_of(tensors), names, torch.arange(60), 7)
    images = F.normalize(torch.randn(12, EMBEDDING, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    for part in images.split(5):
        (20 * part @ text.features[text.place].T).logsumexp(1).sum().backward()
    leaf = text.features.detach().requires_grad_()
    (20 * images @ leaf[text.place].T).logsumexp(1).sum().backward()
    assert leaf.grad is not None and text.features.grad is not None
    assert torch.allclose(text.features.grad, leaf.grad)


def test_one_chunk_needs_one_forward_and_more_need_two_by_like_length() -> None:
    names, tensors = made_up_names(40, 60), parameters()
    tower = StandIn(40)
    text = TextPass(tower, prompts_of(tensors), names, torch.arange(60), 40)
    text.pull_back(tensors, on_features(text))
    assert [(len(ids), graph) for ids, graph in tower.calls] == [(40, True)]
    tower = StandIn(40)
    text = TextPass(tower, prompts_of(tensors), names, torch.arange(60), 15)
    text.pull_back(tensors, on_features(text))
    assert [(len(ids), graph) for ids, graph in tower.calls] == [
        (15, False),
        (15, False),
        (10, False),
        (15, True),
        (15, True),
        (10, True),
    ]
    order = [i for ids, _ in tower.calls[:3] for i in ids]
    assert sorted(order) == list(range(40)) and names.lengths[order].diff().ge(0).all()


def test_every_forward_runs_under_the_given_autocast() -> None:
    entered = []

    @contextlib.contextmanager
    def autocast() -> Iterator[None]:
        entered.append(len(tower.calls))
        yield

    names, tensors, tower = made_up_names(40, 60), parameters(), StandIn(40)
    text = TextPass(tower, prompts_of(tensors), names, torch.arange(60), 15, autocast)
    text.pull_back(tensors, on_features(text))
    assert entered == list(range(6)) and len(tower.calls) == 6


@pytest.mark.parametrize("class_chunk", [7, 40])
def test_gradients_too_small_for_float16_arrive(class_chunk: int) -> None:
    """1e-9 is below float16's smallest number, 6e-8."""
    names, tensors = made_up_names(40, 40), parameters(torch.float32)
    gradient = 1e-9 * torch.randn(40, EMBEDDING, generator=torch.Generator().manual_seed(0))
    exact = TextPass(StandIn(40, torch.float32), prompts_of(tensors), names, torch.arange(40), class_chunk)
    half = TextPass(
        StandIn(40, torch.float32, torch.float16), prompts_of(tensors), names, torch.arange(40), class_chunk
    )
    pulled = half.pull_back(tensors, [gradient[exact.place.argsort()]])
    close(pulled, exact.pull_back(tensors, [gradient[exact.place.argsort()]]), 1e-2)


def test_scaling_changes_no_bit_and_hides_no_fault() -> None:
    tensor = torch.tensor([0.3, -1.7], requires_grad=True)
    for size in (0.0, 1e-30, 1.0, 3e20):
        gradient = size * torch.tensor([1.0, 0.7])
        assert torch.equal(pulled_back(tensor * 1.0, [tensor], gradient)[0], gradient)
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not pulled_back(tensor * 1.0, [tensor], torch.tensor([1.0, bad]))[0].isfinite().all()


def test_a_parameter_that_nothing_reaches_has_a_zero_gradient() -> None:
    names, tensors = made_up_names(40, 60), parameters()
    alone = torch.ones(4, requires_grad=True)
    for class_chunk in (15, 40):
        text = TextPass(StandIn(40), prompts_of(tensors), names, torch.arange(60), class_chunk)
        pulled = text.pull_back([*tensors, alone], on_features(text))
        assert all(torch.equal(one[2], torch.zeros(4)) for one in pulled)


def test_a_tower_without_prompts_looks_the_same() -> None:
    features, classes = torch.randn(9, EMBEDDING), torch.tensor([1, 4, 8])
    fixed = FixedPass(features, classes)
    assert torch.equal(fixed.features[fixed.place], features[classes])


@pytest.mark.parametrize("expected", [1, 5, 20, 59])
def test_chances_follow_the_sizes_up_to_one_and_sum_to_the_expected_number(expected: int) -> None:
    norms = np.random.default_rng(expected).lognormal(0, 2, 60)
    chance = inclusion(norms, expected)
    assert chance.sum() == pytest.approx(expected) and chance.max() <= 1
    below = chance < 1
    slopes = chance[below] / norms[below]
    assert slopes == pytest.approx(np.full(below.sum(), slopes.mean()))
    assert (norms[~below] * slopes.mean() >= 1 - 1e-9).all()


def test_names_without_a_gradient_are_never_drawn_and_few_with_one_always_are() -> None:
    norms = np.array([0.0, 3.0, 0.0, 1e-12, 2.0])
    assert inclusion(norms, 3).tolist() == [0, 1, 0, 1, 1]
    assert inclusion(norms, 50).tolist() == [0, 1, 0, 1, 1]
    assert inclusion(np.zeros(4), 2).tolist() == [0, 0, 0, 0]
    assert inclusion(norms, 2)[[0, 2]].tolist() == [0, 0]
    assert inclusion(np.array([1.0, np.nan, np.inf, 1.0]), 2)[1:3].tolist() == [1, 1], "a fault must show"


def sampled(expected: int, step: int, tower: StandIn, names: NameTokens, tensors: list[Tensor]) -> list[list[Tensor]]:
    text = TextPass(tower, prompts_of(tensors), names, torch.arange(names.count), 30)
    return text.pull_back(tensors, on_features(text), PoissonSample(expected, 5, step))


def flat(gradients: list[list[Tensor]]) -> Tensor:
    return torch.cat([x.flatten() for one in gradients for x in one])


def test_the_sampled_gradient_is_unbiased_and_closer_the_more_are_drawn() -> None:
    names, tensors, tower = made_up_names(200, 200), parameters(), StandIn(200)
    exact = flat(one_shot(tower, names, torch.arange(200)))
    spreads = []
    for expected in (20, 60):
        draws = torch.stack([flat(sampled(expected, step, tower, names, tensors)) for step in range(300)])
        error = draws.std(0) / len(draws) ** 0.5
        assert ((draws.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()
        spreads.append(float((draws - exact).square().sum(1).mean().sqrt() / exact.norm()))
    assert spreads[1] < spreads[0] / 2 < 0.5, spreads


def test_drawing_by_size_is_better_than_drawing_uniformly() -> None:
    names, tensors, tower = made_up_names(200, 200), parameters(), StandIn(200)
    exact = flat(one_shot(tower, names, torch.arange(200)))
    text = TextPass(tower, prompts_of(tensors), names, torch.arange(200), 30)
    gradients, errors = on_features(text), {"size": 0.0, "uniform": 0.0}
    for step in range(100):
        by_size = flat(text.pull_back(tensors, gradients, PoissonSample(20, 0, step)))
        drawn = torch.from_numpy(np.random.default_rng(step).random(200) < 0.1)
        uniform = flat(text.pull_back(tensors, [10 * g * drawn[:, None] for g in gradients]))
        errors["size"] += float((by_size - exact).square().sum())
        errors["uniform"] += float((uniform - exact).square().sum())
    assert errors["size"] < 0.5 * errors["uniform"]


def test_only_drawn_names_are_computed_again_and_the_draw_depends_on_seed_and_step_alone() -> None:
    names, tensors = made_up_names(200, 200), parameters()

    def again(seed: int, step: int) -> list[int]:
        tower = StandIn(200)
        text = TextPass(tower, prompts_of(tensors), names, torch.arange(200), 30)
        torch.manual_seed(len(seen))
        text.pull_back(tensors, on_features(text), PoissonSample(25, seed, step))
        return [i for ids, graph in tower.calls if graph for i in ids]

    seen: list[list[int]] = []
    for seed in range(3):
        for step in range(10):
            seen.append(again(seed, step))
            assert len(set(seen[-1])) == len(seen[-1])
    assert 21 < np.mean([len(ids) for ids in seen]) < 29
    assert len({tuple(ids) for ids in seen}) == len(seen)
    assert again(1, 2) == seen[12]


def test_a_sample_that_takes_all_and_one_chunk_are_exact() -> None:
    names, tensors, tower = made_up_names(200, 200), parameters(), StandIn(200)
    exact = one_shot(tower, names, torch.arange(200))
    close(sampled(200, 0, tower, names, tensors), exact, 1e-11)
    text = TextPass(tower, prompts_of(tensors), names, torch.arange(200), 200)
    close(text.pull_back(tensors, on_features(text), PoissonSample(3, 0, 0)), exact, 1e-11)


class GraphBytes:
    """How many bytes of tensors autograd keeps for backward at once: exact, the same in every run."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def __enter__(self) -> GraphBytes:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda box: box[0])
        self._hooks.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        self._hooks.__exit__(*problem)

    def _pack(self, tensor: Tensor) -> Box:
        box = Box([tensor.detach()])
        self.now += tensor.nbytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(box, self._free, tensor.nbytes)
        return box

    def _free(self, size: int) -> None:
        self.now -= size


class Box(list[Tensor]):
    """A list that can be referred to weakly."""


def peak_of(tower: StandIn | TextTower, tensors: list[Tensor], names: NameTokens, class_chunk: int) -> int:
    """Of a whole pass forth and back, without the loss, which is the caller's."""
    with GraphBytes() as graph:
        text = TextPass(tower, prompts_of(tensors), names, torch.arange(len(names.inverse)), class_chunk)
        text.pull_back(tensors, [torch.ones_like(text.features)] * 2)
    assert graph.now == 0, "nothing is left over"
    return graph.peak


def test_the_memory_of_the_graph_is_that_of_one_chunk() -> None:
    tensors = parameters()
    one_chunk = peak_of(StandIn(100), tensors, made_up_names(100, 100), 100)
    for count in (1000, 4000):
        assert peak_of(StandIn(count), tensors, made_up_names(count, count), 100) == one_chunk
    assert peak_of(StandIn(1000), tensors, made_up_names(1000, 1000), 1000) > 8 * one_chunk


# 18 classes with 15 distinct names: classes 0, 9 and 17 share one, 4 and 5 another.
CLASSES = ["tench", "goldfish", "great white shark", "hen", "crane", "crane", "junco", "robin", "kite", "Tench"]
CLASSES += ["bald eagle", "spotted salamander", "axolotl", "bullfrog", "mud turtle", "box turtle", "iguana", "tench"]


def real_tower(exact: bool) -> tuple[TextTower, list[Tensor]]:
    """A tower with trained slot states and key prompts in two blocks."""
    tower = TextTower.from_clip(tiny_clip("laion").to(torch.float64 if exact else torch.float32), tokenizer())
    context = tower.embed_words(CONTEXT).detach().clone().requires_grad_()
    noise = torch.randn(2, *context.shape, generator=torch.Generator().manual_seed(0))
    return tower, [context, (0.3 * noise).to(context.dtype).requires_grad_()]


@pytest.mark.parametrize("class_chunk", [1, 4, 18])
@pytest.mark.parametrize(("exact", "tolerance"), [(True, 1e-6), (False, 1e-5)])
def test_the_real_tower_agrees_with_every_class_computed_for_itself(
    exact: bool, tolerance: float, class_chunk: int
) -> None:
    tower, tensors = real_tower(exact)
    alone = [tower.features(prompts_of(tensors)(), tower.tokenise([name]))[0] for name in CLASSES]
    plain = [list(torch.autograd.grad(loss, tensors, retain_graph=True)) for loss in losses(torch.stack(alone))]
    names = tower.tokenise(CLASSES, slots=len(tensors[0]))
    text = TextPass(tower, prompts_of(tensors), names, torch.arange(18), class_chunk)
    assert len(text.features) == 15
    close(text.pull_back(tensors, on_features(text)), plain, tolerance)


def test_the_real_tower_keeps_a_chunk_of_the_longest_names_at_most() -> None:
    tower, tensors = real_tower(exact=False)
    many = [f"{first} {second}" for first in CLASSES[:8] for second in CLASSES[6:16]]
    names = tower.tokenise(many, slots=len(tensors[0]))
    longest = [many[i] for i in names.lengths.argsort(descending=True)[:10].tolist()]
    chunk = peak_of(tower, tensors, tower.tokenise(longest, slots=len(tensors[0])), 10)
    assert peak_of(tower, tensors, names, 10) <= chunk
    assert peak_of(tower, tensors, names, 80) > 2 * chunk, "weights are kept by reference and count in both"
