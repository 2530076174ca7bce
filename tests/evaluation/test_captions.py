"""Words, BLEU, ROUGE-L and CIDEr are those of COCO's evaluation, whose own output is kept here.

The numbers are what pycocoevalcap 1.2 says of these captions, words those of the Java program in it:

    gts = {i: [{"caption": c} for c in own] for i, own in enumerate(REFERENCES)}
    res = {i: [{"caption": c}] for i, c in enumerate(CAPTIONS)}
    gts, res = (PTBTokenizer().tokenize(one) for one in (gts, res))
    Bleu(4).compute_score(gts, res), Rouge().compute_score(gts, res), Cider().compute_score(gts, res)
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from annotary.evaluation._caption_tokens import PUNCTUATION, caption_tokens
from annotary.evaluation.captions import METRICS, measure_captions

REFERENCES = [
    [
        "A man's dog can't jump over the fence.",
        "The dog isn't able to jump a fence",
        "a black dog near a fence , outside",
    ],
    ["Two women in T-shirts (red) are well-dressed...", "two women talking -- in red T-shirts"],
    [
        "A child is riding a skateboard down a street at 3:45 p.m.",
        "A child rides a skateboard.",
        "child on skateboard",
        "The kid's skateboard goes down the street",
    ],
    [
        "A “no parking” sign & a 1,000 dollar car",
        'A sign that says "no parking" on 5th Ave.',
    ],
    [
        "A bowl of fruit sits on a table; it's full of apples, pears and bananas!",
        "fruit in a bowl on the table",
        "A table with a bowl of fruit",
    ],
    [
        "a group of people people people standing around",
        "People standing in a group",
        "A group of people stand around in the snow",
    ],
]
CAPTIONS = [
    "A dog can't jump over the fence.",
    "two women in red t-shirts",
    "a child riding a skateboard down the street",
    "a sign that says no parking on the street in front of a building with a car parked in front of it",
    "A fruit",
    "people people people people standing",
]
BLEU = [0.72, 0.6396021491, 0.5677559808, 0.4852804586]
BLEU_4_OF_EACH = [
    *(0.8694417438, 0.0001106269, 0.5410822689, 0.2800590078, 1.46e-08, 0.6687403046),
]
ROUGE_L = 0.6797189719
ROUGE_L_OF_EACH = [
    *(0.8714285714, 0.8944281525, 0.8291262136, 0.4885583524, 0.4039735099, 0.5907990315),
]
CIDER_D = 1.9623226257
CIDER_D_OF_EACH = [
    *(3.255296562, 3.5759636056, 2.233306045, 0.2510420645, 0.6235502176, 1.8347772593),
]

# What `java edu.stanford.nlp.process.PTBTokenizer -preserveLines -lowerCase` of CoreNLP 3.4.1 makes of lines.
TOKENS = {
    "A man's dog can't jump; it isn't able to.": "a man 's dog ca n't jump ; it is n't able to .",
    'The dogs\' owner said "hello there" to us.': "the dogs ' owner said `` hello there '' to us .",
    "A T-shirt, well-worn -- and red...": "a t-shirt , well-worn -- and red ...",
    "I cannot go, I'm gonna stay (here).": "i can not go , i 'm gon na stay -lrb- here -rrb- .",
    "U.S. flags at 3:45 p.m. on 5th Ave. in Washington, D.C.": (
        "u.s. flags at 3:45 p.m. on 5th ave. in washington , d.c. ."
    ),
    "It costs $5.50, i.e. 10% of 1,000 dollars & more.": (
        "it costs $ 5.50 , i.e. 10 % of 1,000 dollars & more ."
    ),
    "Mr. Smith and Dr. Jones vs. the St. Louis team.": (
        "mr. smith and dr. jones vs. the st. louis team ."
    ),
    "A black/white colour photo of a grey theatre centre.": (
        "a black/white colour photo of a grey theatre centre ."
    ),
    "he said 'yes' and left it's o'clock rock 'n' roll": (
        "he said ` yes ' and left it 's o'clock rock 'n' roll"
    ),
    "A woman holding a child , who is crying .": "a woman holding a child , who is crying .",
    "two dogs #1 and #2 at me@site.com or http://www.site.com/a?b=1": (
        "two dogs # 1 and # 2 at me@site.com or http://www.site.com/a?b=1"
    ),
    "They've they'll they'd we're I'd DON'T Y'all d'you": (
        "they 've they 'll they 'd we 're i 'd do n't y' all d'you"
    ),
    "A café “quoted” text — with ‘single’ it’s … end": (
        "a café `` quoted '' text -- with ` single ' it 's ... end"
    ),
    "1/2 and ½ of 20s 1990s 6’1” tall 6ft 5' 10\" ": (
        "1/2 and 1/2 of 20s 1990s 6 ' 1 '' tall 6ft 5 ' 10 ''"
    ),
    "[brackets] {braces} <tag> a*b a_b a+b = c ~ d ^ | \\ `tick` ``x''": (
        "-lsb- brackets -rsb- -lcb- braces -rcb- <tag> a * b a_b a + b = c ~ d ^ | \\ ` tick ` `` x ''"
    ),
    "!!! ?? ?! ... .. . , ;; :) :-) <3": "!!! ?? ?! ... . . . , ; ; :-rrb- :--rrb- < 3",
    " A   B\tC  ": "a b c",
    "red&white AT&T R&B a+b x=y 50% $1,200 #5 no# C++ @home 3-D 3D 2x4 1,2,3 1, 2 12:30pm 12:30 pm": (
        "red & white at&t r&b a + b x = y 50 % $ 1,200 # 5 no # c++ @home 3-d 3d 2x4 1,2,3 1 , 2 12:30 pm 12:30 pm"
    ),
    "boy'girl runs O'Reilly ma'am rock'n'roll nothin' goin' d'etat l'eau": (
        "boy ` girl runs o'reilly ma'am rock 'n' roll nothin ' goin ' d'etat l'eau"
    ),
    "a red car.The dog ran.and sat,here": "a red car.the dog ran.and sat , here",
    "the dog sat. in the sun.": "the dog sat . in the sun .",
    "#blessed @user £5 €6 #1 at 9am, 9:15am no. 5 and no. five": (
        "#blessed @user # 5 $ 6 # 1 at 9am , 9:15 am no. 5 and no . five"
    ),
    "": "",
}


@pytest.mark.parametrize("line", TOKENS, ids=range(len(TOKENS)))
def test_words_are_those_of_the_java_program(line):
    expected = [word for word in TOKENS[line].split(" ") if word and word not in PUNCTUATION]
    assert caption_tokens(line) == expected


@given(st.text(max_size=60))
def test_any_text_has_words(text):
    words = caption_tokens(text)
    assert all(word and not any(one.isspace() for one in word) for word in words)
    assert caption_tokens(f"  {text} ") == words


def test_numbers_are_those_of_cocos_evaluation():
    found = measure_captions(CAPTIONS, range(6), REFERENCES)
    metrics = found.metrics()
    assert list(metrics) == list(METRICS)
    assert [metrics[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx(BLEU, abs=1e-9)
    assert metrics["rouge_l"] == pytest.approx(ROUGE_L, abs=1e-9)
    assert metrics["cider_d"] == pytest.approx(CIDER_D, abs=1e-9)
    alone = found.of_each()
    assert alone["bleu_4"] == pytest.approx(BLEU_4_OF_EACH, rel=1e-3, abs=1e-10)
    assert alone["rouge_l"] == pytest.approx(ROUGE_L_OF_EACH, abs=1e-9)
    assert alone["cider_d"] == pytest.approx(CIDER_D_OF_EACH, abs=1e-9)


def test_cider_counts_repeated_words_and_cider_d_does_not():
    gamed = "fence fence fence fence"
    plain, fair = (
        measure_captions([text], [0], REFERENCES).of_each() for text in (gamed, CAPTIONS[0])
    )
    assert plain["cider"] > plain["cider_d"]
    assert fair["cider_d"] > plain["cider_d"]
    # By the formula: with one n-gram that is rarer than others, the plain cosine does not know how often it stands.
    once = measure_captions(["fence"], [0], REFERENCES).of_each()
    assert plain["cider"][0] == pytest.approx(once["cider"][0])


sentences = st.lists(
    st.sampled_from(["a", "dog", "cat", "runs", "on", "in", "red", "big", "the"]),
    min_size=1,
    max_size=8,
)


@given(st.lists(st.lists(sentences, min_size=1, max_size=3), min_size=2, max_size=5), st.data())
def test_captions_are_best_when_they_are_the_references(references, data):
    texts = [[" ".join(words) for words in own] for own in references]
    captions = [data.draw(st.sampled_from(own)) for own in texts]
    found = measure_captions(captions, range(len(texts)), texts).metrics()
    assert found["bleu_1"] == pytest.approx(1.0, abs=1e-6)
    assert found["rouge_l"] == pytest.approx(1.0)
    other = data.draw(sentences)
    worse = measure_captions([" ".join(other)], [0], texts).of_each()
    own = measure_captions([captions[0]], [0], [[captions[0]], *texts[1:]]).of_each()
    against = measure_captions([" ".join(other)], [0], [[captions[0]], *texts[1:]]).of_each()
    assert own["cider_d"][0] >= against["cider_d"][0] - 1e-9
    for name, values in worse.items():
        assert 0.0 <= values[0] <= (10.0 if name.startswith("cider") else 1.0) + 1e-9


@given(st.permutations(range(6)))
def test_the_order_of_images_changes_nothing(order):
    found = measure_captions([CAPTIONS[i] for i in order], range(6), [REFERENCES[i] for i in order])
    expected = measure_captions(CAPTIONS, range(6), REFERENCES).metrics()
    assert found.metrics() == pytest.approx(expected)


@given(st.lists(sentences, min_size=1, max_size=3), sentences)
def test_bleu_and_rouge_are_what_their_definitions_say(references, words):
    assume(any(set(words) & set(own) for own in references))
    found = measure_captions([" ".join(words)], [0], [[" ".join(own) for own in references]])
    right = sum(
        min(words.count(word), max(own.count(word) for own in references)) for word in set(words)
    )
    nearest = min((abs(len(own) - len(words)), len(own)) for own in references)[1]
    brevity = math.exp(min(0.0, 1 - nearest / len(words)))
    assert found.metrics()["bleu_1"] == pytest.approx(right / len(words) * brevity, abs=1e-6)
    assert 0.0 < found.metrics()["rouge_l"] <= 1.0


def test_one_image_has_no_cider():
    metrics = measure_captions(["a dog"], [0], [["a dog runs"]]).metrics()
    assert metrics["cider"] is None
    assert metrics["cider_d"] is None
    assert metrics["bleu_1"] > 0
    intervals = measure_captions(["a dog"], [0], [["a dog runs"]]).intervals(rounds=10)
    assert intervals["cider_d"] is None
    assert intervals["bleu_1"].low == intervals["bleu_1"].high


def test_empty_captions_and_references_of_punctuation_alone():
    metrics = measure_captions(["", "..."], [0, 1], [["a dog"], ["!"]]).metrics()
    assert all(value is None or value < 1e-6 for value in metrics.values())


def test_intervals_hold_the_value_and_follow_the_seed():
    found = measure_captions(CAPTIONS, range(6), REFERENCES)
    intervals = found.intervals(seed=3, rounds=300)
    for name, value in found.metrics().items():
        assert intervals[name].low <= value <= intervals[name].high
        assert intervals[name].low < intervals[name].high
    assert found.intervals(seed=3, rounds=300) == intervals
    assert found.intervals(seed=4, rounds=300) != intervals


def test_captions_of_one_image_are_drawn_together():
    twice = measure_captions([CAPTIONS[0], CAPTIONS[4]], [0, 0], REFERENCES)
    intervals = twice.intervals(rounds=50)
    assert intervals["rouge_l"].low == pytest.approx(intervals["rouge_l"].high)


@pytest.mark.parametrize(
    ("captions", "images", "references"),
    [([], [], [["a"]]), (["a"], [0, 1], [["a"]]), (["a"], [0], [[]])],
)
def test_what_makes_no_sense_is_refused(captions, images, references):
    with pytest.raises(ValueError, match=r"expected an image|one reference"):
        measure_captions(captions, images, references)


def test_scores_of_each_are_arrays_of_floats():
    found = measure_captions(CAPTIONS, range(6), REFERENCES).of_each()
    assert all(value.dtype == np.float64 and value.shape == (6,) for value in found.values())
