import itertools

import pytest
import torch
from helpers import apart, local_cnns
from hypothesis import given
from hypothesis import strategies as st

from ddlib import CNNDNN, Decomposition, DenseAggregator, average_probability, majority_vote
from ddlib.aggregation import geometric_mean
from ddlib.study.importance import importance


@st.composite
def probabilities(draw, most_subdomains=7, most_classes=5):
    """(B, N, K) distributions with a few repeated values, so that ties happen."""
    size = (draw(st.integers(1, 4)), draw(st.integers(1, most_subdomains)), draw(st.integers(2, most_classes)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    levels = draw(st.sampled_from([2, 4, 1000]))
    p = torch.randint(1, 1 + levels, size, generator=generator).double()
    return p / p.sum(2, keepdim=True)


@given(probabilities())
def test_average_and_geometric_mean(p):
    assert torch.allclose(average_probability(p), p.sum(1) / p.shape[1])
    product = p.prod(1) ** (1 / p.shape[1])
    assert torch.allclose(geometric_mean(p), product / product.sum(1, keepdim=True))


def votes_of(p):
    """Counts of the local CNNs' most probable classes, (B, K); the first of several."""
    counts = torch.zeros(p.shape[0], p.shape[2], dtype=torch.int64)
    for b in range(p.shape[0]):
        for n in range(p.shape[1]):
            counts[b, p[b, n].tolist().index(p[b, n].max().item())] += 1
    return counts


@given(probabilities())
def test_shares_of_the_votes_are_ordered_like_counts_and_sum_to_one(p):
    """The most votes win; among those with the most, the highest average probability."""
    q, counts, mean = majority_vote(p), votes_of(p), p.mean(1)
    assert torch.allclose(q.sum(1), torch.ones(len(p), dtype=p.dtype))
    assert (q >= 0).all()
    for b in range(len(p)):
        for i in range(p.shape[2]):
            for j in range(p.shape[2]):
                if counts[b, i] > counts[b, j] or (counts[b, i] == counts[b, j] and mean[b, i] > mean[b, j] + 1e-12):
                    assert q[b, i] > q[b, j]


@given(probabilities())
def test_ties_can_go_to_the_first_class_as_in_a_plain_argmax(p):
    counts = votes_of(p).tolist()
    assert majority_vote(p, ties="first").argmax(1).tolist() == [row.index(max(row)) for row in counts]


@pytest.mark.parametrize(("start", "aggregate"), [("average", average_probability), ("geometric", geometric_mean)])
def test_before_its_first_step_a_correction_is_the_aggregate(start, aggregate):
    p = torch.rand(5, 3, 4).softmax(-1)
    assert apart(DenseAggregator(3, 4, start=start)(p).softmax(1).detach(), aggregate(p)) < 1e-5


@pytest.mark.parametrize("aggregate", [average_probability, majority_vote, DenseAggregator(3, 4)])
def test_what_is_no_local_probability_is_refused(aggregate):
    for p, told in ((torch.rand(3, 4), r"\(B, N, K\).*\(3, 4\)"), (torch.zeros(1, 3, 4).long(), r"int64")):
        with pytest.raises(ValueError, match=told):
            aggregate(p)


@pytest.mark.parametrize("hidden", [(), (5,), (128, 128, 128)])
def test_dense_network(hidden):
    head = DenseAggregator(3, 4, hidden)
    assert head(torch.rand(7, 3, 4)).shape == (7, 4)
    widths = [12, *hidden, 4]
    weights = [tuple(p.shape) for p in head.parameters() if p.ndim == 2]
    assert weights == [(out, inputs) for inputs, out in itertools.pairwise(widths)]
    p = torch.rand(2, 3, 4)
    assert not torch.equal(head(p), head(p.flip(1)))  # it knows which subdomain says what


def test_a_dense_network_of_log_probabilities_is_the_plain_one_on_their_logarithms():
    torch.manual_seed(0)
    plain, logs = DenseAggregator(3, 4), DenseAggregator(3, 4, log_probabilities=True)
    logs.load_state_dict(plain.state_dict())
    p = torch.rand(5, 3, 4).softmax(-1)
    assert torch.equal(logs(p), plain(p.log()))
    certain = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2]]), 4).float()
    assert logs(certain).isfinite().all()


def test_a_dense_network_that_cannot_be_and_probabilities_of_another_size_are_refused():
    for arguments, told in (((0, 4), "num_subdomains.*0"), ((3, 1), "num_classes.*1"), ((3, 4, (8, 0)), "hidden.*0")):
        with pytest.raises(ValueError, match=told):
            DenseAggregator(*arguments)
    with pytest.raises(ValueError, match=r"\(B, 3, 4\), got \(2, 4, 3\)"):
        DenseAggregator(3, 4)(torch.rand(2, 4, 3))


def test_dense_network_computes_in_full_precision_under_autocast():
    head, p = DenseAggregator(3, 4), torch.rand(5, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(p)
        assert torch.nn.functional.linear(p, torch.rand(4, 4)).dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert torch.equal(logits, head(p))


@pytest.mark.parametrize(("subdomains", "classes"), [(3, 4), (4, 5)])
def test_a_dense_network_for_other_local_cnns_is_refused(subdomains, classes):
    local = local_cnns("vgg9", Decomposition.grid((8, 8), 2))
    with pytest.raises(ValueError, match=rf"4 local CNNs with 4 classes.*{subdomains} subdomains and {classes} class"):
        CNNDNN(local, DenseAggregator(subdomains, classes))


def test_the_coherent_model_is_the_dense_network_on_local_probabilities():
    local = local_cnns("vgg9", Decomposition.grid((8, 8), 2)).eval()
    model = CNNDNN(local, DenseAggregator(4, 4)).eval()
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        each = torch.stack([local.subnet(i)(w).softmax(1) for i, w in enumerate(local.decomposition.cut(x))], 1)
        assert apart(local.probabilities(x), each) < 1e-5
        assert apart(model(x), model.head(each)) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert local.probabilities(x).dtype == torch.float32


def test_importance_is_what_is_lost_without_a_subdomain():
    """A dense network that looks at subdomain 1 alone: the others are worth nothing, that one all but chance."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    p = torch.rand((400, 3, 4), generator=generator).softmax(-1)
    p[:, 1] = torch.nn.functional.one_hot(labels, 4).float()
    head = DenseAggregator(3, 4, hidden=())
    with torch.no_grad():
        head.layers[0].weight.zero_()
        head.layers[0].weight[:, 4:8] = torch.eye(4)
    first, second, third = importance(head, p, labels)
    assert first == pytest.approx(0, abs=1e-12)
    assert third == pytest.approx(0, abs=1e-12)
    assert second == pytest.approx(0.75, abs=0.02)
    assert importance(head, p, labels, seed=1) != importance(head, p, labels, seed=0)
    assert importance(head, p, labels, seed=1) == importance(head, p, labels, seed=1)
