"""The metrics: each held to the library or the equation that it is named after."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.errors import ConfigError
from loralab.training.evaluation import metrics
from loralab.training.evaluation.metrics.nist import nist

ANSWERS = ["the cat sat on the mat", "a dog ran away", "The Eagle serves food."]
REFERENCES = [
    ["the cat sat on the mat", "there is a cat on the mat"],
    ["the dog ran off"],
    ["The Eagle is a pub.", "The Eagle serves cheap food.", "Cheap food at The Eagle!"],
]


def test_every_metric_scores_a_perfect_corpus_highest():
    perfect = [texts[0] for texts in REFERENCES]
    for name in metrics.REGISTRY.names:
        score = metrics.load_metrics([name])[name]
        best, other = score(perfect, REFERENCES), score(ANSWERS, REFERENCES)
        worst = score(["", "", ""], REFERENCES)
        assert best.keys() == other.keys() == worst.keys()
        for column in best:
            assert best[column] > other[column] > worst[column] == 0, column
            assert isinstance(best[column], float)
            if column != "nist":
                assert best[column] == pytest.approx(100)


def test_an_unknown_metric_and_a_missing_package_are_one_line(monkeypatch):
    with pytest.raises(ConfigError, match=r"unknown metric 'blue'.*Did you mean 'bleu'"):
        metrics.load_metrics(["blue"])
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"bleu needs .* sacrebleu: pip install 'loralab\[metrics\]'"):
        metrics.load_metrics(["exact", "bleu"])


def test_exact_takes_any_reference():
    score = metrics.load_metrics(["exact"])["exact"]
    assert score(["a", "b", "B", "c"], [["a"], ["x", "b"], ["b"], ["x"]]) == {"exact": 50.0}


def test_bleu_and_chrf_take_references_of_any_number():
    from sacrebleu import corpus_bleu, corpus_chrf

    streams = [[texts[i] if i < len(texts) else None for texts in REFERENCES] for i in range(3)]
    found = metrics.load_metrics(["bleu", "chrf"])
    assert found["bleu"](ANSWERS, REFERENCES)["bleu"] == corpus_bleu(ANSWERS, streams).score
    assert found["chrf"](ANSWERS, REFERENCES)["chrf"] == corpus_chrf(ANSWERS, streams).score


def test_rouge_takes_the_best_reference():
    score = metrics.load_metrics(["rouge"])["rouge"]
    both = score(["the dog ran"], [["a cat", "the dog sat"]])
    assert both == score(["the dog ran"], [["the dog sat"]])
    assert both == pytest.approx({"rouge1": 200 / 3, "rouge2": 50, "rougeL": 200 / 3})


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=6, max_size=15)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_nist_of_one_reference_is_that_of_nltk(pairs):
    from nltk.translate.nist_score import corpus_nist

    answers, references = zip(*pairs, strict=True)
    references = [[reference] for reference in references]
    assert nist(answers, references) == pytest.approx(corpus_nist(references, answers), abs=1e-9)


def test_nist_by_hand():
    references = [["a", "b"], ["a", "c", "c"]]
    # 5 words: a twice, c twice, b once; "a b", "a c" and "c c" once each; "a c c" once.
    unigrams = (math.log2(5 / 2) + math.log2(5 / 1) + math.log2(5 / 2)) / 3
    bigrams = (math.log2(2 / 1) + 0) / 2
    found = nist([["a", "b", "c"]], [references])
    # "b c" is in neither reference. Three tokens are more than the references' mean of two and a half.
    assert found == pytest.approx(unigrams + bigrams)


def test_nist_counts_an_ngram_as_often_as_the_reference_that_has_it_most():
    once, twice = ["a", "b"], ["b", "b"]
    info = math.log2(4 / 3)
    # Both "b" count, as `twice` has two. "b b" is there, told apart from "b" by log2(3 / 1).
    assert nist([["b", "b"]], [[once, twice]]) == pytest.approx(info + math.log2(3 / 1))


def test_short_answers_are_half_as_good_at_two_thirds_of_the_length():
    reference = ["a", "b", "c"]
    whole = math.log2(3)
    assert nist([["a", "b"]], [[reference]]) == pytest.approx(0.5 * (whole + 0))
